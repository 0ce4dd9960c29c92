"""Pixel-adaptive convolution, its transpose and pooling, and their kernel, as pure functions.

:mod:`msconv_jax.operators.pac.modules` has the modules with parameters, and the paper's reference.
:mod:`msconv_jax.operators.pac.taps` computes the sum over taps without the unfolded signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from msconv_jax.arguments import Padding
from msconv_jax.modes.dtypes import compute_dtype, wide_dtype
from msconv_jax.operators.lattice_conv import check_kernel_size
from msconv_jax.operators.pac.geometry import Geometry, check_output_padding, convolution_geometry, transpose_geometry
from msconv_jax.operators.pac.kernel import AdaptingKernel, AdaptingOptions, as_float32
from msconv_jax.operators.pac.taps import (
    Operands,
    flattened,
    flattened_mask,
    kernel_of_taps,
    weighted_sum,
    with_output_mask,
)

Result = jax.Array | tuple[jax.Array, jax.Array]


def pac_kernel(
    guide: ArrayLike,
    kernel_size: Sequence[int],
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    *,
    kernel_dilation: int | Sequence[int] | None = 1,
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
    mask: ArrayLike | None = None,
    **options: Unpack[AdaptingOptions],
) -> Result:
    """Computes the adapting kernel K, for inspection or for several operators.

    The arguments are those of the operator, :func:`pac_convolve` or, with `transposed`, :func:`pac_convolve_transpose`,
    whose `guide` has the output's size. The `mask` always has the signal's size, ``(*batch, *signal spatial)``.

    Returns:
        ``(*batch, *output spatial, taps, 1)`` in at least float32; with `channel_wise` the last axis is the guide's
        channels. With a `mask` also the output's mask, see :func:`pac_convolve`.

    Raises:
        ValueError: for arguments that do not fit.

    Source: Eq. (3); the mask and the normalisation as in the public code.

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax.operators.pac.functions import pac_kernel
        >>> pac_kernel(jnp.ones((1, 8, 8, 3)), (3, 3), strides=2).shape
        (1, 4, 4, 9, 1)
    """
    size = check_kernel_size(kernel_size, "pac_kernel", odd=True)
    guide = as_float32(guide)
    batch, spatial = _batch_and_spatial("guide", guide, len(size))
    form = AdaptingKernel.of(options, guide, len(size))
    if transposed:
        geometry = transpose_geometry(None, size, strides, kernel_dilation, padding, output_padding, spatial)
    elif any(check_output_padding(output_padding, len(size))):
        raise ValueError(f"output_padding={output_padding!r} belongs to the transposed operator: leave it at 0.")
    else:
        geometry = convolution_geometry(spatial, size, strides, kernel_dilation, padding)
    valid = flattened_mask(mask, batch, geometry.signal)
    K, norm = kernel_of_taps(flattened(guide, batch), valid, form, geometry=geometry)
    return with_output_mask(K, norm, batch, mask)


def pac_convolve(
    x: ArrayLike,
    kernel: ArrayLike,
    guide: ArrayLike | None = None,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    *,
    kernel_dilation: int | Sequence[int] | None = 1,
    adapting_kernel: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    **options: Unpack[AdaptingOptions],
) -> Result:
    """Pixel-adaptive convolution.

    Args:
        x: the signal, ``(*batch, *spatial, in_features)``.
        kernel: the weights W, ``(*kernel_size, in_features, out_features)`` with odd sizes, or ``(*kernel_size, 1, 1)``
            for one filter shared by all channels.
        guide: ``(*batch, *spatial, guide channels)``; divide it by the standard deviation that K should have.
        strides: pixels between outputs, one int or one per spatial axis.
        padding: "SAME", "SAME_LOWER", "VALID", an int, or for each axis an int or a pair, of signal and guide.
        kernel_dilation: pixels between taps.
        adapting_kernel: K from :func:`pac_kernel`, instead of `guide` and `mask`. `normalize_kernel` divides it by its
            sum over the taps in the image, which is 1 if K is already normalised. A `smooth_kernel` is an error; the
            kernel type and its numbers have no effect.
        mask: ``(*batch, *spatial)`` or with one channel: 1 or True where `x` is valid. The sum excludes invalid taps
            and is divided by the share of valid taps among those in the image or, with `normalize_kernel`, by their
            sum of K.
        precision: of the products with the weights; None computes float32 in full float32 (unless JAX's default matmul
            precision is set).
        preferred_element_type: dtype of the result.
        **options: :class:`AdaptingOptions`. K has one channel here, so `channel_wise` needs a guide of one channel.

    Returns:
        ``(*batch, *output_spatial, out_features)`` in the compute dtype: that of `x` if this is half precision, else
        the promoted dtype of `x` and the kernel. K and the sum are computed in at least float32. With a `mask` also
        the output's mask, of bools and with a channel axis if `mask` has one: True where the divisor is not 0. The
        output is 0 elsewhere.

    Raises:
        ValueError: for arguments that do not fit.

    Source: Eq. (3).

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax.operators.pac.functions import pac_convolve
        >>> pac_convolve(jnp.ones((1, 9, 9, 4)), jnp.ones((3, 3, 4, 8)), jnp.ones((1, 9, 9, 2)), strides=2).shape
        (1, 5, 5, 8)
    """
    x, kernel, size, spatial = _check_signal(x, kernel)
    geometry = convolution_geometry(spatial, size, strides, kernel_dilation, padding)
    return _apply(x, kernel, guide, geometry, adapting_kernel, mask, options, precision, preferred_element_type)


def pac_convolve_transpose(
    x: ArrayLike,
    kernel: ArrayLike,
    guide: ArrayLike | None = None,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    *,
    output_padding: int | Sequence[int] = 0,
    kernel_dilation: int | Sequence[int] | None = 1,
    adapting_kernel: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    **options: Unpack[AdaptingOptions],
) -> Result:
    """Transposed pixel-adaptive convolution: up-sampling by `strides` under a guide of the output's size.

    It inserts ``strides - 1`` zeros between the samples of the signal, pads it with
    ``(kernel_size - 1) * kernel_dilation - padding`` zeros on each side (and `output_padding` more after), and
    convolves it with stride 1 and the unflipped kernel. The arguments are those of :func:`pac_convolve`, except that

    * `guide` is ``(*batch, *output_spatial, guide channels)``, and an `adapting_kernel` is computed with `transposed`;
    * `strides` is the factor of up-sampling;
    * `padding` is the crop of the full output, as in PyTorch: an int, or for each axis an int or a pair; "VALID" is 0,
      and "SAME" gives outputs of ``input * stride`` and crops an odd pixel before ("SAME_LOWER": after) the image;
    * `output_padding`, additional pixels after the image, is one int or one per spatial axis; 0 with "SAME";
    * `normalize_kernel` sums over the taps that coincide with a sample.

    Returns:
        ``(*batch, *output_spatial, out_features)``; along each axis ``(input - 1) * stride - (padding before and after)
        + kernel_dilation * (kernel_size - 1) + 1 + output_padding``. With a `mask` also the output's mask.

    Raises:
        ValueError: for arguments that do not fit.

    Source: Sec. 3 of the paper; order and orientation of the taps as in the public code.

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax.operators.pac.functions import pac_convolve_transpose
        >>> x, guide = jnp.ones((1, 8, 8, 4)), jnp.ones((1, 16, 16, 2))
        >>> pac_convolve_transpose(x, jnp.ones((5, 5, 4, 8)), guide, 2, padding=2, output_padding=1).shape
        (1, 16, 16, 8)
    """
    x, kernel, size, spatial = _check_signal(x, kernel)
    geometry = transpose_geometry(spatial, size, strides, kernel_dilation, padding, output_padding)
    return _apply(x, kernel, guide, geometry, adapting_kernel, mask, options, precision, preferred_element_type)


def pac_pool(
    x: ArrayLike,
    guide: ArrayLike | None = None,
    kernel_size: Sequence[int] = (3, 3),
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    *,
    kernel_dilation: int | Sequence[int] | None = 1,
    adapting_kernel: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    preferred_element_type: DTypeLike | None = None,
    **options: Unpack[AdaptingOptions],
) -> Result:
    """Pixel-adaptive pooling: the sum of each channel over the taps, weighted by K (its mean with `normalize_kernel`).

    The arguments are those of :func:`pac_convolve`; `kernel_size` has odd taps per spatial axis. With `channel_wise`
    the `guide` has as many channels as `x`, and its channel c determines the K of channel c. An `adapting_kernel` has
    one channel or as many as `x`; with `channel_wise` it must have as many.

    Returns:
        ``(*batch, *output_spatial, features)``; with a `mask` also the output's mask. This has the channels of `x` if K
        is normalised and `channel_wise` and the `mask` has a channel axis.

    Raises:
        ValueError: for arguments that do not fit.

    Source: Sec. 3 of the paper.

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax.operators.pac.functions import pac_pool
        >>> y = pac_pool(jnp.full((1, 5, 5, 4), 7.0), jnp.ones((1, 5, 5, 3)), (3, 3), normalize_kernel=True)
        >>> float(y.min()), float(y.max())
        (7.0, 7.0)
    """
    size = check_kernel_size(kernel_size, "pac_pool", odd=True)
    x = jnp.asarray(x)
    _, spatial = _batch_and_spatial("x", x, len(size))
    geometry = convolution_geometry(spatial, size, strides, kernel_dilation, padding)
    return _apply(x, None, guide, geometry, adapting_kernel, mask, options, None, preferred_element_type)


def _batch_and_spatial(name: str, array: jax.Array, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if array.ndim < ndim + 1:
        raise ValueError(f"{name} has shape {array.shape}: expected (*batch, {ndim} spatial axes, channels).")
    return array.shape[: -ndim - 1], array.shape[-ndim - 1 : -1]


def _check_signal(x: ArrayLike, kernel: ArrayLike) -> tuple[jax.Array, jax.Array, tuple[int, ...], tuple[int, ...]]:
    """Signal and kernel as arrays, the kernel size and the signal's spatial size."""
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if kernel.ndim < 3:
        raise ValueError(f"kernel has shape {kernel.shape}: expected (*kernel_size, inputs, outputs).")
    size = check_kernel_size(kernel.shape[:-2], "pixel-adaptive convolution", odd=True)
    if x.ndim < len(size) + 1 or (x.shape[-1] != kernel.shape[-2] and kernel.shape[-2:] != (1, 1)):
        raise ValueError(
            f"x has shape {x.shape} and the kernel {kernel.shape}: expected x to be (*batch, {len(size)} spatial axes, "
            f"{kernel.shape[-2]} channels)."
        )
    return x, kernel, size, x.shape[-len(size) - 1 : -1]


def _apply(
    x: jax.Array,
    kernel: jax.Array | None,
    guide: ArrayLike | None,
    geometry: Geometry,
    adapting_kernel: ArrayLike | None,
    mask: ArrayLike | None,
    options: AdaptingOptions,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
) -> Result:
    """Checks the guide or K against the signal, and computes the output."""
    ndim, channels = len(geometry.size), x.shape[-1]
    batch = x.shape[: -ndim - 1]
    if (guide is None) == (adapting_kernel is None):
        raise ValueError(
            "pixel-adaptive operators take either a guide or a precomputed adapting kernel; "
            f"{'neither was' if guide is None else 'both were'} given."
        )
    widths = {1, channels} if kernel is None else {1}
    K = None
    if guide is not None:
        guide = as_float32(guide)
        expected = (*batch, *geometry.guide.signal)
        if guide.shape[:-1] != expected or guide.ndim != x.ndim:
            whose = "the output" if geometry.transposed else "the signal"
            raise ValueError(
                f"guide has shape {guide.shape}: expected {(*expected, 'channels')}, the size of {whose}; resize it."
            )
        if options.get("channel_wise", False) and guide.shape[-1] not in widths:
            raise ValueError(
                f"channel_wise=True with {guide.shape[-1]} guide channels: "
                + (f"the signal has {channels}." if kernel is None else "only PACPool takes a kernel for each channel.")
            )
    else:
        if mask is not None:
            raise ValueError("a mask with a precomputed adapting kernel: give the mask where that kernel is made.")
        K = as_float32(cast(ArrayLike, adapting_kernel))
        expected = (*batch, *geometry.output, len(geometry.taps))
        if K.shape[:-1] != expected or K.shape[-1] not in widths:
            raise ValueError(
                f"the adapting kernel has shape {K.shape}: expected {expected} and one channel"
                + ("." if kernel is not None else f", or {channels} of them.")
            )
        if options.get("channel_wise", False) and K.shape[-1] != (channels if kernel is None else 1):
            raise ValueError(
                f"channel_wise=True with an adapting kernel of shape {K.shape}: expected one K for each of the "
                f"signal's {channels} channels; make K with channel_wise=True, or leave channel_wise out."
            )
    form = AdaptingKernel.of(options, guide, ndim)
    dtype = compute_dtype(x) if kernel is None else compute_dtype(x, kernel)
    if not jnp.issubdtype(dtype, jnp.inexact):  # integers, pooled
        dtype = wide_dtype(dtype)
    if precision is None and dtype == jnp.float32 and jax.config.jax_default_matmul_precision is None:  # type: ignore[attr-defined]
        precision = lax.Precision.HIGHEST
    weights = None
    if kernel is not None:
        shared = kernel.shape[-2:] == (1, 1)
        weights = kernel.astype(dtype).reshape((-1,) if shared else (-1, *kernel.shape[-2:]))
    guide, K = (None if a is None else flattened(a, batch) for a in (guide, K))
    signal = flattened(x.astype(dtype), batch)
    arrays = Operands(signal, weights, guide, K, flattened_mask(mask, batch, geometry.signal))
    y, norm = weighted_sum(arrays, form, geometry=geometry, precision=precision)
    y = y.astype(dtype if preferred_element_type is None else preferred_element_type)
    return with_output_mask(y, norm, batch, mask)
