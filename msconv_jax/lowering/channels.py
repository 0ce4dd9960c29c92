"""Selects channels of an array by fixed numbers, without a gather if the numbers are regular.

XLA's gather, and above all its gradient, a scatter, are slow on every backend; slices, reshapes and transposes are
not. The channel sets of kernel lattices are nearly always regular: contiguous, strided, blocks at equal distances, or
interleaved.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped

_MAX_SLICES = 8  # more slices than this are gathered instead


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Numbers ``start + i * outer_step + j * inner_step`` for i < outer and j < inner, i outermost."""

    start: int
    outer: int
    outer_step: int
    inner: int
    inner_step: int


def take_channels(x: Shaped[Array, ...], channels: tuple[int, ...], axis: int = -1) -> Shaped[Array, ...]:
    """The given channels of `x`, in the given order; a channel may appear more than once.

    Args:
        x: an array.
        channels: numbers along `axis`, each at least 0 and below the length of the axis.
        axis: the axis of the channels, -1 or -2.

    Returns:
        `x` with ``len(channels)`` entries along `axis`.
    """
    if channels == tuple(range(x.shape[axis])):
        return x
    axis %= x.ndim
    grid = _as_grid(channels)
    if grid is not None:
        picked = _take_grid(x, grid, axis)
        if picked is not None:
            return picked
    runs = _runs(channels)
    if len(runs) <= _MAX_SLICES:
        return jnp.concatenate([lax.slice_in_dim(x, start, stop, axis=axis) for start, stop in runs], axis)
    indices = (slice(None),) * axis + (np.array(channels),)
    return x.at[indices].get(mode="promise_in_bounds", unique_indices=len(set(channels)) == len(channels))


def _take_grid(x: jax.Array, grid: _Grid, axis: int) -> jax.Array | None:
    """The channels of the grid; None if the axis is too short for equal blocks."""
    if grid.inner > 1 and grid.inner_step == 0:  # each number repeats: take the outer ones, then broadcast
        once = _take_grid(x, _Grid(grid.start, 1, 0, grid.outer, grid.outer_step or 1), axis)
        return None if once is None else jnp.repeat(once, grid.inner, axis)
    if grid.outer > 1 and grid.outer_step == 0:  # the sequence repeats
        once = _take_grid(x, _Grid(grid.start, 1, 0, grid.inner, grid.inner_step), axis)
        return None if once is None else jnp.concatenate([once] * grid.outer, axis)
    if grid.outer == 1:
        stop = grid.start + (grid.inner - 1) * grid.inner_step + 1
        return lax.slice_in_dim(x, grid.start, stop, grid.inner_step, axis)
    transposed = grid.inner_step > grid.outer_step
    block, blocks, step, count = (
        (grid.inner_step, grid.inner, grid.outer_step, grid.outer)
        if transposed
        else (grid.outer_step, grid.outer, grid.inner_step, grid.inner)
    )
    # Split the axis into blocks that start `offset` before the grid.
    offset = max(0, grid.start + blocks * block - x.shape[axis])
    if offset > min(grid.start, block - 1 - (count - 1) * step):
        return None
    first = grid.start - offset
    y = lax.slice_in_dim(x, first, first + blocks * block, axis=axis)
    y = y.reshape((*x.shape[:axis], blocks, block, *x.shape[axis + 1 :]))
    y = lax.slice_in_dim(y, offset, offset + (count - 1) * step + 1, step, axis + 1)
    return _merge_axes(jnp.swapaxes(y, axis, axis + 1) if transposed else y, axis)


def _merge_axes(x: jax.Array, axis: int) -> jax.Array:
    """Axes `axis` and `axis + 1` as one."""
    return x.reshape((*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :]))


@functools.lru_cache(maxsize=4096)
def _as_grid(channels: tuple[int, ...]) -> _Grid | None:
    """The grid with ascending steps that has these numbers; None if there is none."""
    numbers = np.array(channels)
    if len(numbers) == 1:
        return _Grid(channels[0], 1, 0, 1, 1)
    steps = np.diff(numbers)
    step = int(steps[0])
    changes = np.flatnonzero(steps != step)
    inner = int(changes[0]) + 1 if changes.size else len(numbers)
    if step < 0 or len(numbers) % inner:
        return None
    outer = len(numbers) // inner
    outer_step = channels[inner] - channels[0] if outer > 1 else 0
    grid = channels[0] + outer_step * np.arange(outer)[:, None] + step * np.arange(inner)
    if outer_step < 0 or (grid.ravel() != numbers).any():
        return None
    return _Grid(channels[0], outer, outer_step, inner, step)


@functools.lru_cache(maxsize=4096)
def _runs(channels: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The numbers as contiguous ranges (start, stop), in order."""
    breaks = [0, *(np.flatnonzero(np.diff(channels) != 1) + 1), len(channels)]
    return tuple((channels[a], channels[b - 1] + 1) for a, b in itertools.pairwise(breaks))
