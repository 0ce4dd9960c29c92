"""Reads weight files of PyTorch and of safetensors, without PyTorch and without running code from the file."""

from __future__ import annotations

import os
from typing import TypeVar

import numpy as np
from flax import nnx

from msconv_jax.signatures import check_module, explains_arguments
from msconv_jax.torch_weights.archives import read_legacy, read_zip
from msconv_jax.torch_weights.conversion import load_state_dict
from msconv_jax.torch_weights.pickled import PickledDict, describe
from msconv_jax.torch_weights.records import Tensor, WeightFile, WeightFileError, escape_text, to_arrays
from msconv_jax.torch_weights.safetensors import read_safetensors, write_safetensors

__all__ = ["load_torch_checkpoint", "read_state_dict", "write_safetensors"]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "params", "module", "ema")
_DATA_PARALLEL = "module."
_MAX_WRAPPERS = 64
_SHOWN = 10

Module = TypeVar("Module", bound=nnx.Module)


@explains_arguments
def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the weights from a file of ``torch.save`` or of safetensors, whatever its extension.

    The file may be untrusted: nothing in it is run, and PyTorch is not needed.
    :mod:`~msconv_jax.torch_weights.unpickling` reads a pickle as data and refuses every name that a checkpoint of
    weights does not need.

    Training programs often store the weights inside a larger dict. The reader looks for them under the entries
    ``state_dict``, ``model_state_dict``, ``model``, ``model_state``, ``net``, ``network``, ``params``, ``module`` and
    ``ema``, at any depth, in this order; it takes the first that is a dict of tensors and ignores the other entries.
    Without such an entry it takes the whole dict. If every name begins with ``module.``, as after ``DataParallel``,
    this prefix is removed.

    Args:
        path: the file.

    Returns:
        PyTorch's names and the arrays, in the order of the file; no arrays share memory.

    Raises:
        ValueError: if the file is damaged, has another format, names anything that weights do not need, or holds no
            dict of tensors; the message says what to do.
        OSError: if the file cannot be opened.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from msconv_jax.torch_weights import files
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "weights.safetensors"
        ...     files.write_safetensors(path, {"module.bias": np.arange(3.0)})
        ...     files.read_state_dict(path)
        {'bias': array([0., 1., 2.])}
    """
    path = os.fspath(path)
    try:
        with WeightFile.open(path) as file:
            arrays = _read(file)
        if not arrays:
            raise WeightFileError("it holds no tensors; save model.state_dict() of a model that has weights.")
        extra = min(map(_wrapper_length, arrays))
        return {name[extra:]: array for name, array in arrays.items()}
    except WeightFileError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{os.fspath(path)}: its arrays do not fit into memory; use a larger machine.") from error


@explains_arguments
def load_torch_checkpoint(
    module: Module, path: str | os.PathLike[str], *, strict: bool = True, prefix: str = ""
) -> Module:
    """Loads a PyTorch or safetensors weight file into a module, in place.

    Args:
        module: an operator of this library, or a module made of them.
        path: the file; see :func:`read_state_dict`.
        strict: see :func:`load_state_dict`.
        prefix: such as ``"backbone."``: load only the names that begin with it, and remove it from them.

    Returns:
        The module.

    Raises:
        ValueError: if the file cannot be read, no name has the prefix, or the weights do not fit; the module is then
            unchanged.
        OSError: if the file cannot be opened.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from flax import nnx
        >>> import msconv_jax
        >>> from msconv_jax.torch_weights import files
        >>> conv = msconv_jax.GroupedConv(4, 8, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "weights.safetensors"
        ...     files.write_safetensors(path, {"backbone.weight": np.ones((8, 4, 3, 3), np.float32)})
        ...     _ = files.load_torch_checkpoint(conv, path, prefix="backbone.")
        >>> float(conv.kernel[...].sum())
        288.0
    """
    check_module("module", module)
    arrays = read_state_dict(path)
    chosen = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if not chosen:
        raise ValueError(
            f"{os.fspath(path)}: none of its {len(arrays)} names begins with prefix={prefix!r}; the first is "
            f"{escape_text(next(iter(arrays)))}. Give a prefix that they have."
        )
    complex_names = [escape_text(name) for name, array in chosen.items() if array.dtype.kind == "c"]
    if complex_names:
        raise ValueError(
            f"{os.fspath(path)}: tensor {complex_names[0]} and {len(complex_names) - 1} more are complex, and this "
            "library's parameters are real; save their real parts."
        )
    try:
        load_state_dict(module, chosen, strict=strict)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    return module


def _wrapper_length(name: str) -> int:
    """Length of the ``module.``, once or repeated, before a name."""
    end = 0
    while name.startswith(_DATA_PARALLEL, end) and len(name) > end + len(_DATA_PARALLEL):
        end += len(_DATA_PARALLEL)
    return end


def _read(file: WeightFile) -> dict[str, np.ndarray]:
    """Reads the weights in the format that the file's first bytes show."""
    if not file.size:
        raise WeightFileError("it is empty; download or save it again.")
    start = file.part(0, min(file.size, 512))
    if start.startswith(b"PK\3\4"):
        saved, content = read_zip(file)
    elif start[8:9] == b"{":
        return read_safetensors(file)
    elif start[257:262] == b"ustar":
        raise WeightFileError(
            "it is a tar archive, as the first releases of PyTorch wrote; open it with PyTorch and save it again."
        )
    elif start[:1] in (b"\x80", b"L"):
        saved, content = read_legacy(file)
    else:
        raise WeightFileError(
            f"it is neither a file of torch.save nor of safetensors: it begins with {start[:16]!a}. If it is a "
            "web page or a Git LFS pointer, download the file itself."
        )
    return to_arrays(_state_dict(saved), content, file.size)


def _state_dict(saved: object) -> dict[str, Tensor]:
    """The dict of tensors inside the saved object."""
    if not isinstance(saved, PickledDict):
        raise WeightFileError(f"it holds {describe(saved)}, not a dict of tensors; save model.state_dict().")
    found = _find(saved, set())
    if found is None:
        names = ", ".join(escape_text(name) for name in list(_fields(saved))[:_SHOWN])
        raise WeightFileError(
            f"it holds no dict of tensors, neither as a whole nor as one of {', '.join(_WRAPPERS)}; its entries are: "
            f"{names or 'none'}. Save the dict of tensors alone."
        )
    others = [
        f"{escape_text(key) if isinstance(key, str) else 'a key that is ' + describe(key)}: {describe(value)}"
        for key, value in found.pairs
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if others:
        more = f"\n  and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise WeightFileError(
            "its dict of tensors holds other values too; save model.state_dict() alone:\n  "
            + "\n  ".join(others[:_SHOWN])
            + more
        )
    return {name: value for name, value in _fields(found).items() if isinstance(value, Tensor)}


def _find(table: PickledDict, seen: set[int]) -> PickledDict | None:
    """Searches a dict for the dict of tensors: first its wrapper entries, then the dict itself; visits each once."""
    if id(table) in seen or len(seen) == _MAX_WRAPPERS:
        return None
    seen.add(id(table))
    fields = _fields(table)
    for name in _WRAPPERS:
        inner = fields.get(name)
        if isinstance(inner, PickledDict) and (found := _find(inner, seen)) is not None:
            return found
    return table if any(isinstance(value, Tensor) for value in fields.values()) else None


def _fields(table: PickledDict) -> dict[str, object]:
    """The entries of a dict whose keys are strings."""
    fields = {}
    for name, value in table.pairs:
        if isinstance(name, str):
            if name in fields:
                raise WeightFileError(
                    f"a dict in it has the name {escape_text(name)} twice; save model.state_dict() again."
                )
            fields[name] = value
    return fields
