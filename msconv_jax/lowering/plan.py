"""Plans, as data: what each step of a computation reads, holds and gives, and how large its kernel is."""

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
    """One convolution of a plan, or what takes its place.

    Attributes:
        inputs: input channels, group after group.
        outputs: output channels, group after group; to scatter, layer after layer, and then perhaps more than once.
        groups: number of equal groups.
        layers: which cells of these inputs and outputs the step computes, by bank and dilation.
        way: "convolve", or "shift" the inputs before the product with each tap's weights and add, or "scatter": shift
            the products of all taps and add.
        sizes: to scatter, the number of outputs of each layer.
        columns: to convolve, the number of neighbouring output columns, along the last spatial axis, that are computed
            as channels of one output.
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
    """The layers of a step that scatters as steps of their own."""
    ends = list(itertools.accumulate(step.sizes))
    return tuple(
        Step(step.inputs, step.outputs[end - size : end], 1, (layer,))
        for layer, size, end in zip(step.layers, step.sizes, ends, strict=True)
    )


def step_kernel_size(lattice: KernelLattice, step: Step) -> tuple[int, ...]:
    """The kernel that a step multiplies with: several layers share one dense kernel."""
    if len(step.layers) == 1:
        return lattice.banks[step.layers[0][0]].kernel_size
    return step_extent(lattice, step)[0]


def step_taps(lattice: KernelLattice, step: Step) -> int:
    """The taps of that kernel."""
    return math.prod(step_kernel_size(lattice, step))


def blocks_read(columns: int, extent: int, stride: int) -> int:
    """Number of blocks of input columns that a block of `columns` output columns reads."""
    return ((columns - 1) * stride + extent - 1) // (columns * stride) + 1


@functools.lru_cache(maxsize=8192)
def step_extent(lattice: KernelLattice, step: Step) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dense kernel that holds all layers of a step, centred as the lattice has them.

    Returns:
        Its extent, and by how many pixels it begins before the base kernel, per spatial axis.
    """
    extents = [dilated_extent(lattice.banks[bank].kernel_size, dilation) for bank, dilation in step.layers]
    offsets = [lattice.offset(extent) for extent in extents]
    before = tuple(map(max, zip(*offsets, strict=True)))
    rests = [[e - o for e, o in zip(*pair, strict=True)] for pair in zip(extents, offsets, strict=True)]
    after = map(max, zip(*rests, strict=True))
    return tuple(b + a for b, a in zip(before, after, strict=True)), before
