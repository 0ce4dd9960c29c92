"""The transforms of PyConvSegNet's and PSPNet's public training.

Their order, that of `train.data.transforms.TRANSFORMS`, is scale, rotation, blur, flip; the segmentation task crops at
the end. Images are float32 of 0..255 after the first transform, to avoid rounding in between.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from train.data.limits import MAX_ENLARGED_PIXELS
from train.data.sample import IGNORED, Generator, Sample
from train.data.transforms import dense
from train.data.transforms.checks import in_range
from train.data.transforms.geometry import from_indices, move, scaling, translation

_Operation = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class RandomScale:
    """Resizes the image by a uniform random factor, without smoothing.

    No image is enlarged to more than `MAX_ENLARGED_PIXELS`.

    Args:
        low: the smallest factor, 0.05 to 20.
        high: the largest factor, `low` to 20.
    """

    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        in_range(self, low=(0.05, 20), high=(0.05, 20))
        if self.high < self.low:
            raise ValueError(f"high is {self.high!r} but must not be below low, {self.low!r}")

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Maps a sample to one with a float32 image of another size."""
        height, width = sample.pixels.shape[:2]
        factor = self.low + (self.high - self.low) * rng.random()
        factor = min(factor, max(1.0, math.sqrt(MAX_ENLARGED_PIXELS / (height * width))))
        return _moved(
            sample,
            _as_floats(sample.pixels),
            scaling(factor, factor),
            lambda image, classes: dense.rescale(image, classes, factor),
        )


@dataclasses.dataclass(frozen=True)
class RandomRotation:
    """Rotates the image about its middle and pads with the mean colour.

    Args:
        mean: the source's mean of each channel, 0..1.
        degrees: the largest angle in either direction, 0 to 180.
        probability: probability of a rotation, 0 to 1.
    """

    mean: tuple[float, ...]
    degrees: float = 10.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        in_range(self, degrees=(0, 180), probability=(0, 1))

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Maps a sample to one with a float32 image of the same shape."""
        image = _as_floats(sample.pixels)
        if rng.random() >= self.probability:
            return sample.replace(image=image)
        angle = -self.degrees + 2 * self.degrees * rng.random()
        mean = [255 * value for value in self.mean]
        return _moved(
            sample,
            image,
            from_indices(dense.rotation_matrix(image.shape[0], image.shape[1], angle)),
            lambda image, classes: dense.rotate(image, classes, angle, mean, IGNORED),
        )


@dataclasses.dataclass(frozen=True)
class Blur:
    """Blurs the image with a 5x5 kernel.

    Args:
        probability: probability of a blur, 0 to 1.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        in_range(self, probability=(0, 1))

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Maps a sample to one with a float32 image of the same shape."""
        image = _as_floats(sample.pixels)
        return sample.replace(image=dense.blur(image) if rng.random() < self.probability else image)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Pads the image to at least a fixed size, then takes a random crop of this size.

    Half of the padding, rounded down, is in front. It has the mean colour and the ignored class.

    Args:
        height: rows of the crop.
        width: columns of the crop.
        mean: the source's mean of each channel, 0..1.
    """

    height: int
    width: int
    mean: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r} but must be a whole number of pixels above 0")

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Maps a sample to one with an image of `height` x `width` pixels, of the same type."""
        height, width = sample.pixels.shape[:2]
        top = int(rng.integers(0, max(height, self.height) - self.height + 1))
        left = int(rng.integers(0, max(width, self.width) - self.width + 1))
        return self._cropped(sample, top, left)

    def centred(self, sample: Sample) -> Sample:
        """Maps a sample to its centre crop, at offsets rounded down."""
        height, width = sample.pixels.shape[:2]
        return self._cropped(sample, max(height - self.height, 0) // 2, max(width - self.width, 0) // 2)

    def _cropped(self, sample: Sample, top: int, left: int) -> Sample:
        image = sample.pixels
        size = (self.height, self.width)
        before = [max(needed - side, 0) // 2 for needed, side in zip(size, image.shape, strict=False)]
        mean = np.multiply(self.mean, 255)
        mean = mean if image.dtype == np.float32 else np.rint(mean)
        return _moved(
            sample,
            image,
            translation(before[1] - left, before[0] - top),
            lambda image, classes: dense.crop(image, classes, size, (top, left), list(mean), IGNORED),
        )


def _as_floats(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32, copy=False)


def _moved(sample: Sample, image: np.ndarray, matrix: np.ndarray, operation: _Operation) -> Sample:
    """Moves image and segmentation by `operation`, other annotations by `matrix`."""
    classes = sample.segmentation
    moved, moved_classes = operation(image, np.zeros(image.shape[:2], np.uint8) if classes is None else classes)
    return move(sample, moved, matrix, segmentation=None if classes is None else moved_classes)
