"""Heterogeneous convolution (HetConv): k x k kernels on one part of the inputs, 1 x 1 kernels on the others.

P. Singh, V. K. Verma, P. Rai, V. P. Namboodiri: "HetConv: Heterogeneous Kernel-Based Convolutions for Deep CNNs", CVPR
2019. There are P parts, and ``S[c, k] = 1`` for 1/P of the inputs k of each filter c:

    Y[c] = sum over k with S = 1 of (W[c, k] convolved with X[k])  +  sum over k with S = 0 of w[c, k] X[k].

In the paper's figure the k x k kernels shift by one channel from filter to filter: ``S[c, k] = 1`` where k - c is
divisible by P (``layout="lattice"``). The public reproduction adds a grouped convolution and a pointwise one that is
zero on the grouped blocks (``layout="block"``). The two are equal up to a permutation of channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, Unpack, get_args

import jax
import numpy as np
from flax import nnx

from msconv_jax.arguments import check_groups, dilated_extent, per_axis
from msconv_jax.lattice import KernelLattice, Tile
from msconv_jax.operators.composite import CompositeConv
from msconv_jax.operators.lattice_conv import ConvOptions, LatticeOperator, check_kernel_size
from msconv_jax.signatures import explains_arguments

Layout = Literal["block", "lattice"]


class HetConv(CompositeConv, LatticeOperator):
    """Heterogeneous convolution with ``nnx.Conv``'s arguments, at ``1/P + (1 - 1/P) / k^2`` of its cost.

    Args:
        in_features: number of input channels.
        out_features: number of output channels.
        kernel_size: taps of the large kernels per spatial axis, odd, one int for each axis.
        strides: pixels between outputs, one int or one per axis.
        parts: the paper's P, a divisor of the inputs and outputs of a group. 1 gives the plain convolution,
            ``in_features`` a depthwise plus a pointwise one.
        layout: "block", the public code's: the p-th of P output blocks has its large kernels on the p-th input block;
            or "lattice", the paper's: large kernels on every P-th input, shifted by one from filter to filter.
        masked: False keeps 1x1 kernels on all inputs, for ``in_features * out_features`` 1x1 kernels. The public
            module has them until its training script zeroes those on the inputs of large kernels.
        rngs: for the initial values.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`. `padding` and `kernel_dilation` refer to
            the large kernels; the small kernels are at their centres.

    A `kernel_size` of 1 gives the plain 1x1 convolution.

    Attributes:
        kernel: the large kernels, ``(*kernel_size, inputs of a group // parts, out_features)``.
        pointwise_kernel: the small kernels, ``(1, ..., 1, other inputs of the group, out_features)``, with the inputs
            of each output in ascending order; None without small kernels.
        bias: ``(out_features,)``, or None.
        lattice: the :class:`msconv_jax.KernelLattice`.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Source: Sec. 3 of the paper (its Eq. 4 for the cost).

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax import HetConv
        >>> conv = HetConv(64, 64, (3, 3), parts=4, padding=1, use_bias=False, rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 15, 15, 64))).shape
        (1, 15, 15, 64)
        >>> conv.lattice.num_parameters / (9 * 64 * 64)
        0.3333333333333333
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        parts: int,
        layout: Layout = "block",
        masked: bool = True,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        self.lattice = hetconv_lattice(
            in_features,
            out_features,
            kernel_size,
            parts=parts,
            layout=layout,
            kernel_dilation=options.get("kernel_dilation"),
            feature_group_count=options.get("feature_group_count", 1),
        )
        super().__init__(in_features, out_features, kernel_size, strides, **options)
        self.parts = int(parts)
        self.layout = layout
        self.masked = masked
        init = options.get("kernel_init", nnx.initializers.lecun_normal())
        metadata = dict(options.get("kernel_metadata", {}))
        fan_in = in_features // self.feature_group_count
        small = (1,) * len(self.kernel_size)
        large = fan_in if self.kernel_size == small else fan_in // self.parts
        shape = (*self.kernel_size, large, out_features)
        self.kernel = nnx.Param(init(rngs.params(), shape, self.param_dtype), **metadata)
        others = fan_in if not masked and self.kernel_size != small else fan_in - large
        self.pointwise_kernel: nnx.Param[jax.Array] | None = nnx.data(None)
        if others:
            self.pointwise_kernel = nnx.Param(
                init(rngs.params(), (*small, others, out_features), self.param_dtype), **metadata
            )
        self.make_bias(options, rngs)

    @property
    def lattice_kernels(self) -> tuple[jax.Array, ...]:
        """The kernels of the lattice, one array for each of its banks."""
        kernel = self.kernel[...]
        pointwise = None if self.pointwise_kernel is None else self.pointwise_kernel[...]
        if pointwise is not None and not self.masked:
            kernel, pointwise = _merged(kernel, pointwise, self.large_inputs)
        return tuple(_banks(kernel, pointwise))

    @property
    def large_inputs(self) -> np.ndarray:
        """The inputs with a large kernel for each output, as ascending indices within the group."""
        return large_inputs(self.in_features, self.out_features, self.parts, self.layout, self.feature_group_count)


def hetconv_lattice(
    in_features: int,
    out_features: int,
    kernel_size: Sequence[int],
    *,
    parts: int,
    layout: Layout = "block",
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
) -> KernelLattice:
    """The kernel lattice of a heterogeneous convolution; see :class:`HetConv` for the arguments.

    Raises:
        ValueError: for arguments that do not fit.

    Example:
        >>> from msconv_jax.operators.hetconv import hetconv_lattice
        >>> hetconv_lattice(4, 4, (3, 3), parts=2)
        KernelLattice(4 -> 4 features, 4 tiles:
          outputs 0:2  inputs 0:2  kernel 3x3  dilation 1x1
          outputs 0:2  inputs 2:4  kernel 1x1  dilation 1x1
          outputs 2:4  inputs 0:2  kernel 1x1  dilation 1x1
          outputs 2:4  inputs 2:4  kernel 3x3  dilation 1x1)
    """
    size = check_kernel_size(kernel_size, "HetConv", odd=True)
    dilation = per_axis("kernel_dilation", kernel_dilation, len(size))
    check_groups(in_features, out_features, feature_group_count)
    if layout not in get_args(Layout):
        raise ValueError(f"layout={layout!r}: expected one of {', '.join(get_args(Layout))}.")
    fan_in, fan_out = in_features // feature_group_count, out_features // feature_group_count
    if (
        isinstance(parts, bool)
        or not isinstance(parts, int | np.integer)
        or parts < 1
        or fan_in % parts
        or fan_out % parts
    ):
        common = math.gcd(fan_in, fan_out)
        fitting = [p for p in range(1, common + 1) if common % p == 0]
        raise ValueError(
            f"parts={parts!r} does not divide the {fan_in} inputs and {fan_out} outputs of a group "
            f"(in_features={in_features}, out_features={out_features}, feature_group_count={feature_group_count}): "
            f"take one of {fitting}."
        )
    return _hetconv_lattice(
        int(in_features), int(out_features), size, int(parts), layout, dilation, int(feature_group_count)
    )


@functools.lru_cache(maxsize=1024)
def _hetconv_lattice(
    in_features: int,
    out_features: int,
    kernel_size: tuple[int, ...],
    parts: int,
    layout: str,
    dilation: tuple[int, ...],
    groups: int,
) -> KernelLattice:
    small = (1,) * len(kernel_size)
    if kernel_size == small:
        parts = 1
    fan_in, fan_out = in_features // groups, out_features // groups

    def part(features: int, number: int, first: int) -> slice:
        """The channels of one part in the group that starts at `first`."""
        if layout == "lattice":
            return slice(first + number, first + features, parts)
        width = features // parts
        return slice(first + number * width, first + (number + 1) * width)

    tiles = []
    for group in range(groups):
        for p in range(parts):
            outputs = part(fan_out, p, group * fan_out)
            for q in range(parts):
                inputs = part(fan_in, q, group * fan_in)
                large = p == q
                tiles.append(Tile(outputs, inputs, kernel_size if large else small, dilation if large else small))
    return KernelLattice(in_features, out_features, tuple(tiles), dilated_extent(kernel_size, dilation))


@functools.lru_cache(maxsize=128)
def large_inputs(in_features: int, out_features: int, parts: int, layout: str, groups: int) -> np.ndarray:
    """The inputs with a large kernel for each output, (out_features, inputs of a group // parts)."""
    fan_in, fan_out = in_features // groups, out_features // groups
    within = np.arange(out_features) % fan_out
    steps = np.arange(fan_in // parts)
    if layout == "lattice":
        return within[:, None] % parts + parts * steps
    return within[:, None] // (fan_out // parts) * (fan_in // parts) + steps


def small_inputs(large: np.ndarray, fan_in: int) -> np.ndarray:
    """The other inputs of the group for each output, ascending."""
    present = np.ones((len(large), fan_in), bool)
    present[np.arange(len(large))[:, None], large] = False
    return np.nonzero(present)[1].reshape(len(large), -1)


def _merged(kernel: jax.Array, pointwise: jax.Array, large: np.ndarray) -> tuple[jax.Array, jax.Array | None]:
    """Adds the 1x1 kernels on inputs with a large kernel to its centre; returns the other 1x1 kernels separately."""
    outputs = np.arange(len(large))[:, None]
    table = pointwise.reshape(pointwise.shape[-2:]).T  # outputs, inputs
    centre = tuple(size // 2 for size in kernel.shape[:-2])
    kernel = kernel.at[centre].add(table[outputs, large].T)
    small = small_inputs(large, table.shape[1])
    if not small.size:
        return kernel, None
    rest = table[outputs, small].T
    return kernel, rest.reshape((1,) * (kernel.ndim - 2) + rest.shape)


def _banks(kernel: jax.Array, pointwise: jax.Array | None) -> list[jax.Array]:
    """The kernels in the order of the lattice's banks."""
    if pointwise is None:
        return [kernel]
    return sorted([kernel, pointwise], key=lambda array: array.shape[:-2])  # the banks' order
