"""Crops and flips."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.data.images import as_pixels, decode, jpeg_size
from train.data.opencv import cv2
from train.data.resizing import resize
from train.data.sample import Generator, Sample
from train.data.transforms.checks import in_range, is_interval
from train.data.transforms.geometry import mirroring, move, scaling, translation

_TRIES = 10


class Box(NamedTuple):
    """A crop of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """Crops a random area with random proportions and resizes it (Szegedy et al. 2015, torchvision's rule).

    It draws up to ten crops; if none fits into the image, it takes the largest central crop with allowed proportions.
    If the crop of an encoded JPEG has at least twice the output's size, the file is decoded at a reduced size.

    Args:
        shape: (height, width, channels) of the output, the source's.
        area: range of the crop's area, as fractions of the image's.
        ratio: range of its width over its height; the logarithm is uniform.
    """

    shape: tuple[int, int, int]
    area: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        is_interval(self, area=(0, 1), ratio=(0, 100))

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Maps a sample, its image decoded or not, to one with an image of the output's shape.

        Raises:
            ImageError: if the bytes are not an image.
        """
        height, width, channels = self.shape
        image = sample.image
        size = jpeg_size(image) if isinstance(image, bytes) else None
        if size is None:
            pixels, reduction = as_pixels(image, channels), 1
            box = self.draw(pixels.shape[0], pixels.shape[1], rng)
        else:
            box = self.draw(*size, rng)
            reduction = max(r for r in (1, 2, 4, 8) if r == 1 or min(box.height // height, box.width // width) >= r)
            pixels = decode(bytes(image), channels, reduction, rows=box.top + box.height)
        top, left = box.top // reduction, box.left // reduction
        part = pixels[top : top + box.height // reduction, left : left + box.width // reduction]
        # The crop of the reduced image is off by less than an output pixel.
        matrix = scaling(width / box.width, height / box.height) @ translation(-box.left, -box.top)
        return move(sample, resize(part, height, width, quick=True), matrix)

    def draw(self, height: int, width: int, rng: Generator) -> Box:
        """Draws the crop of an image of `height` x `width` pixels."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_TRIES):
            area = height * width * rng.uniform(self.area[0], self.area[1])
            ratio = math.exp(rng.uniform(low, high))
            part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < part_width <= width and 0 < part_height <= height:
                top, left = rng.integers(height - part_height + 1), rng.integers(width - part_width + 1)
                return Box(int(top), int(left), part_height, part_width)
        part_width = min(width, max(1, round(height * self.ratio[1])))
        part_height = min(height, max(1, round(width / self.ratio[0])))
        return Box((height - part_height) // 2, (width - part_width) // 2, part_height, part_width)


@dataclasses.dataclass(frozen=True)
class PadCrop:
    """Pads all sides with black and takes a random crop of the original size, as is usual for CIFAR.

    Args:
        padding: pixels on each side, 0 to 64.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        in_range(self, padding=(0, 64))
        if type(self.padding) is not int:
            raise ValueError(f"padding is {self.padding!r} but must be a whole number of pixels")

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Maps a sample to one with an image of the same shape."""
        image, by = sample.pixels, self.padding
        height, width = image.shape[:2]
        padded = np.pad(image, ((by, by), (by, by), (0, 0)))
        top, left = rng.integers(2 * by + 1, size=2)
        return move(sample, padded[top : top + height, left : left + width], translation(by - left, by - top))


@dataclasses.dataclass(frozen=True)
class Flip:
    """Flips an image horizontally; key points keep their order.

    Args:
        probability: probability of the flip, 0 to 1.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        in_range(self, probability=(0, 1))

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Maps a sample to itself or its flip."""
        if rng.random() >= self.probability:
            return sample
        image = sample.pixels
        # A copy: a view of negative stride takes 50 times as long to copy into a batch.
        return move(sample, cv2.flip(image, 1).reshape(image.shape), mirroring(image.shape[1]))
