"""A data source: the samples of each split, and the facts that a network needs."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from msconv_jax.models.registry import ModelEntry
from train.config.schema import Split
from train.data.sample import Sample

# Statistics of photographs, the default.
IMAGENET_MEAN, IMAGENET_STD = ModelEntry.mean, ModelEntry.std


class Source(NamedTuple):
    """A data set.

    Attributes:
        splits: the samples of "train", "validation" and "test".
        classes: the class names of images or instances; a label is an index into it.
        image_shape: (height, width, channels) of the network's input.
        is_sized: whether every image has `image_shape`; otherwise sizes vary.
        mean: mean of each channel over the train split, images scaled to 0..1.
        std: standard deviation of each channel over the train split, images scaled to 0..1.
        fields: the fields of `Sample`, besides the image, that the data set has. Samples hold the requested ones.
        segmentation_classes: the class names of pixels, by index.
        report: the files that were left out and the reasons, as text; the first line is a summary. Empty if no check
            was needed.
        note: a remark on the splits for the user, or "".
        fingerprints: a checksum of each split, which depends on its samples and their order; see `fingerprint`.
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
    """Computes the checksum of a sequence of texts, files and arrays as 32 hexadecimal digits.

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
