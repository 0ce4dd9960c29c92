"""Fuzzes the files in a run's folder: metrics, result, config, data record and checkpoints."""

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.fuzz.driver import Fuzzer, edited, main, mutated
from tests.train.rows import data_config
from train.config import check_workdir, read_config, update_config
from train.config.network import check_network
from train.data.record import DataRecord, compare, read_record
from train.engine.checkpoint import Checkpoint, best_checkpoint, intact_checkpoints
from train.engine.log import SPEEDS, read_metrics, repair_records
from train.engine.results import read_result
from train.errors import UserError
from train.task import Metric
from train.tasks.classification import Classification
from train.untrusted import escaped

_NEEDED = {"metrics.jsonl": ("validation_accuracy",), "speeds.jsonl": SPEEDS}
_CONFIG = update_config(
    data_config("folder", dir="pictures", splits={"train": "train"}, augment={"flip": {}}),
    {
        "model": {
            "name": "resnet50",
            "conv": "PSConv",
            "conv_kwargs": {"layout": "block"},
            "convs": {"layer1.0.conv2": {}},
            "kwargs": {"width": 8},
        },
        "optimizer": {"multipliers": {"layer1": 0.5}, "schedule": "steps", "schedule_epochs": [1]},
    },
)
_SEGMENTATION = update_config(_CONFIG, {"task": {"name": "segmentation", "crop": [8, 8]}, "model.kwargs": {}})
_RECORD = DataRecord(
    classes=("cat", "café"),
    segmentation_classes=("sky", "road"),
    image_shape=(224, 224, 3),
    is_sized=False,
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    fields=frozenset({"label"}),
    counts={"train": 3, "validation": 1, "test": 1},
    fingerprints=dict.fromkeys(("train", "validation", "test"), "0" * 32),
)
_ARRAY = b"an array"
_LINE = {"step": 4, "epoch": 1, "train_loss": 1.5, "validation_loss": 1.25, "validation_accuracy": 0.5}
_META = {"step": 7, "metrics": {"accuracy": 0.5, "loss": 1.25}, "arrays": {"params.conv.kernel": "float32[3, 3, 1, 8]"}}


def _manifest(metadata: bytes) -> dict:
    parts = {"state/array": _ARRAY, "meta/metadata": metadata}
    return {"step": 7, "files": {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}}


# The files of a run with their JSON objects, one per line.
FILES: dict[str, list[dict]] = {
    "metrics.jsonl": [{**_LINE, "step": 4 * epoch, "epoch": epoch} for epoch in range(1, 6)],
    "speeds.jsonl": [
        {"step": epoch, "epoch": epoch, "images_per_second": 99.5, "waiting": 0.25} for epoch in range(1, 4)
    ],
    "result.json": [{"test_accuracy": 0.75, "test_loss": 0.5, "test_top5_accuracy": 1.0, "step": 20}],
    "config.json": [_CONFIG.model_dump()],
    "data.json": [json.loads(_RECORD.to_json())],
    "checkpoints/7/manifest.json": [_manifest(json.dumps(_META).encode())],
    "checkpoints/7/meta/metadata": [_META],
}
NAMES = list(FILES)
_TEXTS = (
    *("", "\0", "\x1b[2J", "\ud800", "é" * 5000, "../../x", "/etc/passwd", "{0.__class__}", "nan", "1e999", "-1", "7"),
    *("step", "epoch", "train", "validation", "accuracy", "classification", "segmentation", "name", "epochs", "model"),
    *("PSConv", "PyConv", "lambda: 0", "os.system", "~nobody", "state/array", "state/../../x", "\u202e", "9" * 5000),
)
_NUMBERS = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"-0",
    b"1.0",
    b"0x1",
    b"[" * 3000,
    b'"\\ud800"',
    b"\xff",
    b"\0",
)


def _text(values: list[dict]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


SEEDS = [bytes([place]) + _text(values) for place, values in enumerate(FILES.values())]


def make(rng: np.random.Generator) -> bytes:
    """Damages one of the files; the first byte is its index in `NAMES`."""
    place = int(rng.integers(len(NAMES)))
    values = list(FILES[NAMES[place]])
    if NAMES[place] == "config.json" and rng.random() < 0.3:
        values = [_SEGMENTATION.model_dump()]
    kind = rng.random()
    if kind < 0.6:
        for _ in range(int(rng.choice((1, 1, 2, 5)))):
            line = int(rng.integers(len(values)))
            values[line] = edited(values[line], _TEXTS, rng)
        data = _text(values)
    elif kind < 0.75:  # replaces a value by text that is not JSON, or that only Python accepts
        parts = _text(values).replace(b",", b":").split(b":")
        at = int(rng.integers(1, len(parts)))
        before = sum(len(part) + 1 for part in parts[:at])
        data = _text(values)
        data = data[:before] + _NUMBERS[rng.integers(len(_NUMBERS))] + data[before + len(parts[at]) :]
    else:
        data = mutated(_text(values), SEEDS, rng)
    return bytes([place]) + data


def check(data: bytes) -> None:
    """Reads a file as the programs do; no control character gets to the terminal."""
    name = NAMES[(data or b"\0")[0] % len(NAMES)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as errors:
        workdir = Path(folder)
        path = workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[1:])
        _READERS[name](workdir, path)
        assert escaped(errors.getvalue(), keep="\n") == errors.getvalue()


def _lines(workdir: Path, path: Path) -> None:
    """Damaged lines are skipped, not rejected; the repaired file has no damage."""
    needed = _NEEDED[path.name]
    try:
        records = read_metrics(path, 16, needed).records
        assert repair_records(path, 16, needed) == records
        assert read_metrics(path, 16, needed) == (records, [], 0)
        assert all(0 < record["step"] <= 16 for record in records)
    except UserError as error:
        raise AssertionError("metrics are refused") from error


def _result(workdir: Path, path: Path) -> None:
    read_result(workdir, Classification)
    read_result(workdir)


def _config(workdir: Path, path: Path) -> None:
    (workdir / "checkpoints" / "7").mkdir(parents=True)
    with contextlib.suppress(UserError):  # most configs belong to another run
        check_workdir(workdir, _CONFIG)
    check_network(read_config(workdir))


def _data(workdir: Path, path: Path) -> None:
    record = read_record(workdir)
    record.source()
    assert all(map(str.isprintable, compare(record, _RECORD)))
    path.write_text(record.to_json(), "utf-8")
    assert read_record(workdir) == record


def read_checkpoint(path: Path) -> list[Checkpoint]:
    """Completes a checkpoint around its manifest, or around its metadata with the right checksum."""
    folder = path.parent if path.name == "manifest.json" else path.parents[1]
    (folder / "state").mkdir(exist_ok=True)
    (folder / "state" / "array").write_bytes(_ARRAY)
    if path.name == "metadata":
        (folder / "manifest.json").write_text(json.dumps(_manifest(path.read_bytes())))
    else:
        (folder / "meta").mkdir()
        (folder / "meta" / "metadata").write_text(json.dumps(_META))
    intact, damaged = intact_checkpoints(folder.parent)
    assert [*(checkpoint.folder for checkpoint in intact), *damaged] == [folder]
    best_checkpoint(intact, Metric("accuracy"))
    assert all(checkpoint.step == 7 for checkpoint in intact)
    return intact


def _checkpoint(workdir: Path, path: Path) -> None:
    read_checkpoint(path)


_READERS: dict[str, Callable[[Path, Path], None]] = {
    "metrics.jsonl": _lines,
    "speeds.jsonl": _lines,
    "result.json": _result,
    "config.json": _config,
    "data.json": _data,
    "checkpoints/7/manifest.json": _checkpoint,
    "checkpoints/7/meta/metadata": _checkpoint,
}

FUZZER = Fuzzer("metrics", make, check, (UserError,))

if __name__ == "__main__":
    sys.exit(main(FUZZER, sys.argv[1:]))
