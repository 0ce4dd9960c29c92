"""Oct-MobileNetV1 and Oct-MobileNetV2: mobile networks with maps of two frequencies.

A layer of stride 2 pools its input and then convolves, as everywhere in octave networks, also where there is only one
frequency: with `alpha=0` these are not `MobileNetV1` and `MobileNetV2`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.families.mobilenet import V1_UNITS, V2_BLOCKS, MobileNet, scaled
from msconv_jax.models.families.octave.resnet import in_one, oct_unit
from msconv_jax.models.layers import ConvNormAct, Layer, Parts, check_drop_path_rate, drop_path
from msconv_jax.models.registry import IMAGENET, ModelEntry, Published
from msconv_jax.operators.octave.maps import Maps, OctBatchNorm

__all__ = ["MODELS", "OctInvertedResidual", "OctMobileNetV1", "OctMobileNetV2", "OctSeparableConv"]

_PAPER = "Chen et al., Drop an Octave, arXiv 1904.05049"
_SINGLE = 10  # so many units of V1 give two frequencies, and the next one only takes them
_V2_OCTAVE = 13  # so many blocks of V2 have two frequencies inside


class OctSeparableConv(nnx.Module):
    """A depthwise 3x3 and a 1x1 octave convolution, each normalised and activated: the unit of Oct-MobileNetV1.

    Args:
        in_features: input channels, high and low together.
        out_features: output channels, high and low together.
        strides: stride of the depthwise convolution, 1 or 2.
        alpha_in: share of the input channels that are low.
        alpha_out: share of the output channels that are low.
        name: path of the unit in the model, for error messages.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` stream.

    Raises:
        ValueError: if a layer refuses its arguments.

    Example:
        >>> unit = OctSeparableConv(8, 16, 2, alpha_in=0, alpha_out=0.5, name="features.1", rngs=nnx.Rngs(0))
        >>> [part.shape for part in unit(jnp.ones((1, 9, 9, 8)))]
        [(1, 5, 5, 8), (1, 3, 3, 8)]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int,
        *,
        alpha_in: float,
        alpha_out: float,
        name: str,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {"alpha_in": alpha_in, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv1 = oct_unit(
            f"{name}.conv1",
            in_features,
            in_features,
            3,
            strides,
            alpha_out=alpha_in,
            feature_group_count=in_features,
            **common,
        )
        self.conv2 = oct_unit(f"{name}.conv2", in_features, out_features, 1, 1, alpha_out=alpha_out, **common)

    def __call__(self, maps: Maps) -> Any:
        """Maps what :class:`msconv_jax.OctConv` takes to what it gives."""
        return self.conv2(self.conv1(maps))


class OctInvertedResidual(nnx.Module):
    """MobileNetV2's block with two frequencies inside; its input and output have one.

    Unlike `InvertedResidual` it has its first 1x1 convolution also with `expansion=1`: it makes the frequencies.

    Args:
        in_features: input channels.
        out_features: output channels.
        strides: stride of the depthwise convolution, 1 or 2.
        expansion: how many times more channels than the input the depthwise convolution has.
        alpha: share of its channels that are low.
        name: path of the block in the model, for error messages.
        zero_init_last: start the block as its shortcut, where there is one.
        drop_path_rate: probability of dropping the branch in training, where there is a shortcut.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Raises:
        ValueError: if a layer refuses its arguments.

    Example:
        >>> block = OctInvertedResidual(8, 8, 1, 6, alpha=0.5, name="features.2", rngs=nnx.Rngs(0))
        >>> block(jnp.ones((1, 9, 9, 8))).shape, block.conv2.conv.in_split
        ((1, 9, 9, 8), (24, 24))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int,
        expansion: int,
        *,
        alpha: float,
        name: str,
        zero_init_last: bool = False,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = in_features * expansion
        self.residual = strides == 1 and in_features == out_features
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv1 = oct_unit(
            f"{name}.conv1", in_features, width, 1, 1, alpha_in=0, alpha_out=alpha, activation=nnx.relu6, **common
        )
        self.conv2 = oct_unit(
            f"{name}.conv2",
            width,
            width,
            3,
            strides,
            alpha_in=alpha,
            alpha_out=alpha,
            feature_group_count=width,
            activation=nnx.relu6,
            **common,
        )
        self.conv3 = oct_unit(
            f"{name}.conv3",
            width,
            out_features,
            1,
            1,
            alpha_in=alpha,
            alpha_out=0,
            activation=None,
            norm=_zero_norm if zero_init_last and self.residual else OctBatchNorm,
            **common,
        )
        self.drop_path = drop_path(drop_path_rate if self.residual else 0.0, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), out_features)."""
        y: Any = self.conv3(self.conv2(self.conv1(x)))
        return x + self.drop_path(y) if self.residual else y


def _zero_norm(features: int, **options: Any) -> OctBatchNorm:
    return OctBatchNorm(features, scale_init=nnx.initializers.zeros_init(), **options)


class OctMobileNetV1(MobileNet):
    """MobileNetV1 of octave convolutions, the stem and the last units' maps being of one frequency.

    Units 1 to 10 give two frequencies; the depthwise convolution of unit 1 still has one, the 1x1 of unit 11 joins
    them. In `feature_maps` the low channels are enlarged behind the high ones.

    Args:
        alpha: share of the channels that are low, in units 1 to 10.
        width_mult: factor on all numbers of channels, rounded down.
        num_classes: number of logits; 0 for none.
        in_channels: channels of the images.
        global_pool: "avg", or "" for none.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` stream.

    Raises:
        ValueError: if an argument is out of its range, or if a layer refuses its channels.

    Source:
        Chen et al., arXiv 1904.05049, table 5; the layout is that of its public code and of the PyTorch port.

    Example:
        >>> model = nnx.eval_shape(lambda: OctMobileNetV1(rngs=nnx.Rngs(0)))  # shapes only
        >>> [model.features[n].conv2.conv.out_split for n in (1, 10, 11)]
        [(32, 32), (256, 256), (512, 0)]
    """

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        width_mult: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        global_pool: str = "avg",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive("in_channels", in_channels, "colour images have 3")
        _check_alpha(alpha)
        stem, *channels = scaled((32, *(own for own, _ in V1_UNITS)), width_mult)
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.in_channels = in_channels
        first = ConvNormAct(in_channels, stem, 3, 2, parts=Parts(**common), name="features.0", rngs=rngs)
        layers: list[tuple[Layer, int, int]] = [(first, stem, 2)]
        inputs, low = stem, 0.0
        for number, (features, (_, strides)) in enumerate(zip(channels, V1_UNITS, strict=True), start=1):
            own = alpha if number <= _SINGLE else 0.0
            unit = OctSeparableConv(
                inputs,
                features,
                strides,
                alpha_in=low,
                alpha_out=own,
                name=f"features.{number}",
                rngs=rngs,
                **common,
            )
            layers.append((unit, features, strides))
            inputs, low = features, own
        self._make_head(self._set_features(layers), num_classes, global_pool, param_dtype, rngs)

    def _as_map(self, x: Any) -> jax.Array:
        return in_one(x)


class OctMobileNetV2(MobileNet):
    """MobileNetV2 whose first 13 of 17 blocks have two frequencies inside; between blocks there is one.

    Args:
        alpha: share of the low channels in these blocks.
        width_mult: factor on all numbers of channels, rounded down; on the last ones, 1280, only if greater than 1.
        num_classes: number of logits; 0 for none.
        in_channels: channels of the images.
        global_pool: "avg", or "" for none.
        zero_init_last: start each block with a shortcut as its shortcut.
        drop_path_rate: probability of dropping the last block's branch in training; earlier blocks' grow linearly.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Raises:
        ValueError: if an argument is out of its range, or if a layer refuses its channels.

    Source:
        Chen et al., arXiv 1904.05049, table 5; the layout is that of its public code.

    Example:
        >>> model = nnx.eval_shape(lambda: OctMobileNetV2(alpha=0.375, rngs=nnx.Rngs(0)))  # shapes only
        >>> [model.features[n].conv2.conv.in_split for n in (1, 13, 14)]
        [(20, 12), (360, 216), (576, 0)]
    """

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        width_mult: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        global_pool: str = "avg",
        zero_init_last: bool = False,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive("in_channels", in_channels, "colour images have 3")
        check_drop_path_rate(drop_path_rate)
        _check_alpha(alpha)
        stem, *channels = scaled((32, *(own for _, own, _ in V2_BLOCKS)), width_mult)
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        parts = Parts(act=nnx.relu6, **common)
        self.in_channels = in_channels
        first = ConvNormAct(in_channels, stem, 3, 2, parts=parts, name="features.0", rngs=rngs)
        layers: list[tuple[Layer, int, int]] = [(first, stem, 2)]
        inputs = stem
        for number, (features, (expansion, _, strides)) in enumerate(zip(channels, V2_BLOCKS, strict=True), start=1):
            block = OctInvertedResidual(
                inputs,
                features,
                strides,
                expansion,
                alpha=alpha if number <= _V2_OCTAVE else 0.0,
                name=f"features.{number}",
                zero_init_last=zero_init_last,
                drop_path_rate=drop_path_rate * (number - 1) / (len(V2_BLOCKS) - 1),
                rngs=rngs,
                **common,
            )
            layers.append((block, features, strides))
            inputs = features
        last = int(1280 * max(1.0, width_mult))
        name = f"features.{len(layers)}"
        layers.append((ConvNormAct(inputs, last, 1, 1, parts=parts, name=name, rngs=rngs), last, 1))
        self._make_head(self._set_features(layers), num_classes, global_pool, param_dtype, rngs)


def _check_alpha(alpha: float) -> None:
    """Raises ValueError for a share that leaves no high channels, whose size the maps are told in."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha < 1:
        raise ValueError(f"alpha={alpha!r}: must be a share of low channels in [0, 1); the paper uses 0.375 and 0.5")


MODELS = (
    ModelEntry(
        "oct_mobilenetv1",
        OctMobileNetV1,
        {"alpha": 0.5},
        paper=_PAPER,
        published=Published("OctConv paper, table 5", "4.2", "0.321", 72.4, weights="not stated"),
        **IMAGENET,
    ),
    ModelEntry(
        "oct_mobilenetv2",
        OctMobileNetV2,
        {"alpha": 0.375},
        paper=_PAPER,
        published=Published("OctConv paper, table 5", "3.5", "0.256", 72.0),
        **IMAGENET,
    ),
)
