"""Segmentation of images of any size: overlapping windows, mirrors and several scales.

This is the rule of PyConvSegNet's and PSPNet's public code (tool/test.py) without its bug: with `base_size` 0 it
resizes every image to the longer side of the first.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from train.data.opencv import cv2
from train.errors import UserError

_MAX_CHANNELS = 64  # of an array to resize; OpenCV's limit is 128

WindowProbabilities = Callable[[np.ndarray], np.ndarray]


def sliding_probabilities(
    image: np.ndarray,
    window_probabilities: WindowProbabilities,
    *,
    crop: tuple[int, int],
    base_size: int = 512,
    scales: Sequence[float] = (1.0,),
    mean: Sequence[float],
    mirror: bool = True,
    stride_rate: float = 2 / 3,
    batch_size: int = 4,
) -> np.ndarray:
    """Averages the probabilities of every pixel over windows, mirrored windows and scales.

    Args:
        image: (height, width, channels), values 0 to 255.
        window_probabilities: from windows (n, *crop, channels) float32 of 0 to 255 to probabilities
            (n, *crop, classes).
        crop: height and width of the windows.
        base_size: longer side of the image at scale 1, in pixels; 0 keeps the image's.
        scales: of `base_size`.
        mean: of each channel, 0 to 255; pads an image that is smaller than a window.
        mirror: whether each window is also mirrored.
        stride_rate: the stride of the windows over their side; strides are rounded up.
        batch_size: windows at a time, and as many mirrored ones; limits the memory.

    Returns:
        (height, width, classes) float32.

    Raises:
        UserError: if a setting is out of range.

    Example:
        >>> def brightness(windows):
        ...     share = windows.mean(-1, keepdims=True) / 255
        ...     return np.concatenate([1 - share, share], -1)
        >>> image = np.full((3, 20, 3), 51, np.uint8)
        >>> found = sliding_probabilities(image, brightness, crop=(9, 9), base_size=24, mean=(51, 51, 51))
        >>> found.shape, [round(value, 4) for value in found[0, 0].tolist()]
        ((3, 20, 2), [0.8, 0.2])
    """
    if not scales or min(scales) <= 0:
        raise UserError(f"scales are {tuple(scales)} but must be positive numbers, at least one, such as (1.0,)")
    if not 0 < stride_rate <= 1:
        raise UserError(f"stride_rate is {stride_rate} but must be in (0, 1]; larger ones leave gaps")
    if min(*crop, batch_size) < 1 or base_size < 0:
        raise UserError(
            f"crop {crop} and batch_size {batch_size} must be at least 1, base_size {base_size} at least 0, which "
            "stands for the image's"
        )
    image = image.astype(np.float32)
    height, width = image.shape[:2]
    longer = max(height, width)
    total = np.zeros((), np.float32)
    for scale in scales:
        long_side = max(1, round(scale * (base_size or longer)))
        scaled_height, scaled_width = (
            long_side if side == longer else max(1, round(long_side / longer * side)) for side in (height, width)
        )
        scaled = _resized(image, scaled_height, scaled_width)
        found = _window_mean(scaled, window_probabilities, crop, mean, mirror, stride_rate, batch_size)
        total = total + _resized(found, height, width)
    return total / np.float32(len(scales))


def _resized(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes (h, w, channels) by linear interpolation between pixel centres, without smoothing."""
    parts = []
    for first in range(0, maps.shape[-1], _MAX_CHANNELS):
        part = np.ascontiguousarray(maps[..., first : first + _MAX_CHANNELS])
        resized = cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
        parts.append(resized.reshape(height, width, -1))  # OpenCV drops a single channel
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _window_mean(
    image: np.ndarray,
    window_probabilities: WindowProbabilities,
    crop: tuple[int, int],
    mean: Sequence[float],
    mirror: bool,
    stride_rate: float,
    batch_size: int,
) -> np.ndarray:
    """Averages over the windows of one scaled image; returns (height, width, classes)."""
    height, width, channels = image.shape
    padded_height, padded_width = max(height, crop[0]), max(width, crop[1])
    top, left = (padded_height - height) // 2, (padded_width - width) // 2
    padded = np.empty((padded_height, padded_width, channels), np.float32)
    padded[:] = mean
    padded[top : top + height, left : left + width] = image
    corners = [
        (y, x)
        for y in _starts(padded_height, crop[0], stride_rate)
        for x in _starts(padded_width, crop[1], stride_rate)
    ]
    visits = np.zeros((padded_height, padded_width, 1), np.float32)
    total: np.ndarray | None = None
    for batch in _batches(corners, batch_size):
        windows = np.stack([padded[y : y + crop[0], x : x + crop[1]] for y, x in batch])
        views = np.concatenate([windows, windows[:, :, ::-1]]) if mirror else windows
        found = np.asarray(window_probabilities(views))
        if mirror:
            plain, mirrored = found[: len(batch)], found[len(batch) :]
            found = (plain + mirrored[:, :, ::-1]) / 2
        if total is None:
            total = np.zeros((padded_height, padded_width, found.shape[-1]), np.float32)
        for probabilities, (y, x) in zip(found, batch, strict=True):
            total[y : y + crop[0], x : x + crop[1]] += probabilities
            visits[y : y + crop[0], x : x + crop[1]] += 1
    assert total is not None  # there is at least one window
    total /= visits
    return total[top : top + height, left : left + width]


def _starts(size: int, crop: int, stride_rate: float) -> list[int]:
    """Returns the starts of windows of `crop` pixels that cover `size` pixels; the last window ends at the border."""
    stride = math.ceil(crop * stride_rate)
    count = math.ceil((size - crop) / stride) + 1
    return [min(number * stride, size - crop) for number in range(count)]


def _batches(corners: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for first in range(0, len(corners), size):
        yield corners[first : first + size]
