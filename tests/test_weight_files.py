"""Untrusted weight files: valid content is read, other content is rejected, and no code runs."""

import argparse
import collections
import io
import json
import os
import pickle
import random
import re
import struct
import tarfile
import time
import tracemalloc
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from msconv_jax import GroupedConv
from msconv_jax.torch_weights.files import load_torch_checkpoint, read_state_dict, write_safetensors
from msconv_jax.torch_weights.pickled import PickledDict
from msconv_jax.torch_weights.unpickling import Unpickler

KINDS = (
    {"Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16}
    | {"Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_}
    | {"ComplexFloat": np.complex64, "ComplexDouble": np.complex128}
)
SAFE_DTYPES = [*list(KINDS.values())[:-1], np.uint16, np.uint32, np.uint64, ml_dtypes.float8_e4m3fn]


# --- weight files made by hand ---


class Raw(bytes):
    """Opcodes that leave one value on the stack."""


def emit(value):
    """The opcodes that create a value."""
    match value:
        case Raw():
            return bytes(value)
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(emit, value)) + b"t"
        case list():
            return b"](" + b"".join(map(emit, value)) + b"e"
        case dict():
            return b"}(" + b"".join(emit(key) + emit(item) for key, item in value.items()) + b"u"
    raise TypeError(type(value))


def name(full):
    module, _, attribute = full.rpartition(".")
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(function, *arguments):
    return Raw(name(function) + emit(arguments) + b"R")


def ordered(pairs):
    """An OrderedDict with _metadata, as from a module's state_dict()."""
    items = b"".join(emit(key) + emit(item) for key, item in pairs.items())
    metadata = {"_metadata": call("collections.OrderedDict")}
    return Raw(call("collections.OrderedDict") + b"(" + items + b"u" + emit(metadata) + b"b")


def storage(kind, key, numel, *view):
    return Raw(emit(("storage", name(f"torch.{kind}Storage"), key, "cuda:0", numel, *view)) + b"Q")


def tensor(kind, key, numel, offset, shape, strides):
    hooks = call("collections.OrderedDict")
    arguments = (storage(kind, key, numel), offset, shape, strides, False, hooks)
    return call("torch._utils._rebuild_tensor_v2", *arguments)


def vector(numel=3, key="0"):
    return tensor("Float", key, numel, 0, (numel,), (1,))


def zipped(entries, root="weights", **changes):
    """A zip archive as from torch.save; `changes` adds, replaces or (None) removes entries."""
    file = io.BytesIO()
    entries = {"byteorder": b"little", "version": b"3\n"} | entries | changes
    with zipfile.ZipFile(file, "w") as archive:
        for entry, data in entries.items():
            if data is not None:
                archive.writestr(f"{root}/{entry}", data)
    return file.getvalue()


def new_file(value, storages, **changes):
    entries = {f"data/{key}": data for key, data in storages.items()}
    return zipped({"data.pkl": b"\x80\x02" + emit(value) + b".", **entries}, **changes)


def old_file(value, storages, itemsize=4, keys=None, little=True, magic=0x1950A86A20F9469CFC6C, protocol=1001):
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    pickles = [magic, protocol, system, value, list(storages) if keys is None else keys]
    heads = b"".join(b"\x80\x02" + emit(part) + b"." for part in pickles)
    return heads + b"".join(struct.pack("<q", len(data) // itemsize) + data for data in storages.values())


def safe_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


FORMATS = {"zip": new_file, "legacy": old_file}
THREE = np.arange(3, dtype=np.float32).tobytes()


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a weight file."""

    def read(data):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return read_state_dict(path)

    return read


@pytest.fixture
def refuses(read):
    """Expects an error message with the file, the problem and a way out."""

    def refuses(data, match):
        with pytest.raises(ValueError, match=match) as caught:
            read(data)
        message = str(caught.value)
        assert type(caught.value) is ValueError
        assert "weights.pth: " in message
        assert re.search("save|download|unpack|copy|zip it|do not trust", message, re.IGNORECASE), message
        assert len(message) < 2000
        return message

    return refuses


# --- what is read ---


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_of_both_formats(read, make, kind):
    dtype = np.dtype(KINDS[kind])
    values = np.array([[0, 1, 0], [1, 1, 0]]).astype(dtype)
    options = {"itemsize": dtype.itemsize} if make is old_file else {}
    state = read(make({"a": tensor(kind, "7", 6, 0, (2, 3), (3, 1))}, {"7": values.tobytes()}, **options))
    assert state["a"].dtype == dtype
    np.testing.assert_array_equal(state["a"], values)
    state["a"][...] = values  # a writable copy


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_views_scalars_empty_tensors_and_parameters(read, make):
    base = np.arange(24, dtype=np.float32)
    whole = storage("Float", "0", 24)
    saved = {
        "transposed": tensor("Float", "0", 24, 0, (6, 4), (1, 6)),
        "slice": tensor("Float", "0", 24, 5, (2, 3), (12, 2)),
        "scalar": tensor("Float", "0", 24, 23, (), ()),
        "expanded": tensor("Float", "0", 24, 3, (2, 100), (1, 0)),
        "empty": tensor("Float", "1", 0, 0, (0, 3), (3, 1)),
        "one": tensor("Float", "0", 24, 2, (1, 2), (1 << 40, 1)),
        "old": call("torch._utils._rebuild_tensor", whole, 1, (2,), (1,)),
        "size": call("torch._utils._rebuild_tensor", whole, 1, call("torch.Size", (2,)), (1,)),
        "parameter": call("torch._utils._rebuild_parameter", vector(24), True, call("collections.OrderedDict")),
        "typed": call(
            "torch._tensor._rebuild_from_type_v2",
            *(name("torch._utils._rebuild_tensor"), name("torch.nn.parameter.Buffer"), (whole, 2, (1,), (1,)), {}),
        ),
        "third": call(
            "torch._utils._rebuild_tensor_v3",
            *(storage("Untyped", "2", 8), 1, (3,), (1,), False, None, name("torch.uint16")),
        ),
    }
    storages = {"0": base.tobytes(), "1": b"", "2": np.arange(4, dtype=np.uint16).tobytes()}
    data = make(ordered(saved), storages)
    if make is old_file:  # the last storage's size is in bytes
        data = data[:-16] + struct.pack("<q", 8) + storages["2"]
    state = read(data)
    assert list(state) == list(saved)
    expected = {
        "transposed": base.reshape(4, 6).T,
        "slice": base[5:].reshape(-1)[[[0, 2, 4], [12, 14, 16]]],
        "scalar": np.float32(23),
        "expanded": np.repeat(base[3:5, None], 100, 1),
        "empty": np.empty((0, 3), np.float32),
        "one": base[None, 2:4],
        "old": base[1:3],
        "size": base[1:3],
        "parameter": base,
        "typed": base[2:3],
        "third": np.array([1, 2, 3], np.uint16),
    }
    for key, value in expected.items():
        np.testing.assert_array_equal(state[key], value, strict=True)
    assert not np.shares_memory(state["transposed"], state["slice"])


def test_an_empty_storage_needs_no_entry_and_bools_are_zero_or_one(read):
    saved = {"a": tensor("Float", "0", 0, 0, (0,), (1,)), "b": tensor("Bool", "1", 3, 0, (3,), (1,))}
    state = read(new_file(saved, {"1": b"\x00\x02\xff"}))
    assert state["a"].shape == (0,)
    assert state["b"].view(np.uint8).tolist() == [0, 1, 1]


def test_pickles_of_python_2_and_of_protocol_1(read):
    key = b"U\x01a"
    assert list(read(new_file(Raw(b"}" + key + vector() + b"s"), {"0": THREE}))) == ["a"]
    pairs = call("collections.OrderedDict", [["b", vector()], ("c", vector())])
    assert list(read(new_file(pairs, {"0": THREE}))) == ["b", "c"]
    one = Raw(b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuL3L\ntQ")
    old = Raw(b"ctorch._utils\n_rebuild_tensor\n(" + one + b"I0\n(I3\nt(I1\nttR")
    np.testing.assert_array_equal(read(new_file({"a": old, "flag": old}, {"0": THREE}))["a"], [0, 1, 2])


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_other_things_may_stand_beside_the_weights(read, make):
    saved = {
        "meta": {"epoch": 3, "time": "now", 5: None, (1, 2): 2.5, "config": [call("pathlib.PosixPath", "a", "b")]},
        "args": Raw(name("argparse.Namespace") + b")\x81" + emit({"lr": 0.1}) + b"b"),
        "best": call("numpy.core.multiarray.scalar", call("numpy.dtype", "f8", 0, 1), call("_codecs.encode", "", "l")),
        "milestones": call("collections.Counter", {8: 1}),
        "sets": Raw(b"\x8f(K\x01\x90"),
        "top1": vector(),
        "optimizer": {"state": {0: {"momentum": vector()}}},
        "state_dict": ordered({"module.module.a": vector(), "module.module.b.c": vector()}),
    }
    assert list(read(make(saved, {"0": THREE}))) == ["a", "b.c"]


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"model": {"a": 1}, "state_dict": {"b": 1}}, ["b"]),
        ({"ema": {"a": 1}, "model": {"b": 1}}, ["b"]),
        ({"model_state_dict": {"a": 1}, "net": {"b": 1}}, ["a"]),
        ({"state_dict": {}, "params": {"b": 1}}, ["b"]),
        ({"model": {"state_dict": {"a": 1}, "epoch": 2.0}}, ["a"]),
        ({"module": {"module.a": 1, "module.module.b": 1}}, ["a", "module.b"]),
        ({"module.a": 1, "b": 1}, ["module.a", "b"]),
        ({"module.": 1, "module.a": 1}, ["module.", "module.a"]),
        ({"backbone.a": 1, "head.a": 1}, ["backbone.a", "head.a"]),
        ({"model": 1, "weight": 1}, ["model", "weight"]),
    ],
)
def test_which_dict_of_tensors_is_taken(read, saved, expected):
    def fill(value):
        return {key: fill(item) for key, item in value.items()} if isinstance(value, dict) else vector()

    assert list(read(new_file(fill(saved), {"0": THREE}))) == expected


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (vector(), "it holds a tensor, not a dict"),
        ([vector()], "of class list"),
        (call("argparse.Namespace"), "of class argparse.Namespace"),
        (name("torch.float32"), "of class torch.float32"),
        ({}, "no dict of tensors.*entries are: none"),
        ({"generator": {"a": vector()}, "epoch": 1}, "its entries are: 'generator', 'epoch'"),
        ({"a": vector(), "b": 3, "c": [vector()]}, "(?s)'b': a value of class int.*'c': a value of class list"),
        ({"a": vector(), 3: vector()}, "a key that is a value of class int: a tensor"),
        ({"model": {"a": vector(), "steps": 4}}, "'steps': a value of class int"),
        ({"a": vector()} | {f"k{i}": 0 for i in range(30)}, "and 20 more"),
        (Raw(b"}(" + (emit("a") + vector()) * 2 + b"u"), "'a' twice"),
    ],
)
def test_what_is_no_dict_of_tensors(refuses, value, match):
    refuses(new_file(value, {"0": THREE}), match)
    refuses(old_file(value, {"0": THREE} if b"_rebuild" in emit(value) else {}), match)


def test_a_dict_that_holds_itself_is_no_riddle(refuses):
    own = Raw(b"}q\x01(X\x05\0\0\0modelh\x01X\x03\0\0\0neth\x01u")
    refuses(new_file(own, {}), "no dict of tensors")
    deep = {}
    for _ in range(2000):
        deep = Raw(b"}X\x05\0\0\0model" + emit(deep) + b"s")
    refuses(new_file(deep, {}), "no dict of tensors")


def test_a_checkpoint_goes_into_a_module(tmp_path):
    path = tmp_path / "weights.pth"
    weight = np.random.default_rng(0).standard_normal((6, 2, 3, 3)).astype(np.float32)
    saved = {
        "backbone.weight": tensor("Float", "0", 108, 0, (6, 2, 3, 3), (18, 9, 3, 1)),
        "head.weight": vector(3, "1"),
    }
    path.write_bytes(new_file({"meta": {}, "state_dict": saved}, {"0": weight.tobytes(), "1": THREE}))
    conv = GroupedConv(4, 6, (3, 3), feature_group_count=2, use_bias=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"weights.pth: the weights do not fit GroupedConv"):
        load_torch_checkpoint(conv, path)
    with pytest.raises(ValueError, match=r"weights.pth: none of its 2 names begins with prefix='neck\.'.*'backbone"):
        load_torch_checkpoint(conv, path, prefix="neck.")
    assert load_torch_checkpoint(conv, path, prefix="backbone.") is conv
    np.testing.assert_array_equal(conv.kernel[...], weight.transpose(2, 3, 1, 0))
    write_safetensors(path, {"weight": weight[::-1], "other": np.zeros(2)})
    with pytest.raises(ValueError, match="unexpected: other"):
        load_torch_checkpoint(conv, path)
    load_torch_checkpoint(conv, path, strict=False)
    np.testing.assert_array_equal(conv.kernel[...], weight[::-1].transpose(2, 3, 1, 0))
    write_safetensors(path, {"weight": weight.astype(np.complex64)})
    with pytest.raises(ValueError, match=r"weights.pth: tensor 'weight' and 0 more are complex"):
        load_torch_checkpoint(conv, path)


# --- what must never run ---


def evil(function, *arguments):
    """An object; loading its pickle calls the function."""

    class Evil:
        def __reduce__(self):
            return function, arguments

    return Evil()


def stack_global(module, attribute):
    return Raw(emit(module) + emit(attribute) + b"\x93")


FORBIDDEN = {
    "GLOBAL": (call("posix.system", "touch CANARY"), "posix.system"),
    "STACK_GLOBAL": (Raw(stack_global("os", "system") + emit(("touch CANARY",)) + b"R"), "os.system"),
    "dotted": (stack_global("collections", "OrderedDict.fromkeys"), "collections.OrderedDict.fromkeys"),
    "eval": (call("builtins.eval", "open('CANARY', 'w')"), "builtins.eval"),
    "exec": (call("__builtin__.exec", "open('CANARY', 'w')"), "__builtin__.exec"),
    "INST": (Raw(b"(" + emit("touch CANARY") + b"iposix\nsystem\n"), "posix.system"),
    "OBJ": (Raw(b"(" + name("posix.system") + emit("touch CANARY") + b"o"), "posix.system"),
    "NEWOBJ": (Raw(name("subprocess.Popen") + emit((["touch", "CANARY"],)) + b"\x81"), "subprocess.Popen"),
    "NEWOBJ_EX": (Raw(name("subprocess.Popen") + emit((["touch", "CANARY"],)) + b"}\x92"), "subprocess.Popen"),
    "EXT1": (Raw(b"\x82\x01"), "extension registry"),
    "EXT2": (Raw(b"\x83\x01\x00"), "extension registry"),
    "EXT4": (Raw(b"\x84\x01\x00\x00\x00"), "extension registry"),
    "getattr": (call("builtins.getattr", name("torch.Tensor"), "__class__"), "builtins.getattr"),
    "reconstructor": (call("copyreg._reconstructor", name("os._Environ"), None, None), "os._Environ"),
    "import": (call("importlib.import_module", "os"), "importlib.import_module"),
    "hub": (call("torch.hub.load", "a/b", "c"), "torch.hub.load"),
    "load": (call("torch.load", "CANARY"), "torch.load"),
    "module": (Raw(name("torch.nn.modules.linear.Linear") + b")\x81"), "torch.nn.modules.linear.Linear"),
    "partial": (call("functools.partial", name("os.system"), "x"), "functools.partial"),
    "numpy": (call("numpy.testing._private.utils.runstring", "x", {}), "numpy.testing._private.utils.runstring"),
    "escapes": (name("os.\x1b[2Jsystem"), r"\x1b[2Jsystem"),
    "sparse": (call("torch._utils._rebuild_sparse_tensor", 1, 2), "torch._utils._rebuild_sparse_tensor"),
    "quantised": (call("torch._utils._rebuild_qtensor", 1, 2), "torch._utils._rebuild_qtensor"),
    "storage": (name("torch.QInt8Storage"), "torch.QInt8Storage"),
}


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("case", FORBIDDEN)
def test_forbidden_names_are_refused_by_name(refuses, tmp_path, monkeypatch, make, case):
    value, full = FORBIDDEN[case]
    canary = tmp_path / "canary"
    value = Raw(value.replace(b"CANARY", b"canary"))
    monkeypatch.chdir(tmp_path)
    for place in (value, {"a": vector(), "meta": value}, {value: vector()}):
        refuses(make(place, {"0": THREE} if place is not value else {}), re.escape(full))
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_pythons_pickler_makes_of_evil_objects(refuses, tmp_path, protocol):
    canary = tmp_path / "canary"
    attacks = {
        r"(os|posix|nt)\.system": evil(os.system, f"mkdir {canary}"),
        r"(builtins|__builtin__)\.eval": evil(eval, f"__import__('os').mkdir({str(canary)!r})"),
        r"(posix|nt)\.mkdir": evil(os.mkdir, str(canary)),
    }
    for match, attack in attacks.items():
        data = pickle.dumps({"state_dict": attack}, protocol)
        refuses(zipped({"data.pkl": data}), match if protocol else "protocol 0|" + match)
        refuses(data, match if data[:1] == b"\x80" else "neither a file of torch.save nor of safetensors")
        pickle.loads(data)  # the canary does sing # noqa: S301
        assert canary.exists()
        canary.rmdir()


def test_attributes_are_dropped(read):
    saved = Raw(ordered({"a": vector()}) + emit({"__class__": 1, "__setstate__": 2, "pairs": []}) + b"b")
    assert list(read(new_file(saved, {"0": THREE}))) == ["a"]


EVIL_TENSORS = {
    "no storage": call("torch._utils._rebuild_tensor", "0", 0, (3,), (1,)),
    "no arguments": call("torch._utils._rebuild_tensor_v2"),
    "list": call("torch._utils._rebuild_tensor", storage("Float", "0", 3), 0, [3], [1]),
    "negative shape": tensor("Float", "0", 3, 0, (-3,), (1,)),
    "negative offset": tensor("Float", "0", 3, -1, (2,), (1,)),
    "negative stride": tensor("Float", "0", 3, 2, (3,), (-1,)),
    "bool": tensor("Float", "0", 3, 0, (True,), (1,)),
    "float": tensor("Float", "0", 3, 0, (3.0,), (1,)),
    "text": tensor("Float", "0", 3, 0, ("3",), (1,)),
    "nested": tensor("Float", "0", 3, 0, ((3,),), (1,)),
    "huge": tensor("Float", "0", 3, 0, (1 << 60,), (0,)),
    "endless": tensor("Float", "0", 3, 0, (1 << 1600,), (0,)),
    "product": tensor("Float", "0", 3, 0, (1 << 40,) * 32, (0,) * 32),
    "empty product": tensor("Float", "0", 3, 0, (0, *(1 << 40,) * 31), (0,) * 32),
    "dimensions": tensor("Float", "0", 3, 0, (1,) * 33, (1,) * 33),
    "lengths": tensor("Float", "0", 3, 0, (3,), (1, 1)),
    "past the end": tensor("Float", "0", 3, 0, (4,), (1,)),
    "offset": tensor("Float", "0", 3, 1, (3,), (1,)),
    "stride": tensor("Float", "0", 3, 0, (3,), (1 << 40,)),
    "expanded": tensor("Float", "0", 3, 0, (1 << 17,), (0,)),
    "numel": vector(4),
    "fewer": vector(2),
    "bool numel": tensor("Float", "0", True, 0, (1,), (1,)),
    "negative numel": tensor("Float", "0", -3, 0, (1,), (1,)),
    "huge numel": tensor("Float", "0", 1 << 62, 0, (1,), (1,)),
    "key": Raw(emit(("storage", name("torch.FloatStorage"), 0, "cpu", 3)) + b"Q"),
    "type": Raw(emit(("storage", name("torch.float32"), "0", "cpu", 3)) + b"Q"),
    "module": Raw(emit(("module", name("torch.Tensor"), "file.py", "source")) + b"Q"),
    "view": storage("Float", "0", 3, ("1", 0, 3)),
    "two sizes": [vector(3), vector(4)],
    "two types": [vector(3), tensor("Int", "0", 3, 0, (3,), (1,))],
    "parameter": call("torch._utils._rebuild_parameter", {}, True, {}),
    "no dtype": call("torch._utils._rebuild_tensor_v3", storage("Untyped", "0", 12), 0, (3,), (1,), False, {}),
    "dtype": call(
        "torch._utils._rebuild_tensor_v3", storage("Untyped", "0", 12), 0, (3,), (1,), False, {}, name("torch.device")
    ),
    "conjugate": call(
        "torch._utils._rebuild_tensor_v2",
        *(storage("Float", "0", 3), 0, (3,), (1,), False, {}, {"conj": True}),
    ),
    "subclass": call("torch._tensor._rebuild_from_type_v2", name("collections.OrderedDict"), name("torch.Tensor"), ()),
    "size": call("torch.Size", 3),
    "pairs": call("collections.OrderedDict", [(1, 2, 3)]),
    "call of a tensor": Raw(vector() + b")R"),
    "call without a tuple": Raw(name("torch.Size") + b"]R"),
    "attributes of a list": Raw(b"]}b"),
    "append to a dict": Raw(b"}Na"),
    "item of a list": Raw(b"]NNs"),
    "odd items": Raw(b"}(Nu"),
    "no mark": Raw(b"e"),
    "empty stack": Raw(b"00"),
    "nothing to call": Raw(b"(o"),
    "no memo": Raw(b"h\x07"),
    "no opcode": Raw(b"\xf7"),
    "protocol 0": Raw(b"S'a'\n"),
    "buffer": Raw(b"\x97"),
    "no UTF-8": Raw(b"X\x01\0\0\0\xff"),
    "no number": Raw(b"Iabc\n"),
    "long number": Raw(b"I" + b"9" * 5000 + b"\n"),
    "text without end": Raw(b"\x8d" + b"\xff" * 8),
    "bytes without end": Raw(b"\x8e" + b"\xff" * 7 + b"\x7f"),
    "bytearray without end": Raw(b"\x96" + b"\0" * 6 + b"\x01\0"),
    "number without end": Raw(b"\x8b\xff\xff\xff\x7f"),
}


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("case", EVIL_TENSORS)
def test_tensors_that_contradict_their_file(refuses, make, case):
    message = refuses(make({"a": EVIL_TENSORS[case]}, {"0": THREE}), ".")
    assert "dict of tensors" not in message  # rejected as a tensor, not as another object


# --- bombs ---


@pytest.fixture
def bounded():
    """Runs a function with limits on time and memory."""

    def bounded(action, seconds, nbytes):
        tracemalloc.start()
        began = time.perf_counter()
        try:
            return action()
        finally:
            took, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert took < seconds
            assert peak < nbytes

    return bounded


def laughs(levels):
    """A tuple; its hash takes 2**levels steps."""
    return Raw(b")" + b"".join(b"q\x01h\x01\x86" for _ in range(levels)))


BOMBS = {
    "nested tuples": Raw(b")" + b"\x85" * 60_000),
    "nested lists": Raw(b"]" * 50_000 + b"a" * 49_999),
    "nested dicts": Raw(b"}N" * 20_000 + b"N" + b"s" * 20_000),
    "marks": Raw(b"(" * 50_000 + b"N"),
    "laughs as a key": {laughs(100): 1},
    "laughs as a shape": tensor("Float", "0", 3, 0, laughs(100), (1,)),
    "laughs as a size": tensor("Float", "0", laughs(100), 0, (1,), (1,)),
    "numbers that collide": Raw(b"}(" + b"".join(emit(n * (2**61 - 1)) + b"N" for n in range(1, 25_000)) + b"u"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_do_not_go_off(refuses, bounded, case):
    data = new_file(BOMBS[case], {"0": THREE})
    bounded(lambda: refuses(data, "."), 10, 4 * len(data) + (80 << 20))


@pytest.mark.parametrize(
    "value",
    [
        b"N0" * 600_000 + b"N",
        # many short calls, each making a dict of one long list of pairs
        b"](N)\x86q\x010"
        + b"h\x01" * 30_000
        + b"eq\x02"
        + name("collections.OrderedDict")
        + b"q\x03"
        + b"h\x03h\x02\x85R" * 10_000,
    ],
    ids=["steps", "copies"],
)
def test_an_endless_pickle_is_left(refuses, value):
    began = time.perf_counter()
    refuses(new_file(Raw(value), {}), "more than 1048576 steps")
    assert time.perf_counter() - began < 10


def test_many_views_of_one_storage_cannot_fill_the_memory(refuses, bounded):
    numel = 1 << 16
    big = tensor("Float", "0", numel, 0, (numel,), (1,))
    saved = Raw(emit({"a": big})[:-1] + b"".join(emit(f"b{i}") + big for i in range(200)) + b"u")
    data = new_file(saved, {"0": bytes(4 * numel)})
    bounded(lambda: refuses(data, "too many share the same storage"), 2, 4 * len(data) + (4 << 20))


def test_many_wrappers_are_taken_off_at_once(read, bounded):
    long = "module." * 50_000 + "a"
    assert list(bounded(lambda: read(new_file({long: vector()}, {"0": THREE})), 5, 64 << 20)) == ["a"]


def test_only_what_is_taken_is_read(tmp_path, bounded):
    path = tmp_path / "weights.pth"
    rest = tensor("Float", "1", 1 << 20, 0, (1 << 20,), (1,))
    for make in FORMATS.values():
        path.write_bytes(make({"model": {"a": vector()}, "optimizer": [rest]}, {"0": THREE, "1": bytes(4 << 20)}))
        bounded(lambda: read_state_dict(path), 5, (5 << 20) if make is old_file else (1 << 20))


# --- inconsistent archives ---


def test_the_containers_are_checked(refuses):
    good = {"a": vector()}
    pkl = b"\x80\x02" + emit(good) + b"."
    refuses(new_file(good, {}), "entry 'weights/data/0' is missing")
    refuses(new_file(good, {"0": THREE[:-1]}), "has 11 bytes; its pickle claims 12")
    refuses(new_file(good, {"0": THREE + b"0"}), "has 13 bytes; its pickle claims 12")
    refuses(new_file(good, {"0": THREE}, byteorder=b"big"), "byte order is b'big'")
    refuses(new_file(good, {"0": THREE}, **{"constants.pkl": b"."}), "TorchScript")
    refuses(zipped({"other": b""}), "no single data.pkl")
    refuses(zipped({"data.pkl": pkl[:-1], "data/0": THREE}), "ends too early")


def archive_of(entries, **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
    return bytearray(file.getvalue())


def test_hostile_archives(refuses):
    pkl = b"\x80\x02" + emit({"a": vector()}) + b"."
    entries = [("w/data.pkl", pkl), ("w/data/0", THREE)]
    refuses(archive_of([*entries, ("v/data.pkl", pkl)]), "no single data.pkl")
    refuses(archive_of(entries, compression=zipfile.ZIP_DEFLATED), "is compressed")
    twice = archive_of([("w/data.pkl", pkl), ("w/data/0", THREE), ("w/data/1", THREE)])
    refuses(twice.replace(b"w/data/1", b"w/data/0"), "two entries have the name 'w/data/0'")
    whole = archive_of(entries)
    directory = whole.find(b"PK\1\2")
    second = whole.find(b"PK\1\2", directory + 1)
    for place, value, match in [
        (second + 42, 0, "overlaps another"),  # the offset of the entry's header
        (second + 42, 7, "not at the offset that its directory claims"),
        (second + 42, 1 << 31, "bytes 2147483648 to"),
        (second + 24, 1 << 30, "is compressed"),  # its size
        (second + 16, 1, "checksum"),
        (len(whole) - 10, 1 << 30, "zip archive"),  # the directory's size
        (len(whole) - 6, 1 << 31, "zip archive|are needed"),  # the directory's offset
    ]:
        bad = bytearray(whole)
        struct.pack_into("<I", bad, place, value)
        refuses(bad, match)
    bad = bytearray(whole)
    struct.pack_into("<II", bad, second + 20, 1 << 30, 1 << 30)
    refuses(bad, "ends at byte")
    bad = bytearray(whole)
    struct.pack_into("<H", bad, second + 8, 1)
    refuses(bad, "is compressed")
    local = whole.find(b"PK\3\4", 4)
    bad = bytearray(whole)
    bad[local + 3] = 5
    refuses(bad, "not at the offset that its directory claims")
    size = 5 << 20
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, size, directory, 0)
    refuses(whole[:directory] + bytes(size) + end, f"its directory claims {size} bytes")


def test_hostile_legacy_files(refuses):
    good = {"a": vector()}
    refuses(old_file(good, {"0": THREE}, little=False), "little-endian")
    refuses(old_file(good, {"0": THREE}, magic=7), "a pickle that torch.save did not write")
    refuses(old_file(good, {"0": THREE}, protocol=1002), "its protocol is not 1001")
    refuses(old_file(good, {"0": THREE}, keys=["1"]), "not those of its tensors")
    refuses(old_file(good, {"0": THREE}, keys=["0", "0"]), "not those of its tensors")
    refuses(old_file(good, {"0": THREE}, keys=[0]), "other values than names")
    refuses(old_file(good, {"0": THREE}, keys="0"), "other values than names")
    refuses(old_file(good, {"0": THREE}, itemsize=2), "has 6 elements; its pickle claims 3")
    refuses(old_file(good, {"0": THREE})[:-1], "storages end at byte")
    refuses(old_file(good, {"0": THREE})[:-14], "are needed")


def test_other_files(refuses, read, tmp_path):
    refuses(b"", "it is empty")
    refuses(b"<!DOCTYPE html><html>", "begins with b'<!DOCTYPE html>")
    refuses(b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    refuses(file.getvalue(), "tar archive")
    refuses(np.random.default_rng(0).bytes(1000), ".")
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(IsADirectoryError):
        read_state_dict(tmp_path)
    with pytest.raises(ValueError, match="not a regular file"):
        read_state_dict("/dev/zero")
    assert list(read(new_file({"a": vector()}, {"0": THREE}))) == ["a"]


# --- the pickle reader against Python's ---


def plain(value):
    if isinstance(value, PickledDict):
        return {plain(key): plain(item) for key, item in value.pairs}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read_as_python_reads_them(protocol):
    rng = random.Random(protocol)
    integers = [0, 1, -1, 255, 256, 65535, 65536, 2**31 - 1, -(2**31), 2**31, 2**63, -(2**63), 2**2100]
    leaves = [None, True, False, "", "é\n", "x" * 300, "\ud800", 0.0, -2.5e300, float("inf"), *integers]
    leaves += [b"", b"\xff" * 300] if protocol >= 3 else []  # older protocols create bytes by a function
    leaves += [bytearray(b"ab")] if protocol >= 5 else []

    def value(depth):
        kind = rng.randrange(4 if depth else 1)
        if kind == 0:
            return rng.choice(leaves)
        size = rng.choice([0, 1, 2, 3, 4, 9])
        if kind == 3:
            return {rng.choice(["a", "b", 3, ("c", 1)]): value(depth - 1) for _ in range(size)}
        return [list, tuple][kind - 1](value(depth - 1) for _ in range(size))

    for _ in range(60):
        made = [value(4) for _ in range(2)]
        data = pickle.dumps([*made, made], protocol)
        reader = Unpickler(data)
        assert plain(reader.load()) == pickle.loads(data)  # noqa: S301
        assert reader.position == len(data)


def test_namespaces_counters_and_numpy_numbers_of_every_protocol(read):
    beside = [
        argparse.Namespace(lr=1, path=["a"]),
        collections.Counter([1, 1]),
        collections.defaultdict(dict, {1: {}}),
        {1, 2},
        frozenset([1]),
        np.float64(3),
        np.arange(3),
        2 + 3j,
        slice(1),
        range(3),
    ]
    for protocol in range(1, pickle.HIGHEST_PROTOCOL + 1):
        for value in beside:
            opcodes = pickle.dumps(value, protocol)[:-1]
            assert list(read(new_file({"meta": Raw(opcodes), "model": {"a": vector()}}, {"0": THREE}))) == ["a"]


# --- safetensors ---


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "weights.safetensors"
    rng = np.random.default_rng(0)
    tensors = {np.dtype(dtype).name: rng.integers(0, 2, (2, 3)).astype(dtype) for dtype in SAFE_DTYPES}
    tensors |= {"empty": np.zeros((0, 3)), "scalar": np.float32(2), "transposed": np.arange(6.0).reshape(2, 3).T}
    tensors |= {"big": np.arange(3, dtype=">f4"), 'quote " é\n': np.ones(1), "jax": jnp.ones(2, jnp.bfloat16)}
    write_safetensors(path, tensors, {"format": "pt"})
    found = read_state_dict(path)
    assert found.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(found[key], np.asarray(value))
        assert found[key].dtype == np.asarray(value).dtype.newbyteorder("=")
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert size % 8 == 0
    for key, entry in header.items():
        assert entry["data_offsets"][0] % max(1, found[key].itemsize) == 0
    shuffled = dict(reversed(tensors.items()))
    write_safetensors(path, shuffled, {"format": "pt"})
    assert path.read_bytes() == data
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("tensors", "metadata", "match"),
    [
        ({"a": np.zeros(2, complex)}, None, "dtype complex128, which safetensors lacks"),
        ({"a": np.array(["x"])}, None, "'a' has dtype <U1"),
        ({"__metadata__": np.zeros(2)}, None, "'__metadata__' is not a valid name"),
        ({3: np.zeros(2)}, None, "3 is not a valid name"),
        ({"\ud800": np.zeros(2)}, None, "not valid Unicode"),
        ({"a": np.zeros(2)}, {"a": 3}, "from strings to strings"),
        ({"a" * (1 << 23): np.zeros(2)}, None, "the header has"),
    ],
)
def test_what_safetensors_cannot_hold(tmp_path, tensors, metadata, match):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match=match):
        write_safetensors(path, tensors, metadata)
    assert path.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"before")

    def fail(file):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_safetensors(path, {"a": np.zeros(2)})
    assert path.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def entry(dtype="F32", shape=(3,), begin=0, end=12):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"a": entry("F4")}, "unsupported dtype 'F4'"),
        ({"a": entry(shape=(4,))}, "do not fit its shape and dtype"),
        ({"a": entry(shape=(-3,))}, "do not fit its shape"),
        ({"a": entry(shape=(True, 3))}, "do not fit its shape"),
        ({"a": entry(shape=(3.0,))}, "do not fit its shape"),
        ({"a": entry(shape=(3, *(1,) * 40))}, "do not fit its shape"),
        ({"a": entry(shape=(1 << 70, 0), end=0)}, "do not fit its shape"),
        ({"a": entry(), "b": entry(shape=(1 << 40, 0), begin=12)}, "repeats|do not fit its shape"),
        ({"a": entry(end=11)}, "a fraction of an element"),
        ({"a": entry(begin=-12, end=0)}, "a fraction of an element"),
        ({"a": entry(begin=12, end=0)}, "impossible size"),
        ({"a": entry(begin=False)}, None),
        ({"a": entry(shape=(2,), begin=4)}, "begins at byte 4 of the data, not at 0"),
        ({"a": entry(shape=(2,), end=8)}, "have 8 bytes, its data 12"),
        ({"a": entry(shape=(1 << 30,), end=1 << 32)}, "have 4294967296 bytes, its data 12"),
        ({"a": entry(), "b": entry(shape=(2,), end=8)}, "begins at byte 0 of the data, not at|begins"),
        ({"a": {"dtype": "F32", "shape": [3]}}, "no dtype, shape and data_offsets"),
        ({"a": 3}, "no dtype, shape and data_offsets"),
        ({"a": {**entry(), "data_offsets": [0, 4, 12]}}, "no dtype, shape and data_offsets"),
        ({"__metadata__": {}}, "its tensors have 0 bytes"),
        (b'{"a": 1, "a": 2}', "has a name twice"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": ' + b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"{}" + b" " * (1 << 23), "its header claims"),
    ],
)
def test_hostile_headers(read, refuses, header, match):
    if match is None:
        assert read(safe_file(header, THREE))["a"].tolist() == [0, 1, 2]
    else:
        refuses(safe_file(header, THREE), match)


def test_a_safetensors_file_without_tensors(refuses):
    refuses(safe_file({}), "it holds no tensors")
    refuses(struct.pack("<Q", 1 << 63) + b"{}", "header claims")
    refuses(struct.pack("<Q", 20) + b"{}", "are needed")


# --- fuzzing ---

NUMBERS = [b"\xff" * 4, b"\xff" * 8, b"\0" * 4, b"\x7f" * 4, b"\xff\xff\xff\x7f", b"\0" * 7 + b"\x01", b"\x01\0\0\0"]
OPCODES = [
    bytes([code]) for code in b"(.0128IJKLMNQRTUVX]abcdeghijloqrstu}\x80\x81\x85\x86\x87\x8a\x8b\x8c\x8e\x93\x94"
]
WORDS = [b"FloatStorage", b"DoubleStorage", b"HalfStorage", b"BoolStorage", b"_rebuild_tensor_v2", b"_rebuild_tensor"]
WORDS += [
    b"OrderedDict",
    b"Size",
    b"data.pkl",
    b"data/0",
    b"data/1",
    b"F32",
    b"BF16",
    b"F64",
    b"[3]",
    b"[0,12]",
    b"PK\1\2",
]


def mutated(rng, data):
    """The bytes with one or a few mutations."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(8):
            case 0:
                del data[place:]
            case 1 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case 2:
                data[place:place] = rng.randbytes(rng.choice([1, 2, 8, 40]))
            case 3:
                del data[place : place + rng.choice([1, 2, 8, 40])]
            case 4:
                number = rng.choice(NUMBERS)
                data[place : place + len(number)] = number
            case 5:
                data[place : place + 1] = rng.choice(OPCODES)
            case 6:
                source = rng.randrange(len(data) + 1)
                data[place : place + 30] = data[source : source + 30]
            case 7:
                old, new = rng.choice(WORDS), rng.choice(WORDS)
                data = bytearray(data.replace(old, new, 1))
        if not data:
            break
    return bytes(data)


def fuzz_sources(tmp_path):
    saved = ordered(
        {
            "a": tensor("Float", "0", 6, 0, (2, 3), (3, 1)),
            "b": tensor("Float", "0", 6, 1, (2, 2), (1, 2)),
            "c": tensor("Double", "1", 2, 0, (), ()),
            "d": call("torch._utils._rebuild_parameter", tensor("Bool", "2", 4, 0, (4,), (1,)), True, {}),
        }
    )
    saved = {"epoch": 3, "state_dict": saved}
    storages = {"0": bytes(range(24)), "1": bytes(16), "2": bytes(4)}
    path = tmp_path / "base.safetensors"
    write_safetensors(path, {"a": np.ones((2, 3), np.float32), "b": np.ones(3, ml_dtypes.bfloat16), "c": np.int64(3)})
    entries = {"data.pkl": b"\x80\x02" + emit(saved) + b".", **{f"data/{key}": data for key, data in storages.items()}}
    legacy = old_file(saved, storages)
    legacy = legacy[: -(24 + 16 + 4 + 24)]
    legacy += b"".join(
        struct.pack("<q", numel) + data for numel, data in zip((6, 2, 4), storages.values(), strict=True)
    )
    return {"entries": entries, "legacy": legacy, "zip": zipped(entries), "safetensors": path.read_bytes()}


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "entries"])
def test_damaged_files_are_read_or_refused(tmp_path, kind):
    source = fuzz_sources(tmp_path)[kind]
    path = tmp_path / "weights.pth"
    rng = random.Random(kind)
    count = {"read": 0, "refused": 0}
    path.write_bytes(zipped(source) if kind == "entries" else source)
    read_state_dict(path)
    cases = [None] * 350
    if kind != "entries":
        cases += range(0, len(source), 4)  # truncated here
    tracemalloc.start()
    try:
        for cut in cases:
            if kind == "entries":  # damages an entry inside an archive with valid checksums
                chosen = rng.choice(["data.pkl"] * 6 + [*source])
                others = {chosen: mutated(rng, source[chosen])}
                if rng.random() < 0.1:
                    others["data/0"], others["data/1"] = source["data/1"], source["data/0"]
                data = zipped(source | others)
            else:
                data = mutated(rng, source) if cut is None else source[:cut]
            path.write_bytes(data)
            tracemalloc.reset_peak()
            before, began = tracemalloc.get_traced_memory()[0], time.perf_counter()
            try:
                arrays = read_state_dict(path)
            except ValueError as error:
                assert "weights.pth: " in str(error)  # noqa: PT017
                count["refused"] += 1
            else:
                assert sum(array.nbytes for array in arrays.values()) <= 4 * len(data) + (1 << 16)
                count["read"] += 1
            assert time.perf_counter() - began < 2
            assert tracemalloc.get_traced_memory()[1] - before < 8 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()
    assert count["refused"] > 150
    assert kind == "zip" or count["read"] > 5


# --- PyTorch's own files ---


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def numbers(torch, value):
    """A PyTorch tensor as a NumPy array, bit for bit."""
    value = value.detach().resolve_conj().contiguous()
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if value.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        name = str(value.dtype).removeprefix("torch.")
        return value.view(torch.uint8).numpy().view(getattr(ml_dtypes, name))
    return value.numpy()


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [1, 2, 4, 5])
def test_files_of_torch_save(torch, tmp_path, options, protocol):
    names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128 uint16 uint32"
    names += " uint64 float8_e4m3fn float8_e5m2"
    base = torch.arange(24).reshape(2, 3, 4) % 5
    state = {name: base.to(getattr(torch, name)) for name in names.split()}
    whole = torch.arange(30.0)
    state |= {"view": whole[4:].view(2, 13)[:, ::2], "transposed": whole.view(5, 6).T, "expanded": whole[:3, None]}
    state |= {"scalar": torch.tensor(3), "empty": torch.empty(0, 4), "parameter": torch.nn.Parameter(torch.ones(2))}
    state |= {"wide": torch.ones(1).expand(3, 4), "buffer": torch.nn.Buffer(torch.ones(2))}
    marked = torch.nn.Parameter(torch.ones(3))
    marked.note = "an attribute"
    state["marked"] = marked
    path = tmp_path / "weights.pth"
    torch.save(
        {"state_dict": state, "epoch": 3, "size": whole.shape, "dtype": torch.float16},
        path,
        pickle_protocol=protocol,
        **options,
    )
    found = read_state_dict(path)
    assert list(found) == list(state)
    for key, value in state.items():
        expected = numbers(torch, value)
        assert found[key].dtype == expected.dtype, key
        np.testing.assert_array_equal(found[key], expected, err_msg=key)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_a_training_checkpoint_of_torch(torch, tmp_path, options):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 4))
    model[2].weight = torch.nn.Parameter(model[2].weight.T)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3, 6, 6)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    parallel = {f"module.{key}": value for key, value in model.state_dict().items()}
    path = tmp_path / "weights.pth"
    saved = {"optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(), "best": torch.tensor(3.0)}
    saved |= {"model": parallel, "args": argparse.Namespace(lr=0.1, device=torch.device("cpu"))}
    torch.save(saved, path, **options)
    found = read_state_dict(path)
    assert list(found) == list(model.state_dict())
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(found[key], value.numpy(), strict=True)
    torch.save(model.state_dict(), path, **options)
    assert list(read_state_dict(path)) == list(model.state_dict())
    for other, match in {
        "torch.nn.modules.container.Sequential": model,
        "_rebuild_sparse_tensor": {"a": torch.eye(3).to_sparse()},
        "conjugated": {"a": torch.ones(2, dtype=torch.complex64).conj()},
        "it holds a tensor, not a dict": torch.ones(2),
    }.items():
        torch.save(match, path, **options)
        with pytest.raises(ValueError, match=other):
            read_state_dict(path)
