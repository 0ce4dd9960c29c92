"""What a data source gives: samples by split, and what a network must know of them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from msconv_jax.models.registry import ModelEntry
from train.config.schema import Split
from train.data.sample import Sample

# Of photographs, where nothing better is known.
IMAGENET_MEAN, IMAGENET_STD = ModelEntry.mean, ModelEntry.std


class Source(NamedTuple):
    """A data set.

    Attributes:
        splits: the samples of "train", "validation" and "test", by position.
        classes: the name of every class of an image or an instance; a label is a position in it.
        image_shape: (height, width, channels) of the network's input.
        is_sized: whether every image has this shape; otherwise sizes vary.
        mean: mean of each channel of the train split, images scaled to 0..1.
        std: standard deviation of each channel likewise.
        fields: the fields of `Sample`, beside the image, that the data set has; its samples hold those that were asked
            for.
        segmentation_classes: the name of every class of a pixel, in the order of their numbers.
        report: what was left out of the data and why, for people to read; the first line sums it up. Empty if nothing
            had to be checked.
        note: what a user should know about the splits, or "".
        fingerprints: a checksum of each split, which changes with its samples and their order; see `fingerprint`.
    """

    splits: Mapping[Split, Sequence[Sample]]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    is_sized: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fields: frozenset[str] = frozenset({"label"})
    segmentation_classes: tuple[str, ...] = ()
    report: str = ""
    note: str = ""
    fingerprints: Mapping[Split, str] = {}


def fingerprint(parts: Iterable[bytes | str | np.ndarray]) -> str:
    """Gives the checksum of a sequence of texts, files and arrays as 32 hexadecimal digits.

    Example:
        >>> fingerprint(["cat", b"1"]) == fingerprint(["ca", b"t1"])
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape} ".encode())
            part = np.ascontiguousarray(part).tobytes()
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
