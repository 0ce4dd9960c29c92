"""Records of the tensors in a weight file, and their checked conversion to arrays.

Weight files are untrusted. Each reader turns its format into records. Only this module turns records into arrays, after
it has checked every shape, stride and offset against the size of the file.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import stat
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

DTYPES: dict[str, np.dtype] = {
    **{
        name: np.dtype(name)
        for name in (
            *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
            *("float16", "float32", "float64", "complex64", "complex128"),
        )
    },
    "bfloat16": np.dtype(jnp.bfloat16),
    "float8_e4m3fn": np.dtype(jnp.float8_e4m3fn),
    "float8_e5m2": np.dtype(jnp.float8_e5m2),
}

_MAX_DIMENSIONS = 32
_MAX_NUMBER = 1 << 48  # bytes or elements: larger than any file, small enough to keep the products below small
_SMALL = 1 << 16  # tensors of at most so many elements may repeat the elements of a smaller storage
_SMALL_EMPTY = 1 << 31  # limit for the product of an empty tensor's other sizes, which takes no memory
_GROWTH = 4  # bytes of all arrays per byte of the file; above 1 because tensors may share storages


class WeightFileError(ValueError):
    """States what is wrong with a file and what to do; the caller prepends the file's name."""


def damaged(what: str) -> WeightFileError:
    """The error for a file that contradicts itself.

    Args:
        what: the contradiction, which the message puts in parentheses.
    """
    return WeightFileError(f"it is damaged or is not a weight file ({what}); download or save it again.")


def escape_text(text: str) -> str:
    """Shortens text from a file and escapes the characters that control a terminal."""
    return ascii(text if len(text) <= 80 else text[:80] + "...")


def printable(name: str) -> str:
    """A name from a file for a message, escaped if it is long or has characters that control a terminal."""
    return name if name.isprintable() and len(name) <= 80 else escape_text(name)


class WeightFile(io.BufferedReader):
    """A file of known size that is read in bounded parts.

    The file is not mapped into memory, because a mapped file that is truncated meanwhile ends the process.

    Attributes:
        size: bytes of the file.
    """

    MAX_READ = 1 << 22

    def __init__(self, raw: io.FileIO):
        super().__init__(raw)
        self.size = os.fstat(self.fileno()).st_size

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> WeightFile:
        """Opens a file.

        Raises:
            OSError: if it does not exist, may not be read or is a directory.
            WeightFileError: if it is a pipe or a device.
        """
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # FileIO refuses directories; a pipe would block
            raise WeightFileError("it is not a regular file; copy it into one first.")
        return cls(io.FileIO(path))

    def part(self, start: int, size: int) -> bytes:
        """Reads `size` bytes from byte `start` on.

        Raises:
            WeightFileError: if the file is too short.
        """
        if min(start, size) < 0 or start + size > self.size:
            raise damaged(f"it has {self.size} bytes where bytes {start} to {start + size} are needed")
        self.seek(start)
        found = super().read(size)
        if len(found) != size:
            raise damaged("it became shorter while it was read")
        return found

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads from the current position. ``zipfile`` calls this with sizes that stand in the file.

        Raises:
            WeightFileError: for more than ``MAX_READ`` bytes.
        """
        count = self.size - self.tell() if size is None or size < 0 else size
        if count > self.MAX_READ:
            raise damaged(f"its directory claims {count} bytes")
        return super().read(size)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A contiguous run of elements in the file.

    Attributes:
        key: name in the file.
        dtype: type of the elements.
        numel: number of elements.
    """

    key: str
    dtype: np.dtype
    numel: int

    def __post_init__(self):
        if not _is_size(self.numel):
            raise damaged(f"storage {escape_text(self.key)} has an impossible size")

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.numel * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A view of a storage.

    Attributes:
        storage: the storage.
        offset: position of the first element in the storage, in elements.
        shape: the shape.
        strides: elements from one index to the next, for each dimension.
        dtype: type of the elements; it differs from the storage's if that is untyped.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    def __post_init__(self):
        if len(self.shape) > _MAX_DIMENSIONS or len(self.shape) != len(self.strides):
            raise damaged(f"a tensor has {len(self.shape)} dimensions and {len(self.strides)} strides")
        if not all(map(_is_size, (self.offset, *self.shape, *self.strides))):
            raise damaged("a tensor's offset, shape and strides are not all integers of a possible size")

    @classmethod
    def contiguous(cls, storage: Storage, shape: tuple[int, ...]) -> Tensor:
        """The tensor that covers a storage in row-major order."""
        if len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, shape)) or math.prod(shape) != storage.numel:
            raise damaged(
                f"{escape_text(storage.key)} has {storage.nbytes} bytes, which do not fit its shape and dtype"
            )
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return cls(storage, 0, shape, strides if storage.numel else (0,) * len(shape), storage.dtype)

    def check(self, name: str) -> int:
        """Checks that the tensor lies in its storage.

        Returns:
            Number of bytes of the tensor's array.

        Raises:
            WeightFileError: if the tensor exceeds the storage or repeats its elements too often.
        """
        count = math.prod(self.shape)
        available = self.storage.nbytes // self.dtype.itemsize
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if count and last >= available:
            raise damaged(f"tensor {escape_text(name)} needs element {last} of a storage of {available}")
        if math.prod(max(n, 1) for n in self.shape) > max(available, _SMALL if count else _SMALL_EMPTY):
            raise WeightFileError(
                f"tensor {escape_text(name)} of shape {self.shape} repeats a storage of {available} elements; save it "
                "without expanding it, or as tensor.clone()."
            )
        return count * self.dtype.itemsize

    def array(self, content: bytes) -> np.ndarray:
        """Copies the tensor from the bytes of its storage into a new array."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        # NumPy requires the bytes of bools to be 0 or 1.
        dtype = np.dtype(np.uint8) if self.dtype == np.bool_ else self.dtype
        strides = [stride * dtype.itemsize for stride in self.strides]
        view = np.ndarray(self.shape, dtype.newbyteorder("<"), content, self.offset * dtype.itemsize, strides)
        return np.array(view != 0, order="C") if self.dtype == np.bool_ else view.astype(self.dtype, order="C")


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < _MAX_NUMBER  # isinstance would admit True


def to_arrays(
    tensors: Mapping[str, Tensor], content: Callable[[Storage], bytes], file_size: int
) -> dict[str, np.ndarray]:
    """Reads the tensors, one storage at a time, so the peak of memory is little more than the arrays.

    Args:
        tensors: the tensors by name.
        content: function from a storage to its bytes.
        file_size: bytes of the file.

    Returns:
        A new array for each tensor, in the order given.

    Raises:
        WeightFileError: if a tensor does not fit its storage, or if the arrays are far larger than the file.
    """
    total = sum(tensor.check(name) for name, tensor in tensors.items())
    if total > _GROWTH * file_size + _SMALL:
        raise WeightFileError(
            f"its tensors have {total} bytes together and the file has {file_size}: too many share the same storage; "
            "save them as tensor.clone()."
        )
    users: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        users.setdefault(tensor.storage.key, []).append(name)
    arrays = {}
    for names in users.values():
        data = content(tensors[names[0]].storage)
        arrays |= {name: tensors[name].array(data) for name in names}
    return {name: arrays[name] for name in tensors}
