# pyright: strict
"""Plans as data: what each step of a computation reads and writes, and the size of its kernel."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Literal

from msconv_jax.arguments import dilated_extent
from msconv_jax.lattice import KernelLattice

Channels = tuple[int, ...]
Way = Literal["convolve", "shift", "scatter"]
LayerKey = tuple[int, tuple[int, ...]]  # index of a bank, dilation


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of a plan: a convolution, a sum of shifts or a scatter.

    Attributes:
        inputs: input channels, group after group.
        outputs: output channels, group after group; of a scatter, layer after layer, so that an output may repeat.
        groups: number of equal groups.
        layers: the cells of these inputs and outputs that the step computes, by bank and dilation.
        way: "convolve"; "shift": multiply the shifted inputs by each tap's weights, and add; or "scatter": multiply by
            all weights, then shift the products and add.
        sizes: of a scatter, the number of outputs of each layer.
        columns: of a convolution, the number of neighbouring output columns, along the last spatial axis, that it
            computes as channels of one output.
    """

    inputs: Channels
    outputs: Channels
    groups: int
    layers: tuple[LayerKey, ...]
    way: Way = "convolve"
    sizes: tuple[int, ...] = ()
    columns: int = 1


Plan = tuple[Step, ...]


@functools.lru_cache(maxsize=8192)
def layer_steps(step: Step) -> tuple[Step, ...]:
    """A scatter's layers as separate steps."""
    ends = list(itertools.accumulate(step.sizes))
    return tuple(
        Step(step.inputs, step.outputs[end - size : end], 1, (layer,))
        for layer, size, end in zip(step.layers, step.sizes, ends, strict=True)
    )


def step_kernel_size(lattice: KernelLattice, step: Step) -> tuple[int, ...]:
    """The size of a step's kernel: several layers share one dense kernel."""
    if len(step.layers) == 1:
        return lattice.banks[step.layers[0][0]].kernel_size
    return step_extent(lattice, step)[0]


def step_taps(lattice: KernelLattice, step: Step) -> int:
    """The number of taps of a step's kernel."""
    return math.prod(step_kernel_size(lattice, step))


def blocks_read(columns: int, extent: int, stride: int) -> int:
    """Number of blocks of input columns that a block of `columns` output columns reads."""
    return ((columns - 1) * stride + extent - 1) // (columns * stride) + 1


@functools.lru_cache(maxsize=8192)
def step_extent(lattice: KernelLattice, step: Step) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The smallest dense kernel that holds all layers of a step.

    Returns:
        Its extent, and the pixels from the base kernel's first tap back to its first tap, per spatial axis.
    """
    extents = [dilated_extent(lattice.banks[bank].kernel_size, dilation) for bank, dilation in step.layers]
    offsets = [lattice.offset(extent) for extent in extents]
    axes = range(lattice.ndim)
    before = tuple(max(offset[axis] for offset in offsets) for axis in axes)
    after = [max(extent[axis] - offset[axis] for extent, offset in zip(extents, offsets, strict=True)) for axis in axes]
    return tuple(low + high for low, high in zip(before, after, strict=True)), before
