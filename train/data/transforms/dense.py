"""Operations on an image and the classes of its pixels, by the rules of PyConvSegNet's and PSPNet's public code.

Images are (height, width, channels) of 0 to 255, usually float32; labels are (height, width) integers. All is exact but
for the rounding of float32: OpenCV interpolates floating-point images without fixed-point weights.
"""

import math
from collections.abc import Sequence

import numpy as np

from train.data.opencv import cv2

__all__ = ["blur", "crop", "flip", "pad", "rescale", "rotate", "rotation_matrix"]


def rescale(image: np.ndarray, label: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Resizes by a factor, to sides rounded half to even, at least 1.

    Pixel i shows the place (i + 0.5) / factor - 0.5 of the image, linearly interpolated without smoothing, and the
    label floor(i / factor): the factor is the exact one, not the ratio of the sides.

    Example:
        >>> image, label = rescale(np.zeros((5, 7, 3), np.float32), np.arange(35).reshape(5, 7), 0.5)
        >>> image.shape, label.tolist()
        ((2, 4, 3), [[0, 2, 4, 6], [14, 16, 18, 20]])
    """
    height, width = (max(1, round(side * factor)) for side in label.shape)
    if min(label.shape) * factor > 0.5:
        resized = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    else:  # OpenCV would round a side to 0
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    rows, columns = (
        np.minimum(np.floor(np.arange(new) / factor).astype(np.intp), old - 1)
        for new, old in zip((height, width), label.shape, strict=True)
    )
    return _with_channels(resized, image), label[rows[:, None], columns]


def rotation_matrix(height: int, width: int, degrees: float) -> np.ndarray:
    """The (3, 3) matrix that turns about (width / 2, height / 2), counter-clockwise on the screen.

    It maps places of the source to places of the output, (x, y, 1), for which a pixel's centre is a whole number, as
    OpenCV's matrices do.
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
    """Turns counter-clockwise about the middle; the size stays.

    The image is linearly interpolated, with `mean` beyond its edges; the label is the nearest pixel's, and `ignore`
    beyond them.
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
    """Smooths by the kernel (1, 4, 6, 4, 1) / 16 along either axis; the outermost pixels are mirrors."""
    return _with_channels(cv2.GaussianBlur(image, (5, 5), 0, borderType=cv2.BORDER_REFLECT_101), image)


def flip(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exchanges left and right."""
    return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(label[:, ::-1])


def pad(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], mean: Sequence[float], ignore: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pads to at least `size`, half of it before, rounded down: the image by `mean`, the label by `ignore`."""
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
    """Pads to at least `size`, as `pad` does, and takes a part of it.

    Args:
        image: the image.
        label: its labels.
        size: height and width of the part.
        corner: top and left of the part in the padded image; None takes the middle, rounded down.
        mean: of each channel, which fills the image.
        ignore: the label that fills the labels.

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
    """OpenCV drops a single channel."""
    return image.reshape(*image.shape[:2], before.shape[2])
