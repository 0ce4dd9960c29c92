"""Loads a source by name."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from train.config.schema import Config
from train.data.readers.digits import digits
from train.data.readers.folder import folder
from train.data.readers.masks import masks
from train.data.readers.miniature import miniature, miniature32
from train.data.sample import Sample
from train.data.source import Source, fingerprint
from train.errors import UserError

SOURCES: dict[str, Callable[[Config], Source]] = {
    "digits": digits,
    "folder": folder,
    "masks": masks,
    "miniature": miniature,
    "miniature32": miniature32,
}
_SHIPPED = ("digits", "miniature", "miniature32")
_LABEL = frozenset({"label"})


def load_source(config: Config, needs: frozenset[str] = _LABEL) -> Source:
    """Builds the source that a config names.

    A name outside SOURCES is a prepared data set of TensorFlow Datasets.

    Args:
        config: a checked config.
        needs: the required fields of `Sample` besides the image, `Task.needs`. Other fields need not be read.

    Raises:
        UserError: if the source lacks a field or has another image size, if the number of statistics is not the number
            of channels, or if the source refuses the config.
    """
    name = config.data.source
    if name in _SHIPPED and (config.data.dir or config.data.splits):
        raise UserError(
            f"config.data.source is {name!r}, whose images and splits come with scikit-learn, but config.data.dir is "
            f"{config.data.dir!r} and config.data.splits is {config.data.splits}; set them to '' and {{}}"
        )
    if name in SOURCES:
        source = SOURCES[name](config)
    else:
        from train.data.readers.tfds import tfds_source  # slow import (a second), only needed here

        source = tfds_source(config, needs, SOURCES)
    if missing := needs - source.fields:
        raise UserError(
            f"config.data.source is {name!r}, which has no {' and no '.join(sorted(missing))}; it has "
            f"{' and '.join(sorted(source.fields))}; choose another source or another config.task.name"
        )
    side = source.image_shape[0]
    if config.data.image_size not in (0, side):
        raise UserError(
            f"config.data.image_size is {config.data.image_size} but the images of {name!r} have {side} pixels a side; "
            "leave it 0"
        )
    if config.data.pixel_mean:
        source = source._replace(mean=tuple(config.data.pixel_mean))
    if config.data.pixel_std:
        source = source._replace(std=tuple(config.data.pixel_std))
    for statistic in ("mean", "std"):
        values = getattr(source, statistic)
        if len(values) != source.image_shape[-1]:
            raise UserError(
                f"config.data.pixel_{statistic} is {list(values)} but must have a number for each of the "
                f"{source.image_shape[-1]} channels"
            )
    if not source.fingerprints:  # the samples are in memory
        prints = {split: fingerprint(_parts(samples)) for split, samples in source.splits.items()}
        source = source._replace(fingerprints=prints)
    return source


def _parts(value: Any) -> Iterator[str | bytes | np.ndarray]:
    """Flattens samples into the parts of their checksum, in order."""
    if isinstance(value, bytes | np.ndarray):
        yield value
    elif isinstance(value, Sample):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        yield from _parts({name: part for name, part in found.items() if part is not None})
    elif isinstance(value, Mapping):
        yield from _parts([part for item in value.items() for part in item])
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield f"{len(value)}"
        for part in value:
            yield from _parts(part)
    else:
        yield repr(value)
