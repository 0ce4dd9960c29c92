"""Colour and brightness operations, and the transforms that draw their strength.

The operations take (height, width, channels) uint8 images and follow the definitions of Pillow and torchvision. A
factor of 1 is the identity, 0 the extreme. The transforms change the image only.
"""

import dataclasses

import numpy as np

from train.data.opencv import cv2
from train.data.sample import Generator, Sample
from train.data.transforms.checks import has_three_channels, in_range

_LEVELS = np.arange(256, dtype=np.float64)

# Krizhevsky et al. 2012, section 4.1: roots of the eigenvalues and eigenvectors (columns) of the covariance of
# ImageNet's red, green and blue, scaled to 0..1.
_PCA_DEVIATIONS = np.array((0.2175, 0.0188, 0.0045))
_PCA_DIRECTIONS = np.array(
    (
        (-0.5675, 0.7192, 0.4009),
        (-0.5808, -0.0045, -0.8140),
        (-0.5836, -0.6948, 0.4203),
    )
)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with black."""
    return _mapped(image, _LEVELS * factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the mean grey of the image."""
    mean = int(_grey(image).mean() + 0.5)
    return _mapped(image, mean + (_LEVELS - mean) * factor)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the grey image; the identity for grey images."""
    if image.shape[-1] == 1:
        return image
    return cv2.addWeighted(image, factor, cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB), 1 - factor, 0)


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Rotates the hue by a fraction of the circle, -0.5 to 0.5; the identity for grey images."""
    if image.shape[-1] == 1:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(shift * 255) % 256)  # wraps around
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """Rounds and clips values to uint8; the identity for uint8 images."""
    return image if image.dtype == np.uint8 else np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    return image[..., 0] if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _mapped(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Maps every value by a table of 256 levels, clipped and truncated to uint8."""
    return np.clip(levels, 0, 255).astype(np.uint8)[image]


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue in random order (torchvision's ColorJitter).

    Args:
        shape: (height, width, channels) of the source's images.
        brightness: b, 0 to 10: the factor is uniform on [max(0, 1 - b), 1 + b].
        contrast: as `brightness`.
        saturation: as `brightness`.
        hue: the largest shift in either direction, as a fraction of the circle, 0 to 0.5.
    """

    shape: tuple[int, int, int]
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        in_range(self, brightness=(0, 10), contrast=(0, 10), saturation=(0, 10), hue=(0, 0.5))
        for name in ("saturation", "hue"):
            if getattr(self, name):
                has_three_channels(self.shape, name, getattr(self, name))

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Maps a sample to one with a uint8 image of the same shape."""
        image = as_bytes(sample.pixels)
        blends = ((brightness, self.brightness), (contrast, self.contrast), (saturation, self.saturation))
        for place in rng.permutation(4):
            if place == 3:
                image = hue(image, rng.uniform(-self.hue, self.hue)) if self.hue else image
            else:
                blend, strength = blends[place]
                image = blend(image, rng.uniform(max(0.0, 1 - strength), 1 + strength)) if strength else image
        return sample.replace(image=image)


@dataclasses.dataclass(frozen=True)
class Lighting:
    """Adds a random colour along the principal components of ImageNet's colours to all pixels (AlexNet, section 4.1).

    Args:
        shape: (height, width, channels) of the source's images.
        std: standard deviation of each component's normal factor, 0 to 10.
    """

    shape: tuple[int, int, int]
    std: float = 0.1

    def __post_init__(self) -> None:
        in_range(self, std=(0, 10))
        has_three_channels(self.shape, "std", self.std)

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Maps a sample to one with a uint8 image of the same shape."""
        colour = _PCA_DIRECTIONS @ (rng.normal(0, self.std, size=3) * _PCA_DEVIATIONS) * 255
        return sample.replace(image=as_bytes(sample.pixels + colour))
