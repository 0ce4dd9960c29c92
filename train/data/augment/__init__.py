"""Augmentation on the host: one class a transform, in the order in which they are applied.

A transform maps an image, (height, width, channels) uint8, and a generator to a new image. Its arguments are a
dictionary of ``config.augment``: ``{"random_resized_crop": {}, "flip": {"probability": 0.5}}``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from train.data.augment.colours import ColorJitter, Lighting
from train.data.augment.crops import Flip, PadCrop, RandomResizedCrop
from train.data.augment.erasing import RandomErasing
from train.data.augment.trivial import TrivialAugment
from train.data.augment.warp import Warp
from train.data.images import Image, as_pixels
from train.data.sources import Source
from train.errors import UserError, suggest
from train.settings import Config

TRANSFORMS: dict[str, type] = {
    "random_resized_crop": RandomResizedCrop,
    "pad_crop": PadCrop,
    "warp": Warp,
    "flip": Flip,
    "trivial_augment": TrivialAugment,
    "color_jitter": ColorJitter,
    "lighting": Lighting,
    "random_erasing": RandomErasing,
}


def create_augmentation(config: Config, source: Source) -> Callable[[Image, np.random.Generator], np.ndarray]:
    """Puts the transforms of a config together.

    Returns:
        Maps an image, decoded or not, and a generator to an image of `source.image_shape`.

    Raises:
        UserError: for an unknown transform, and arguments it lacks, does not know, or that are out of range; and where
            images of varying sizes are not cropped to one.
    """
    for name, arguments in config.augment.items():
        if name not in TRANSFORMS:
            raise UserError(f"config.augment has an unknown transform {name!r}; {suggest(name, TRANSFORMS)}")
        if not isinstance(arguments, dict):
            raise UserError(f"config.augment.{name} is {arguments!r} but must be a dictionary of its arguments")
    if not source.is_sized and "random_resized_crop" not in config.augment:
        raise UserError(
            f"config.augment is {config.augment} but the images of {config.source!r} vary in size; add "
            "'random_resized_crop': {}, which makes them equal"
        )
    transforms = [_create(name, config.augment[name], source) for name in TRANSFORMS if name in config.augment]
    crops_files = "random_resized_crop" in config.augment  # and decodes no more than it needs

    def augment(image: Image, rng: np.random.Generator) -> np.ndarray:
        pixels: Any = image if crops_files else as_pixels(image, source.image_shape[-1])
        for transform in transforms:
            pixels = transform(pixels, rng)
        return pixels

    return augment


def _create(name: str, arguments: dict, source: Source) -> Callable[[Any, np.random.Generator], np.ndarray]:
    of_source = {"shape": source.image_shape, "mean": source.mean}
    fields = {field.name: field for field in dataclasses.fields(TRANSFORMS[name])}
    given = {key: of_source[key] for key in fields if key in of_source}
    known = [key for key in fields if key not in given]
    for argument in arguments:
        if argument not in known:
            advice = suggest(argument, known) if known else "it takes no arguments"
            raise UserError(f"config.augment.{name} has an unknown key {argument!r}; {advice}")
    for key in known:
        if fields[key].default is dataclasses.MISSING and key not in arguments:
            raise UserError(f"config.augment.{name} lacks {key!r}; see the transform's arguments")
    try:
        return TRANSFORMS[name](**arguments, **given)
    except ValueError as error:
        raise UserError(f"config.augment.{name}.{error}") from error
