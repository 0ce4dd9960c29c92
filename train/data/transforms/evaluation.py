"""The crops that evaluate a classifier: the centre, or ten crops."""

from collections.abc import Callable

import numpy as np

from train.data.images import Image, as_pixels
from train.data.resizing import resize_shorter
from train.data.source import Source
from train.errors import UserError

_CROP_SHARE = 0.875  # of the shorter side; 224 of 256, as is usual for ImageNet


def create_evaluation(
    source: Source, *, eval_size: int = 0, eval_resize: int = 0, eval_crops: int = 1
) -> Callable[[Image], np.ndarray]:
    """Makes the deterministic transform of evaluation and prediction.

    The shorter side is resized to `eval_resize`, and the crops have `eval_size`. If all images of the source have one
    size, the default is no resizing, and `eval_size` alone resizes the whole image.

    Args:
        source: the source of the images.
        eval_size: ``config.task.eval_size``: the side of the crop in pixels, or 0 for the source's input size.
        eval_resize: ``config.task.eval_resize``: the shorter side before the crop, or 0 for the default: the crop's
            side, divided by 0.875 if sizes vary.
        eval_crops: ``config.task.eval_crops``: 1 or 10.

    Returns:
        Maps an image, decoded or not, to (height, width, channels) uint8, or with `eval_crops` 10 to
        (10, height, width, channels): the corners, top left, top right, bottom left and bottom right, the centre, and
        the flips of these five (Krizhevsky et al. 2012, section 4.1).

    Raises:
        UserError: if the crop is larger than the resized image.
    """
    height, width, channels = source.image_shape
    if eval_size:
        height = width = eval_size
    longer = max(height, width)
    default = longer if source.is_sized else round(longer / _CROP_SHARE)
    shorter = eval_resize or default
    if shorter < longer:
        raise UserError(
            f"config.task.eval_resize is {eval_resize} but the evaluated crop has {height} x {width} pixels; "
            f"set it to at least {longer}, or to 0 for {default}"
        )
    is_resized = bool(not source.is_sized or eval_size or eval_resize)

    def evaluate(image: Image) -> np.ndarray:
        pixels = as_pixels(image, channels)
        if is_resized:
            pixels = resize_shorter(pixels, shorter)
        down, right = pixels.shape[0] - height, pixels.shape[1] - width
        places = [(round(down / 2), round(right / 2))]
        if eval_crops == 10:
            places = [(0, 0), (0, right), (down, 0), (down, right), *places]
        crops = np.stack([pixels[top : top + height, left : left + width] for top, left in places])
        return np.concatenate([crops, crops[:, :, ::-1]]) if eval_crops == 10 else crops[0]

    return evaluate
