"""The kernels of a lattice as arrays: the banks that hold them, and the one dense kernel that they mean.

:class:`msconv_jax.KernelLattice` has these functions as methods: ``banks``, ``bank_places``, ``pack`` and ``expand``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Shaped

from msconv_jax.arguments import short_list
from msconv_jax.modes.dtypes import common_dtype

__all__ = ["Bank", "bank_places", "expand", "make_banks", "pack"]

Kernels = ArrayLike | Sequence[ArrayLike]


class _Tile(Protocol):
    """What packing reads of a tile."""

    @property
    def outputs(self) -> slice: ...
    @property
    def inputs(self) -> slice: ...
    @property
    def kernel_size(self) -> tuple[int, ...]: ...


class _Lattice(Protocol):
    """What packing reads of a lattice."""

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def tiles(self) -> Sequence[_Tile]: ...
    @property
    def rows(self) -> Int[np.ndarray, "rows inputs"]: ...
    @property
    def row_of_output(self) -> Int[np.ndarray, " outputs"]: ...
    @property
    def dilations(self) -> Int[np.ndarray, "outputs inputs ndim"]: ...
    @property
    def extent(self) -> tuple[int, ...]: ...
    @property
    def banks(self) -> tuple[Bank, ...]: ...
    def tap_offset(self, kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]: ...


@dataclasses.dataclass(frozen=True)
class Bank:
    """Storage for kernels of one size, for the outputs that have equally many of them.

    Attributes:
        kernel_size: taps along each spatial axis.
        fan_in: number of kernels of this size that each of the outputs has.
        outputs: the output channels, ascending.
    """

    kernel_size: tuple[int, ...]
    fan_in: int
    outputs: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that holds the kernels: (*kernel_size, fan_in, number of outputs)."""
        return (*self.kernel_size, self.fan_in, len(self.outputs))


def make_banks(lattice: _Lattice) -> tuple[Bank, ...]:
    """The banks of a lattice, by kernel size and then by first output."""
    banks: list[Bank] = []
    for size in sorted({tile.kernel_size for tile in lattice.tiles}):
        counts = _has_kernel_size(lattice, size).sum(axis=1)[lattice.row_of_output]
        found = [
            Bank(size, int(fan_in), tuple(map(int, np.flatnonzero(counts == fan_in))))
            for fan_in in np.unique(counts[counts > 0])
        ]
        banks += sorted(found, key=lambda bank: bank.outputs[0])
    return tuple(banks)


def bank_places(lattice: _Lattice, bank: Bank) -> Int[np.ndarray, "rows inputs"]:
    """The place of each of the bank's cells along fan_in, as a table like `lattice.rows`; -1 for all other cells."""
    present = _has_kernel_size(lattice, bank.kernel_size)
    present &= present.sum(axis=1, keepdims=True) == bank.fan_in
    return np.where(present, np.cumsum(present, axis=1) - 1, -1)


def _has_kernel_size(lattice: _Lattice, kernel_size: tuple[int, ...]) -> np.ndarray:
    """For each cell, whether its kernel has this size: a boolean table like `lattice.rows`."""
    of_tile = np.array([tile.kernel_size == kernel_size for tile in lattice.tiles] + [False])
    return of_tile[lattice.rows]


def pack(lattice: _Lattice, kernels: Kernels) -> tuple[Array, ...]:
    """Kernels in either form as one array per bank; see :meth:`msconv_jax.KernelLattice.pack`."""
    arrays = tuple(jnp.asarray(kernel) for kernel in (kernels if isinstance(kernels, Sequence) else (kernels,)))
    shapes = [array.shape for array in arrays]
    bank_shapes = [bank.shape for bank in lattice.banks]
    if shapes == bank_shapes:
        return arrays
    tile_shapes = [
        (*tile.kernel_size, len(_channels(tile.inputs)), len(_channels(tile.outputs))) for tile in lattice.tiles
    ]
    if shapes != tile_shapes:
        raise ValueError(
            f"kernels have the shapes {short_list(shapes)}: expected {short_list(bank_shapes)} (packed) or "
            f"{short_list(tile_shapes)} (one per tile)."
        )
    return tuple(_packed_bank(lattice, bank, arrays) for bank in lattice.banks)


def _packed_bank(lattice: _Lattice, bank: Bank, tile_kernels: Sequence[Array]) -> Array:
    dtype = common_dtype(*tile_kernels)
    places = bank_places(lattice, bank)
    column_of = {output: column for column, output in enumerate(bank.outputs)}
    packed = jnp.zeros(bank.shape, dtype)
    for tile, kernel in zip(lattice.tiles, tile_kernels, strict=True):
        outputs = _channels(tile.outputs)
        in_bank = [n for n, output in enumerate(outputs) if output in column_of]
        if tile.kernel_size != bank.kernel_size or not in_bank:
            continue
        channels = [outputs[n] for n in in_bank]
        place = places[lattice.row_of_output[channels], tile.inputs].T
        column = np.array([column_of[output] for output in channels])
        packed = packed.at[..., place, column].set(kernel[..., np.array(in_bank)].astype(dtype))
    return packed


def expand(lattice: _Lattice, kernels: Kernels) -> Shaped[Array, "*extent in_features out_features"]:
    """The one dense kernel that means the same; see :meth:`msconv_jax.KernelLattice.expand`."""
    arrays = pack(lattice, kernels)
    dense = jnp.zeros((*lattice.extent, lattice.in_features, lattice.out_features), common_dtype(*arrays))
    dilations = lattice.dilations
    for bank, array in zip(lattice.banks, arrays, strict=True):
        outputs = np.array(bank.outputs)
        places = bank_places(lattice, bank)[lattice.row_of_output[outputs]]
        kernels_of_cells = array[..., np.maximum(places, 0).T, np.arange(len(outputs))]  # (*kernel_size, in, outputs)
        for dilation in np.unique(dilations[outputs][places >= 0], axis=0):
            has_dilation = (places >= 0) & (dilations[outputs] == dilation).all(axis=-1)
            taps = tuple(
                slice(first, first + (size - 1) * int(gap) + 1, int(gap))
                for first, size, gap in zip(
                    lattice.tap_offset(bank.kernel_size, dilation), bank.kernel_size, dilation, strict=True
                )
            )
            dense = dense.at[(*taps, slice(None), outputs)].add(jnp.where(has_dilation.T, kernels_of_cells, 0))
    return dense


def _channels(channels: slice) -> range:
    return range(channels.start, channels.stop, channels.step)
