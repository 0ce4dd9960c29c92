"""What a data source gives: labelled images by split, and what a model must know of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from msconv_jax.models.registry import ModelEntry

Split = Literal["train", "validation", "test"]
# "image": (height, width, channels) uint8, or an encoded file's bytes; "label": int; "file": its name, where it has
# one; further numbers under the names that the data set gives them
Record = dict[str, Any]
Batch = dict[str, np.ndarray]

# Of photographs, where nothing better is known.
IMAGENET_MEAN, IMAGENET_STD = ModelEntry.mean, ModelEntry.std


class Source(NamedTuple):
    """A labelled image data set.

    Attributes:
        splits: the records of "train", "validation" and "test", by position.
        classes: the name of every class; a label is a position in it.
        image_shape: (height, width, channels) of the model's input.
        is_sized: whether every image has this shape; otherwise sizes vary.
        mean: mean of each channel of the train split, images scaled to 0..1.
        std: standard deviation of each channel likewise.
        report: what was left out of the data and why, for people to read; the first line sums it up. Empty if nothing
            had to be checked.
        note: what a user should know about the splits, or "".
    """

    splits: Mapping[Split, Sequence[Record]]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    is_sized: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    report: str = ""
    note: str = ""
