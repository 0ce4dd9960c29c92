# pyright: strict, reportUnnecessaryIsInstance=false
"""Kernel lattices: which spatial kernel joins which input channel to which output channel.

The kernel lattice (the term of the PSConv paper) is the table of output channels x input channels of a
convolution. Each cell holds one small spatial kernel, or none. A plain convolution fills the table with one
kernel size and one dilation; the multi-scale operators vary them. :class:`KernelLattice` describes such a table, and
:meth:`KernelLattice.expand` defines its meaning. :mod:`msconv_jax.lowering` decides how to compute it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import operator
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Array, ArrayLike, Int, Shaped

from msconv_jax import packing
from msconv_jax.arguments import dilated_extent, per_axis, short_list
from msconv_jax.packing import Bank


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

    # Python 3.11 cannot hash a slice, so the generated hash would fail.
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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class KernelLattice:
    """A convolution's table of output channels x input channels, as a tuple of tiles.

    A lattice is immutable, hashable static data: it may be an attribute of a module, a static argument of
    ``jax.jit`` or (it is a pytree without leaves) an ordinary one. Two lattices are equal when they list
    equal tiles in the same order.

    Kernels of a lattice have one of two forms, which :meth:`pack` distinguishes by their shapes:

    * one array per tile, ``(*kernel_size, inputs, outputs)``, in the order of ``tiles``;
    * packed: one array per :attr:`banks` entry, ``(*kernel_size, fan_in, outputs)``, where the cells of each
      output are in ascending order of their inputs. If all cells have one kernel size and all outputs have
      equally many cells, there is a single bank, and it has the shape of the plain (grouped) convolution's
      kernel.

    Attributes:
        in_features: number of input channels.
        out_features: number of output channels.
        tiles: the tiles, at least one; each output channel needs a tile, and tiles do not overlap. Inputs in no
            tile are not read.
        base_extent: extent in pixels of the kernel to which a convolution's ``padding`` refers; by default
            (empty) the smallest kernel size, undilated. Each tile is padded further by half of its extra extent;
            where that is odd, the smaller half comes before.

    Raises:
        ValueError: if a tile exceeds the table or overlaps another tile, if tiles differ in their number of spatial
            axes, or if an output has no kernel.

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
        """The distinct rows of the table, and for each output the number of its row; checks that the tiles fit.

        All outputs in the same tiles share one row: a table of all cells would be large (16 million for 4096
        channels).
        """
        tiles_of_output: list[list[int]] = [[] for _ in range(self.out_features)]
        for number, tile in enumerate(self.tiles):
            for name, channels, features in (
                ("outputs", tile.outputs, self.out_features),
                ("inputs", tile.inputs, self.in_features),
            ):
                if channels.stop > features:
                    raise ValueError(
                        f"{tile}: {name} {_slice_text(channels)} exceed the table, which has {features} "
                        f"{name[:-1]} channels."
                    )
            for tiles in tiles_of_output[tile.outputs]:
                tiles.append(number)
        bare = [output for output, tiles in enumerate(tiles_of_output) if not tiles]
        if bare:
            raise ValueError(f"output channels {short_list(bare)} have no kernel: each output needs at least one tile.")
        row_of_tiles: dict[tuple[int, ...], int] = {}
        row_of_output = [row_of_tiles.setdefault(tuple(tiles), len(row_of_tiles)) for tiles in tiles_of_output]
        rows = np.full((len(row_of_tiles), self.in_features), -1, np.int32)
        for tiles, row in zip(row_of_tiles, rows, strict=True):
            for number in tiles:
                cells = row[self.tiles[number].inputs]
                if cells.max() >= 0:
                    raise ValueError(
                        f"{self.tiles[number]} and {self.tiles[cells.max()]} cover the same cells: each cell holds one "
                        "kernel."
                    )
                cells[...] = number
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
        return packing.make_banks(self)

    def bank_places(self, bank: Bank) -> Int[np.ndarray, "rows inputs"]:
        """The place of each of the bank's cells along fan_in, as a table like `rows`; -1 for all other cells."""
        return packing.bank_places(self, bank)

    def pack(self, kernels: ArrayLike | Sequence[ArrayLike]) -> tuple[Array, ...]:
        """Kernels in either form as one array per bank.

        Args:
            kernels: one array per tile, or one per bank; a single array means a tuple of one.

        Returns:
            One array of shape ``bank.shape`` for each of ``banks``.

        Raises:
            ValueError: if the shapes are neither those of the tiles nor those of the banks.
        """
        return packing.pack(self, self.banks, kernels)

    def expand(self, kernels: ArrayLike | Sequence[ArrayLike]) -> Shaped[Array, "*extent in_features out_features"]:
        """The one dense kernel that means the same as the lattice.

        Args:
            kernels: kernels of the lattice, in either form.

        Returns:
            Array ``(*extent, in_features, out_features)`` with zeros between the taps and in empty cells. The
            lattice's convolution equals one with this kernel, padded by ``padding_offset`` more before and by
            ``extent - base_extent - padding_offset`` more after than the base kernel.
        """
        return packing.expand(self, self.banks, kernels)

    @property
    def padding_offset(self) -> tuple[int, ...]:
        """Pixels from the base kernel's first tap back to the dense kernel's first tap, per spatial axis."""
        offsets = [self.offset(tile.extent) for tile in self.tiles]
        return tuple(map(max, zip(*offsets, strict=True)))

    def tap_offset(self, kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
        """Index of a kernel's first tap in the dense kernel, per spatial axis."""
        offset = self.offset(dilated_extent(kernel_size, dilation))
        return tuple(dense - tile for dense, tile in zip(self.padding_offset, offset, strict=True))

    # --- identity, text, storage ---

    def _key(self) -> tuple[object, ...]:
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
            base_extent = tuple(data["base_extent"])
        except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(
                f"not the JSON of a lattice ({type(error).__name__}: {error}); expected the keys "
                "in_features, out_features, base_extent and tiles, as KernelLattice.to_json writes them."
            ) from error
        return cls(*features, tiles, base_extent)


class _CausalLattice(KernelLattice):
    """A lattice whose tiles share their last tap instead of their centre."""

    def offset(self, extent: Sequence[int]) -> tuple[int, ...]:
        return tuple(size - base for size, base in zip(extent, self.base_extent, strict=True))

    def _key(self) -> tuple[object, ...]:
        return ("causal", *super()._key())


@functools.lru_cache(maxsize=128)
def causal_lattice(lattice: KernelLattice) -> KernelLattice:
    """The lattice with the last taps of all tiles at one place: no output depends on later positions."""
    return _CausalLattice(lattice.in_features, lattice.out_features, lattice.tiles, lattice.base_extent)
