"""Operations on an image and its segmentation, by the rules of PyConvSegNet's and PSPNet's public code.

Images are (height, width, channels) of 0 to 255, usually float32; labels are (height, width) integers. Operations are
exact up to float32 rounding, because OpenCV interpolates floating-point images without fixed-point weights.
"""

import math
from collections.abc import Sequence

import numpy as np

from train.data.opencv import cv2

__all__ = ["blur", "crop", "flip", "pad", "rescale", "rotate", "rotation_matrix"]


def rescale(image: np.ndarray, label: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Resizes by a factor; sides are rounded half to even, at least 1.

    Pixel i samples the image at (i + 0.5) / factor - 0.5, with linear interpolation and without smoothing, and the
    label at floor(i / factor), with the exact factor instead of the ratio of the sides.

    Example:
        >>> image, label = rescale(np.zeros((5, 7, 3), np.float32), np.arange(35).reshape(5, 7), 0.5)
        >>> image.shape, label.tolist()
        ((2, 4, 3), [[0, 2, 4, 6], [14, 16, 18, 20]])
    """
    height, width = (max(1, round(side * factor)) for side in label.shape)
    if min(label.shape) * factor > 0.5:
        resized = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    else:  # OpenCV would round a side down to 0
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    rows, columns = (
        np.minimum(np.floor(np.arange(new) / factor).astype(np.intp), old - 1)
        for new, old in zip((height, width), label.shape, strict=True)
    )
    return _with_channels(resized, image), label[rows[:, None], columns]


def rotation_matrix(height: int, width: int, degrees: float) -> np.ndarray:
    """Makes the (3, 3) matrix of a counter-clockwise rotation about (width / 2, height / 2).

    It maps source coordinates (x, y, 1) to output coordinates. As in OpenCV, pixel centres are integers.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return np.array(
        (
            (cosine, sine, (1 - cosine) * x - sine * y),
            (-sine, cosine, sine * x + (1 - cosine) * y),
            (0, 0, 1),
        )
    )


def rotate(
    image: np.ndarray, label: np.ndarray, degrees: float, mean: Sequence[float], ignore: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rotates counter-clockwise about the middle and keeps the size.

    The image is interpolated linearly and padded with `mean`; the label is the nearest pixel's, padded with `ignore`.
    """
    height, width = label.shape
    matrix = rotation_matrix(height, width, degrees)[:2]
    turned = cv2.warpAffine(
        image,
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=tuple(map(float, mean)),
    )
    labels = cv2.warpAffine(
        label,
        matrix,
        (width, height),
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(float(ignore),),
    )
    return _with_channels(turned, image), labels


def blur(image: np.ndarray) -> np.ndarray:
    """Convolves both axes with (1, 4, 6, 4, 1) / 16; the padding reflects about the edge pixels."""
    return _with_channels(cv2.GaussianBlur(image, (5, 5), 0, borderType=cv2.BORDER_REFLECT_101), image)


def flip(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flips horizontally."""
    return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(label[:, ::-1])


def pad(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], mean: Sequence[float], ignore: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pads to at least `size`, half (rounded down) in front: the image with `mean`, the label with `ignore`."""
    height, width = (max(side, least) for side, least in zip(label.shape, size, strict=True))
    top, left = (height - label.shape[0]) // 2, (width - label.shape[1]) // 2
    inside = (slice(top, top + label.shape[0]), slice(left, left + label.shape[1]))
    wider = np.empty((height, width, image.shape[-1]), image.dtype)
    wider[:] = mean
    wider[inside] = image
    labels = np.full((height, width), ignore, label.dtype)
    labels[inside] = label
    return wider, labels


def crop(
    image: np.ndarray,
    label: np.ndarray,
    size: tuple[int, int],
    corner: tuple[int, int] | None,
    mean: Sequence[float],
    ignore: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Pads to at least `size` like `pad`, then crops.

    Args:
        image: the image.
        label: its labels.
        size: height and width of the crop.
        corner: top and left of the crop in the padded image; None for the middle, rounded down.
        mean: the padding of each channel of the image.
        ignore: the padding of the labels.

    Example:
        >>> image, label = crop(np.zeros((2, 5, 1), np.uint8), np.arange(10).reshape(2, 5), (4, 3), None, (9,), 255)
        >>> label.tolist()
        [[255, 255, 255], [1, 2, 3], [6, 7, 8], [255, 255, 255]]
    """
    image, label = pad(image, label, size, mean, ignore)
    if corner is None:
        corner = ((label.shape[0] - size[0]) // 2, (label.shape[1] - size[1]) // 2)
    part = (slice(corner[0], corner[0] + size[0]), slice(corner[1], corner[1] + size[1]))
    return image[part], label[part]


def _with_channels(image: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Restores the channel axis, which OpenCV drops for one channel."""
    return image.reshape(*image.shape[:2], before.shape[2])
