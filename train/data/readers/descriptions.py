"""Reads the description of a prepared data set of TensorFlow Datasets (tfds) without running code from it.

tfds imports the classes that ``features.json`` names, and a data set may be untrusted. This module therefore reads the
files itself: it compares class names with a fixed list, checks every value, and passes objects to tfds, not files.
"""

import json
import re
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import naming
from tensorflow_datasets.core.splits import SplitDict, SplitInfo

from train.data.limits import MAX_CLASSES, MAX_NAME_LENGTH, MAX_TEXT_BYTES
from train.data.opencv import MAX_PIXELS
from train.data.readers.files import UnusableError, read_regular
from train.untrusted import printable_name

FEATURES, INFO = "features.json", "dataset_info.json"
FILE_FORMAT = "array_record"

_PACKAGE = "tensorflow_datasets.core.features."
# The feature classes of tfds: first those that are read, then others that a data set may also have.
_IMAGE, _LABELED_IMAGE = f"{_PACKAGE}image_feature.Image", f"{_PACKAGE}labeled_image.LabeledImage"
_CLASS_LABEL, _BOX = f"{_PACKAGE}class_label_feature.ClassLabel", f"{_PACKAGE}bounding_boxes.BBoxFeature"
_SCALAR, _TENSOR = f"{_PACKAGE}scalar.Scalar", f"{_PACKAGE}tensor_feature.Tensor"
_OLD_BOX, _OLD_TENSOR = f"{_PACKAGE}bbox_feature.BBoxFeature", f"{_PACKAGE}feature.Tensor"
_DICTIONARY = f"{_PACKAGE}features_dict.FeaturesDict"
_CLASSES = frozenset(
    {_IMAGE, _LABELED_IMAGE, _CLASS_LABEL, _BOX, _SCALAR, _TENSOR, _OLD_BOX, _OLD_TENSOR, _DICTIONARY}
    | {
        _PACKAGE + name
        for name in (
            "audio_feature.Audio",
            "dataset_feature.Dataset",
            "optional_feature.Optional",
            "sequence_feature.Sequence",
            "text_feature.Text",
            "translation_feature.Translation",
            "translation_feature.TranslationVariableLanguages",
            "video_feature.Video",
        )
    }
)
_PIXELS = ("uint8", "uint16", "float32")
_NUMBERS = (
    *("bool", "float16", "float32", "float64"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
_TEMPLATE = re.compile(r"(?:[\w.\-/]|\{(?:DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\})+")
_NAME, _SPLIT, _CONFIG = re.compile(r"[a-zA-Z]\w*"), re.compile(r"(?=.*[^\W_])[\w-]+"), re.compile(r"[\w+\-.]+")
_VERSION = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}")
_MAX_PARTS = 100_000  # the most files of a split, and features or splits of a data set
_MAX_LENGTH = 2**40  # the most records of a file


class Description(NamedTuple):
    """The description of a prepared data set.

    Attributes:
        name: its name.
        version: its version, "1.0.0".
        folder: the folder of its files.
        formats: the file formats of its records.
        splits: the files and their numbers of records by split, as a tfds object.
        features: the features of a record by key, as a tfds object: images, classes, boxes and single numbers.
        supervised_keys: the keys of input and target, or None.
    """

    name: str
    version: str
    folder: epath.Path
    formats: frozenset[str]
    splits: SplitDict
    features: Any
    supervised_keys: tuple[str, str] | None


def read_description(folder: epath.Path) -> Description:
    """Reads ``dataset_info.json``, ``features.json`` and the files of class names.

    Args:
        folder: the folder of one version of a data set.

    Raises:
        UnusableError: if a file is missing, damaged or too large, or has values that are not allowed.
    """
    info = _in_file(INFO, lambda: _Info(_json(folder / INFO)))
    return Description(
        name=_in_file(INFO, lambda: info.text("name", _NAME)),
        version=_in_file(INFO, lambda: info.text("version", _VERSION)),
        folder=folder,
        formats=_in_file(INFO, info.formats),
        splits=_in_file(INFO, lambda: _read_splits(info, folder)),
        features=tfds.features.FeaturesDict(_in_file(FEATURES, lambda: _read_features(folder))),
        supervised_keys=_in_file(INFO, info.supervised_keys),
    )


def read_default_config(folder: epath.Path) -> str:
    """Reads the name of a data set's default config; "" if it has none.

    Args:
        folder: the folder of all versions and configs of a data set.

    Raises:
        UnusableError: if the metadata file is damaged.
    """
    path = folder / ".config" / "metadata.json"
    if not path.exists():
        return ""
    values = _in_file(".config/metadata.json", lambda: _Values(_json(path)))
    return _in_file(".config/metadata.json", lambda: values.text("default_config_name", _CONFIG, default=""))


def is_config(name: str) -> bool:
    """Whether a name is a valid config name, which is also a folder name."""
    return bool(_CONFIG.fullmatch(name)) and name not in (".", "..")


def read_class_names(path: epath.Path) -> tuple[str, ...]:
    """Reads a file with a class name on each line; empty lines are ignored.

    Raises:
        UnusableError: if it cannot be read or is not text, or if a name is too long or occurs twice.
    """
    try:
        text = read_regular(path, MAX_TEXT_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UnusableError("it is no text in UTF-8") from error
    names = tuple(printable_name(name.strip()) for name in text.split("\n") if name.strip())
    if len(names) > MAX_CLASSES:
        raise UnusableError(f"it has {len(names):,} classes, and at most {MAX_CLASSES:,} are read")
    for name in names:
        if len(name) > MAX_NAME_LENGTH:
            raise UnusableError(f"the name {_short(name)} has more than {MAX_NAME_LENGTH} characters")
    if len(set(names)) < len(names):
        seen = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise UnusableError(f"the name {twice!r} occurs twice")
    return names


class _Values:
    """An object of a JSON file; fields are checked on access.

    Old versions of tfds write field names as ``num_classes``, new ones as ``numClasses``.
    """

    def __init__(self, values: Any):
        if not isinstance(values, dict):
            raise UnusableError(f"it holds {_short(values)} where an object is expected")
        self._values = values

    def get(self, name: str) -> Any:
        first, *others = name.split("_")
        return self._values.get(name, self._values.get(first + "".join(part.capitalize() for part in others)))

    def text(self, name: str, form: re.Pattern[str], default: str | None = None) -> str:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or len(value) > MAX_NAME_LENGTH or not form.fullmatch(value):
            raise UnusableError(f"its {name} is {_short(value)}, which is no {name.replace('_', ' ')} of tfds")
        return value

    def items(self, name: str) -> list[Any]:
        value = self.get(name)
        if not isinstance(value, list | None) or len(value or ()) > _MAX_PARTS:
            raise UnusableError(f"its {name} is {_short(value)}, but must be a list of at most {_MAX_PARTS:,} entries")
        return value or []

    def number(self, name: str, most: int) -> int:
        """Reads a whole number; a missing one is 0, as tfds omits zeros."""
        return _whole(self.get(name), name, 0, most)


class _Info(_Values):
    """The object of ``dataset_info.json``."""

    def formats(self) -> frozenset[str]:
        others = [value for value in self.items("alternative_file_formats") if isinstance(value, str)]
        return frozenset([self.text("file_format", _CONFIG, default="tfrecord"), *map(printable_name, others)])

    def supervised_keys(self) -> tuple[str, str] | None:
        keys = self.get("supervised_keys")
        if not isinstance(keys, dict):
            return None
        found: Any = (keys.get("input"), keys.get("output"))
        if isinstance(keys.get("tuple"), dict) and isinstance(items := keys["tuple"].get("items"), list):
            found = tuple(_Values(item).get("feature_key") for item in items if isinstance(item, dict))
        return found if len(found) == 2 and all(isinstance(key, str) for key in found) else None


def _read_splits(info: _Info, folder: epath.Path) -> SplitDict:
    splits: dict[str, SplitInfo] = {}
    for entry in map(_Values, info.items("splits")):
        name = entry.text("name", _SPLIT)
        if name in splits:
            raise UnusableError(f"it has the split {name!r} twice")
        pattern = entry.text("filepath_template", _TEMPLATE, default="") or naming.DEFAULT_FILENAME_TEMPLATE
        if pattern.startswith("/") or ".." in pattern.split("/"):
            raise UnusableError(f"the files of the split {name!r} are {_short(pattern)}, which leads out of the folder")
        lengths = [_whole(length, "shard_lengths", 0, _MAX_LENGTH) for length in entry.items("shard_lengths")]
        template = naming.ShardedFileTemplate(
            folder, pattern, info.text("name", _NAME), split=name, filetype_suffix=FILE_FORMAT
        )
        splits[name] = SplitInfo(name, lengths, entry.number("num_bytes", 2**63), template)
    if not splits:
        raise UnusableError("it has no splits")
    return SplitDict(splits.values())


def _read_features(folder: epath.Path) -> dict[str, Any]:
    whole = _json(folder / FEATURES)
    _check_classes(whole)
    name, content = _split_feature(whole)
    if name != _DICTIONARY:
        raise UnusableError(f"it describes a {name.rsplit('.')[-1]}, but a record must be a FeaturesDict")
    described = content.get("features", content)
    if not isinstance(described, dict) or len(described) > _MAX_PARTS:
        raise UnusableError(f"its features are {_short(described)}, but must be an object")
    features = {}
    for key, feature in described.items():
        if not key or len(key) > MAX_NAME_LENGTH or not key.isprintable():
            raise UnusableError(f"the key {_short(key)} is no name of a feature")
        try:
            made = _feature(*_split_feature(feature), folder / f"{key.replace('/', '.')}.labels.txt")
        except UnusableError as error:
            raise UnusableError(f"the feature {key!r}: {error}") from error
        if made is not None:
            features[key] = made
    return features


def _check_classes(whole: Any) -> None:
    """Refuses names of classes outside tfds, at any depth."""
    rest = [whole]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest += value
        elif isinstance(value, dict):
            rest += value.values()
            names = [value.get(key) for key in ("pythonClassName", "python_class_name")]
            names += [value.get("type")] if "content" in value or "proto_cls" in value else []
            for name in names:
                if isinstance(name, str) and name not in _CLASSES:
                    raise UnusableError(
                        f"it names the class {_short(name)}, which is none of tfds's features; only "
                        "tensorflow_datasets.features are read, and nothing is imported for others"
                    )
            for key in ("json", "content"):  # JSON within JSON
                if isinstance(value.get(key), str):
                    rest.append(_parse(value[key]))


def _split_feature(feature: Any) -> tuple[str, dict[str, Any]]:
    """Splits a feature into class and content, in the current form or that of tfds before version 4.6."""
    values = _Values(feature)
    content = values.get("content")
    name = values.get("type") if content is not None else values.get("python_class_name")
    if content is None:
        fields = ("image", "class_label", "bounding_box", "tensor", "features_dict", "json_feature")
        content = next((found for field in fields if (found := values.get(field)) is not None), {})
        if isinstance(content, dict) and isinstance(content.get("json"), str):
            content = content["json"]
    if isinstance(content, str):
        content = _parse(content)
    if not isinstance(name, str) or name not in _CLASSES or not isinstance(content, dict):
        raise UnusableError(f"it is {_short(feature)}, which is no feature of tfds")
    return name, content


def _feature(name: str, content: dict[str, Any], names_file: epath.Path) -> Any | None:
    """Makes the tfds object of a feature; None for features that are not read."""
    values = _Values(content)
    if name in (_BOX, _OLD_BOX):
        return tfds.features.BBoxFeature()
    if name == _CLASS_LABEL:
        classes = _read_classes(values, names_file)
        return tfds.features.ClassLabel(names=classes) if classes else tfds.features.ClassLabel()
    if name in (_SCALAR, _TENSOR, _OLD_TENSOR):
        is_plain = values.get("encoding") in (None, "", "none") and not values.get("optional")
        is_number = values.get("dtype") in _NUMBERS and _shape(values) == ()
        return tfds.features.Scalar(np.dtype(values.get("dtype")).type) if is_plain and is_number else None
    if name not in (_IMAGE, _LABELED_IMAGE):
        return None
    shape = _shape(values) or (None, None, 3 if name == _IMAGE else 1)
    dtype = values.get("dtype") or "uint8"
    channels = (None, 1, 2, 3, 4) if name == _IMAGE else (1,)
    is_possible = len(shape) == 3 and shape[2] in channels and 0 not in shape and dtype in _PIXELS
    if not is_possible or (shape[0] or 1) * (shape[1] or 1) > MAX_PIXELS:
        raise UnusableError(f"its shape is {shape} of {_short(dtype)}, which no image has")
    if name == _IMAGE:
        return tfds.features.Image(shape=shape, dtype=np.dtype(dtype).type)
    label = values.get("label") if values.get("label") is not None else content
    classes = _read_classes(_Values(label), names_file)
    return tfds.features.LabeledImage(labels=list(classes) or None, shape=shape, dtype=np.dtype(dtype).type)


def _read_classes(values: _Values, names_file: epath.Path) -> list[str]:
    """Reads the class names; without a file of names they are numbers."""
    count = values.number("num_classes", MAX_CLASSES)
    if not names_file.exists():
        return [str(number) for number in range(count)]
    try:
        names = read_class_names(names_file)
        if len(names) != (count or len(names)):
            raise UnusableError(f"it has {len(names)} names, but there are {count} classes")
    except UnusableError as error:
        raise UnusableError(f"{printable_name(names_file.name)}: {error}") from error
    return list(names)


def _shape(values: _Values) -> tuple[int | None, ...]:
    shape = values.get("shape")
    dimensions = _Values(shape).items("dimensions") if isinstance(shape, dict) else values.items("shape")
    return tuple(None if side in (None, -1, "-1") else _whole(side, "shape", 0, 2**31) for side in dimensions)


def _whole(value: Any, name: str, least: int, most: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"\d{1,19}", value):
        value = int(value)
    value = 0 if value is None else value
    if type(value) is not int or not least <= value <= most:
        raise UnusableError(f"its {name} is {_short(value)}, but must be a whole number from {least} to {most:,}")
    return value


def _json(path: epath.Path) -> Any:
    try:
        return _parse(read_regular(path, MAX_TEXT_BYTES).decode())
    except UnicodeDecodeError as error:
        raise UnusableError("it is no text in UTF-8") from error


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnusableError(f"it is no JSON ({_short(str(error) or 'nested too deeply')})") from error


def _in_file(file: str, read: Callable[[], Any]) -> Any:
    """Prefixes errors with the name of the file."""
    try:
        return read()
    except UnusableError as error:
        raise UnusableError(f"{file}: {error}") from error


def _short(value: Any) -> str:
    """Shortens a value for an error message."""
    text = printable_name(value[:200]) if isinstance(value, str) else reprlib.repr(value)
    text = text if len(text) <= 80 else text[:80] + "..."
    return f"'{text}'" if isinstance(value, str) else text
