"""Fuzzes weight files: zip archives and legacy pickles of ``torch.save``, and safetensors."""

import argparse
import json
import pickle
import string
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
from flax import nnx

from msconv_jax import GroupedConv
from msconv_jax.torch_weights import load_torch_checkpoint, read_state_dict, write_safetensors
from tests.fuzz.driver import EXTREMES, Fuzzer, edited, main, mutated
from tests.test_weight_files import Raw, call, emit, name, old_file, ordered, tensor, zipped
from train.untrusted import escaped

_FOLDER = tempfile.TemporaryDirectory()
_STORAGES = {"0": bytes(range(24)), "1": bytes(32), "2": bytes(8), "3": bytes(4)}
_DATA = {f"data/{key}": data for key, data in _STORAGES.items()}
_KINDS = (("Float", "0", 6), ("Double", "1", 4), ("Long", "2", 1), ("Bool", "3", 4))


def _seeds() -> tuple[dict[str, bytes], bytes, bytes]:
    """Returns the entries of a zip archive, a legacy file, and a safetensors file."""
    beside = {
        "args": argparse.Namespace(rate=0.1, names=["é"], sizes=(1, 2, 2**70)),
        "seen": {frozenset({1})},
        "metric": np.float64(3),
    }
    weights = {
        "module.weight": tensor("Float", "0", 6, 0, (3, 2, 1, 1), (2, 1, 1, 1)),
        "module.bias": call("torch._utils._rebuild_parameter", tensor("Double", "1", 4, 1, (3,), (1,)), True, {}),
        "module.count": tensor("Long", "2", 1, 0, (), ()),
        "module.used": tensor("Bool", "3", 4, 0, (2, 2), (1, 2)),
    }
    saved = {"beside": Raw(pickle.dumps(beside, 4)[2:-1]), "state_dict": ordered(weights)}
    entries = {"data.pkl": b"\x80\x02" + emit(saved) + b".", **_DATA}
    old = old_file(saved, _STORAGES)
    old = old[: -sum(8 + len(data) for data in _STORAGES.values())]
    old += b"".join(
        struct.pack("<q", count) + data for count, data in zip((6, 4, 1, 4), _STORAGES.values(), strict=True)
    )
    path = Path(_FOLDER.name, "seed")
    arrays = {
        "weight": np.ones((3, 2, 1, 1), np.float32),
        "bias": np.ones(3, np.float16),
        "used": np.ones((2, 2), bool),
        "none": np.ones((0, 4)),
    }
    write_safetensors(path, arrays, {"format": "pt"})
    return entries, old, path.read_bytes()


ENTRIES, OLD, SAFE = _seeds()
SEEDS = (zipped(ENTRIES), OLD, SAFE)
# Fragments of pickles to insert in wrong places.
_OPCODES = [bytes([code]) for code in range(256)]
_VALUES = [emit(value) for value in (None, True, 3, 0.5, "module.weight", (), (2, 2), [], {}, -1, *EXTREMES)]
_NAMES = [
    name(full)
    for full in (
        *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch._tensor._rebuild_from_type_v2"),
        *("torch.Size", "torch.FloatStorage", "torch.bfloat16", "collections.OrderedDict", "builtins.set"),
        *("os.system", "builtins.eval", "numpy.core.multiarray.scalar", "\x1b[2J.é"),
    )
]
_FRAGMENTS = (*_OPCODES, *_VALUES, *_NAMES, tensor("Half", "0", 6, 0, (6,), (1,)), b"\x8d" + b"\xff" * 8, b"(" * 500)
_TEXTS = (
    *("", "\0", "\x1b[2J", "é" * 300, "weight", "module.", "__metadata__", "dtype", "shape", "data_offsets"),
    *("BOOL", "F32", "F16", "BF16", "I64", "F8_E4M3", "C64", "F99", "\ud800"),
)


def make(rng: np.random.Generator) -> bytes:
    """Damages a file as a whole, or one part inside an intact container."""
    kind = rng.integers(5)
    if kind == 0:
        return mutated(SEEDS[rng.integers(len(SEEDS))], SEEDS, rng)
    if kind == 1:
        return _with_other_entries(rng)
    if kind == 2:
        return _reworded(OLD, rng)
    if kind == 3:
        return _with_other_tensors(rng)
    length = int.from_bytes(SAFE[:8], "little")
    header = json.loads(SAFE[8 : 8 + length])
    for _ in range(int(rng.integers(1, 4))):
        header = edited(header, _TEXTS, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + SAFE[8 + length :]


def _with_other_tensors(rng: np.random.Generator) -> bytes:
    """An archive of tensors with random offsets, shapes and strides; many fit their storages."""

    def numbers(count: int) -> tuple[int, ...]:
        extreme = EXTREMES[rng.integers(len(EXTREMES))]
        return tuple(extreme if rng.random() < 0.03 else int(rng.integers(4)) for _ in range(count))

    weights = {}
    for place in range(int(rng.integers(1, 4))):
        kind, key, count = _KINDS[rng.integers(len(_KINDS))]
        rank = int(rng.integers(5))
        (offset,), shape, strides = numbers(1), numbers(rank), numbers(rank)
        weights[("weight", "bias", "\x1b[2J")[place]] = tensor(kind, key, count, offset, shape, strides)
    return zipped({"data.pkl": b"\x80\x02" + emit(ordered(weights)) + b".", **_DATA})


def _with_other_entries(rng: np.random.Generator) -> bytes:
    """An archive with valid checksums and a damaged entry, mostly the pickle."""
    entries = {"byteorder": b"little", **ENTRIES}
    chosen = "data.pkl" if rng.random() < 0.8 else list(entries)[rng.integers(len(entries))]
    if chosen == "data.pkl" and rng.random() < 0.7:
        entries[chosen] = _reworded(entries[chosen], rng)
    else:
        entries[chosen] = mutated(entries[chosen], list(ENTRIES.values()), rng)
    if rng.random() < 0.1:
        entries[f"data/{string.printable[rng.integers(100)]}"] = entries.pop(chosen)
    return zipped(entries)


def _reworded(data: bytes, rng: np.random.Generator) -> bytes:
    """Inserts opcodes, values and names into a pickle, or overwrites bytes with them."""
    for _ in range(int(rng.choice((1, 1, 1, 2, 4)))):
        place, size = int(rng.integers(len(data) + 1)), int(rng.choice((0, 0, 1, 2, 5)))
        data = data[:place] + _FRAGMENTS[rng.integers(len(_FRAGMENTS))] + data[place + size :]
    return data


_CONV = GroupedConv(2, 3, (1, 1), rngs=nnx.Rngs(0))


def check(data: bytes) -> None:
    """Loads the file; an error message contains its path, and no control characters."""
    path = Path(_FOLDER.name, "weights")
    path.write_bytes(data)
    try:
        arrays = read_state_dict(path)
        load_torch_checkpoint(_CONV, path, strict=False)
    except ValueError as error:
        message = str(error)
        if not message.startswith(f"{path}: ") or message != escaped(message, keep="\n") or len(message) > 4000:
            raise AssertionError(f"the message is {message!a}") from error
        raise
    size = sum(array.nbytes for array in arrays.values())
    assert size <= 4 * len(data) + 2**16, f"{size} bytes of {len(data)}"


FUZZER = Fuzzer("weights", make, check, (ValueError,))

if __name__ == "__main__":
    sys.exit(main(FUZZER, sys.argv[1:]))
