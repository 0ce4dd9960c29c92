"""Kernel lattices: which spatial kernel joins which input channel to which output channel.

The kernel lattice (the term of the PSConv paper) is the table of output channels x input channels of a
convolution. Each cell holds one small spatial kernel, or none. A plain convolution fills the table with one
kernel size and one dilation; the multi-scale operators vary them. This file describes such tables and gives
them their one meaning, :meth:`KernelLattice.expand`; nothing here knows how a convolution is computed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msconv_jax.arguments import dilated_extent, per_axis
from msconv_jax.modes.dtypes import common_dtype


def _channel_slice(name: str, channels: slice) -> slice:
    """`channels` with start, stop and step written out, so that equal ranges compare equal."""
    if not isinstance(channels, slice):
        raise ValueError(f"{name}={channels!r}: expected a slice of channels, such as slice(0, 16).")
    try:
        start = 0 if channels.start is None else operator.index(channels.start)
        stop = operator.index(channels.stop)
        step = 1 if channels.step is None else operator.index(channels.step)
    except TypeError:
        raise ValueError(f"{name}={channels!r}: start, stop and step are ints, and the stop is written out.") from None
    if start < 0 or step < 1 or stop <= start:
        raise ValueError(f"{name}={channels!r} names no channel: expected 0 <= start < stop and step >= 1.")
    count = len(range(start, stop, step))
    return slice(start, start + (count - 1) * step + 1, step if count > 1 else 1)


def _slice_text(channels: slice) -> str:
    return f"{channels.start}:{channels.stop}" + (f":{channels.step}" if channels.step > 1 else "")


@dataclasses.dataclass(frozen=True)
class Tile:
    """A rectangle of the kernel lattice whose cells share one kernel size and one dilation.

    Attributes:
        outputs: output channels, a slice with 0 <= start < stop and a positive step.
        inputs: input channels, likewise.
        kernel_size: taps along each spatial axis.
        dilation: distance of neighbouring taps in pixels, one int for all axes or one for each.

    Raises:
        ValueError: for an empty or open slice, or a size that is not positive.

    Example:
        >>> from msconv_jax import Tile
        >>> Tile(slice(0, 8), slice(0, 4), (3, 3), dilation=2)
        Tile(outputs 0:8, inputs 0:4, kernel 3x3, dilation 2x2)
    """

    outputs: slice
    inputs: slice
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...] = (1,)

    def __post_init__(self):
        set_field = functools.partial(object.__setattr__, self)
        set_field("outputs", _channel_slice("outputs", self.outputs))
        set_field("inputs", _channel_slice("inputs", self.inputs))
        set_field("kernel_size", per_axis("kernel_size", self.kernel_size))
        dilation = self.dilation
        if isinstance(dilation, Sequence) and len(dilation) == 1:
            dilation = dilation[0]
        set_field("dilation", per_axis("dilation", dilation, len(self.kernel_size)))

    @property
    def extent(self) -> tuple[int, ...]:
        """Pixels that the dilated kernel spans along each spatial axis."""
        return dilated_extent(self.kernel_size, self.dilation)

    @property
    def num_cells(self) -> int:
        """Number of (output, input) pairs in the tile."""
        return _slice_length(self.outputs) * _slice_length(self.inputs)

    # Python 3.11 cannot hash a slice, so the dataclass's own hash would fail.
    def __hash__(self):
        ends = [(s.start, s.stop, s.step) for s in (self.outputs, self.inputs)]
        return hash((*ends, self.kernel_size, self.dilation))

    def __repr__(self):
        kernel, dilation = ("x".join(map(str, v)) for v in (self.kernel_size, self.dilation))
        return (
            f"Tile(outputs {_slice_text(self.outputs)}, inputs {_slice_text(self.inputs)}, "
            f"kernel {kernel}, dilation {dilation})"
        )


def _slice_length(channels: slice) -> int:
    return len(range(channels.start, channels.stop, channels.step))


@dataclasses.dataclass(frozen=True)
class Bank:
    """The kernels of all cells with one kernel size in the rows with one number of such cells.

    Attributes:
        kernel_size: taps along each spatial axis.
        fan_in: cells of this kernel size in each of the rows.
        outputs: the output channels whose rows these are, ascending.
    """

    kernel_size: tuple[int, ...]
    fan_in: int
    outputs: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that holds the kernels: (*kernel_size, fan_in, number of outputs)."""
        return (*self.kernel_size, self.fan_in, len(self.outputs))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class KernelLattice:
    """A convolution's table of output channels x input channels, as a tuple of tiles.

    A lattice is immutable, hashable static data: it may be an attribute of a module, a static argument of
    ``jax.jit`` or (it is a pytree without leaves) an ordinary one. Two lattices are equal when they list
    equal tiles in the same order.

    Kernels of a lattice are given in one of two forms, which :meth:`pack` tells apart by their shapes:

    * one array per tile, ``(*kernel_size, inputs, outputs)``, in the order of ``tiles``;
    * packed: one array per :attr:`banks` entry, ``(*kernel_size, fan_in, outputs)``, where the cells of an
      output's row stand in ascending order of their inputs. A lattice whose cells all have one kernel size
      and whose rows are equally full has a single bank, of the shape of the plain (grouped) convolution's
      kernel.

    Attributes:
        in_features: number of input channels.
        out_features: number of output channels.
        tiles: the tiles, at least one; every output channel lies in one, and no cell lies in two. Inputs that
            no tile names are not read.
        base_extent: extent in pixels of the kernel that a convolution's ``padding`` speaks of; by default
            (empty) the smallest kernel size, undilated. Each tile is padded further by half of what its extent
            has more; where that is odd, the smaller half stands before.

    Raises:
        ValueError: if a tile leaves the table or meets another tile, if tiles differ in their number of spatial
            axes, or if an output is left without a kernel.

    Source: Sec. 3.1 and Fig. 2 of the PSConv paper (ECCV 2020).

    Example:
        >>> from msconv_jax import KernelLattice, Tile
        >>> lattice = KernelLattice(4, 4, (
        ...     Tile(slice(0, 2), slice(0, 4), (3, 3)),
        ...     Tile(slice(2, 4), slice(0, 4), (3, 3), dilation=2),
        ... ))
        >>> lattice
        KernelLattice(4 -> 4 features, 2 tiles:
          outputs 0:2  inputs 0:4  kernel 3x3  dilation 1x1
          outputs 2:4  inputs 0:4  kernel 3x3  dilation 2x2)
        >>> lattice.num_parameters, lattice.macs((56, 56))
        (144, 451584)
        >>> lattice.extent
        (5, 5)
    """

    in_features: int
    out_features: int
    tiles: tuple[Tile, ...]
    base_extent: tuple[int, ...] = ()

    def __post_init__(self):
        set_field = functools.partial(object.__setattr__, self)
        for name in ("in_features", "out_features"):
            set_field(name, per_axis(name, (getattr(self, name),))[0])
        if not isinstance(self.tiles, Iterable):
            raise ValueError(f"tiles={self.tiles!r}: expected a list of tiles, such as [Tile(...), Tile(...)].")
        set_field("tiles", tuple(self.tiles))
        if not self.tiles:
            raise ValueError("tiles is empty: a lattice needs at least one tile.")
        for tile in self.tiles:
            if not isinstance(tile, Tile):
                raise ValueError(f"tiles holds {tile!r}: expected only Tile objects.")
        ndims = {len(tile.kernel_size) for tile in self.tiles}
        if len(ndims) > 1:
            raise ValueError(f"the tiles have {sorted(ndims)} spatial axes: all need the same number.")
        if not self.base_extent:
            set_field("base_extent", tuple(map(min, zip(*(t.kernel_size for t in self.tiles), strict=True))))
        else:
            set_field("base_extent", per_axis("base_extent", self.base_extent, self.ndim))
        _ = self._distinct_rows  # checks that the tiles fit the table

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.tiles[0].kernel_size)

    @functools.cached_property
    def _distinct_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct rows of the table, and for each output which one is its own; checks that the tiles fit.

        A table of every cell would be large (16 million cells for 4096 channels) where the rows repeat: all outputs
        that lie in the same tiles have one row.
        """
        tiles_of_output: list[list[int]] = [[] for _ in range(self.out_features)]
        for number, tile in enumerate(self.tiles):
            for name, channels, features in (
                ("outputs", tile.outputs, self.out_features),
                ("inputs", tile.inputs, self.in_features),
            ):
                if channels.stop > features:
                    raise ValueError(
                        f"{tile}: {name} {_slice_text(channels)} leave the table, which has {features} "
                        f"{name[:-1]} channels."
                    )
            for tiles in tiles_of_output[tile.outputs]:
                tiles.append(number)
        bare = [output for output, tiles in enumerate(tiles_of_output) if not tiles]
        if bare:
            raise ValueError(f"output channels {_short(bare)} have no kernel: every output needs at least one tile.")
        row_of_tiles: dict[tuple[int, ...], int] = {}
        row_of_output = [row_of_tiles.setdefault(tuple(tiles), len(row_of_tiles)) for tiles in tiles_of_output]
        rows = np.full((len(row_of_tiles), self.in_features), -1, np.int32)
        for tiles, row in zip(row_of_tiles, rows, strict=True):
            for number in tiles:
                own = row[self.tiles[number].inputs]
                if own.max() >= 0:
                    raise ValueError(
                        f"{self.tiles[number]} and {self.tiles[own.max()]} cover the same cells: each cell holds one "
                        "kernel."
                    )
                own[...] = number
        rows.flags.writeable = False
        return rows, np.array(row_of_output)

    @property
    def rows(self) -> np.ndarray:
        """The distinct rows of the table: tile numbers (rows, in_features), -1 where a cell is empty."""
        return self._distinct_rows[0]

    @property
    def row_of_output(self) -> np.ndarray:
        """For each output channel the number of its row in `rows`."""
        return self._distinct_rows[1]

    @property
    def cells(self) -> np.ndarray:
        """The whole table: tile numbers (out_features, in_features), -1 where a cell is empty."""
        return self.rows[self.row_of_output]

    # --- counts and tables ---

    @property
    def num_parameters(self) -> int:
        """Number of kernel weights (no bias)."""
        return sum(math.prod(tile.kernel_size) * tile.num_cells for tile in self.tiles)

    def macs(self, output_size: Sequence[int]) -> int:
        """Multiply-accumulates for one image whose output has the spatial size `output_size`, in pixels."""
        return self.num_parameters * math.prod(per_axis("output_size", output_size))

    @property
    def extent(self) -> tuple[int, ...]:
        """Spatial size in pixels of the smallest dense kernel that holds every tile, centred."""
        offsets = [self.offset(tile.extent) for tile in self.tiles]
        return tuple(
            max(tile.extent[axis] - offset[axis] for tile, offset in zip(self.tiles, offsets, strict=True))
            + max(offset[axis] for offset in offsets)
            for axis in range(self.ndim)
        )

    def offset(self, extent: Sequence[int]) -> tuple[int, ...]:
        """Pixels from the base kernel's first tap back to the first tap of a kernel of this extent."""
        return tuple((e - b) // 2 for e, b in zip(extent, self.base_extent, strict=True))

    @property
    def dilations(self) -> np.ndarray:
        """Integer table (out_features, in_features, ndim) of dilations; 0 where a cell is empty."""
        return self._table("dilation")

    @property
    def kernel_sizes(self) -> np.ndarray:
        """Integer table (out_features, in_features, ndim) of kernel sizes; 0 where a cell is empty."""
        return self._table("kernel_size")

    def _table(self, field: str) -> np.ndarray:
        values = [getattr(tile, field) for tile in self.tiles]
        return np.array([*values, (0,) * self.ndim])[self.cells]  # cell -1 picks the last row: zeros

    # --- kernels ---

    @functools.cached_property
    def banks(self) -> tuple[Bank, ...]:
        """The arrays of the packed form, by kernel size and then by first output."""
        banks = []
        for size in sorted({tile.kernel_size for tile in self.tiles}):
            counts = self._cells_of_size(size).sum(axis=1)[self.row_of_output]
            found = [
                Bank(size, int(fan_in), tuple(map(int, np.flatnonzero(counts == fan_in))))
                for fan_in in np.unique(counts[counts > 0])
            ]
            banks += sorted(found, key=lambda bank: bank.outputs[0])
        return tuple(banks)

    def _cells_of_size(self, kernel_size: tuple[int, ...]) -> np.ndarray:
        """Cells with this kernel size, as a boolean table like `rows`."""
        of_tile = np.array([tile.kernel_size == kernel_size for tile in self.tiles] + [False])
        return of_tile[self.rows]

    def bank_places(self, bank: Bank) -> np.ndarray:
        """Places of the bank's cells along fan_in, as a table like `rows`; -1 where it has none."""
        present = self._cells_of_size(bank.kernel_size)
        present &= present.sum(axis=1, keepdims=True) == bank.fan_in
        return np.where(present, np.cumsum(present, axis=1) - 1, -1)

    def pack(self, kernels: jax.Array | np.ndarray | Sequence[Any]) -> tuple[jax.Array, ...]:
        """Kernels in either form as one array per bank.

        Args:
            kernels: one array per tile, or one per bank; a single array stands for a tuple of one.

        Returns:
            One array of shape ``bank.shape`` for each of ``banks``.

        Raises:
            ValueError: if the shapes are neither those of the tiles nor those of the banks.
        """
        if isinstance(kernels, Sequence):
            arrays = tuple(jnp.asarray(kernel) for kernel in kernels)
        else:
            arrays = (jnp.asarray(kernels),)
        shapes = [array.shape for array in arrays]
        if shapes == [bank.shape for bank in self.banks]:
            return arrays
        tile_shapes = [
            (*tile.kernel_size, _slice_length(tile.inputs), _slice_length(tile.outputs)) for tile in self.tiles
        ]
        if shapes != tile_shapes:
            raise ValueError(
                f"kernels have the shapes {_short(shapes)}: expected {_short([b.shape for b in self.banks])} "
                f"(packed) or {_short(tile_shapes)} (one per tile)."
            )
        dtype = common_dtype(*arrays)
        packed = []
        for bank in self.banks:
            places = self.bank_places(bank)
            columns = {output: column for column, output in enumerate(bank.outputs)}
            array = jnp.zeros(bank.shape, dtype)
            for tile, kernel in zip(self.tiles, arrays, strict=True):
                outputs = range(tile.outputs.start, tile.outputs.stop, tile.outputs.step)
                mine = [n for n, output in enumerate(outputs) if output in columns]
                if tile.kernel_size != bank.kernel_size or not mine:
                    continue
                own = [outputs[n] for n in mine]
                place = places[self.row_of_output[own], tile.inputs].T
                column = np.array([columns[output] for output in own])
                array = array.at[..., place, column].set(kernel[..., np.array(mine)].astype(dtype))
            packed.append(array)
        return tuple(packed)

    def expand(self, kernels: jax.Array | np.ndarray | Sequence[Any]) -> jax.Array:
        """The one dense kernel that means the same as the lattice.

        Args:
            kernels: kernels of the lattice, in either form.

        Returns:
            Array ``(*extent, in_features, out_features)`` with zeros between the taps and in empty cells. A
            convolution with it, padded by ``padding_offset`` more before and by the rest of
            ``extent - base_extent`` more after than the base kernel, equals the lattice's.
        """
        arrays = self.pack(kernels)
        dense = jnp.zeros((*self.extent, self.in_features, self.out_features), common_dtype(*arrays))
        dilations = self.dilations
        for bank, array in zip(self.banks, arrays, strict=True):
            outputs = np.array(bank.outputs)
            places = self.bank_places(bank)[self.row_of_output[outputs]]
            rows = array[..., np.maximum(places, 0).T, np.arange(len(outputs))]  # (*kernel_size, in, outputs)
            for dilation in np.unique(dilations[outputs][places >= 0], axis=0):
                here = (places >= 0) & (dilations[outputs] == dilation).all(axis=-1)
                tap_slices = tuple(
                    slice(first, first + (size - 1) * int(step) + 1, int(step))
                    for first, size, step in zip(
                        self.tap_offset(bank.kernel_size, dilation), bank.kernel_size, dilation, strict=True
                    )
                )
                dense = dense.at[(*tap_slices, slice(None), outputs)].add(jnp.where(here.T, rows, 0))
        return dense

    @property
    def padding_offset(self) -> tuple[int, ...]:
        """Pixels by which the dense kernel reaches further back than the base kernel, per spatial axis."""
        offsets = [self.offset(tile.extent) for tile in self.tiles]
        return tuple(map(max, zip(*offsets, strict=True)))

    def tap_offset(self, kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
        """Where the first tap of a kernel lies in the dense kernel, per spatial axis."""
        extent = dilated_extent(kernel_size, dilation)
        return tuple(most - own for most, own in zip(self.padding_offset, self.offset(extent), strict=True))

    # --- identity, text, storage ---

    def _key(self):
        return (self.in_features, self.out_features, self.base_extent, self.tiles)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, KernelLattice):
            return NotImplemented
        return hash(self) == hash(other) and self._key() == other._key()

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        rows = [
            (
                _slice_text(tile.outputs),
                _slice_text(tile.inputs),
                "x".join(map(str, tile.kernel_size)),
                "x".join(map(str, tile.dilation)),
            )
            for tile in self.tiles[:16]
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  outputs {}  inputs {}  kernel {}  dilation {}".format(
                *(text.ljust(width) for text, width in zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        if len(self.tiles) > len(rows):
            lines.append(f"  ... and {len(self.tiles) - len(rows)} more")
        noun = "tile" if len(self.tiles) == 1 else "tiles"
        head = f"KernelLattice({self.in_features} -> {self.out_features} features, {len(self.tiles)} {noun}:"
        return "\n".join([head, *lines]) + ")"

    def to_json(self) -> str:
        """The lattice as JSON text; :meth:`from_json` reads it back."""
        return json.dumps(
            {
                "in_features": self.in_features,
                "out_features": self.out_features,
                "base_extent": self.base_extent,
                "tiles": [
                    {
                        "outputs": [tile.outputs.start, tile.outputs.stop, tile.outputs.step],
                        "inputs": [tile.inputs.start, tile.inputs.stop, tile.inputs.step],
                        "kernel_size": tile.kernel_size,
                        "dilation": tile.dilation,
                    }
                    for tile in self.tiles
                ],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> KernelLattice:
        """The lattice that :meth:`to_json` wrote.

        Raises:
            ValueError: if the text is not JSON of that form, or describes no valid lattice.
        """
        try:
            data = json.loads(text)
            tiles = tuple(
                Tile(
                    slice(*tile["outputs"]),
                    slice(*tile["inputs"]),
                    tuple(tile["kernel_size"]),
                    tuple(tile["dilation"]),
                )
                for tile in data["tiles"]
            )
            features = data["in_features"], data["out_features"]
            base_extent = data["base_extent"]
        except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(
                f"not the JSON of a lattice ({type(error).__name__}: {error}); expected the keys "
                "in_features, out_features, base_extent and tiles, as KernelLattice.to_json writes them."
            ) from error
        return cls(*features, tiles, base_extent)


def _short(items: Sequence[Any] | np.ndarray, most: int = 6) -> str:
    """A list as text, cut after `most` items."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown}, ... ({len(items)} in all)"
