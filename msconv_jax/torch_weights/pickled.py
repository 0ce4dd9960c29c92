"""Replaces the names and values in PyTorch's pickles by records; no named class is imported or called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from msconv_jax.torch_weights.records import DTYPES, Storage, Tensor, WeightFileError, damaged

STORAGES = {
    f"{module}.{kind}Storage": DTYPES[name]
    for kind, name in (
        {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16"}
        | {"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
        | {"ComplexFloat": "complex64", "ComplexDouble": "complex128", "Untyped": "uint8"}
    ).items()
    for module in ("torch", "torch.cuda", "torch.storage")
}

# Classes whose values common checkpoints hold beside the weights. None of them is imported or called.
_IGNORED_CLASSES = {
    *(f"torch.{name}" for name in (*DTYPES, "device", "Tensor", "nn.parameter.Parameter", "nn.parameter.Buffer")),
    *(f"collections.{name}" for name in ("Counter", "defaultdict")),
    *(f"{module}.multiarray.{name}" for module in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray", "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
    *("argparse.Namespace", "_codecs.encode"),
    *("copyreg._reconstructor", "copy_reg._reconstructor"),
    *(f"datetime.{name}" for name in ("date", "datetime", "timedelta")),
    *(
        f"pathlib.{module}{name}Path"
        for module in ("", "_local.")
        for name in ("Posix", "PurePosix", "Windows", "PureWindows")
    ),
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("object", "set", "frozenset", "bytearray", "complex", "slice", "range", "xrange", "list", "dict")
    ),
}


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class GlobalName:
    """A global name in a pickle, which is not imported."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class IgnoredObject:
    """Replaces a value that is not a weight; the reader drops its content."""

    name: str


@dataclasses.dataclass(eq=False, slots=True, repr=False)
class PickledDict:
    """The pairs of a dict or an OrderedDict. The keys are not hashed, since they may be any values."""

    pairs: list[tuple[object, object]]


def describe(value: object) -> str:
    """Names the type of a value for a message, without its content, which may be endless."""
    if isinstance(value, PickledDict):
        return "a dict"
    if isinstance(value, Tensor):
        return "a tensor"
    return f"a value of class {value.name if isinstance(value, GlobalName | IgnoredObject) else type(value).__name__}"


# --- replacements of PyTorch's functions ---


def _ordered_dict(arguments: tuple) -> object:
    match arguments:
        case ():
            return PickledDict([])
        case (list() as pairs,) if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            return PickledDict([(pair[0], pair[1]) for pair in pairs])
    raise damaged("an OrderedDict is not built from pairs")


def _tensor(arguments: tuple, dtype: GlobalName | None = None) -> object:
    match arguments[:4]:
        case (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides):
            kind = storage.dtype if dtype is None else DTYPES.get(dtype.name.removeprefix("torch."))
            if kind is not None:
                return Tensor(storage, offset, shape, strides, kind)
    raise damaged("a tensor is not built from a storage, an offset, a shape and strides")


def _refuse_lazy(metadata: tuple) -> None:
    if metadata and not (metadata[0] is None or (isinstance(metadata[0], PickledDict) and not metadata[0].pairs)):
        raise WeightFileError(
            "it holds a tensor that is lazily conjugated or negated; save tensor.resolve_conj().resolve_neg() instead."
        )


def _tensor_v2(arguments: tuple) -> object:
    _refuse_lazy(arguments[6:7])
    return _tensor(arguments)


def _tensor_v3(arguments: tuple) -> object:
    _refuse_lazy(arguments[7:8])
    return _tensor(
        arguments, next((dtype for dtype in arguments[6:7] if isinstance(dtype, GlobalName)), GlobalName(""))
    )


def _parameter(arguments: tuple) -> object:
    if arguments and isinstance(arguments[0], Tensor):
        return arguments[0]
    raise damaged("a parameter is not built from a tensor")


def _size(arguments: tuple) -> object:
    if len(arguments) == 1 and isinstance(arguments[0], tuple):
        return arguments[0]
    raise damaged("a torch.Size is not built from a tuple")


def _from_type(arguments: tuple) -> object:
    match arguments[:3]:
        case (GlobalName() as function, GlobalName(), tuple() as inner) if function.name in _TENSORS:
            return _TENSORS[function.name](inner)
    raise damaged("a subclass of a tensor is not built from a tensor")


_TENSORS: dict[str, Callable[[tuple], object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
FUNCTIONS = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered_dict,
}
KNOWN = {name: GlobalName(name) for name in {*STORAGES, *_IGNORED_CLASSES, *FUNCTIONS}}
