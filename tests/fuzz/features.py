"""Fuzzes descriptions of prepared data sets: features.json, dataset_info.json and the names of classes."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from tests.fuzz.driver import Fuzzer, edited, main, mutated
from tests.train.rows import data_config
from train.data.readers.tfds import tfds_source
from train.errors import UserError

PREPARED = Path(__file__).parents[1] / "data" / "tfds" / "cifar10"
VERSION = "3.0.2"
FILES = ("features.json", "dataset_info.json", "label.labels.txt")
_PACKAGE = "tensorflow_datasets.core.features."
_TEXTS = (
    *(
        "",
        "\0",
        "../../x",
        "/etc/passwd",
        "{SPLIT.__class__}",
        "{SPLIT:99999999}",
        "os.system",
        "no_such_module.Feature",
    ),
    *(f"{_PACKAGE}{name}" for name in ("image_feature.Image", "text_feature.Text", "sequence_feature.Sequence")),
    *("uint8", "int64", "S99999999", "object", "tfrecord", "-1", "9" * 400, "é\x1b[2J", "train", "1.0.0", "nan"),
)


def _seeds() -> list[bytes]:
    kept = {name: PREPARED.joinpath(VERSION, name).read_bytes() for name in FILES}
    whole = json.loads(kept["features.json"])
    features = whole["featuresDict"]["features"]
    features["bbox"] = {"pythonClassName": f"{_PACKAGE}bounding_boxes.BBoxFeature", "boundingBox": {}}
    features["areas"] = {
        "pythonClassName": f"{_PACKAGE}labeled_image.LabeledImage",
        "image": {"shape": {"dimensions": ["32", "32", "1"]}, "dtype": "uint8", "label": {"numClasses": "3"}},
    }
    features["scale"] = {
        "pythonClassName": f"{_PACKAGE}scalar.Scalar",
        "tensor": {"shape": {}, "dtype": "float32", "encoding": "none"},
    }
    old = {
        "type": f"{_PACKAGE}features_dict.FeaturesDict",
        "content": {
            "image": {"type": f"{_PACKAGE}image_feature.Image", "content": {"shape": [32, 32, 3], "dtype": "uint8"}},
            "label": {"type": f"{_PACKAGE}class_label_feature.ClassLabel", "content": {"num_classes": 10}},
        },
    }
    return [*kept.values(), json.dumps(whole).encode(), json.dumps(old).encode()]


SEEDS = _seeds()


def make(rng: np.random.Generator) -> bytes:
    """Damages one of the files; the first byte is the index of its target in `FILES`."""
    place = int(rng.integers(len(SEEDS)))
    target = FILES[place] if place < len(FILES) else FILES[0]
    if rng.random() < 0.03:
        target = FILES[rng.integers(len(FILES))]
    data = SEEDS[place]
    if data.startswith(b"{") and rng.random() < 0.7:
        values = json.loads(data)
        for _ in range(int(rng.integers(1, 4))):
            values = edited(values, _TEXTS, rng)
        data = json.dumps(values).encode()
    else:
        data = mutated(data, SEEDS, rng)
    return bytes([FILES.index(target)]) + data


_FOLDER = tempfile.TemporaryDirectory()


def _prepare(folder: Path) -> None:
    """Copies the data set, with a box and a number added to every record."""
    shutil.copytree(PREPARED, folder)
    for path in folder.glob(f"{VERSION}/*.array_record*"):
        reader = ArrayRecordReader(str(path))
        records = reader.read_all()
        reader.close()
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            example: Any = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
            example.features.feature["bbox"].float_list.value[:] = [0.25, 0.25, 0.5, 1]
            example.features.feature["scale"].float_list.value[:] = [2]
            writer.write(example.SerializeToString())
        writer.close()


def check(data: bytes) -> None:
    """Opens the data set and reads a record of every split."""
    folder = Path(_FOLDER.name, "cifar10")
    if not folder.exists():
        _prepare(folder)
    path = folder / VERSION / FILES[data[0]]
    kept = path.read_bytes()
    try:
        path.write_bytes(data[1:])
        source = tfds_source(data_config("cifar10", dir=_FOLDER.name), frozenset({"label", "boxes", "labels"}))
        assert all(name.isprintable() for name in source.classes)
        for samples in source.splits.values():
            samples[len(samples) - 1]
    finally:
        path.write_bytes(kept)
    if "no_such_module" in sys.modules:
        raise AssertionError("a file chose what was imported")


FUZZER = Fuzzer("features", make, check, (UserError,))

if __name__ == "__main__":
    sys.exit(main(FUZZER, sys.argv[1:]))
