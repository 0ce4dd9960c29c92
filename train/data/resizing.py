"""Resizes images."""

import numpy as np

from train.data.limits import MAX_ENLARGED_PIXELS
from train.data.opencv import cv2


def resize(image: np.ndarray, height: int, width: int, *, quick: bool = False) -> np.ndarray:
    """Resizes an image to any proportions.

    If both sides shrink, every output pixel is the mean of its area, without aliasing; otherwise interpolation is
    linear.

    Args:
        image: (h, w, channels) uint8.
        height: rows of the output.
        width: columns of the output.
        quick: also interpolate linearly down to half the size, which still uses almost every pixel and takes a sixth
            of the time.

    Returns:
        (height, width, channels) uint8.
    """
    factor = 2 if quick else 1
    shrinks = image.shape[0] >= factor * height and image.shape[1] >= factor * width
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.reshape(height, width, image.shape[2])  # OpenCV drops a single channel


def resize_shorter(image: np.ndarray, side: int) -> np.ndarray:
    """Resizes the shorter side of an image to `side` pixels and keeps its proportions, rounded to whole pixels.

    A strip so long that the output would exceed `MAX_ENLARGED_PIXELS` is first cropped to its middle.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    if height * width > shorter**2 and side * side * (max(height, width) / shorter) > MAX_ENLARGED_PIXELS:
        image = _middle(image, shorter * (MAX_ENLARGED_PIXELS // side**2))
        height, width = image.shape[:2]
    return resize(image, max(side, round(height * side / shorter)), max(side, round(width * side / shorter)))


def _middle(image: np.ndarray, length: int) -> np.ndarray:
    """Crops the longer side to its middle, at most `length` pixels, around the same centre."""
    longer = max(image.shape[:2])
    first = max(0, (longer - length + 1) // 2)
    inside = slice(first, longer - first)
    return image[inside] if image.shape[0] == longer else image[:, inside]
