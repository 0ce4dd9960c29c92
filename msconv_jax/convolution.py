"""Convolution with a kernel lattice.

:func:`lattice_convolve` carries out the plan that :mod:`msconv_jax.lowering.choose` chooses, :func:`convolve` is the
plain (grouped) case. Everything can be differentiated, in both modes and any number of times.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from msconv_jax.arguments import (
    BORDERS,
    Padding,
    Pads,
    base_pads,
    check_groups,
    check_padding,
    dilated_extent,
    per_axis,
)
from msconv_jax.lattice import KernelLattice, Tile
from msconv_jax.lowering import choose
from msconv_jax.lowering.channels import take_channels
from msconv_jax.lowering.choose import Lowering
from msconv_jax.lowering.cost import COST_MODELS, Site
from msconv_jax.lowering.plan import LayerKey, Plan, Step, blocks_read, layer_steps, step_extent
from msconv_jax.lowering.xla import xla_convolution
from msconv_jax.modes.dtypes import compute_dtype, wide_dtype
from msconv_jax.modes.meshes import sharded_like
from msconv_jax.signatures import explains_arguments

# A lattice holds no arrays: JAX takes it as an argument of any transformation, as a pytree without leaves.
jax.tree_util.register_static(KernelLattice)


class ConvolveSettings(TypedDict, total=False):
    """How a convolution is computed, not what it is; what every pure function of the library passes on.

    `lowering`, `precision` and `preferred_element_type` mean what they mean for :func:`lattice_convolve`.
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

    A correlation without kernel flip, zero outside the image (but see `padding`), as Eq. (3) of the PSConv paper.

    Args:
        x: ``(*batch, *spatial, in_features)``, any number of batch axes, also none.
        kernels: the lattice's kernels, one array per tile or packed: see :class:`KernelLattice`.
        lattice: the kernel lattice.
        strides: pixels between outputs, one int or one per spatial axis.
        padding: "SAME", "SAME_LOWER", "VALID", an int for every side, or for each axis an int or a pair
            (before, after). It speaks of the lattice's base kernel; each tile is padded further by half of its
            extra extent, so that all tiles give the size that the base kernel gives. "CIRCULAR" and "REFLECT" are
            "SAME" at stride 1 with the image repeated, or mirrored, in place of zeros, for every tile as far as it
            goes. "CAUSAL", for one spatial axis, pads before it alone: no tile sees later places.
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
    choose.check_lowering(lowering)
    ndim = lattice.ndim
    x = jnp.asarray(x)
    if x.ndim < ndim + 1 or x.shape[-1] != lattice.in_features:
        raise ValueError(
            f"x has shape {x.shape}: expected (*batch, {ndim} spatial axes, {lattice.in_features} channels)."
        )
    arrays = lattice.pack(kernels)  # type: ignore[arg-type]
    dtype = compute_dtype(x, *arrays)
    batch, spatial = x.shape[: -ndim - 1], x.shape[-ndim - 1 : -1]
    strides = per_axis("strides", strides, ndim)
    name, pads = check_padding(padding, ndim), base_pads(padding, spatial, lattice.base_extent, strides)
    if name == "CAUSAL":
        lattice = _causal(lattice)
    if name in BORDERS:
        x, pads = _with_borders(x, name, lattice, pads)
    y = _convolve(
        x.astype(dtype).reshape((math.prod(batch), *x.shape[-ndim - 1 :])),
        tuple(array.astype(dtype) for array in arrays),
        lattice=lattice,
        strides=strides,
        pads=pads,
        lowering=lowering,
        backend=_backend(),
        precision=precision,
        preferred_element_type=None if preferred_element_type is None else jnp.dtype(preferred_element_type),
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
        padding: as in :func:`lattice_convolve`; speaks of the dilated kernel, as ``nnx.Conv``'s does.
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
    return lattice_convolve(
        x,
        kernel,
        lattice,
        strides,
        padding,
        **settings,
    )


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


def with_border(x: jax.Array, padding: Any, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """``(*batch, *spatial, channels)`` with `pads` of its own pixels around it, for "CIRCULAR" or "REFLECT"."""
    widths = [(0, 0)] * (x.ndim - len(pads) - 1) + [*pads, (0, 0)]
    return jnp.pad(x, widths, mode=BORDERS[padding.upper()])


def _with_borders(x: jax.Array, padding: str, lattice: KernelLattice, pads: Pads) -> tuple[jax.Array, Pads]:
    """The input with the border that the largest tile needs, and the base kernel's pads in it, negative to crop."""
    tiles = [_tile_pads(lattice, pads, tile.extent, lattice.offset(tile.extent)) for tile in lattice.tiles]
    most = tuple((max(low for low, _ in axis), max(high for _, high in axis)) for axis in zip(*tiles, strict=True))
    most = tuple((max(low, 0), max(high, 0)) for low, high in most)
    cropped = tuple((low - a, high - b) for (low, high), (a, b) in zip(pads, most, strict=True))
    return with_border(x, padding, most), cropped


class _CausalLattice(KernelLattice):
    """A lattice whose tiles end at the same place, in place of having one centre."""

    def offset(self, extent: Sequence[int]) -> tuple[int, ...]:
        return tuple(own - base for own, base in zip(extent, self.base_extent, strict=True))

    def _key(self) -> tuple[Any, ...]:
        return ("causal", *super()._key())


@functools.lru_cache(maxsize=128)
def _causal(lattice: KernelLattice) -> KernelLattice:
    return _CausalLattice(lattice.in_features, lattice.out_features, lattice.tiles, lattice.base_extent)


# --- execution ---


# One jitted function, so that an eager call is one dispatch, and not inlined, so that layers of equal shape are traced
# and differentiated once; XLA inlines it when it compiles.
@functools.partial(
    jax.jit,
    static_argnames=("lattice", "strides", "pads", "lowering", "backend", "precision", "preferred_element_type"),
)
def _convolve(
    x: jax.Array,
    packed: tuple[jax.Array, ...],
    *,
    lattice: KernelLattice,
    strides: tuple[int, ...],
    pads: Pads,
    lowering: str,
    backend: str,
    precision: Any,
    preferred_element_type: Any,
) -> jax.Array:
    """The convolution of ``(batch, *spatial, in_features)`` with packed kernels of the same dtype."""
    output = tuple(
        max((size + sum(pad) - extent) // stride + 1, 0)
        for size, pad, extent, stride in zip(x.shape[1:-1], pads, lattice.base_extent, strides, strict=True)
    )
    if 0 in output:
        return jnp.zeros((x.shape[0], *output, lattice.out_features), preferred_element_type or x.dtype)

    # The batch may be a symbolic dimension under jax.export; then a usual one decides.
    batch = x.shape[0] if isinstance(x.shape[0], int) else 8
    plan = choose.choose_plan(lattice, lowering, backend, Site(batch, output, strides))
    settings = {"backend": backend, "precision": precision, "preferred_element_type": preferred_element_type}

    def carried_out(x: jax.Array, packed: tuple[jax.Array, ...]) -> jax.Array:
        results = []
        for step in plan:
            own = take_channels(x, step.inputs)
            results.append(_WAYS[step.way](own, packed, lattice, step, strides, pads, output, settings))
        return _assemble(results, plan)

    return sharded_like(x, carried_out, x, packed)


def _backend() -> str:
    """The cost model's name for the platform that programs are compiled for.

    Decided when a program is traced. ``lax.platform_dependent`` would decide when it is lowered, but a gradient then
    carries the choice as a run-time value through calls and loops, and on CPU XLA compiles the convolutions of such a
    branch 30 times slower.
    """
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    platform = _planned.get() or getattr(device, "platform", device) or jax.default_backend()
    return platform if platform in COST_MODELS else "gpu"


_planned: contextvars.ContextVar[str | None] = contextvars.ContextVar("planned", default=None)


@contextlib.contextmanager
def planning_for(platform: str) -> Iterator[None]:
    """Convolutions traced inside are planned for a platform, whatever JAX's default backend is.

    Args:
        platform: "cpu", "tpu" or "onnx"; any other name is a GPU's.

    Example:
        >>> def program(platform):
        ...     with planning_for(platform):
        ...         jaxpr = jax.make_jaxpr(lambda x, k: convolve(x, k, feature_group_count=4))(
        ...             jnp.ones((1, 56, 56, 64)), jnp.ones((3, 3, 16, 64))
        ...         )
        ...     return str(jaxpr)
        >>> [program(platform).count("conv_general_dilated[") for platform in ("cpu", "onnx")]
        [4, 1]
    """
    token = _planned.set(platform)
    try:
        yield
    finally:
        _planned.reset(token)


def _convolution_step(x, packed, lattice, step, strides, pads, output, settings) -> jax.Array:
    """The step as one convolution of ``(batch, *spatial, step inputs)``."""
    if len(step.layers) == 1:
        (layer,) = step.layers
        bank, dilation = lattice.banks[layer[0]], layer[1]
        kernel = _layer_kernel(packed, lattice, step, layer)
        extent = dilated_extent(bank.kernel_size, dilation)
        before = lattice.offset(extent)
    else:
        kernels = [_expanded_kernel(packed, lattice, step, layer) for layer in step.layers]
        kernel = functools.reduce(operator.add, kernels)
        extent, before = step_extent(lattice, step)
        dilation = (1,) * lattice.ndim
    own_pads = _tile_pads(lattice, pads, extent, before)
    if step.columns > 1:
        x, kernel = _side_by_side(x, kernel, step.columns, strides[-1], dilation[-1], own_pads[-1][0], output[-1])
        strides, dilation, own_pads = (*strides[:-1], 1), (*dilation[:-1], 1), (*own_pads[:-1], (0, 0))
    y = xla_convolution(x, kernel, strides, own_pads, dilation, step.groups, **settings)
    if step.columns > 1:
        y = y.reshape((*y.shape[:-2], y.shape[-2] * step.columns, len(step.outputs)))
        y = lax.slice_in_dim(y, 0, output[-1], axis=y.ndim - 2)
    return y


def _side_by_side(
    x: jax.Array, kernel: jax.Array, columns: int, stride: int, dilation: int, before: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Input and kernel with blocks of neighbouring columns, along the last spatial axis, as channels.

    An output block of `columns` columns begins `columns * stride` input columns after the one before it, so input
    blocks of that size make a convolution of stride 1, without padding along this axis.

    Args:
        x: input ``(batch, *spatial, inputs)``.
        kernel: kernel ``(*kernel_size, inputs, outputs)``.
        columns: output columns to a block.
        stride: stride along the last spatial axis.
        dilation: dilation of the kernel along it.
        before: zeros before `x` along it.
        width: size of the output along it.
    """
    size, taps = columns * stride, kernel.shape[-3]
    extent = (taps - 1) * dilation + 1
    read = blocks_read(columns, extent, stride)
    blocks = -(-width // columns) - 1 + read
    after = blocks * size - before - x.shape[-2]  # negative where the last columns are never read
    x = lax.pad(x, jnp.zeros((), x.dtype), [*((0, 0, 0),) * (x.ndim - 2), (before, after, 0), (0, 0, 0)])
    x = x.reshape((*x.shape[:-2], blocks, size * x.shape[-1]))

    others = ((0, 0, 0),) * (kernel.ndim - 3)
    shifted = []
    for column in range(columns):  # a column's kernel begins where the column does
        along = (column * stride, read * size - column * stride - extent, dilation - 1)
        shifted.append(lax.pad(kernel, jnp.zeros((), kernel.dtype), [*others, along, (0, 0, 0), (0, 0, 0)]))
    block = jnp.stack(shifted, axis=-2)  # (..., read * size, inputs, columns, outputs)
    inputs, outputs = kernel.shape[-2:]
    return x, block.reshape((*kernel.shape[:-3], read, size * inputs, columns * outputs))


def _shift_step(x, packed, lattice, step, strides, pads, output, settings) -> jax.Array:
    """The step as a sum over taps of shifted input times weights."""
    (layer,) = step.layers
    kernel_size, dilation = lattice.banks[layer[0]].kernel_size, layer[1]
    kernel = _layer_kernel(packed, lattice, step, layer)
    extent = dilated_extent(kernel_size, dilation)
    tile_pads = _tile_pads(lattice, pads, extent, lattice.offset(extent))
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pad, 0) for pad in tile_pads), (0, 0, 0)])
    # Many small terms: a half-precision sum would lose what a convolution's accumulator keeps.
    wide = wide_dtype(settings["preferred_element_type"] or x.dtype)
    total = None
    for tap in np.ndindex(*kernel_size):
        first = [t * d for t, d in zip(tap, dilation, strict=True)]
        last = [f + (size - 1) * s + 1 for f, size, s in zip(first, output, strides, strict=True)]
        shifted = lax.slice(x, (0, *first, 0), (x.shape[0], *last, x.shape[-1]), (1, *strides, 1))
        term = _grouped_product(shifted, kernel[tap], step.groups, wide, settings["precision"])
        total = term if total is None else total + term
    assert total is not None  # every kernel has a tap
    return total.astype(settings["preferred_element_type"] or x.dtype)


def _scatter_step(x, packed, lattice, step, strides, pads, output, settings) -> jax.Array:
    """The step as one product with the weights of all taps, whose results are shifted and added."""
    # The products of single taps are rounded, other than a convolution's: half precision needs float32 for them.
    wide = wide_dtype(settings["preferred_element_type"] or x.dtype)
    parts = layer_steps(step)
    kernels = [_layer_kernel(packed, lattice, part, part.layers[0]) for part in parts]
    columns = [jnp.moveaxis(kernel, -2, 0).reshape(x.shape[-1], -1) for kernel in kernels]  # (inputs, taps * outputs)
    products = jnp.dot(
        x, jnp.concatenate(columns, axis=1), precision=settings["precision"], preferred_element_type=wide
    )
    # lax.split, because its gradient is one concatenation; that of a slice is as large as all products.
    sizes = [kernel.shape[-1] for kernel in kernels for _ in range(math.prod(kernel.shape[:-2]))]
    pieces = iter(lax.split(products, sizes, axis=products.ndim - 1))
    results = []
    for part, kernel in zip(parts, kernels, strict=True):
        kernel_size, dilation = kernel.shape[:-2], part.layers[0][1]
        extent = dilated_extent(kernel_size, dilation)
        before = [low for low, _ in _tile_pads(lattice, pads, extent, lattice.offset(extent))]
        shifted = []
        for tap in np.ndindex(*kernel_size):
            widths = []
            for t, d, low, size, count, stride in zip(
                tap, dilation, before, x.shape[1:-1], output, strides, strict=True
            ):
                first = low - t * d  # where the first product comes to stand
                widths.append((first, (count - 1) * stride + 1 - size - first, 0))
            piece = lax.pad(next(pieces), jnp.zeros((), wide), [(0, 0, 0), *widths, (0, 0, 0)])
            shifted.append(piece[(slice(None), *(slice(None, None, stride) for stride in strides))])
        results.append(functools.reduce(operator.add, shifted))
    return jnp.concatenate(results, axis=-1).astype(settings["preferred_element_type"] or x.dtype)


_WAYS = {"convolve": _convolution_step, "shift": _shift_step, "scatter": _scatter_step}


def _grouped_product(x: jax.Array, weights: jax.Array, groups: int, dtype: Any, precision: Any) -> jax.Array:
    """Products of channels, group by group: (..., inputs) with (inputs of a group, outputs)."""
    fan_in, fan_out = weights.shape[0], weights.shape[1] // groups
    if fan_in == 1:
        repeated = jnp.repeat(x, fan_out, axis=-1) if fan_out > 1 else x
        return repeated.astype(dtype) * weights.astype(dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    y = jnp.einsum(
        "...gi,igo->...go",
        x.reshape((*x.shape[:-1], groups, fan_in)),
        weights.reshape((fan_in, groups, fan_out)),
        precision=precision,
        preferred_element_type=dtype,
    )
    return y.reshape((*x.shape[:-1], groups * fan_out))


def _layer_kernel(packed: tuple[jax.Array, ...], lattice: KernelLattice, step: Step, layer: LayerKey) -> jax.Array:
    """The undilated kernel ``(*kernel_size, inputs of a group, outputs)`` of one layer of a step."""
    bank = packed[layer[0]]
    columns, outputs = [], []
    for part in choose.kernel_parts(lattice, step, layer):
        piece = take_channels(take_channels(bank, part.columns), part.rows, axis=-2)
        if part.mask is not None:
            mask = jnp.asarray(part.mask).reshape((1,) * lattice.ndim + part.mask.shape)
            piece = jnp.where(mask, piece, jnp.zeros_like(piece))
        columns.append(piece)
        outputs += part.outputs
    if len(outputs) < len(step.outputs):  # outputs without a kernel in this layer
        columns.append(jnp.zeros((*columns[0].shape[:-1], 1), bank.dtype))
    place = {output: n for n, output in enumerate(outputs)}
    kernel = columns[0] if len(columns) == 1 else jnp.concatenate(columns, axis=-1)
    return take_channels(kernel, tuple(place.get(n, len(outputs)) for n in range(len(step.outputs))))


def _expanded_kernel(packed: tuple[jax.Array, ...], lattice: KernelLattice, step: Step, layer: LayerKey) -> jax.Array:
    """A layer's kernel with zeros between and around its taps, as large as the step's."""
    kernel = _layer_kernel(packed, lattice, step, layer)
    kernel_size, dilation = lattice.banks[layer[0]].kernel_size, layer[1]
    own = dilated_extent(kernel_size, dilation)
    extent, before = step_extent(lattice, step)
    widths = []
    for reach, gap, size, first, offset in zip(own, dilation, extent, before, lattice.offset(own), strict=True):
        widths.append((first - offset, size - (first - offset) - reach, gap - 1))
    return lax.pad(kernel, jnp.zeros((), kernel.dtype), [*widths, (0, 0, 0), (0, 0, 0)])


def _assemble(results: list[jax.Array], plan: Plan) -> jax.Array:
    """Adds up what the steps give for each output channel and puts the channels in order."""
    scheme = choose.assembly(tuple(step.outputs for step in plan))
    dtype = results[0].dtype
    sums = []
    for terms in scheme.sums:
        arrays = [take_channels(results[step], positions) for step, positions in terms]
        if len(arrays) > 1:  # added in float32: half precision is rounded once more, not once per term
            wide = wide_dtype(dtype)
            arrays = [functools.reduce(operator.add, (a.astype(wide) for a in arrays)).astype(dtype)]
        sums += arrays
    y = sums[0] if len(sums) == 1 else jnp.concatenate(sums, axis=-1)
    return take_channels(y, scheme.order)


def _tile_pads(lattice: KernelLattice, pads: Pads, extent: Sequence[int], before: Sequence[int]) -> Pads:
    """The base kernel's pads, grown for a kernel of another extent that starts `before` pixels earlier."""
    return tuple(
        (low + offset, high + (own - base) - offset)
        for (low, high), offset, own, base in zip(pads, before, extent, lattice.base_extent, strict=True)
    )
