"""What a weight file says of its tensors, as plain records, and the arrays that are made from them.

Weight files are untrusted. Each reader turns its format into records; this module alone turns records into arrays,
after it has held every shape, stride and offset against the bytes that the file really has.
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
_MAX_NUMBER = 1 << 48  # of bytes and elements: beyond any file, and so small that no product below grows large
_SMALL = 1 << 16  # a tensor of so few elements may repeat the elements of a smaller storage
_SMALL_EMPTY = 1 << 31  # the product of an empty tensor's other sizes: it takes no memory
_GROWTH = 4  # bytes of all arrays for each byte of the file; tensors that share storages make it more than one


class WeightFileError(ValueError):
    """What is wrong with a file and what to do; the caller puts the file's name before it."""


def damaged(what: str) -> WeightFileError:
    """The error for a file that contradicts itself.

    Args:
        what: the contradiction, for parentheses.
    """
    return WeightFileError(f"it is damaged or is not a weight file ({what}); download or save it again.")


def shown(text: str) -> str:
    """Text from a file for a message: short, and without characters that act on a terminal."""
    return ascii(text if len(text) <= 80 else text[:80] + "...")


def plain(name: str) -> str:
    """A name from a file for a message: as it is, or as :func:`shown` if it is long or acts on a terminal."""
    return name if name.isprintable() and len(name) <= 80 else shown(name)


class WeightFile(io.BufferedReader):
    """A file of known size that is read in bounded parts.

    The file is not mapped into memory: were it cut short meanwhile, a mapped one would end the process.

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
            OSError: if it is not there, may not be read or is a directory.
            WeightFileError: if it is a pipe or a device.
        """
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a directory says so itself; a pipe would wait
            raise WeightFileError("it is not a regular file; copy it into one first.")
        return cls(io.FileIO(path))

    def part(self, start: int, size: int) -> bytes:
        """Reads bytes from ``start`` on.

        Raises:
            WeightFileError: if the file does not have them.
        """
        if min(start, size) < 0 or start + size > self.size:
            raise damaged(f"it has {self.size} bytes where bytes {start} to {start + size} are wanted")
        self.seek(start)
        found = super().read(size)
        if len(found) != size:
            raise damaged("it became shorter while it was read")
        return found

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads from the current place, as ``zipfile`` does, which may be told any size by a file.

        Raises:
            WeightFileError: if that is more than ``MAX_READ`` bytes.
        """
        wanted = self.size - self.tell() if size is None or size < 0 else size
        if wanted > self.MAX_READ:
            raise damaged(f"its directory is said to have {wanted} bytes")
        return super().read(size)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A run of elements in the file.

    Attributes:
        key: its name in the file.
        dtype: type of its elements.
        numel: number of its elements.
    """

    key: str
    dtype: np.dtype
    numel: int

    def __post_init__(self):
        if not _is_size(self.numel):
            raise damaged(f"storage {shown(self.key)} has no possible size")

    @property
    def nbytes(self) -> int:
        """Number of its bytes."""
        return self.numel * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A view of a storage.

    Attributes:
        storage: the storage.
        offset: of its first element, counted in elements.
        shape: its shape.
        strides: elements from one index to the next, for each dimension.
        dtype: type of its elements, which for an untyped storage is not the storage's.
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
            raise damaged("a tensor's offset, shape and strides are not all whole numbers of a possible size")

    @classmethod
    def contiguous(cls, storage: Storage, shape: tuple[int, ...]) -> Tensor:
        """The tensor that is all of a storage, last index fastest."""
        if len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, shape)) or math.prod(shape) != storage.numel:
            raise damaged(
                f"{shown(storage.key)} has {storage.nbytes} bytes, which is not what its shape and dtype need"
            )
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return cls(storage, 0, shape, strides if storage.numel else (0,) * len(shape), storage.dtype)

    def check(self, name: str) -> int:
        """Holds the tensor against its storage.

        Returns:
            The bytes of its array.

        Raises:
            WeightFileError: if it reaches outside the storage or repeats its elements too often.
        """
        count = math.prod(self.shape)
        available = self.storage.nbytes // self.dtype.itemsize
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if count and last >= available:
            raise damaged(f"tensor {shown(name)} reaches element {last} of a storage of {available}")
        if math.prod(max(n, 1) for n in self.shape) > max(available, _SMALL if count else _SMALL_EMPTY):
            raise WeightFileError(
                f"tensor {shown(name)} of shape {self.shape} repeats a storage of {available} elements; save it "
                "without expanding it, or as tensor.clone()."
            )
        return count * self.dtype.itemsize

    def array(self, content: bytes) -> np.ndarray:
        """The tensor as an array of its own, from its storage's bytes."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        # A byte that is neither 0 nor 1 is no valid bool for NumPy.
        dtype = np.dtype(np.uint8) if self.dtype == np.bool_ else self.dtype
        strides = [stride * dtype.itemsize for stride in self.strides]
        view = np.ndarray(self.shape, dtype.newbyteorder("<"), content, self.offset * dtype.itemsize, strides)
        return np.array(view != 0, order="C") if self.dtype == np.bool_ else view.astype(self.dtype, order="C")


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < _MAX_NUMBER  # not isinstance: True is no size


def to_arrays(
    tensors: Mapping[str, Tensor], content: Callable[[Storage], bytes], file_size: int
) -> dict[str, np.ndarray]:
    """Reads the tensors, one storage at a time, so that little more than the arrays is ever in memory.

    Args:
        tensors: the tensors by name.
        content: from a storage to its bytes.
        file_size: bytes of the file.

    Returns:
        An array of its own for each tensor, in the order given.

    Raises:
        WeightFileError: if a tensor does not fit its storage, or if all together are far larger than the file.
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
