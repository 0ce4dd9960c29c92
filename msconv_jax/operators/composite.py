"""Base of the operators with several convolutions: ``nnx.Conv``'s arguments and attributes, without its kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from msconv_jax.arguments import check_groups
from msconv_jax.costs import ConvCost
from msconv_jax.operators.grouped import GroupedConv
from msconv_jax.operators.lattice_conv import ConvOptions, check_conv_options, check_kernel_size, refuse_out_sharding
from msconv_jax.signatures import explains_arguments


class CompositeConv(nnx.Module, ConvCost):
    """Base of the drop-in operators for ``nnx.Conv`` that have more than one kernel.

    It checks the arguments and stores them under ``nnx.Conv``'s attribute names. A subclass builds its convolutions
    with :meth:`inner`, then its bias with :meth:`make_bias`, and calls :meth:`check_input` and :meth:`add_bias`
    from its ``__call__``. It sets ``self.lattice``, or defines ``macs_per_image``, for :meth:`macs`.

    Args:
        in_features: number of input channels, divisible by `feature_group_count`.
        out_features: number of output channels, divisible by `feature_group_count`.
        kernel_size: taps per spatial axis, one int for each axis.
        strides: pixels between outputs, one int or one per axis.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`.

    Raises:
        ValueError: for arguments that do not fit, at construction.
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        **options: Unpack[ConvOptions],
    ):
        name = type(self).__name__
        self.kernel_size = check_kernel_size(kernel_size, name)
        check_groups(in_features, out_features, options.get("feature_group_count", 1))
        check_conv_options(name, len(self.kernel_size), strides, options)
        unknown = set(options) - set(ConvOptions.__annotations__)
        if unknown:
            raise TypeError(f"{name} got an unexpected keyword argument {sorted(unknown)[0]!r}")
        self.in_features = in_features
        self.out_features = out_features
        self.strides = strides
        self.padding = options.get("padding", "SAME")
        self.input_dilation = options.get("input_dilation", 1)
        self.kernel_dilation = options.get("kernel_dilation", 1)
        self.feature_group_count = options.get("feature_group_count", 1)
        self.use_bias = options.get("use_bias", True)
        self.dtype = options.get("dtype")
        self.param_dtype = options.get("param_dtype", jnp.float32)
        self.precision = options.get("precision")
        self.promote_dtype: Any = options.get("promote_dtype", promote_dtype)
        self.preferred_element_type = options.get("preferred_element_type")
        self.lowering = options.get("lowering", "auto")
        self.bias: nnx.Param[jax.Array] | None = nnx.data(None)

    def inner(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None,
        options: ConvOptions,
        *,
        rngs: nnx.Rngs,
        **changes: Any,
    ) -> GroupedConv:
        """Builds one convolution without bias, with the operator's options updated by `changes`."""
        own: dict[str, Any] = {**options, "use_bias": False, **changes}
        return GroupedConv(in_features, out_features, kernel_size, strides, rngs=rngs, **own)

    def make_bias(self, options: ConvOptions, rngs: nnx.Rngs) -> None:
        """Sets ``self.bias``, one value per output channel, if `use_bias` is true."""
        if self.use_bias:
            init = options.get("bias_init", nnx.initializers.zeros_init())
            value = init(rngs.params(), (self.out_features,), self.param_dtype)
            self.bias = nnx.Param(value, **options.get("bias_metadata", {}))

    @property
    def num_parameters(self) -> int:
        """Number of weights, without the operator's bias."""
        flat = nnx.to_flat_state(nnx.state(self, nnx.Param))
        return sum(math.prod(variable.shape) for path, variable in flat if path != ("bias",))

    def check_input(self, inputs: jax.typing.ArrayLike, out_sharding: None) -> jax.Array:
        """The inputs as an array ``(*batch, *spatial, in_features)``.

        Raises:
            ValueError: if the inputs have another shape, or `out_sharding` is not None.
        """
        refuse_out_sharding(type(self).__name__, out_sharding)
        x = jnp.asarray(inputs)
        ndim = len(self.kernel_size)
        if x.ndim < ndim + 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"inputs have shape {x.shape}: {type(self).__name__} expects (*batch, {ndim} spatial axes, "
                f"{self.in_features} channels)."
            )
        return x

    def add_bias(self, y: jax.Array) -> jax.Array:
        """``y`` plus the bias, in the dtype of `y`."""
        if self.bias is None:
            return y
        return y + self.bias[...].astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
