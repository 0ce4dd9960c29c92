"""Weight files of PyTorch and of safetensors, read without PyTorch and without running anything that is in them."""

from __future__ import annotations

import os
from typing import TypeVar

import numpy as np
from flax import nnx

from msconv_jax.signatures import check_module, explains_arguments
from msconv_jax.torch_weights.archives import read_legacy, read_zip
from msconv_jax.torch_weights.conversion import load_state_dict
from msconv_jax.torch_weights.pickled import Table, described
from msconv_jax.torch_weights.records import Tensor, WeightFile, WeightFileError, shown, to_arrays
from msconv_jax.torch_weights.safetensors import read_safetensors, write_safetensors

__all__ = ["load_torch_checkpoint", "read_state_dict", "write_safetensors"]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "params", "module", "ema")
_DATA_PARALLEL = "module."
_MAX_WRAPPERS = 64
_SHOWN = 10

Module = TypeVar("Module", bound=nnx.Module)


@explains_arguments
def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the weights from a file of ``torch.save`` or of safetensors, whatever its name is.

    The file need not be trusted: nothing in it is run, and PyTorch is not needed. A pickle is read as data by
    :mod:`~msconv_jax.torch_weights.unpickling`, which refuses every name that a checkpoint of weights does not need.

    Training programs keep other things beside the weights. If the file holds a dict with one of the entries
    ``state_dict``, ``model_state_dict``, ``model``, ``model_state``, ``net``, ``network``, ``params``, ``module``,
    ``ema`` that is itself a dict of tensors, or holds one in the same way, then the first of them in this order is
    taken, and all else is left out of account. Otherwise the whole is taken. If every name begins with ``module.``, as
    after ``DataParallel``, that is taken off.

    Args:
        path: the file.

    Returns:
        PyTorch's names and the arrays, each with memory of its own, in the order of the file.

    Raises:
        ValueError: saying what is wrong with the file and what to do: it is damaged, of another format, names what no
            weights need, or holds no dict of tensors.
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
        strict: whether names that the module does not know are an error; missing ones always are.
        prefix: take only the names that begin with it, without it, such as ``"backbone."``.

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
            f"{shown(next(iter(arrays)))}. Give a prefix that they have."
        )
    complex_names = [shown(name) for name, array in chosen.items() if array.dtype.kind == "c"]
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
    """How much of a name is ``module.``, once or repeated, with something after it."""
    end = 0
    while name.startswith(_DATA_PARALLEL, end) and len(name) > end + len(_DATA_PARALLEL):
        end += len(_DATA_PARALLEL)
    return end


def _read(file: WeightFile) -> dict[str, np.ndarray]:
    """The weights in any format, told by how the file begins."""
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
            f"it is neither a file of torch.save nor of safetensors: it begins with {start[:16]!a}. Is it a page or a "
            "pointer in the file's place? Then download the file itself."
        )
    return to_arrays(_state_dict(saved), content, file.size)


def _state_dict(saved: object) -> dict[str, Tensor]:
    """The dict of tensors in what was saved."""
    if not isinstance(saved, Table):
        raise WeightFileError(
            f"it holds a value that is {described(saved)}, not a dict of tensors; save model.state_dict()."
        )
    found = _find(saved, set())
    if found is None:
        names = ", ".join(shown(name) for name in list(_fields(saved))[:_SHOWN])
        raise WeightFileError(
            f"it holds no dict of tensors, neither as a whole nor as one of {', '.join(_WRAPPERS)}; its entries are: "
            f"{names or 'none'}. Save the dict of tensors alone."
        )
    others = [
        f"{shown(key) if isinstance(key, str) else 'a key that is ' + described(key)}: {described(value)}"
        for key, value in found.pairs
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if others:
        more = f"\n  and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise WeightFileError(
            "beside tensors by name its dict of tensors holds other things; save model.state_dict() alone:\n  "
            + "\n  ".join(others[:_SHOWN])
            + more
        )
    return {name: value for name, value in _fields(found).items() if isinstance(value, Tensor)}


def _find(table: Table, seen: set[int]) -> Table | None:
    """The dict of tensors in a dict, at the first of the wrappers or itself; each dict is looked at once."""
    if id(table) in seen or len(seen) == _MAX_WRAPPERS:
        return None
    seen.add(id(table))
    fields = _fields(table)
    for name in _WRAPPERS:
        inner = fields.get(name)
        if isinstance(inner, Table) and (found := _find(inner, seen)) is not None:
            return found
    return table if any(isinstance(value, Tensor) for value in fields.values()) else None


def _fields(table: Table) -> dict[str, object]:
    """A dict's entries under texts."""
    fields = {}
    for name, value in table.pairs:
        if isinstance(name, str):
            if name in fields:
                raise WeightFileError(f"a dict in it has the name {shown(name)} twice; save model.state_dict() again.")
            fields[name] = value
    return fields
