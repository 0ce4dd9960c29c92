"""TrivialAugmentWide: one operation of fourteen, of random strength (Müller & Hutter 2021, arXiv 2103.10158).

Operations, their 31 strengths and signs are those of torchvision's TrivialAugmentWide, with linear interpolation and
black padding.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from train.data.opencv import cv2
from train.data.sample import Generator, Sample
from train.data.transforms.colours import as_bytes, brightness, contrast, saturation
from train.data.transforms.geometry import from_indices, move

BINS = 31
_SMOOTH = np.array(((1, 1, 1), (1, 5, 1), (1, 1, 1)), np.float32) / 13


def fetch(image: np.ndarray, to_input: np.ndarray) -> np.ndarray:
    """Samples the input at the coordinates of every output pixel, by a (2, 3) matrix from output to input."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, to_input, image.shape[1::-1], flags=flags).reshape(image.shape)


def rotation(height: int, width: int, degrees: float) -> np.ndarray:
    """Makes the (2, 3) matrix of a rotation about the centre, from output to input indices."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    y, x = (height - 1) / 2, (width - 1) / 2
    return np.array(((cosine, -sine, x - cosine * x + sine * y), (sine, cosine, y - sine * x - cosine * y)), np.float64)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with a smoothed image, like Pillow's ImageEnhance; border pixels stay."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH).reshape(image.shape)[1:-1, 1:-1]
    return cv2.addWeighted(image, factor, smooth, 1 - factor, 0).reshape(image.shape)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the leading bits of every value."""
    return image & np.uint8(256 - (1 << (8 - bits)))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Inverts values of at least `threshold`."""
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


# Each maps height, width and signed strength to a matrix for `fetch`.
MOVEMENTS: dict[str, Callable[[int, int, float], np.ndarray]] = {
    "shear_x": lambda height, width, by: np.array(((1, by, 0), (0, 1, 0)), np.float64),
    "shear_y": lambda height, width, by: np.array(((1, 0, 0), (by, 1, 0)), np.float64),
    "translate_x": lambda height, width, by: np.array(((1, 0, -int(by)), (0, 1, 0)), np.float64),
    "translate_y": lambda height, width, by: np.array(((1, 0, 0), (0, 1, -int(by))), np.float64),
    "rotate": rotation,
}
# Each maps an image and a signed strength to a new image.
COLOURS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "identity": lambda image, _: image,
    "brightness": lambda image, by: brightness(image, 1 + by),
    "color": lambda image, by: saturation(image, 1 + by),
    "contrast": lambda image, by: contrast(image, 1 + by),
    "sharpness": lambda image, by: sharpness(image, 1 + by),
    "posterize": lambda image, lost: posterize(image, 8 - round(lost)),
    "solarize": lambda image, by: solarize(image, 255 - by),
    "autocontrast": lambda image, _: autocontrast(image),
    "equalize": lambda image, _: equalize(image),
}
# The largest strength of each operation, and whether its sign is random; in torchvision's order.
STRENGTHS: dict[str, tuple[float, bool]] = {
    "identity": (0, False),
    "shear_x": (0.99, True),
    "shear_y": (0.99, True),
    "translate_x": (32, True),
    "translate_y": (32, True),
    "rotate": (135, True),
    "brightness": (0.99, True),
    "color": (0.99, True),
    "contrast": (0.99, True),
    "sharpness": (0.99, True),
    "posterize": (6, False),
    "solarize": (255, False),
    "autocontrast": (0, False),
    "equalize": (0, False),
}
_NAMES = tuple(STRENGTHS)


@dataclasses.dataclass(frozen=True)
class TrivialAugment:
    """Applies a uniformly random operation with one of 31 uniformly random strengths; it has no arguments."""

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Maps a sample to one with a uint8 image of the same shape; geometric operations also move the annotations."""
        name = _NAMES[rng.integers(len(_NAMES))]
        largest, is_signed = STRENGTHS[name]
        strength = largest * int(rng.integers(BINS)) / (BINS - 1)
        return apply(sample, name, -strength if is_signed and rng.random() < 0.5 else strength)


def apply(sample: Sample, name: str, strength: float) -> Sample:
    """Applies the operation `name` with a signed strength."""
    image = as_bytes(sample.pixels)
    if name in COLOURS:
        return sample.replace(image=COLOURS[name](image, strength))
    to_input = MOVEMENTS[name](image.shape[0], image.shape[1], strength)
    return move(sample, fetch(image, to_input), np.linalg.inv(from_indices(to_input)))
