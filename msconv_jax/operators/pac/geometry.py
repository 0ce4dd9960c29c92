"""The positions of the taps: the samples of the signal and the guide that each output reads."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from msconv_jax.arguments import Padding, Pads, base_pads, check_padding, dilated_extent, per_axis, zero_padding

Shape = tuple[int, ...]
Ints = int | Sequence[int] | None


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The geometry of an operator: tap k of output o reads padded pixel ``o * stride + k * dilation``."""

    size: Shape  # taps per axis
    dilation: Shape  # pixels between taps
    strides: Shape  # pixels between outputs; of the transposed operator: between samples
    signal: Shape  # the signal's size
    low: Shape  # zeros before the signal (transposed: before the dilated signal, which is convolved at stride 1)
    output: Shape  # the output's size
    transposed: bool = False  # whether zeros are inserted

    @property
    def taps(self) -> list[Shape]:
        """The taps' indices, in the order of the kernel's values."""
        return list(itertools.product(*map(range, self.size)))

    @property
    def guide(self) -> Geometry:
        """The geometry of the taps in the guide, which has the output's size for the transposed operator."""
        if not self.transposed:
            return self
        low = tuple((K - 1) * d // 2 for K, d in zip(self.size, self.dilation, strict=True))
        return Geometry(self.size, self.dilation, (1,) * len(low), self.output, low, self.output)


def convolution_geometry(
    signal: Shape, size: Shape, strides: Ints, kernel_dilation: Ints, padding: Padding
) -> Geometry:
    """The geometry of a convolution or pooling; raises ValueError for arguments that do not fit."""
    strides = per_axis("strides", strides, len(size))
    dilation = per_axis("kernel_dilation", kernel_dilation, len(size))
    extent = dilated_extent(size, dilation)
    pads = base_pads(zero_padding(padding, len(size), "pixel-adaptive convolution"), signal, extent, strides)
    output = tuple(
        max((n + sum(pad) - reach) // s + 1, 0) for n, pad, reach, s in zip(signal, pads, extent, strides, strict=True)
    )
    return Geometry(size, dilation, strides, signal, tuple(before for before, _ in pads), output)


def transpose_geometry(
    signal: Shape | None,
    size: Shape,
    strides: Ints,
    kernel_dilation: Ints,
    padding: Padding,
    extra: int | Sequence[int],
    output: Shape = (),
) -> Geometry:
    """The geometry of the transposed operator for a signal size or, if this is None, for an output size.

    Raises:
        ValueError: for arguments that do not fit, or if no signal has an output of this size.
    """
    strides = per_axis("strides", strides, len(size))
    dilation = per_axis("kernel_dilation", kernel_dilation, len(size))
    extent = dilated_extent(size, dilation)
    cuts = _crops(padding, extra, extent, strides)
    if signal is None:
        spread = [n + sum(cut) - reach for n, cut, reach in zip(output, cuts, extent, strict=True)]
        if any(n < 0 or n % s for n, s in zip(spread, strides, strict=True)):
            raise ValueError(
                f"guide of size {output}: no signal has an output of this size with kernel_size={size}, "
                f"strides={strides}, kernel_dilation={dilation}, padding={padding!r} and "
                f"output_padding={extra!r}."
            )
        signal = tuple(n // s + 1 for n, s in zip(spread, strides, strict=True))
    output = tuple(
        max((n - 1) * s - sum(cut) + reach, 0) for n, s, cut, reach in zip(signal, strides, cuts, extent, strict=True)
    )
    low = tuple(reach - 1 - before for reach, (before, _) in zip(extent, cuts, strict=True))
    return Geometry(size, dilation, strides, signal, low, output, transposed=True)


def check_output_padding(output_padding: int | Sequence[int], ndim: int) -> Shape:
    """`output_padding` per axis; raises ValueError unless it is an int of at least 0, or one for each axis."""
    try:
        values = output_padding if isinstance(output_padding, Sequence) else (output_padding,) * ndim
        extra = tuple(operator.index(n) for n in values)
    except TypeError:
        extra = ()
    if len(extra) != ndim or min(extra) < 0:
        raise ValueError(
            f"output_padding={output_padding!r}: expected an int at least 0, or one for each of the {ndim} axes."
        )
    return extra


def _crops(padding: Padding, output_padding: int | Sequence[int], extent: Shape, strides: Shape) -> Pads:
    """The transposed operator's crops before and after each axis; output_padding reduces the crop after."""
    extra = check_output_padding(output_padding, len(extent))
    named = check_padding(zero_padding(padding, len(extent), "pixel-adaptive convolution"), len(extent))
    if named == "VALID":
        named = ((0, 0),) * len(extent)
    if not isinstance(named, str):
        return tuple((before, after - more) for (before, after), more in zip(named, extra, strict=True))
    if any(extra):
        raise ValueError(
            f"output_padding={output_padding!r} with padding={padding!r}: the output's size is input * stride; "
            "leave output_padding at 0, or give the padding as ints."
        )
    pads = []
    for reach, stride in zip(extent, strides, strict=True):
        large = max(0, -((stride - reach) // 2))  # PyTorch's padding; the remainder is its output_padding
        pads.append((large, reach - stride - large) if named == "SAME" else (reach - stride - large, large))
    return tuple(pads)


class Group(NamedTuple):
    """Taps that read the same residue class of signal pixels and write the same phase of output pixels."""

    phase: int
    residue: int
    taps: Shape
    offsets: tuple[Shape, ...]


class Layout(NamedTuple):
    """The padding of the signal, its split into residue classes, and the groups of taps."""

    low: Shape  # zeros before the signal, negative to crop
    sizes: Shape  # pixels per class
    step: Shape  # number of classes, per axis
    phases: Shape  # number of phases, per axis
    window: Shape  # outputs per phase
    groups: tuple[Group, ...]


@functools.lru_cache(maxsize=256)
def layout_of(geometry: Geometry) -> Layout:
    """The layout of the taps of a geometry (cached)."""
    strides, ones = geometry.strides, (1,) * len(geometry.size)
    places: list[list[tuple[int, int, int]]] = []  # per axis and tap: phase, residue, offset
    low, count, window = [], [], []
    for K, d, s, zeros, output in zip(
        geometry.size, geometry.dilation, strides, geometry.low, geometry.output, strict=True
    ):
        if geometry.transposed:
            phases = [(zeros - k * d) % s for k in range(K)]
            offsets = [(r + k * d - zeros) // s for k, r in enumerate(phases)]
            low.append(-min(offsets))
            window.append(-(-output // s))
            places.append([(r, 0, offset - min(offsets)) for r, offset in zip(phases, offsets, strict=True)])
        else:
            low.append(zeros)
            window.append(output)
            places.append([(0, k * d % s, k * d // s) for k in range(K)])
        count.append(window[-1] + max(offset for _, _, offset in places[-1]))
    step, phases = (ones, strides) if geometry.transposed else (strides, ones)
    found: dict[tuple[int, int], list[tuple[int, Shape]]] = {}
    for number, tap in enumerate(geometry.taps):
        phase, residue, offset = zip(*(axis[k] for axis, k in zip(places, tap, strict=True)), strict=True)
        key = int(np.ravel_multi_index(phase, phases)), int(np.ravel_multi_index(residue, step))
        found.setdefault(key, []).append((number, offset))
    groups = tuple(Group(*key, *zip(*taps, strict=True)) for key, taps in sorted(found.items()))
    return Layout(tuple(low), tuple(count), step, phases, tuple(window), groups)
