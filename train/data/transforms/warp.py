"""Small rotations, scalings and shifts."""

import dataclasses

from train.data.opencv import cv2
from train.data.sample import Generator, Sample
from train.data.transforms.checks import in_range
from train.data.transforms.geometry import from_indices, move


@dataclasses.dataclass(frozen=True)
class Warp:
    """Rotates, scales and shifts by uniform random amounts and pads with black.

    It does not flip, because a flipped digit is a different sign.

    Args:
        shift: the largest shift in pixels, 0 to 4 (digits have 8 pixels a side).
        rotation: the largest rotation in degrees, 0 to 90.
        scale: the largest deviation of the scale from 1, 0 to 0.9.
    """

    shift: float
    rotation: float
    scale: float

    def __post_init__(self) -> None:
        in_range(self, shift=(0, 4), rotation=(0, 90), scale=(0, 0.9))

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Maps a sample to one with an image of the same shape."""
        image = sample.pixels
        height, width = image.shape[:2]
        angle = rng.uniform(-1, 1) * self.rotation
        scale = 1 + rng.uniform(-1, 1) * self.scale
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
        matrix[:, 2] += rng.uniform(-1, 1, size=2) * self.shift
        warped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
        return move(sample, warped.reshape(image.shape), from_indices(matrix))  # OpenCV drops a single channel
