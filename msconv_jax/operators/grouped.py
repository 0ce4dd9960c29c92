"""Grouped convolution (``nnx.Conv``) with a faster lowering than XLA's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from flax import nnx

from msconv_jax.arguments import per_axis
from msconv_jax.convolution import grouped_lattice
from msconv_jax.operators.lattice_conv import ConvOptions, LatticeConv, check_kernel_size
from msconv_jax.signatures import explains_arguments


class GroupedConv(LatticeConv):
    """``nnx.Conv`` with the fast grouped lowering, and the same outputs, arguments and parameters.

    On CPU, XLA's grouped convolutions are several times, and their gradients up to 100 times, slower than dense ones
    of the same cost. This operator computes them as dense convolutions over packs of groups, and depthwise ones as a
    sum of shifted products.

    Args:
        in_features: number of input channels, divisible by `feature_group_count`.
        out_features: number of output channels, divisible by `feature_group_count`.
        kernel_size: taps per spatial axis, one int for each axis.
        strides: pixels between outputs, one int or one per axis.
        rngs: for the initial values.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax import GroupedConv
        >>> conv = GroupedConv(64, 64, (3, 3), padding=1, feature_group_count=32, rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 14, 14, 64))).shape
        (1, 14, 14, 64)
        >>> conv.kernel.shape
        (3, 3, 2, 64)
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        size = check_kernel_size(kernel_size, "GroupedConv")
        dilation = per_axis("kernel_dilation", options.get("kernel_dilation"), len(size))
        groups = options.get("feature_group_count", 1)
        lattice = grouped_lattice(in_features, out_features, size, dilation, groups)
        super().__init__(lattice, size, strides, rngs=rngs, **options)
