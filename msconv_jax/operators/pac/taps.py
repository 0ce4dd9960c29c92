"""The two computations over taps, :func:`weighted_sum` and :func:`kernel_of_taps`, without the unfolded signal.

Arrays are (n, *spatial, channels), with one batch axis.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from msconv_jax.arguments import dilated_extent
from msconv_jax.modes.dtypes import wide_dtype
from msconv_jax.modes.meshes import sharded_like
from msconv_jax.operators.pac.geometry import Geometry, Group, Shape, layout_of
from msconv_jax.operators.pac.kernel import AdaptingKernel

MaybeArray = jax.Array | None


class Operands(NamedTuple):
    """The arrays of a sum over the taps."""

    x: jax.Array  # (n, *signal, C)
    weights: MaybeArray = None  # (taps, C, O), or (taps,) shared by all channels; None for 1
    guide: MaybeArray = None  # (n, *guide's size, G)
    adapting: MaybeArray = None  # without a guide: K of kernel_of_taps, 1 or C channels, normalised or not
    mask: MaybeArray = None  # (n, *signal, 1)


# Jitted so that an eager call compiles once; inlined because XLA optimises less across calls.
@functools.partial(jax.jit, inline=True, static_argnames=("geometry", "precision"))
def weighted_sum(
    arrays: Operands, form: AdaptingKernel, *, geometry: Geometry, precision: Any
) -> tuple[jax.Array, MaybeArray]:
    """The output without bias, (n, *output, O), in at least float32, and its divisor or None.

    The divisor is (n, *output, 1 or C); `precision` applies to the products with the weights.
    """
    computed = functools.partial(_weighted_sum, geometry=geometry, precision=precision)
    return sharded_like(arrays.x, computed, arrays, form)


def _weighted_sum(
    arrays: Operands, form: AdaptingKernel, geometry: Geometry, precision: Any
) -> tuple[jax.Array, MaybeArray]:
    guide, mask = arrays.guide, arrays.mask
    centre = None
    if guide is not None:
        centre = _centre(guide, form.smooth, geometry)
        if geometry.transposed:  # only the neighbours at samples of the signal count
            first = [zeros - own for zeros, own in zip(geometry.low, geometry.guide.low, strict=True)]
            guide = _strided_slice(guide, first, geometry.signal, geometry.strides)
    if mask is None and form.normalize:
        mask = jnp.ones((1, *geometry.signal, 1), jnp.float32)
    y, total = _sum_over_taps(arrays._replace(guide=guide, mask=mask), centre, form, geometry, precision)
    if total is None:
        return y, None
    norm = total if form.normalize else _share(total, geometry)
    return _divide(y, norm), norm


@functools.partial(jax.jit, inline=True, static_argnames=("geometry",))
def kernel_of_taps(
    guide: jax.Array, mask: MaybeArray, form: AdaptingKernel, *, geometry: Geometry
) -> tuple[jax.Array, MaybeArray]:
    """K as (n, *output, taps, 1 or G), and its divisor or None; arrays as in :class:`Operands`."""
    return sharded_like(guide, functools.partial(_kernel_of_taps, geometry=geometry), guide, mask, form)


def _kernel_of_taps(
    guide: jax.Array, mask: MaybeArray, form: AdaptingKernel, geometry: Geometry
) -> tuple[jax.Array, MaybeArray]:
    centre, seen = _centre(guide, form.smooth, geometry), geometry.guide
    if mask is None and form.normalize:
        mask = jnp.ones((1, *geometry.signal, 1), jnp.float32)
    spread = [_span(n, s) for n, s in zip(seen.output, seen.strides, strict=True)]
    lengths = [n + reach - 1 for n, reach in zip(spread, dilated_extent(seen.size, seen.dilation), strict=True)]
    padded = [_padded(guide, seen.low, lengths)]
    if mask is not None:
        padded.append(_padded(mask, geometry.low, lengths, geometry.strides if geometry.transposed else None))

    def of_tap(offset: jax.Array) -> tuple[jax.Array, MaybeArray]:
        neighbour, *valid = (_stepped(_window(array, offset, spread), seen.strides) for array in padded)
        K = form.between(neighbour, centre)
        return (K * valid[0].astype(K.dtype), valid[0]) if valid else (K, None)

    offsets = jnp.asarray([[k * d for k, d in zip(tap, seen.dilation, strict=True)] for tap in seen.taps], jnp.int32)
    K, valid = lax.map(jax.checkpoint(of_tap, prevent_cse=False), offsets)
    K = jnp.moveaxis(K, 0, -2)
    if valid is None:
        return K, None
    norm = K.sum(-2) if form.normalize else _share(valid.sum(0), geometry)
    return _divide(K, norm[..., None, :]), norm


def _sum_over_taps(
    arrays: Operands, centre: MaybeArray, form: AdaptingKernel, geometry: Geometry, precision: Any
) -> tuple[jax.Array, MaybeArray]:
    """Sums weight * K * mask * shifted signal over the taps, and K * mask (or only the mask unless normalised).

    The guide has only the neighbours' features here, (n, *signal, G); the features of the output pixels are the
    `centre`, (n, *output, G). Without a guide and without K, K is 1.
    """
    x, weights, guide, adapting, mask = arrays
    layout = layout_of(geometry)
    wide = wide_dtype(x.dtype)
    sources = [a if a is None else _split(a, layout.low, layout.sizes, layout.step) for a in (x, guide, mask)]
    origin = (0,) * len(layout.window)
    centres, kernels = (a if a is None else _split(a, origin, layout.window, layout.phases) for a in (centre, adapting))

    def contribution(group: Group, tap: dict[str, Any]) -> tuple[jax.Array, MaybeArray]:
        windows = [None if a is None else _window(a[group.residue], tap["offset"], layout.window) for a in sources]
        signal, neighbour, valid = windows
        assert signal is not None
        K, weight = tap.get("adapting"), tap.get("weight")
        if neighbour is not None:
            K = form.between(neighbour, centres[group.phase])  # type: ignore[index]
        if valid is not None:
            K = valid if K is None else K * valid.astype(K.dtype)
        term = signal.astype(wide)
        term = term if K is None else term * K.astype(wide)
        if weight is not None and weight.ndim == 2:
            term = jnp.dot(term.astype(x.dtype), weight, precision=precision, preferred_element_type=wide)
        elif weight is not None:
            term = term * weight.astype(wide)
        return term, K if form.normalize else valid

    totals: list[Any] = []
    for group in layout.groups:
        chosen = np.asarray(group.taps)
        taps: dict[str, Any] = {"offset": jnp.asarray(group.offsets, jnp.int32)}
        if weights is not None:
            taps["weight"] = weights[chosen]
        if kernels is not None:
            taps["adapting"] = jnp.moveaxis(kernels[group.phase], -2, 0)[chosen]
        # The gradient recomputes this function one tap at a time. The sum is outside: the gradient does not need
        # its value, and would store it for every tap.
        term = jax.checkpoint(functools.partial(contribution, group), prevent_cse=False)

        def step(total: Any, tap: Any, term: Any = term) -> tuple[Any, None]:
            return jax.tree.map(operator.add, total, term(tap)), None

        if not totals:
            shapes = jax.eval_shape(term, jax.tree.map(lambda a: a[0], taps))
            # Under shard_map a scan's carry must vary over the same axes as the terms: zeros_like keeps them.
            totals = [jax.tree.map(jnp.zeros_like, shapes)] * math.prod(layout.phases)
        totals[group.phase], _ = lax.scan(step, totals[group.phase], taps)
    return jax.tree.map(lambda *parts: _join(parts, layout.phases, geometry.output), *totals)


def _centre(guide: jax.Array, smooth: MaybeArray, geometry: Geometry) -> jax.Array:
    """The guide (n, *output, G) at the kernel's middle tap, smoothed if there is a smoothing kernel."""
    seen = geometry.guide
    middle = [K // 2 * d - zeros for K, d, zeros in zip(seen.size, seen.dilation, seen.low, strict=True)]
    if smooth is None:
        return _strided_slice(guide, middle, seen.output, seen.strides)
    before = tuple(n // 2 - m for n, m in zip(smooth.shape, middle, strict=True))
    around = Geometry(smooth.shape, (1,) * smooth.ndim, seen.strides, seen.signal, before, seen.output)
    return _sum_over_taps(Operands(guide, smooth.reshape(-1)), None, AdaptingKernel(), around, None)[0]


# --- masks and normalisation ---


def flattened(array: jax.Array, batch: Shape) -> jax.Array:
    """The array with all batch axes merged into one."""
    return array.reshape((math.prod(batch), *array.shape[len(batch) :]))


def flattened_mask(mask: ArrayLike | None, batch: Shape, signal: Shape) -> MaybeArray:
    """The mask as (n, *signal, 1) in float32; ValueError if it has another shape than the signal."""
    if mask is None:
        return None
    mask, shape = jnp.asarray(mask), (*batch, *signal)
    if mask.shape not in (shape, (*shape, 1)):
        raise ValueError(f"mask has shape {mask.shape}: expected {shape} or {(*shape, 1)}, like the signal.")
    return mask.astype(jnp.float32).reshape((math.prod(batch), *signal, 1))


def with_output_mask(
    y: jax.Array, norm: MaybeArray, batch: Shape, mask: ArrayLike | None
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`y` with its batch axes and, for a `mask`, the output's mask: True where the divisor is not 0.

    The output's mask has a channel axis if the `mask` has one.
    """
    y = y.reshape((*batch, *y.shape[1:]))
    if mask is None:
        return y
    assert norm is not None  # a mask implies a divisor
    valid = (norm != 0).reshape((*batch, *norm.shape[1:]))
    return y, valid if valid.ndim == jnp.ndim(mask) else valid.any(-1)


def _share(total: jax.Array, g: Geometry) -> jax.Array:
    """The masks' sums (n, *output, 1) divided by the number of taps in the image, 0 where this is 0."""
    for axis, (K, d, s, low, n, output) in enumerate(
        zip(g.size, g.dilation, g.strides, g.low, g.signal, g.output, strict=True)
    ):
        stride, apart = (1, s) if g.transposed else (s, 1)
        place = np.arange(output)[:, None] * stride + np.arange(K) * d - low
        inside = (place >= 0) & (place <= (n - 1) * apart) & (place % apart == 0)
        count = np.maximum(inside.sum(1), 1).astype(np.float32)
        total = total / count.reshape((1,) * (axis + 1) + (-1,) + (1,) * (len(g.size) - axis))
    return total


def _divide(y: jax.Array, norm: jax.Array) -> jax.Array:
    return y / jnp.where(norm == 0, 1, norm).astype(y.dtype)


# --- cropping, splitting and joining, of arrays (n, *spatial, ...) ---


def _padded(
    array: jax.Array, low: Sequence[int], lengths: Sequence[int], strides: Sequence[int] | None = None
) -> jax.Array:
    """Dilates by `strides`, pads `low` in front, then pads or crops to `lengths`."""
    config = [(0, 0, 0)] * array.ndim
    for axis, (before, length, s) in enumerate(zip(low, lengths, strides or [1] * len(low), strict=True), start=1):
        config[axis] = (before, length - before - _span(array.shape[axis], s), s - 1)
    return lax.pad(array, jnp.zeros((), array.dtype), config)


def _span(count: int, stride: int) -> int:
    """The extent of `count` pixels at this stride."""
    return max((count - 1) * stride + 1, 0)


def _stepped(array: jax.Array, strides: Sequence[int], first: Sequence[int] | None = None) -> jax.Array:
    """The pixels from `first` at the given strides."""
    return array[(slice(None), *(slice(r, None, s) for r, s in zip(first or [0] * len(strides), strides, strict=True)))]


def _strided_slice(array: jax.Array, first: Sequence[int], count: Sequence[int], strides: Sequence[int]) -> jax.Array:
    """A slice of `count` pixels from `first` at the given strides, with zeros outside the array."""
    lengths = [_span(n, s) for n, s in zip(count, strides, strict=True)]
    return _stepped(_padded(array, [-f for f in first], lengths), strides)


def _window(array: jax.Array, offset: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """A slice whose offset is known only at run time."""
    zero = jnp.zeros((), offset.dtype)
    return lax.dynamic_slice(array, [zero, *offset, zero], (array.shape[0], *sizes, array.shape[-1]))


def _split(array: jax.Array, low: Sequence[int], count: Sequence[int], step: Sequence[int]) -> list[jax.Array]:
    """Pads the array and splits its pixels by residue modulo `step` into prod(step) arrays of `count` pixels."""
    array = _padded(array, low, [n * s for n, s in zip(count, step, strict=True)])
    return [_stepped(array, step, residue) for residue in itertools.product(*map(range, step))]


def _join(parts: Sequence[jax.Array], step: Sequence[int], output: Sequence[int]) -> jax.Array:
    """The inverse of :func:`_split`, cropped to the output's size."""
    if len(parts) == 1:
        return parts[0]
    n, *window, channels = parts[0].shape
    ndim = len(window)
    array = jnp.stack(parts).reshape((*step, n, *window, channels))
    axes = [ndim, *itertools.chain(*((ndim + 1 + axis, axis) for axis in range(ndim))), 2 * ndim + 1]
    array = array.transpose(axes).reshape((n, *(m * s for m, s in zip(window, step, strict=True)), channels))
    return array[(slice(None), *map(slice, output))]
