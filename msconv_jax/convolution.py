"""Convolution with a kernel lattice.

:func:`lattice_convolve` is the general function, :func:`convolve` the plain (grouped) convolution. Both check their
arguments; :mod:`msconv_jax.lowering` computes. Everything can be differentiated, in both modes and any number of times.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Shaped

from msconv_jax.arguments import BORDERS, Padding, Pads, base_pads, check_groups, check_padding, output_size, per_axis
from msconv_jax.lattice import KernelLattice, Tile, causal_lattice
from msconv_jax.lowering.backend import current_backend, planning_for
from msconv_jax.lowering.choose import Lowering, check_lowering
from msconv_jax.lowering.execute import Convolution, convolve_packed
from msconv_jax.modes.dtypes import compute_dtype
from msconv_jax.signatures import explains_arguments

__all__ = [
    "ConvolveSettings",
    "convolve",
    "grouped_lattice",
    "lattice_convolve",
    "planning_for",
    "with_border",
]

# A lattice holds no arrays: JAX takes it as an argument of any transformation, as a pytree without leaves.
jax.tree_util.register_static(KernelLattice)


class ConvolveSettings(TypedDict, total=False):
    """How a convolution is computed, not what it is; every pure function of the library passes these arguments on.

    `lowering`, `precision` and `preferred_element_type` mean the same as for :func:`lattice_convolve`.
    """

    lowering: Lowering
    precision: lax.PrecisionLike
    preferred_element_type: DTypeLike | None


@explains_arguments
def lattice_convolve(
    x: ArrayLike,
    kernels: ArrayLike | Sequence[ArrayLike],
    lattice: KernelLattice,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    *,
    lowering: Lowering = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """Convolves with a kernel lattice; equals one convolution with ``lattice.expand(kernels)``.

    A correlation (the kernel is not flipped), with zeros outside the image (but see `padding`), as Eq. (3) of the
    PSConv paper.

    Args:
        x: ``(*batch, *spatial, in_features)``, any number of batch axes, also none.
        kernels: the lattice's kernels, one array per tile or packed: see :class:`KernelLattice`.
        lattice: the kernel lattice.
        strides: pixels between outputs, one int or one per spatial axis.
        padding: "SAME", "SAME_LOWER", "VALID", an int for every side, or for each axis an int or a pair
            (before, after). It refers to the lattice's base kernel; each tile is padded further by half of its
            extra extent, so that all tiles have outputs of one size. "CIRCULAR" and "REFLECT" are "SAME" at stride 1
            with the image repeated, or mirrored, in place of zeros. "CAUSAL", for one spatial axis, pads only before
            the axis: no output depends on later positions.
        lowering: how to compute it: "tiles", "packs", "grouped", "dense", "shifts", "scatter" (see
            :mod:`msconv_jax.lowering.choose`), or "auto" for the cheapest on JAX's default backend.
        precision: of the products, as in ``jax.lax.conv_general_dilated``.
        preferred_element_type: dtype of the result, as in ``jax.lax.conv_general_dilated``.

    Returns:
        ``(*batch, *output_spatial, out_features)``. The computation's dtype is that of `x` if it is a
        half-precision one, else what `x` and the kernels promote to.

    Raises:
        ValueError: if shapes do not fit the lattice, or an argument is not one of the above.

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax import KernelLattice, Tile, lattice_convolve
        >>> lattice = KernelLattice(4, 4, (
        ...     Tile(slice(0, 2), slice(0, 4), (3, 3)),
        ...     Tile(slice(2, 4), slice(0, 4), (3, 3), dilation=2),
        ... ))
        >>> lattice_convolve(jnp.ones((1, 9, 9, 4)), jnp.ones((3, 3, 4, 4)), lattice, padding=1).shape
        (1, 9, 9, 4)
    """
    check_lowering(lowering)
    ndim = lattice.ndim
    x = jnp.asarray(x)
    if x.ndim < ndim + 1 or x.shape[-1] != lattice.in_features:
        raise ValueError(
            f"x has shape {x.shape}: expected (*batch, {ndim} spatial axes, {lattice.in_features} channels)."
        )
    packed = lattice.pack(kernels)
    dtype = compute_dtype(x, *packed)
    batch, spatial = x.shape[: -ndim - 1], x.shape[-ndim - 1 : -1]
    strides = per_axis("strides", strides, ndim)
    name, pads = check_padding(padding, ndim), base_pads(padding, spatial, lattice.base_extent, strides)
    if name == "CAUSAL":
        lattice = causal_lattice(lattice)
    if isinstance(name, str) and name in BORDERS:
        x, pads = _with_borders(x, name, lattice, pads)
    spatial = x.shape[-ndim - 1 : -1]
    output = output_size(spatial, pads, lattice.base_extent, strides)
    result_dtype = jnp.dtype(dtype if preferred_element_type is None else preferred_element_type)
    if 0 in output:
        return jnp.zeros((*batch, *output, lattice.out_features), result_dtype)
    convolution = Convolution(lattice, strides, pads, output, lowering, current_backend(), precision, result_dtype)
    y = convolve_packed(
        x.astype(dtype).reshape((math.prod(batch), *x.shape[-ndim - 1 :])),
        tuple(array.astype(dtype) for array in packed),
        convolution=convolution,
    )
    return y.reshape((*batch, *y.shape[1:]))


def convolve(
    x: ArrayLike,
    kernel: ArrayLike,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    *,
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    **settings: Unpack[ConvolveSettings],
) -> jax.Array:
    """The plain convolution, grouped or not, with a lowering that is fast on every backend.

    Args:
        x: ``(*batch, *spatial, in_features)``.
        kernel: ``(*kernel_size, in_features // feature_group_count, out_features)``.
        strides: as in :func:`lattice_convolve`.
        padding: as in :func:`lattice_convolve`; refers to the dilated kernel, as in ``nnx.Conv``.
        kernel_dilation: pixels between taps, one int or one per spatial axis.
        feature_group_count: number of groups of channels.
        **settings: how to compute it: :class:`msconv_jax.convolution.ConvolveSettings`.

    Returns:
        ``(*batch, *output_spatial, out_features)``.

    Raises:
        ValueError: if the channels are not divisible by the groups, or the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax.convolution import convolve
        >>> convolve(jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 2, 9)), feature_group_count=3).shape
        (2, 8, 8, 9)
    """
    kernel = jnp.asarray(kernel)
    if kernel.ndim < 3:
        raise ValueError(f"kernel has shape {kernel.shape}: expected (*kernel_size, inputs, outputs).")
    lattice = grouped_lattice(
        kernel.shape[-2] * feature_group_count,
        kernel.shape[-1],
        kernel.shape[:-2],
        per_axis("kernel_dilation", kernel_dilation, kernel.ndim - 2),
        feature_group_count,
    )
    return lattice_convolve(x, kernel, lattice, strides, padding, **settings)


def grouped_lattice(
    in_features: int,
    out_features: int,
    kernel_size: tuple[int, ...],
    kernel_dilation: tuple[int, ...],
    feature_group_count: int,
) -> KernelLattice:
    """The lattice of a plain convolution: block-diagonal, one tile per group.

    Raises:
        ValueError: if the groups do not divide the channels.
    """
    check_groups(in_features, out_features, feature_group_count)
    return _grouped_lattice(in_features, out_features, kernel_size, kernel_dilation, feature_group_count)


@functools.lru_cache(maxsize=1024)
def _grouped_lattice(
    in_features: int, out_features: int, kernel_size: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> KernelLattice:
    fan_in, fan_out = in_features // groups, out_features // groups
    tiles = tuple(
        Tile(slice(g * fan_out, (g + 1) * fan_out), slice(g * fan_in, (g + 1) * fan_in), kernel_size, dilation)
        for g in range(groups)
    )
    return KernelLattice(in_features, out_features, tiles, tiles[0].extent)


def with_border(
    x: Shaped[Array, "*batch_and_spatial channels"], padding: Any, pads: Sequence[tuple[int, int]]
) -> Shaped[Array, "*padded channels"]:
    """``(*batch, *spatial, channels)`` padded with pixels, repeated ("CIRCULAR") or mirrored ("REFLECT")."""
    widths = [(0, 0)] * (x.ndim - len(pads) - 1) + [*pads, (0, 0)]
    return jnp.pad(x, widths, mode=BORDERS[padding.upper()])


def _with_borders(x: jax.Array, padding: str, lattice: KernelLattice, pads: Pads) -> tuple[jax.Array, Pads]:
    """The input with the border that the largest tile needs, and the pads of the base kernel in it (negative: crop)."""
    largest = []
    for axis, (low, high) in enumerate(pads):
        befores = [lattice.offset(tile.extent)[axis] for tile in lattice.tiles]
        extras = [tile.extent[axis] - lattice.base_extent[axis] for tile in lattice.tiles]
        afters = [extra - before for extra, before in zip(extras, befores, strict=True)]
        largest.append((max(low + max(befores), 0), max(high + max(afters), 0)))
    cropped = tuple((low - a, high - b) for (low, high), (a, b) in zip(pads, largest, strict=True))
    return with_border(x, padding, largest), cropped
