"""Reads and writes the safetensors format: a header in JSON, then the elements of all tensors.

The format is described at https://github.com/huggingface/safetensors, "Format". It takes some forty lines here; the
``safetensors`` package would be one more dependency, and would not let the reader choose its limits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from msconv_jax.signatures import explains_arguments
from msconv_jax.torch_weights.records import (
    DTYPES,
    Storage,
    Tensor,
    WeightFile,
    WeightFileError,
    damaged,
    escape_text,
    to_arrays,
)
from msconv_jax.whole_files import atomic_write

_MAX_HEADER = 1 << 23  # some 80,000 tensors; a parsed header may take twenty times its bytes
_METADATA = "__metadata__"
_DTYPES = (
    {"BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
    | {"U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"}
    | {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16", "C64": "complex64"}
    | {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
)
_CODES = {name: code for code, name in _DTYPES.items()}


def read_safetensors(file: WeightFile) -> dict[str, np.ndarray]:
    """Reads all tensors.

    Args:
        file: the file.

    Returns:
        The arrays by name, in the order of the header.

    Raises:
        WeightFileError: if the file violates the format.
    """
    size = int.from_bytes(file.part(0, 8), "little")
    if size > _MAX_HEADER:
        raise damaged(f"its header claims {size} bytes; the reader accepts at most {_MAX_HEADER}")
    text = file.part(8, size)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except WeightFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise damaged(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise damaged("its header is not a JSON object")
    header.pop(_METADATA, None)
    tensors: dict[str, Tensor] = {}
    offsets: dict[str, int] = {}
    for name, entry in header.items():
        tensors[name], offsets[name] = _tensor(name, entry)
    position = 0
    for name in sorted(tensors, key=lambda name: (offsets[name], tensors[name].storage.nbytes)):
        if offsets[name] != position:
            raise damaged(f"tensor {escape_text(name)} begins at byte {offsets[name]} of the data, not at {position}")
        position += tensors[name].storage.nbytes
    if position != file.size - 8 - size:
        raise damaged(f"its tensors have {position} bytes, its data {file.size - 8 - size}")
    return to_arrays(tensors, lambda s: file.part(8 + size + offsets[s.key], s.nbytes), file.size)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise damaged("its header has a name twice")
    return found


def _tensor(name: str, entry: object) -> tuple[Tensor, int]:
    """A tensor and the offset of its bytes."""
    match entry:
        case {"dtype": str() as code, "shape": list() as shape, "data_offsets": [int() as begin, int() as end]}:
            if code not in _DTYPES:
                raise WeightFileError(
                    f"tensor {escape_text(name)} has the unsupported dtype {escape_text(code)}; save it as one of "
                    f"{', '.join(_DTYPES)}."
                )
            dtype = DTYPES[_DTYPES[code]]
            if begin < 0 or (end - begin) % dtype.itemsize:
                raise damaged(f"tensor {escape_text(name)} has a fraction of an element")
            return Tensor.contiguous(Storage(name, dtype, (end - begin) // dtype.itemsize), tuple(shape)), begin
    raise damaged(f"tensor {escape_text(name)} has no dtype, shape and data_offsets in its header")


@explains_arguments
def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays as a ``.safetensors`` file; a failed write leaves no partial file.

    Args:
        path: the file, which is replaced if it exists.
        tensors: arrays by name (NumPy's, JAX's, or anything that NumPy takes).
        metadata: strings to store with them.

    Raises:
        ValueError: if the format does not support a name, an array's dtype or the metadata.
        OSError: if the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from msconv_jax.torch_weights import files
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "weights.safetensors"
        ...     files.write_safetensors(path, {"conv.weight": np.ones((8, 4, 3, 3), np.float32)})
        ...     {name: array.shape for name, array in files.read_state_dict(path).items()}
        {'conv.weight': (8, 4, 3, 3)}
    """
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    problems = [
        f"{name!a} is not a valid name of a tensor" for name in arrays if not isinstance(name, str) or name == _METADATA
    ]
    problems += [
        f"{name!a} has dtype {array.dtype}, which safetensors lacks; convert it to one of {', '.join(_CODES)}"
        for name, array in arrays.items()
        if array.dtype.name not in _CODES
    ]
    if not all(isinstance(text, str) for pair in (metadata or {}).items() for text in pair):
        problems.append("the metadata is not a mapping from strings to strings; convert it with str()")
    if problems:
        raise ValueError(f"{os.fspath(path)}: cannot be written:\n  " + "\n  ".join(problems))
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    position = 0
    # Wide elements first, so that every tensor is aligned to the size of its elements; then by name.
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    for name in order:
        array = arrays[name]
        span = [position, position + array.nbytes]
        header[name] = {"dtype": _CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": span}
        position += array.nbytes
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{os.fspath(path)}: a name or the metadata is not valid Unicode; change it.") from error
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise ValueError(f"{os.fspath(path)}: the header has {len(text)} bytes, over {_MAX_HEADER}; shorten the names.")
    with atomic_write(path) as part, part.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            little = arrays[name].astype(DTYPES[arrays[name].dtype.name].newbyteorder("<"), order="C", copy=False)
            file.write(little.reshape(-1).view(np.uint8).data)
