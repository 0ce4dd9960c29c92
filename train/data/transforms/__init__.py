"""Augmentation on the host: a class for each transform; `TRANSFORMS` has their order.

A transform maps a `Sample` and a generator to a new sample. Geometric transforms move the annotations with the image
(`train.data.transforms.geometry`), colour transforms change the image only. ``config.data.augment`` has their
arguments: ``{"random_resized_crop": {}, "flip": {"probability": 0.5}}``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from train.config.schema import Data
from train.data.sample import Generator, Sample
from train.data.source import Source
from train.data.transforms.colours import ColorJitter, Lighting
from train.data.transforms.crops import Flip, PadCrop, RandomResizedCrop
from train.data.transforms.erasing import RandomErasing
from train.data.transforms.segmentation import Blur, RandomCrop, RandomRotation, RandomScale
from train.data.transforms.trivial import TrivialAugment
from train.data.transforms.warp import Warp
from train.errors import UserError, suggest

__all__ = ["TRANSFORMS", "RandomCrop", "Transform", "check_equal_sizes", "create_augmentation"]

Transform = Callable[[Sample, Generator], Sample]

TRANSFORMS: dict[str, type] = {
    "random_resized_crop": RandomResizedCrop,
    "pad_crop": PadCrop,
    "warp": Warp,
    "random_scale": RandomScale,
    "random_rotation": RandomRotation,
    "blur": Blur,
    "flip": Flip,
    "trivial_augment": TrivialAugment,
    "color_jitter": ColorJitter,
    "lighting": Lighting,
    "random_erasing": RandomErasing,
}


def create_augmentation(augment: Mapping[str, Any], source: Source) -> Transform:
    """Composes the transforms of a config.

    Args:
        augment: ``config.data.augment``: the arguments of each transform by name.
        source: the source of the samples.

    Returns:
        Maps a sample, decoded or not, and a generator to a decoded sample.

    Raises:
        UserError: if a transform is unknown, or an argument is missing, unknown or out of range.
    """
    for name, arguments in augment.items():
        if name not in TRANSFORMS:
            raise UserError(f"config.data.augment has an unknown transform {name!r}; {suggest(name, TRANSFORMS)}")
        if not isinstance(arguments, dict):
            raise UserError(f"config.data.augment.{name} is {arguments!r} but must be a dictionary of its arguments")
    transforms = [_create(name, augment[name], source) for name in TRANSFORMS if name in augment]
    crops_files = "random_resized_crop" in augment  # which decodes only the part it needs
    channels = source.image_shape[-1]

    def transform(sample: Sample, rng: Generator) -> Sample:
        sample = sample if crops_files else sample.decoded(channels)
        for one in transforms:
            sample = one(sample, rng)
        return sample

    return transform


def check_equal_sizes(data: Data, source: Source) -> None:
    """Checks that images have one size after augmentation, for tasks on whole images.

    Raises:
        UserError: if sizes vary and no transform makes them equal.
    """
    if not source.is_sized and "random_resized_crop" not in data.augment:
        raise UserError(
            f"config.data.augment is {data.augment} but the images of {data.source!r} vary in size; add "
            "'random_resized_crop': {}, which makes them equal"
        )


def _create(name: str, arguments: dict, source: Source) -> Transform:
    of_source = {"shape": source.image_shape, "mean": source.mean}
    fields = {field.name: field for field in dataclasses.fields(TRANSFORMS[name])}
    given = {key: of_source[key] for key in fields if key in of_source}
    known = [key for key in fields if key not in given]
    for argument in arguments:
        if argument not in known:
            advice = suggest(argument, known) if known else "it takes no arguments"
            raise UserError(f"config.data.augment.{name} has an unknown key {argument!r}; {advice}")
    for key in known:
        if fields[key].default is dataclasses.MISSING and key not in arguments:
            raise UserError(f"config.data.augment.{name} lacks {key!r}; see the transform's arguments")
    try:
        return TRANSFORMS[name](**arguments, **given)
    except ValueError as error:
        raise UserError(f"config.data.augment.{name}.{error}") from error
