"""Executes plans: the steps of a plan as operations of JAX, and the sum of their results.

:func:`convolve_packed` is what :func:`msconv_jax.lattice_convolve` calls after its checks. It chooses a plan and
executes the steps: :func:`_convolution_step`, :func:`_shift_step` or :func:`_scatter_step`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import math
import operator
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped

from msconv_jax.arguments import Pads, dilated_extent
from msconv_jax.lattice import KernelLattice
from msconv_jax.lowering.channels import take_channels
from msconv_jax.lowering.choose import Lowering, assembly, choose_plan, kernel_parts
from msconv_jax.lowering.cost import Site
from msconv_jax.lowering.plan import LayerKey, Plan, Step, blocks_read, layer_steps, step_extent
from msconv_jax.lowering.xla import xla_convolution
from msconv_jax.modes.dtypes import wide_dtype
from msconv_jax.modes.meshes import sharded_like
from msconv_jax.recording import current_path

Inputs = Shaped[Array, "batch *spatial inputs"]
Outputs = Shaped[Array, "batch *output outputs"]
Kernel = Shaped[Array, "*kernel_size fan_in outputs"]
Banks = tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution with a lattice: all of it but the arrays.

    Attributes:
        lattice: the kernel lattice.
        strides: pixels between outputs, per spatial axis.
        pads: zeros before and after each spatial axis for the base kernel; negative ones crop.
        output: size of the output along each spatial axis, at least 1.
        lowering: a forced lowering, or "auto".
        backend: a name of ``COST_MODELS``.
        precision: of the products, as in ``jax.lax.conv_general_dilated``.
        dtype: of the result.
    """

    lattice: KernelLattice
    strides: tuple[int, ...]
    pads: Pads
    output: tuple[int, ...]
    lowering: Lowering
    backend: str
    precision: lax.PrecisionLike
    dtype: jnp.dtype

    @property
    def sum_dtype(self) -> jnp.dtype:
        """The dtype in which products of single taps are added: half precision would be rounded at each of them."""
        return wide_dtype(self.dtype)

    def tile_pads(self, extent: Sequence[int], offset: Sequence[int]) -> Pads:
        """The pads of a kernel whose first tap lies `offset` pixels before the base kernel's."""
        return tuple(
            (low + before, high + (size - base) - before)
            for (low, high), before, size, base in zip(self.pads, offset, extent, self.lattice.base_extent, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class PlannedConvolution:
    """A convolution that was traced, where it is computed, and its plan; `path` is that of the recorded layer."""

    path: str | None
    convolution: Convolution
    site: Site
    plan: Plan


_planned: contextvars.ContextVar[list[PlannedConvolution] | None] = contextvars.ContextVar("planned", default=None)


@contextlib.contextmanager
def recorded_plans() -> Iterator[list[PlannedConvolution]]:
    """Records the convolutions that are traced while the context is open, in the order of the calls.

    JAX does not trace a jitted function again for equal shapes: use ``jax.disable_jit()`` inside.
    """
    planned: list[PlannedConvolution] = []
    token = _planned.set(planned)
    try:
        yield planned
    finally:
        _planned.reset(token)


# One jitted function, so that an eager call is one dispatch, and not inlined, so that layers of equal shape are traced
# and differentiated once; XLA inlines it when it compiles.
@functools.partial(jax.jit, static_argnames="convolution")
def convolve_packed(x: Inputs, packed: Banks, *, convolution: Convolution) -> Outputs:
    """The convolution of images with packed kernels of the same dtype."""
    # The batch may be a symbolic dimension under jax.export; then a usual one decides.
    batch = x.shape[0] if isinstance(x.shape[0], int) else 8
    site = Site(batch, convolution.output, convolution.strides)
    plan = choose_plan(convolution.lattice, convolution.lowering, convolution.backend, site)
    if (planned := _planned.get()) is not None:
        planned.append(PlannedConvolution(current_path(), convolution, site, plan))
    return sharded_like(x, functools.partial(_execute, convolution=convolution, plan=plan), x, packed)


def _execute(x: Inputs, packed: Banks, *, convolution: Convolution, plan: Plan) -> Outputs:
    results = []
    for step in plan:
        inputs = take_channels(x, step.inputs)
        if step.way == "convolve":
            results.append(_convolution_step(inputs, packed, step, convolution))
        elif step.way == "shift":
            results.append(_shift_step(inputs, packed, step, convolution))
        else:
            results.append(_scatter_step(inputs, packed, step, convolution))
    return _assemble(results, plan)


# --- the three ways to execute a step ---


def _convolution_step(x: Inputs, packed: Banks, step: Step, convolution: Convolution) -> Outputs:
    """The step as one convolution."""
    lattice, strides = convolution.lattice, convolution.strides
    if len(step.layers) == 1:
        (layer,) = step.layers
        kernel = _layer_kernel(packed, lattice, step, layer)
        extent, dilation = _layer_extent(lattice, layer), layer[1]
        offset = lattice.offset(extent)
    else:
        kernels = [_dense_layer_kernel(packed, lattice, step, layer) for layer in step.layers]
        kernel = functools.reduce(operator.add, kernels)
        extent, offset = step_extent(lattice, step)
        dilation = (1,) * lattice.ndim
    pads, width = convolution.tile_pads(extent, offset), convolution.output[-1]
    if step.columns > 1:
        x, kernel = _columns_to_channels(x, kernel, step.columns, strides[-1], dilation[-1], pads[-1][0], width)
        strides, dilation, pads = (*strides[:-1], 1), (*dilation[:-1], 1), (*pads[:-1], (0, 0))
    y = xla_convolution(
        x,
        kernel,
        strides,
        pads,
        dilation,
        step.groups,
        backend=convolution.backend,
        precision=convolution.precision,
        preferred_element_type=convolution.dtype,
    )
    if step.columns > 1:
        y = y.reshape((*y.shape[:-2], y.shape[-2] * step.columns, len(step.outputs)))
        y = lax.slice_in_dim(y, 0, width, axis=y.ndim - 2)
    return y


def _columns_to_channels(
    x: Inputs, kernel: Kernel, columns: int, stride: int, dilation: int, before: int, width: int
) -> tuple[Array, Array]:
    """Input and kernel with blocks of neighbouring columns, along the last spatial axis, as channels.

    Each block of `columns` output columns starts `columns * stride` input columns after the previous one, so input
    blocks of that size make a convolution of stride 1, without padding along this axis.

    Args:
        x: the images.
        kernel: the kernel.
        columns: output columns in a block.
        stride: stride along the last spatial axis.
        dilation: dilation of the kernel along it.
        before: zeros before `x` along it.
        width: size of the output along it.
    """
    size, taps = columns * stride, kernel.shape[-3]
    extent = (taps - 1) * dilation + 1
    blocks_of_kernel = blocks_read(columns, extent, stride)
    blocks = -(-width // columns) - 1 + blocks_of_kernel
    after = blocks * size - before - x.shape[-2]  # negative where the last columns are never read
    x = lax.pad(x, jnp.zeros((), x.dtype), [*((0, 0, 0),) * (x.ndim - 2), (before, after, 0), (0, 0, 0)])
    x = x.reshape((*x.shape[:-2], blocks, size * x.shape[-1]))

    other_axes = ((0, 0, 0),) * (kernel.ndim - 3)
    shifted = []
    for column in range(columns):
        first = column * stride  # a column's kernel starts at the column
        along = (first, blocks_of_kernel * size - first - extent, dilation - 1)
        shifted.append(lax.pad(kernel, jnp.zeros((), kernel.dtype), [*other_axes, along, (0, 0, 0), (0, 0, 0)]))
    block = jnp.stack(shifted, axis=-2)  # (..., blocks_of_kernel * size, inputs, columns, outputs)
    inputs, outputs = kernel.shape[-2:]
    return x, block.reshape((*kernel.shape[:-3], blocks_of_kernel, size * inputs, columns * outputs))


def _shift_step(x: Inputs, packed: Banks, step: Step, convolution: Convolution) -> Outputs:
    """The step as a sum over taps of shifted input times weights."""
    lattice, (layer,) = convolution.lattice, step.layers
    kernel, extent = _layer_kernel(packed, lattice, step, layer), _layer_extent(lattice, layer)
    pads = convolution.tile_pads(extent, lattice.offset(extent))
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])
    terms = []
    for tap in np.ndindex(*kernel.shape[:-2]):
        first = [t * d for t, d in zip(tap, layer[1], strict=True)]
        last = [f + (n - 1) * s + 1 for f, n, s in zip(first, convolution.output, convolution.strides, strict=True)]
        shifted = lax.slice(x, (0, *first, 0), (x.shape[0], *last, x.shape[-1]), (1, *convolution.strides, 1))
        terms.append(_grouped_product(shifted, kernel[tap], step.groups, convolution))
    return functools.reduce(operator.add, terms).astype(convolution.dtype)


def _scatter_step(x: Inputs, packed: Banks, step: Step, convolution: Convolution) -> Outputs:
    """The step as one product with the weights of all taps, whose results are shifted and added."""
    lattice, dtype = convolution.lattice, convolution.sum_dtype
    parts = layer_steps(step)
    kernels = [_layer_kernel(packed, lattice, part, part.layers[0]) for part in parts]
    weights = [jnp.moveaxis(kernel, -2, 0).reshape(x.shape[-1], -1) for kernel in kernels]  # (inputs, taps * outputs)
    products = jnp.dot(
        x, jnp.concatenate(weights, axis=1), precision=convolution.precision, preferred_element_type=dtype
    )
    # lax.split, because its gradient is one concatenation; that of a slice is as large as all products.
    sizes = [kernel.shape[-1] for kernel in kernels for _ in range(math.prod(kernel.shape[:-2]))]
    products_of_taps = iter(lax.split(products, sizes, axis=products.ndim - 1))
    results = []
    for part, kernel in zip(parts, kernels, strict=True):
        (layer,) = part.layers
        extent = _layer_extent(lattice, layer)
        pads = convolution.tile_pads(extent, lattice.offset(extent))
        shifted = []
        for tap in np.ndindex(*kernel.shape[:-2]):
            widths = []
            for t, d, (low, _), size, count, stride in zip(
                tap, layer[1], pads, x.shape[1:-1], convolution.output, convolution.strides, strict=True
            ):
                first = low - t * d  # the output of the first product
                widths.append((first, (count - 1) * stride + 1 - size - first, 0))
            product = lax.pad(next(products_of_taps), jnp.zeros((), dtype), [(0, 0, 0), *widths, (0, 0, 0)])
            shifted.append(product[(slice(None), *(slice(None, None, stride) for stride in convolution.strides))])
        results.append(functools.reduce(operator.add, shifted))
    return jnp.concatenate(results, axis=-1).astype(convolution.dtype)


def _grouped_product(
    x: Shaped[Array, "*places inputs"],
    weights: Shaped[Array, "fan_in outputs"],
    groups: int,
    convolution: Convolution,
) -> Shaped[Array, "*places outputs"]:
    """Products of the channels with the weights of one tap, group by group."""
    dtype = convolution.sum_dtype
    fan_in, fan_out = weights.shape[0], weights.shape[1] // groups
    if fan_in == 1:
        repeated = jnp.repeat(x, fan_out, axis=-1) if fan_out > 1 else x
        return repeated.astype(dtype) * weights.astype(dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    y = jnp.einsum(
        "...gi,igo->...go",
        x.reshape((*x.shape[:-1], groups, fan_in)),
        weights.reshape((fan_in, groups, fan_out)),
        precision=convolution.precision,
        preferred_element_type=dtype,
    )
    return y.reshape((*x.shape[:-1], groups * fan_out))


# --- kernels of a step ---


def _layer_extent(lattice: KernelLattice, layer: LayerKey) -> tuple[int, ...]:
    """Pixels that the layer's dilated kernels span along each spatial axis."""
    bank, dilation = layer
    return dilated_extent(lattice.banks[bank].kernel_size, dilation)


def _layer_kernel(packed: Banks, lattice: KernelLattice, step: Step, layer: LayerKey) -> Kernel:
    """The undilated kernel ``(*kernel_size, inputs of a group, outputs)`` of one layer of a step."""
    bank = packed[layer[0]]
    columns, outputs = [], []
    for part in kernel_parts(lattice, step, layer):
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


def _dense_layer_kernel(packed: Banks, lattice: KernelLattice, step: Step, layer: LayerKey) -> Kernel:
    """A layer's kernel with zeros between and around its taps, as large as the step's."""
    kernel = _layer_kernel(packed, lattice, step, layer)
    extent, offset = step_extent(lattice, step)
    layer_extent = _layer_extent(lattice, layer)
    widths = []
    for size, step_size, gap, layer_offset, step_offset in zip(
        layer_extent, extent, layer[1], lattice.offset(layer_extent), offset, strict=True
    ):
        before = step_offset - layer_offset
        widths.append((before, step_size - before - size, gap - 1))
    return lax.pad(kernel, jnp.zeros((), kernel.dtype), [*widths, (0, 0, 0), (0, 0, 0)])


def _assemble(results: list[Array], plan: Plan) -> Outputs:
    """Adds the steps' results for each output channel and orders the channels."""
    scheme = assembly(tuple(step.outputs for step in plan))
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
