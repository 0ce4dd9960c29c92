"""Data sets of TensorFlow Datasets (tfds), by name, read without TensorFlow.

`python -m train.prepare` writes a data set once with TensorFlow. This module reads its array_record files, which have
random access to records. `train.data.readers.descriptions` reads their description.
"""

import bisect
import contextlib
import itertools
import operator
import os
import resource
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from tensorflow_datasets.core.utils.shard_utils import FileInstruction

from msconv_jax.models.registry import CIFAR_10, CIFAR_100
from train.config.schema import Config, Split
from train.data.images import ImageError
from train.data.indexed_png import read_indices
from train.data.readers import scaled_digits
from train.data.readers.descriptions import Description
from train.data.readers.prepared import one_line, open_prepared, repair_advice
from train.data.sample import IGNORED, Sample
from train.data.source import IMAGENET_MEAN, IMAGENET_STD, Source, fingerprint
from train.errors import UserError

# Mean and standard deviation of each channel over the train split; the default is ImageNet's.
_PIXELS = {
    "cifar10": (CIFAR_10["mean"], CIFAR_10["std"]),
    "cifar100": (CIFAR_100["mean"], CIFAR_100["std"]),
    "scaled_digits": (scaled_digits.MEAN, scaled_digits.STD),
}
_LABEL = frozenset({"label"})
_DEFAULT_SIDE = 224  # pixels, if image sizes vary
_CHECKED_BYTES = 2**20  # at each end of a file, for its checksum
_SPARE_FILES = 256  # other open files of a process: libraries, checkpoints, sockets


class Segmentation(NamedTuple):
    """The feature and function that make a segmentation.

    Attributes:
        key: the key of the feature.
        classes: the class names.
        combine: maps the indices of the feature's PNG file, (height, width) uint8, and the label of the image, or -1,
            to the segmentation, (height, width) uint8.
    """

    key: str
    classes: tuple[str, ...]
    combine: Callable[[np.ndarray, int], np.ndarray]


# Data sets whose segmentation is computed from a feature.
_SEGMENTATIONS = {
    "scaled_digits": Segmentation("mask", scaled_digits.SEGMENTATION_CLASSES, scaled_digits.segmentation),
}


def tfds_source(config: Config, needs: frozenset[str] = _LABEL, others: Iterable[str] = ()) -> Source:
    """Loads a prepared tfds data set of images with labels or segmentations.

    ``config.data.source`` is its name in tfds, such as ``"cifar10"``, ``"imagenette/320px-v2"`` or ``"cifar10:3.0.2"``.
    ``config.data.dir`` is the folder of prepared data sets, or "" for tfds's default: ``~/tensorflow_datasets``, or the
    value of the environment variable TFDS_DATA_DIR.

    Splits: ``config.data.splits`` maps "train", "validation" and "test" to tfds expressions, for example
    ``"train[:95%]"``. The default for a missing one is the data set's split of that name. If only one labelled split
    besides "train" exists, it is used for validation and test, and the source has a note. Unlabelled splits, such as
    the test split of imagenet2012, are never used, and training images are never evaluated.

    Images: the model's input has the common size of the images, unless ``config.data.image_size`` has another value. In
    that case, and if sizes vary, the input is ``config.data.image_size`` squared, 224 by default, and `Source.is_sized`
    is False. Samples have the encoded bytes, and `Sample.numbers` the other features with one number for each image.
    Grey images are standardised by the mean of the colours' statistics.

    Annotations: see `find_features`. Only needed ones are read.

    Args:
        config: a checked config.
        needs: the fields of `Sample` to read, if the data set has them.
        others: names of other sources, to suggest for an unknown name.

    Raises:
        UserError: if the data set is unknown, not prepared, prepared in another format, incomplete or damaged, if it
            lacks images with labels or segmentations, or if its splits are unsuitable.
    """
    prepared = open_prepared(config.data.source, config.data.dir, others)
    features = find_features(prepared)
    advice = repair_advice(config.data.source, config.data.dir, prepared)
    chosen, note = _choose_splits(config, prepared, advice)
    for split in ("validation", "test"):
        if _overlap(*(_instructions(prepared, chosen[name]) for name in ("train", split))):
            raise UserError(
                f"the train split {chosen['train']!r} and the {split} split {chosen[split]!r} of "
                f"{config.data.source!r} share images; divide them by config.data.splits, for example "
                "{'train': 'train[:95%]', 'validation': 'train[95%:]'}"
            )
    allow_open_files(sum(len(_instructions(prepared, expression)) for expression in chosen.values()))

    height, width, channels = features.shape
    side = config.data.image_size or _DEFAULT_SIDE
    shape = (side, side, channels)
    if height and width and not config.data.image_size:
        shape = (height, width, channels)
    mean, std = _PIXELS.get(prepared.name, (IMAGENET_MEAN, IMAGENET_STD))
    if channels == 1:
        mean, std = ((sum(values) / 3,) for values in (mean, std))
    return Source(
        splits={split: open_records(prepared, expression, advice, needs) for split, expression in chosen.items()},
        classes=features.classes,
        image_shape=shape,
        is_sized=shape == features.shape,
        mean=mean,
        std=std,
        fields=features.fields,
        segmentation_classes=features.segmentation.classes if features.segmentation else (),
        note=note,
        fingerprints=_fingerprints(prepared, chosen),
    )


class Features(NamedTuple):
    """The features of a data set: images and annotations.

    Attributes:
        image: the key of the image.
        label: the key of the label, or "".
        segmentation: the feature and function of the segmentation, or None.
        box: the key of the box of the labelled object, or "".
        shape: (height, width, channels) of every image; height and width are None if sizes vary.
        classes: the class names.
        numbers: the keys of other features with one number for each image, such as a second target.
    """

    image: str
    label: str
    segmentation: Segmentation | None
    box: str
    shape: tuple[int | None, int | None, int]
    classes: tuple[str, ...]
    numbers: tuple[str, ...]

    @property
    def fields(self) -> frozenset[str]:
        """The fields of `Sample` that the data set has, besides the image."""
        names = ["label"] * bool(self.label) + ["segmentation"] * bool(self.segmentation)
        return frozenset(names + ["boxes", "labels"] * bool(self.box))


def find_features(info: Any) -> Features:
    """Finds images and annotations among the features of a data set.

    Image and label are the supervised keys of tfds, else the only Image and the only ClassLabel. The segmentation is
    the data set's entry in `_SEGMENTATIONS`, else the only LabeledImage, whose pixels are class indices. If all images
    have one size, a BBoxFeature is the box of the labelled object.

    Raises:
        UserError: if there is not one image with a label or a segmentation, or if images are neither 8-bit grey nor
            8-bit colour.
    """
    types: dict[str, Any] = dict(info.features) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    images, labels = (
        [key for key, feature in types.items() if type(feature) is kind]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    )
    if isinstance(info.supervised_keys, tuple) and len(info.supervised_keys) == 2:
        images = [key for key in images if key == info.supervised_keys[0]] or images
        labels = [key for key in labels if key == info.supervised_keys[1]] or labels
    maps = [
        key for key, feature in types.items() if type(feature) is tfds.features.LabeledImage and feature.num_classes
    ]
    segmentation = _SEGMENTATIONS.get(info.name)
    if segmentation and not isinstance(types.get(segmentation.key), tfds.features.Image):
        segmentation = None  # another data set of the same name
    if segmentation is None and len(maps) == 1:
        segmentation = Segmentation(maps[0], tuple(types[maps[0]].names), lambda indices, label: indices)
    if len(images) != 1 or (len(labels) != 1 and not segmentation):
        raise UserError(
            f"config.data.source {info.name!r} is no data set for classification or segmentation: it has {len(images)} "
            f"features that are images, {len(labels)} that are classes and {len(maps)} that are classes of pixels, and "
            "needs one image, and one of the others; choose another data set"
        )
    image, label = types[images[0]], labels[0] if len(labels) == 1 else ""
    if label and not types[label].num_classes:
        raise UserError(
            f"config.data.source {info.name!r} does not say how many classes {label!r} has; choose another data set"
        )
    height, width, channels = image.shape
    channels = channels or 3  # not fixed
    if channels not in (1, 3) or image.np_dtype != np.uint8:
        raise UserError(
            f"config.data.source {info.name!r} has images of {channels} channels of {np.dtype(image.np_dtype)}, but 1 "
            "or 3 channels of uint8 are read; choose another data set, or another of its configs"
        )
    classes = tuple(types[label].int2str(number) for number in range(types[label].num_classes or 0)) if label else ()
    boxes = [key for key, feature in types.items() if type(feature) is tfds.features.BBoxFeature]
    box = boxes[0] if len(boxes) == 1 and label and height and width else ""
    numbers = tuple(
        key
        for key, feature in types.items()
        if key != label and feature.shape == () and np.issubdtype(feature.np_dtype, np.number)
    )
    return Features(images[0], label, segmentation, box, (height, width, channels), classes, numbers)


class Records(Sequence[Sample]):
    """The records of a split, read on access; safe for threads.

    Args:
        prepared: the description of the data set.
        instructions: the files of the split, and the part of each.
        advice: how to repair a damaged file, for error messages.
        needs: the fields of `Sample` to read.
    """

    def __init__(
        self, prepared: Description, instructions: Sequence[FileInstruction], advice: str, needs: frozenset[str]
    ):
        self.features = features = find_features(prepared)
        self._segmentation = features.segmentation if "segmentation" in needs else None
        self._box = features.box if {"boxes", "labels"} & needs else ""
        files_of_pixels = [features.image, *([self._segmentation.key] if self._segmentation else [])]
        keys = [*files_of_pixels, features.label, self._box, *features.numbers]
        self._keys = [key for key in keys if key]
        chosen: Any = tfds.features.FeaturesDict({key: prepared.features[key] for key in self._keys})
        self._parse = chosen.deserialize_example_np
        self._decoders = {key: tfds.decode.SkipDecoding() for key in files_of_pixels}
        files: Any = list(instructions)
        self._data = ArrayRecordDataSource(files)
        self._files = [instruction.filename for instruction in instructions]
        self._ends = list(itertools.accumulate(instruction.take for instruction in instructions))
        self._advice = advice

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, position: Any) -> Any:
        return self.read(operator.index(position))

    def read(self, position: int, *, unlabelled: bool = False) -> Sample:
        """Reads the record at a position.

        Args:
            position: from 0.
            unlabelled: whether the label may be -1 (unknown).

        Raises:
            UserError: if its file is damaged, or the label or the label of a pixel is not a class.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"there is no record {position} among {len(self)}")
        features = self.features
        try:
            data = self._data[position]
            if not data:  # a file truncated after its check gives empty records
                raise ValueError("it is empty")
            example = self._parse(data, decoders=self._decoders)
            if lacking := [key for key in self._keys if example[key] is None]:
                raise ValueError(f"it has no {lacking[0]}")
            if not all(isinstance(example[key], bytes) for key in self._decoders):
                raise ValueError("it holds no image")
            label = int(example[features.label]) if features.label else -1
            if self._box and not (np.shape(example[self._box]) == (4,) and np.isfinite(example[self._box]).all()):
                raise ValueError(f"its {self._box} is no box")
        except Exception as error:  # many types, from array_record, protobuf and tfds
            raise UserError(
                f"{self.file_of(position)} is damaged, record {position} of the split cannot be read "
                f"({one_line(error)}); "
                f"{self._advice}"
            ) from error
        if features.label and not -unlabelled <= label < len(features.classes):
            raise UserError(
                f"record {position} of the split, in {self.file_of(position)}, has the label {label}, but labels are "
                f"0 to {len(features.classes) - 1}; leave it out by config.data.splits"
            )
        numbers = {key: example[key] for key in features.numbers}
        sample = Sample(image=example[features.image], label=label if features.label else None, numbers=numbers)
        if self._segmentation:
            indices = example[self._segmentation.key]
            sample = sample.replace(segmentation=self._segment(self._segmentation, indices, label, position))
        if self._box:
            height, width, _ = features.shape
            top, left, bottom, right = example[self._box] * np.array((height, width, height, width), np.float32)
            box = np.array(((left, top, right, bottom),), np.float32)
            sample = sample.replace(boxes=box, labels=np.array((label,), np.int32))
        return sample

    def _segment(self, segmentation: Segmentation, data: bytes, label: int, position: int) -> np.ndarray:
        try:
            found = segmentation.combine(read_indices(data), label)
        except ImageError as error:
            raise UserError(
                f"{self.file_of(position)}: {segmentation.key!r} of record {position} of the split cannot be read: "
                f"{error}; {self._advice}"
            ) from error
        wrong = found[(found >= len(segmentation.classes)) & (found != IGNORED)]
        if wrong.size:
            raise UserError(
                f"record {position} of the split, in {self.file_of(position)}, has pixels of the class {wrong.max()}, "
                f"but classes are 0 to {len(segmentation.classes) - 1}, or {IGNORED} for none; leave it out by "
                "config.data.splits"
            )
        return found

    def file_of(self, position: int) -> str:
        """Returns the file of the record at a position."""
        return self._files[bisect.bisect_right(self._ends, position)]


def open_records(prepared: Description, expression: str, advice: str, needs: frozenset[str] = _LABEL) -> Records:
    """Checks that the files of a split are complete, and opens it.

    Args:
        prepared: the result of `find_prepared`.
        expression: a tfds expression of a split.
        advice: how to repair damaged files, for error messages.
        needs: the fields of `Sample` to read.

    Raises:
        UserError: if the split does not exist or is empty, or a file is missing, incomplete or damaged.
    """
    instructions = _instructions(prepared, expression)
    # A reader of a missing or truncated file raises no error and has no records.
    with ThreadPoolExecutor(16) as threads:
        for instruction, found in zip(instructions, threads.map(_count_records, instructions), strict=True):
            if found != instruction.examples_in_shard:
                state = "is incomplete or damaged" if epath.Path(instruction.filename).exists() else "is missing"
                raise UserError(
                    f"{instruction.filename} {state}: {found} of its {instruction.examples_in_shard} records are "
                    f"there; {advice}"
                )
    return Records(prepared, instructions, advice, needs)


def _instructions(prepared: Description, expression: str) -> list[FileInstruction]:
    try:
        instructions = prepared.splits[expression].file_instructions
    except Exception as error:  # tfds has no single error type for invalid expressions
        raise UserError(
            f"the split {expression!r} of {prepared.name!r} cannot be had: {one_line(error)}; its own splits are "
            f"{', '.join(prepared.splits)}"
        ) from error
    if not instructions:
        raise UserError(f"the split {expression!r} of {prepared.name!r} holds no images; choose a larger part")
    return instructions


def _count_records(instruction: FileInstruction) -> int:
    if not os.path.isfile(instruction.filename):  # opening a pipe would block
        return 0
    # The same options as for reading records: with larger buffers, opening would read the whole file.
    options = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 2**15}
    reader = ArrayRecordReader(instruction.filename, **options)
    count = reader.num_records()
    with contextlib.suppress(RuntimeError):  # raised here if the file could not be opened
        reader.close()
    return count


def _fingerprints(prepared: Description, chosen: dict[Split, str]) -> dict[Split, str]:
    """Computes the checksum of each split from the name, the version, the parts of files and the files' checksums."""
    parts: dict[Split, list[FileInstruction]]
    parts = {split: _instructions(prepared, expression) for split, expression in chosen.items()}
    files = sorted({part.filename for split in parts.values() for part in split})
    with ThreadPoolExecutor(16) as threads:
        checksums = dict(zip(files, threads.map(_checksum, files), strict=True))
    found: dict[Split, str] = {}
    for split, instructions in parts.items():
        places = [f"{epath.Path(p.filename).name} {p.skip} {p.take} {checksums[p.filename]}" for p in instructions]
        found[split] = fingerprint([f"{prepared.name}:{prepared.version}", *places])
    return found


def _checksum(file: str) -> str:
    """Computes the checksum of a file's size and its first and last bytes; small files count whole."""
    path = epath.Path(file)
    size = path.stat().length
    with path.open("rb") as opened:
        first = opened.read(_CHECKED_BYTES)
        opened.seek(max(size - _CHECKED_BYTES, len(first)))
        return fingerprint([str(size), first, opened.read(_CHECKED_BYTES)])


def allow_open_files(count: int) -> None:
    """Raises this process's limit of open files by `count`.

    ImageNet has 1,088 files, which stay open; a usual limit is 1,024.

    Raises:
        UserError: if the system does not allow it.
    """
    open_now = len(os.listdir("/dev/fd"))
    needed = open_now + count + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"a split lies in {count} files, which stay open, but a process may open {hard} files here; allow {needed} "
            f"by ulimit -n {needed} or in /etc/security/limits.conf"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _choose_splits(config: Config, prepared: Description, advice: str) -> tuple[dict[Split, str], str]:
    """Chooses the expression of each split; returns a note if validation and test are the same."""
    chosen: dict[Any, str] = {"train": "train", **config.data.splits}
    own = {s: s for s in ("validation", "test") if s in prepared.splits and _is_labelled(prepared, s, advice)}
    for split, other in (("validation", "test"), ("test", "validation")):
        expression = chosen.get(split) or own.get(split) or own.get(other) or chosen.get(other)
        if expression is None:
            raise UserError(
                f"{config.data.source!r} has the splits {', '.join(prepared.splits)}, none with labels to validate "
                f"on besides train; divide one by config.data.splits, for example "
                "{'train': 'train[:90%]', 'validation': 'train[90%:95%]', 'test': 'train[95%:]'}"
            )
        chosen[split] = expression
    for split, expression in config.data.splits.items():
        if not _is_labelled(prepared, expression, advice):
            raise UserError(
                f"config.data.splits.{split} is {expression!r}, which has no labels; choose a labelled split"
            )
    if chosen["validation"] == chosen["test"]:
        note = f"the split {chosen['test']!r} of {config.data.source} is used for validation and for test"
        return chosen, note
    return chosen, ""


def _is_labelled(prepared: Description, expression: str, advice: str) -> bool:
    label = open_records(prepared, expression, advice).read(0, unlabelled=True).label
    return label is None or label >= 0


def _overlap(left: Sequence[FileInstruction], right: Sequence[FileInstruction]) -> bool:
    """Whether two splits share records."""
    parts = {}
    for part in left:
        parts.setdefault(part.filename, []).append(part)
    return any(
        part.skip < other.skip + other.take and other.skip < part.skip + part.take
        for other in right
        for part in parts.get(other.filename, [])
    )
