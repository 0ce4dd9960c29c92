"""TrivialAugmentWide: one operation of fourteen, of random strength (Müller & Hutter 2021, arXiv 2103.10158).

The operations, their 31 strengths and the signs are those of torchvision's TrivialAugmentWide; pixels are interpolated
linearly, and black enters at the border.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from train.data.augment.colours import brightness, contrast, saturation
from train.data.opencv import cv2

BINS = 31
_SMOOTH = np.array(((1, 1, 1), (1, 5, 1), (1, 1, 1)), np.float32) / 13


def _affine(image: np.ndarray, to_input: tuple[tuple[float, float, float], tuple[float, float, float]]) -> np.ndarray:
    """Fetches every pixel of the output from where the matrix says in the input."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    matrix = np.array(to_input, np.float64)
    return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=flags).reshape(image.shape)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turns about the centre."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    y, x = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    return _affine(image, ((cosine, -sine, x - cosine * x + sine * y), (sine, cosine, y - sine * x - cosine * y)))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with a smoothed image, as Pillow's ImageEnhance does; the border stays."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH).reshape(image.shape)[1:-1, 1:-1]
    return cv2.addWeighted(image, factor, smooth, 1 - factor, 0).reshape(image.shape)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the leading bits of every value."""
    return image & np.uint8(256 - (1 << (8 - bits)))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Inverts the values from the threshold on."""
    return np.where(image >= threshold, 255 - image, image)


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to 0..255."""
    result = image.copy()
    for channel in range(image.shape[-1]):
        low, high = int(image[..., channel].min()), int(image[..., channel].max())
        if high > low:
            levels = (np.arange(256) - low) * (255 / (high - low))
            result[..., channel] = np.clip(levels, 0, 255).astype(np.uint8)[image[..., channel]]
    return result


def equalize(image: np.ndarray) -> np.ndarray:
    """Flattens the histogram of each channel, by Pillow's rule."""
    result = image.copy()
    for channel in range(image.shape[-1]):
        counts = np.bincount(image[..., channel].ravel(), minlength=256)
        used = counts[counts > 0]
        step = (used.sum() - used[-1]) // 255
        if len(used) > 1 and step:
            before = np.cumsum(counts) - counts
            levels = np.minimum((step // 2 + before) // step, 255).astype(np.uint8)
            result[..., channel] = levels[image[..., channel]]
    return result


# From an image and a strength, with its sign, to a new image; the largest strength; whether the sign is drawn.
_Operation = Callable[[np.ndarray, float], np.ndarray]
OPERATIONS: dict[str, tuple[_Operation, float, bool]] = {
    "identity": (lambda image, _: image, 0, False),
    "shear_x": (lambda image, by: _affine(image, ((1, by, 0), (0, 1, 0))), 0.99, True),
    "shear_y": (lambda image, by: _affine(image, ((1, 0, 0), (by, 1, 0))), 0.99, True),
    "translate_x": (lambda image, by: _affine(image, ((1, 0, -int(by)), (0, 1, 0))), 32, True),
    "translate_y": (lambda image, by: _affine(image, ((1, 0, 0), (0, 1, -int(by)))), 32, True),
    "rotate": (rotate, 135, True),
    "brightness": (lambda image, by: brightness(image, 1 + by), 0.99, True),
    "color": (lambda image, by: saturation(image, 1 + by), 0.99, True),
    "contrast": (lambda image, by: contrast(image, 1 + by), 0.99, True),
    "sharpness": (lambda image, by: sharpness(image, 1 + by), 0.99, True),
    "posterize": (lambda image, lost: posterize(image, 8 - round(lost)), 6, False),
    "solarize": (lambda image, by: solarize(image, 255 - by), 255, False),
    "autocontrast": (lambda image, _: autocontrast(image), 0, False),
    "equalize": (lambda image, _: equalize(image), 0, False),
}
_NAMES = tuple(OPERATIONS)


@dataclasses.dataclass(frozen=True)
class TrivialAugment:
    """Applies one operation, drawn uniformly, with one of 31 strengths, drawn uniformly; it takes no arguments."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Maps an image to a new one of the same shape."""
        operation, largest, is_signed = OPERATIONS[_NAMES[rng.integers(len(_NAMES))]]
        strength = largest * int(rng.integers(BINS)) / (BINS - 1)
        return operation(image, -strength if is_signed and rng.random() < 0.5 else strength)
