"""Small rotations, scalings and shifts."""

import dataclasses

import numpy as np

from train.data.augment.checks import in_range
from train.data.opencv import cv2


@dataclasses.dataclass(frozen=True)
class Warp:
    """Rotates, scales and shifts, each uniformly up to a strength; black enters at the border.

    There are no flips: a mirrored digit is another sign.

    Args:
        shift: pixels, 0 to 4 for a digit's 8.
        rotation: degrees, 0 to 90.
        scale: a fraction, 0 to 0.9.
    """

    shift: float
    rotation: float
    scale: float

    def __post_init__(self) -> None:
        in_range(self, shift=(0, 4), rotation=(0, 90), scale=(0, 0.9))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Maps an image to a new one of the same shape."""
        height, width = image.shape[:2]
        angle = rng.uniform(-1, 1) * self.rotation
        scale = 1 + rng.uniform(-1, 1) * self.scale
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
        matrix[:, 2] += rng.uniform(-1, 1, size=2) * self.shift
        warped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
        return warped.reshape(image.shape)  # OpenCV drops a single channel
