"""Augmentation on the host: one class a transform, in the order in which they are applied.

A transform maps an image, (height, width, channels) uint8, and a generator to a new image. Its arguments are a
dictionary of ``config.augment``: ``{"warp": {"shift": 0.75, "rotation": 12.0, "scale": 0.1}}``.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from train.data.opencv import cv2
from train.data.sources import Source
from train.errors import UserError, suggest
from train.settings import Config

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


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
        _in_range(self, shift=(0, 4), rotation=(0, 90), scale=(0, 0.9))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Maps an image to a new one of the same shape."""
        height, width = image.shape[:2]
        angle = rng.uniform(-1, 1) * self.rotation
        scale = 1 + rng.uniform(-1, 1) * self.scale
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
        matrix[:, 2] += rng.uniform(-1, 1, size=2) * self.shift
        warped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
        return warped.reshape(image.shape)  # OpenCV drops a single channel


TRANSFORMS: dict[str, type] = {"warp": Warp}


def create_augmentation(config: Config, source: Source) -> Transform:
    """Puts the transforms of a config together.

    Raises:
        UserError: for an unknown transform, and arguments it lacks, does not know, or that are out of range.
    """
    for name, arguments in config.augment.items():
        if name not in TRANSFORMS:
            raise UserError(f"config.augment has an unknown transform {name!r}; {suggest(name, TRANSFORMS)}")
        if not isinstance(arguments, dict):
            raise UserError(f"config.augment.{name} is {arguments!r} but must be a dictionary of its arguments")
    transforms = [_create(name, config.augment[name]) for name in TRANSFORMS if name in config.augment]

    def augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for transform in transforms:
            image = transform(image, rng)
        return image

    return augment


def _create(name: str, arguments: dict) -> Transform:
    fields = dataclasses.fields(TRANSFORMS[name])
    known = [field.name for field in fields]
    for argument in arguments:
        if argument not in known:
            raise UserError(f"config.augment.{name} has an unknown key {argument!r}; {suggest(argument, known)}")
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in arguments:
            raise UserError(f"config.augment.{name} lacks {field.name!r}; see the transform's arguments")
    try:
        return TRANSFORMS[name](**arguments)
    except ValueError as error:
        raise UserError(f"config.augment.{name}.{error}") from error


def _in_range(transform: object, **ranges: tuple[float, float]) -> None:
    """Raises ValueError unless each named argument is a number in its range, ends included."""
    for name, (low, high) in ranges.items():
        value = getattr(transform, name)
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"{name} is {value!r} but must be a number from {low:g} to {high:g}")
