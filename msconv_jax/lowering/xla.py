"""XLA's convolution, kept on its fast paths: the only file of the library that calls it.

XLA has four weak points:

* A kernel with more taps along an axis than the image has pixels is twenty to a hundred times slower on CPU
  (benchmarks/hard_places.py). Taps that only meet padding are dropped, and longer kernels are split into pieces.
* Inside a loop or a called function, any order of dimensions but channels last is as slow on CPU: XLA reorders
  dimensions at a program's top level only. The gradient that JAX derives for the kernel, a convolution over the batch,
  has such an order. The derivatives here are the same sums, written so that all their transposes have channels last.
* A negative pad, as in the gradient of a convolution that is padded beyond its kernel, gives wrong numbers
  (jaxlib 0.10.2).
* Two taps with stride 2, padded by one, end the process: XLA's operand swapper mistakes that axis of the gradient for
  one of groups, does not swap it with the others, and a check of the shapes aborts (jaxlib 0.10.2, every backend).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike
from jaxtyping import Array, Shaped

from msconv_jax.arguments import Pads
from msconv_jax.modes.dtypes import wide_dtype

Inputs = Shaped[Array, "batch *spatial inputs"]
Outputs = Shaped[Array, "batch *output outputs"]
Kernel = Shaped[Array, "*kernel_size fan_in outputs"]


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The arguments of ``jax.lax.conv_general_dilated`` but the arrays."""

    strides: tuple[int, ...]
    pads: Pads
    dilation: tuple[int, ...]
    groups: int
    precision: lax.PrecisionLike
    dtype: jnp.dtype
    numbers: lax.ConvDimensionNumbers


def xla_convolution(
    x: Inputs,
    kernel: Kernel,
    strides: tuple[int, ...],
    pads: Pads,
    kernel_dilation: tuple[int, ...],
    groups: int,
    *,
    backend: str,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
) -> Outputs:
    """The convolution of ``(batch, *spatial, inputs)`` with ``(*kernel_size, inputs of a group, outputs)``.

    Args:
        x: the images.
        kernel: the kernel, of the same dtype.
        strides: pixels between outputs, per spatial axis.
        pads: zeros before and after each spatial axis; there must be an output along each.
        kernel_dilation: pixels between taps, per spatial axis.
        groups: groups of channels; the gradients of more than one are those that JAX derives.
        backend: a name of ``COST_MODELS``; only "cpu" needs kernels in pieces.
        precision: of the products, as in ``jax.lax.conv_general_dilated``.
        preferred_element_type: dtype of the result, as in ``jax.lax.conv_general_dilated``.
    """
    kernel_size, spatial = kernel.shape[:-2], x.shape[1:-1]
    axes = zip(kernel_size, spatial, strides, pads, kernel_dilation, strict=True)
    longest = spatial if backend == "cpu" else kernel_size
    pieces = list(
        itertools.product(*(_split(*live_taps(*axis), most) for axis, most in zip(axes, longest, strict=True)))
    )
    dtype = jnp.dtype(preferred_element_type or x.dtype)
    if len(pieces) > 1:  # added in float32: half precision is rounded once, as in a single convolution
        x, kernel = (array.astype(wide_dtype(array.dtype)) for array in (x, kernel))
    piece_dtype = dtype if len(pieces) == 1 else x.dtype
    results = []
    for piece in pieces:
        extents = [(last - first - 1) * gap for (first, last), gap in zip(piece, kernel_dilation, strict=True)]
        wanted = tuple(
            (low - first * gap, high - (taps - last) * gap)
            for (first, last), (low, high), gap, taps in zip(piece, pads, kernel_dilation, kernel_size, strict=True)
        )
        allowed = tuple(
            (_allowed_pad(low, 0 if (extent, stride, gap) == (1, 2, 1) else extent), _allowed_pad(high, extent))
            for (low, high), extent, stride, gap in zip(wanted, extents, strides, kernel_dilation, strict=True)
        )
        before = [(w[0] - a[0], w[1] - a[1], 0) for w, a in zip(wanted, allowed, strict=True)]
        padded = x
        if any(low or high for low, high, _ in before):
            padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *before, (0, 0, 0)])
        settings = _Settings(
            strides, allowed, kernel_dilation, groups, precision, piece_dtype, _channels_last(len(strides))
        )
        taps_of_piece = kernel[tuple(slice(*taps) for taps in piece)]
        results.append((_dense if groups == 1 else _convolve)(padded, taps_of_piece, settings))
    return functools.reduce(operator.add, results).astype(dtype)


def _allowed_pad(pad: int, extent: int) -> int:
    """The part of a pad that XLA on CPU convolves correctly; the difference is padded, or cropped, before.

    XLA convolves the wrong pixels where the pad is below 0, or is so in the gradient, where it becomes `extent - pad`.
    """
    return min(max(pad, 0), extent)


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


def _split(first: int, last: int, longest: int) -> list[tuple[int, int]]:
    """A range of taps in pieces of almost equal length, at most `longest`."""
    count = math.ceil((last - first) / max(longest, 1))
    ends = [first + (last - first) * n // count for n in range(count + 1)]
    return list(itertools.pairwise(ends))


def _channels_last(ndim: int) -> lax.ConvDimensionNumbers:
    """Images (batch, *spatial, channels), kernels (*spatial, in, out)."""
    spatial = tuple(range(1, ndim + 1))
    images = (0, ndim + 1, *spatial)
    return lax.ConvDimensionNumbers(lhs_spec=images, rhs_spec=(ndim + 1, ndim, *range(ndim)), out_spec=images)


def _convolve(x: jax.Array, kernel: jax.Array, settings: _Settings) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        settings.strides,
        settings.pads,
        rhs_dilation=settings.dilation,
        dimension_numbers=settings.numbers,
        feature_group_count=settings.groups,
        precision=settings.precision,
        preferred_element_type=settings.dtype,
    )


_dense = jax.custom_jvp(_convolve, nondiff_argnums=(2,))


@functools.partial(_dense.defjvp, symbolic_zeros=True)
def _dense_jvp(settings: _Settings, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    y, terms = _dense(x, kernel, settings), []
    if not isinstance(x_tangent, SymbolicZero):
        terms.append(_linear_in_images(x_tangent, kernel, settings))
    if not isinstance(kernel_tangent, SymbolicZero):
        terms.append(_linear_in_kernel(x, kernel_tangent, settings))
    return y, functools.reduce(operator.add, terms)


def _linear_in_images(x: jax.Array, kernel: jax.Array, settings: _Settings) -> jax.Array:
    """The convolution as a linear function of `x`: its transpose swaps the kernel's in and out, so they are swapped."""
    ndim = x.ndim - 2
    numbers = settings.numbers._replace(rhs_spec=(ndim, ndim + 1, *range(ndim)))
    return _convolve(x, kernel.swapaxes(-1, -2), dataclasses.replace(settings, numbers=numbers))


def _linear_in_kernel(x: jax.Array, kernel: jax.Array, settings: _Settings) -> jax.Array:
    """The convolution as a linear function of `kernel`.

    Its transpose convolves `x`, with channels as images and images as channels, with the result's cotangent as
    kernel; the dimensions here give that convolution channels last.
    """
    ndim = x.ndim - 2
    spatial = tuple(range(1, ndim + 1))
    numbers = lax.ConvDimensionNumbers(
        lhs_spec=(ndim + 1, 0, *spatial), rhs_spec=(ndim + 1, 0, *spatial), out_spec=(ndim, ndim + 1, *range(ndim))
    )
    y = _convolve(x.swapaxes(0, -1), jnp.moveaxis(kernel, -2, 0), dataclasses.replace(settings, numbers=numbers))
    return jnp.moveaxis(y, -2, 0)
