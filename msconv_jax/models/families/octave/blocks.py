"""Parts of octave networks: batch normalisation of two frequencies, and a block of convolution, norm and activation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.modes.normalization import BatchNorm
from msconv_jax.modes.picklable import Picklable
from msconv_jax.operators.lattice_conv import ConvOptions
from msconv_jax.operators.octave.maps import Maps, OctArrays, Odd, high_and_low, joined_maps, oct_channels, oct_map
from msconv_jax.operators.octave.octconv import Down, Exchange, GroupRule, OctConv
from msconv_jax.signatures import explains_arguments

__all__ = ["OctBatchNorm", "OctConvNormAct"]


class OctBatchNorm(nnx.Module):
    """Batch normalisation of maps of two frequencies, with separate statistics for each.

    Half-precision maps are normalised in float32 and returned in half precision, unless `dtype` is set.

    Args:
        features: number of channels, high and low together.
        alpha: share of the low channels, in [0, 1].
        rngs: for the initial values.
        **options: the other arguments of ``nnx.BatchNorm``, with the papers' `epsilon` 1e-5 and `momentum` 0.9
            (PyTorch's 0.1) as defaults.

    Attributes:
        bn_h: the ``nnx.BatchNorm`` of the high channels, or None.
        bn_l: the ``nnx.BatchNorm`` of the low channels, or None.

    Raises:
        ValueError: if `alpha` is not in [0, 1].
        TypeError: for an unknown argument of ``nnx.BatchNorm``.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax.models.families.octave.blocks import OctBatchNorm
        >>> norm = OctBatchNorm(16, alpha=0.25, rngs=nnx.Rngs(0))
        >>> high, low = norm((jnp.ones((1, 8, 8, 12)), jnp.ones((1, 4, 4, 4))))
        >>> high.shape, low.shape
        ((1, 8, 8, 12), (1, 4, 4, 4))
    """

    @explains_arguments
    def __init__(self, features: int, *, alpha: float, rngs: nnx.Rngs, **options: Any):
        options = {"epsilon": 1e-5, "momentum": 0.9, **options}
        self.split = oct_channels(features, alpha)
        high, low = self.split
        self.bn_h: nnx.BatchNorm | None = BatchNorm(high, rngs=rngs, **options) if high else nnx.data(None)
        self.bn_l: nnx.BatchNorm | None = BatchNorm(low, rngs=rngs, **options) if low else nnx.data(None)

    def __call__(self, maps: Maps) -> OctArrays:
        """Normalises maps in the input and output form of :class:`msconv_jax.OctConv`.

        Args:
            maps: ``(high, low)``, or one array for one frequency.

        Returns:
            ``(high, low)``, or only the high array without low channels.

        Raises:
            ValueError: if the maps do not fit.
        """
        parts = high_and_low(maps, self.split, 0, type(self).__name__)

        def normalise(norm: nnx.BatchNorm | None, x: jax.Array | None) -> jax.Array | None:
            if norm is None or x is None:
                return None
            half = norm.dtype is None and x.dtype in (jnp.bfloat16, jnp.float16)
            return norm(x).astype(x.dtype) if half else norm(x)

        return joined_maps(normalise(self.bn_h, parts[0]), normalise(self.bn_l, parts[1]))


class OctConvNormAct(Picklable):
    """Octave convolution, normalisation of each frequency and activation: the unit of the papers' networks.

    Args:
        in_features: number of input channels, high and low together.
        out_features: number of output channels, high and low together.
        kernel_size: taps per spatial axis, one int for each axis.
        strides: 1 or 2, the same along every axis.
        alpha_in: share of the input channels that are low, in [0, 1].
        alpha_out: share of the output channels that are low, in [0, 1].
        activation: a function of one array, applied to each frequency, or None.
        norm: factory of the normalisation, called with ``(out_features, alpha=alpha_out, dtype=..., param_dtype=...,
            rngs=...)``: :class:`OctBatchNorm` or a ``functools.partial`` of it.
        exchange: see :class:`OctConv`.
        down: see :class:`OctConv`.
        odd: see :class:`OctConv`.
        group_rule: see :class:`OctConv`.
        rngs: for the initial values.
        **options: see :class:`OctConv`; `use_bias` is False by default, since the normalisation has a bias.

    Attributes:
        conv: the :class:`OctConv`.
        norm: the normalisation.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax.models.families.octave.blocks import OctConvNormAct
        >>> unit = OctConvNormAct(3, 16, (3, 3), alpha_in=0, alpha_out=0.5, rngs=nnx.Rngs(0))
        >>> high, low = unit(jnp.ones((1, 8, 8, 3)))
        >>> high.shape, low.shape
        ((1, 8, 8, 8), (1, 4, 4, 8))
    """

    norm_follows: ClassVar = {"conv": "norm"}

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        alpha_in: float,
        alpha_out: float,
        activation: Callable[[jax.Array], jax.Array] | None = nnx.relu,
        norm: Callable[..., Any] = OctBatchNorm,
        exchange: Collection[Exchange] = ("l2h", "h2l"),
        down: Down = "avg",
        odd: Odd = "ceil",
        group_rule: GroupRule = "gluon",
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        own: ConvOptions = {"use_bias": False, **options}
        self.conv = OctConv(
            in_features,
            out_features,
            kernel_size,
            strides,
            alpha_in=alpha_in,
            alpha_out=alpha_out,
            exchange=exchange,
            down=down,
            odd=odd,
            group_rule=group_rule,
            rngs=rngs,
            **own,
        )
        self.norm = norm(
            out_features, alpha=alpha_out, dtype=self.conv.dtype, param_dtype=self.conv.param_dtype, rngs=rngs
        )
        self.activation = activation

    def __call__(self, inputs: Maps) -> OctArrays:
        """Convolves, normalises and activates; inputs and outputs are those of :class:`OctConv`."""
        maps = self.norm(self.conv(inputs))
        return maps if self.activation is None else oct_map(self.activation, maps)
