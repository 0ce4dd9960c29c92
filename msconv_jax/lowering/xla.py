"""XLA's convolution, kept on its fast paths: the only place of the library that calls it.

Two things make a convolution on CPU twenty to a hundred times slower than it need be (benchmarks/hard_places.py), one
makes it wrong, and one ends the process:

* A kernel with more taps along an axis than the image has pixels. Taps that only ever meet padding are left out, and
  what is still too long is cut in pieces.
* Inside a loop or a called function, any order of dimensions other than channels last: XLA reorders them at a program's
  top level only. The gradient that JAX derives for the kernel, a convolution over the batch, has such an order. The
  derivatives here are the same sums, written so that each of their transposes has its channels last.
* A negative pad, as in the gradient of a convolution that is padded beyond its kernel (jaxlib 0.10.2).
* Two taps with stride 2, padded by one: XLA's operand swapper takes that axis of the gradient for one of groups, leaves
  it as it is while it swaps the others, and a check of the shapes then aborts (jaxlib 0.10.2, every backend).
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from msconv_jax.arguments import Pads
from msconv_jax.modes.dtypes import wide_dtype


def xla_convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    pads: Pads,
    kernel_dilation: tuple[int, ...],
    groups: int,
    *,
    backend: str,
    precision: Any,
    preferred_element_type: Any,
) -> jax.Array:
    """The convolution of ``(batch, *spatial, inputs)`` with ``(*kernel_size, inputs of a group, outputs)``.

    Args:
        x: the images.
        kernel: the kernel, of the same dtype.
        strides: pixels between outputs, per spatial axis.
        pads: zeros before and after each spatial axis; there must be an output along each.
        kernel_dilation: pixels between taps, per spatial axis.
        groups: groups of channels; the gradients of more than one are JAX's own.
        backend: a name of `cost_model.COST_MODELS`; only "cpu" needs kernels in pieces.
        precision: of the products, as in ``jax.lax.conv_general_dilated``.
        preferred_element_type: dtype of the result, as in ``jax.lax.conv_general_dilated``.
    """
    ndim, kernel_size, spatial = len(strides), kernel.shape[:-2], x.shape[1:-1]
    geometry = zip(kernel_size, spatial, strides, pads, kernel_dilation, strict=True)
    longest = spatial if backend == "cpu" else kernel_size
    cuts = [_cut(*live_taps(*axis), most) for axis, most in zip(geometry, longest, strict=True)]
    pieces = list(itertools.product(*cuts))
    dtype = jnp.dtype(preferred_element_type or x.dtype)
    if len(pieces) > 1:  # added in float32: half precision is rounded once, as in a single convolution
        x, kernel = (array.astype(wide_dtype(array.dtype)) for array in (x, kernel))
    result_dtype = dtype if len(pieces) == 1 else x.dtype
    results = []
    for piece in pieces:
        own = kernel[tuple(slice(*taps) for taps in piece)]
        reach = [(last - first - 1) * gap for (first, last), gap in zip(piece, kernel_dilation, strict=True)]
        outer = tuple(
            (low - first * gap, high - (taps - last) * gap)
            for (first, last), (low, high), gap, taps in zip(piece, pads, kernel_dilation, kernel_size, strict=True)
        )
        inner = tuple(
            (_within(low, 0 if (most, stride, gap) == (1, 2, 1) else most), _within(high, most))
            for (low, high), most, stride, gap in zip(outer, reach, strides, kernel_dilation, strict=True)
        )
        rest = [(o[0] - i[0], o[1] - i[1], 0) for o, i in zip(outer, inner, strict=True)]
        seen = x
        if any(low or high for low, high, _ in rest):
            seen = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *rest, (0, 0, 0)])
        settings = (strides, inner, kernel_dilation, precision, result_dtype)
        if groups == 1:
            results.append(_dense(seen, own, *settings))
        else:
            results.append(_call(seen, own, _channels_last(ndim), *settings, groups))
    return functools.reduce(operator.add, results).astype(dtype)


def _within(pad: int, reach: int) -> int:
    """The part of a pad that a convolution may have; the rest is padded, or cut off, before it.

    Below 0, or in the gradient, where a pad becomes `reach - pad`, XLA on CPU convolves the wrong pixels.
    """
    return min(max(pad, 0), reach)


def live_taps(taps: int, size: int, stride: int, pads: tuple[int, int], dilation: int) -> tuple[int, int]:
    """The first tap that meets a pixel along one axis, and the one after the last; one tap at least.

    Args:
        taps: number of taps.
        size: number of pixels.
        stride: pixels between outputs.
        pads: zeros before and after the pixels.
        dilation: pixels between taps.
    """
    low, high = pads
    outputs = (size + low + high - (taps - 1) * dilation - 1) // stride + 1
    live = []
    for tap in range(taps):  # output p meets the pixel p * stride + offset
        offset = tap * dilation - low
        first, last = max(-(offset // stride), 0), min((size - 1 - offset) // stride, outputs - 1)
        live += [tap] if first <= last else []
    return (live[0], live[-1] + 1) if live else (0, 1)


def _cut(first: int, last: int, longest: int) -> list[tuple[int, int]]:
    """A range of taps in pieces of almost equal length."""
    count = math.ceil((last - first) / max(longest, 1))
    ends = [first + (last - first) * n // count for n in range(count + 1)]
    return list(itertools.pairwise(ends))


def _channels_last(ndim: int) -> lax.ConvDimensionNumbers:
    """Images (batch, *spatial, channels), kernels (*spatial, in, out)."""
    spatial = tuple(range(1, ndim + 1))
    images = (0, ndim + 1, *spatial)
    return lax.ConvDimensionNumbers(lhs_spec=images, rhs_spec=(ndim + 1, ndim, *range(ndim)), out_spec=images)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5, 6))
def _dense(x, kernel, strides, pads, dilation, precision, dtype) -> jax.Array:
    return _call(x, kernel, _channels_last(len(strides)), strides, pads, dilation, precision, dtype)


@functools.partial(_dense.defjvp, symbolic_zeros=True)
def _dense_jvp(strides, pads, dilation, precision, dtype, primals, tangents):
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    settings = (strides, pads, dilation, precision, dtype)
    y = _dense(x, kernel, *settings)
    terms = []
    if not isinstance(x_tangent, SymbolicZero):
        terms.append(_in_images(x_tangent, kernel, *settings))
    if not isinstance(kernel_tangent, SymbolicZero):
        terms.append(_in_kernels(x, kernel_tangent, *settings))
    return y, functools.reduce(operator.add, terms)


def _in_images(x, kernel, *settings) -> jax.Array:
    """The convolution as a linear function of `x`: its transpose swaps the kernel's in and out, so they are swapped."""
    ndim = x.ndim - 2
    numbers = _channels_last(ndim)
    numbers = numbers._replace(rhs_spec=(ndim, ndim + 1, *range(ndim)))
    return _call(x, kernel.swapaxes(-1, -2), numbers, *settings)


def _in_kernels(x, kernel, *settings) -> jax.Array:
    """The convolution as a linear function of `kernel`.

    Its transpose convolves `x`, with channels for images and images for channels, with the result's cotangent as
    kernel; laid out so that this one has channels last.
    """
    ndim = x.ndim - 2
    spatial = tuple(range(1, ndim + 1))
    numbers = lax.ConvDimensionNumbers(
        lhs_spec=(ndim + 1, 0, *spatial), rhs_spec=(ndim + 1, 0, *spatial), out_spec=(ndim, ndim + 1, *range(ndim))
    )
    y = _call(x.swapaxes(0, -1), jnp.moveaxis(kernel, -2, 0), numbers, *settings)
    return jnp.moveaxis(y, -2, 0)


def _call(x, kernel, numbers, strides, pads, dilation, precision, dtype, groups=1) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        rhs_dilation=dilation,
        dimension_numbers=numbers,
        feature_group_count=groups,
        precision=precision,
        preferred_element_type=dtype,
    )
