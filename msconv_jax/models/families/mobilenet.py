"""MobileNetV1 and MobileNetV2, whose depthwise convolutions are interchangeable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.image_model import ImageModel
from msconv_jax.models.layers import ConvFactory, ConvNormAct, Layer, Parts, batch_norm, check_drop_path_rate, drop_path
from msconv_jax.models.registry import IMAGENET, ModelEntry, Published
from msconv_jax.models.stages import check_conv_paths
from msconv_jax.modes.picklable import Picklable

__all__ = [
    "MODELS",
    "V1_UNITS",
    "V2_BLOCKS",
    "InvertedResidual",
    "MobileNet",
    "MobileNetV1",
    "MobileNetV2",
    "SeparableConv",
    "scaled",
]

# Channels and stride of each unit behind the stem, which has 32 channels and stride 2.
V1_UNITS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
# Expansion, channels and stride of each block between the stem and the last 1x1 convolution of 1280 channels.
V2_BLOCKS = tuple(
    (expansion, channels, stride if index == 0 else 1)
    for expansion, channels, depth, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for index in range(depth)
)


class MobileNet(ImageModel):
    """Base of the mobile networks: a list of layers, `features`, called one after the other.

    A map comes out before each layer with a stride, but for the stem, and at the end.
    """

    features: nnx.List

    def _set_features(self, layers: Iterable[tuple[Layer, int, int]]) -> int:
        """Takes each layer with its output channels and stride, the stem first; returns the last channels."""
        modules, channels, strides = zip(*layers, strict=True)
        self.features = nnx.List(modules)
        reductions = [strides[0]]
        for stride in strides[1:]:
            reductions.append(reductions[-1] * stride)
        last = len(modules) - 1
        # The stem's own map is left out: the layer behind it has its resolution.
        self._taps = tuple(n for n in range(1, last + 1) if n == last or strides[n + 1] != 1)
        self._outputs = tuple((f"features.{n}", channels[n], reductions[n]) for n in self._taps)
        return channels[-1]

    def feature_maps(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Computes one NHWC map for each entry of `feature_info`, the last one of each resolution.

        Args:
            x: images (N, H, W, in_channels), floating point.

        Raises:
            ValueError: if `x` has another number of axes or channels.
        """
        self.check_images(x)
        maps = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self._taps:
                maps.append(self._as_map(x))
        return tuple(maps)

    def _as_map(self, x: Any) -> jax.Array:
        """One array of what a layer gives."""
        return x


def scaled(channels: Sequence[int], width_mult: float, rounding: Callable[[float], int] = int) -> tuple[int, ...]:
    """Channels times the width multiplier.

    Args:
        channels: of a network of width 1.
        width_mult: the multiplier.
        rounding: from a product to a number of channels.

    Returns:
        The numbers of channels.

    Raises:
        ValueError: if `width_mult` is not positive, or leaves a layer without channels.

    Example:
        >>> scaled((32, 64), 0.75)
        (24, 48)
    """
    valid = isinstance(width_mult, int | float) and not isinstance(width_mult, bool) and 0 < width_mult < float("inf")
    result = tuple(rounding(own * width_mult) for own in channels) if valid else ()
    if not valid or min(result) < 1:
        raise ValueError(
            f"width_mult={width_mult!r}: must be a positive number that leaves each layer a channel, such as 0.75; "
            f"the thinnest of width 1 has {min(channels)}"
        )
    return result


def _divisible_by_8(channels: float) -> int:
    """The nearest multiple of 8, but no less than nine tenths: the rule of MobileNetV2's public code."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class SeparableConv(Picklable):
    """A depthwise 3x3 and a 1x1 convolution, each normalised and activated: the unit of MobileNetV1.

    Args:
        in_features: input channels.
        out_features: output channels.
        strides: stride of the depthwise convolution.
        parts: the network's parts; the depthwise convolution is their spatial one.
        name: path of the unit in the model, for error messages.
        rngs: source of the `params` stream.

    Source:
        Howard et al., MobileNets, arXiv 1704.04861, figure 3 right.

    Example:
        >>> unit = SeparableConv(8, 16, 2, parts=Parts(), name="features.1", rngs=nnx.Rngs(0))
        >>> unit(jnp.ones((1, 9, 9, 8))).shape, type(unit.conv1).__name__, unit.conv1.kernel.shape
        ((1, 5, 5, 16), 'GroupedConv', (3, 3, 1, 8))
    """

    def __init__(self, in_features: int, out_features: int, strides: int, *, parts: Parts, name: str, rngs: nnx.Rngs):
        self.act = parts.act
        self.conv1 = _depthwise(parts, f"{name}.conv1", in_features, strides, rngs)
        self.bn1 = parts.normalise(f"{name}.bn1", in_features, rngs)
        self.conv2 = parts.dense(f"{name}.conv2", in_features, out_features, 1, 1, rngs)
        self.bn2 = parts.normalise(f"{name}.bn2", out_features, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), out_features)."""
        x = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(x)))


class InvertedResidual(Picklable):
    """1x1 to more channels, depthwise 3x3, 1x1 to fewer without activation; added to the input where shapes agree.

    Args:
        in_features: input channels.
        out_features: output channels.
        strides: stride of the depthwise convolution.
        expansion: how many times more channels than the input the depthwise convolution has; with 1 the first 1x1 is
            left out.
        parts: the network's parts; the depthwise convolution is their spatial one.
        name: path of the block in the model, for error messages.
        drop_path_rate: probability of dropping the branch in training, where there is a shortcut.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Source:
        Sandler et al., MobileNetV2, arXiv 1801.04381, section 3.3 and table 1.

    Example:
        >>> block = InvertedResidual(8, 8, 1, 6, parts=Parts(), name="features.2", rngs=nnx.Rngs(0))
        >>> block(jnp.ones((1, 9, 9, 8))).shape, block.conv2.kernel.shape
        ((1, 9, 9, 8), (3, 3, 1, 48))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int,
        expansion: int,
        *,
        parts: Parts,
        name: str,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        width = in_features * expansion
        self.act = parts.act
        self.residual = strides == 1 and in_features == out_features
        self.conv1: Layer | None = nnx.data(None)
        self.bn1: Layer | None = nnx.data(None)
        if expansion != 1:
            self.conv1 = parts.dense(f"{name}.conv1", in_features, width, 1, 1, rngs)
            self.bn1 = parts.normalise(f"{name}.bn1", width, rngs)
        self.conv2 = _depthwise(parts, f"{name}.conv2", width, strides, rngs)
        self.bn2 = parts.normalise(f"{name}.bn2", width, rngs)
        self.conv3 = parts.dense(f"{name}.conv3", width, out_features, 1, 1, rngs)
        self.bn3 = parts.normalise(f"{name}.bn3", out_features, rngs, last_of_block=self.residual)
        self.drop_path = drop_path(drop_path_rate if self.residual else 0.0, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), out_features)."""
        y = x if self.conv1 is None or self.bn1 is None else self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return x + self.drop_path(y) if self.residual else y


def _depthwise(parts: Parts, name: str, features: int, strides: int, rngs: nnx.Rngs) -> Layer:
    return dataclasses.replace(parts, groups=features).spatial(name, features, features, strides, rngs)


class MobileNetV1(MobileNet):
    """MobileNetV1: a 3x3 stem and 13 separable convolutions, `SeparableConv`, without shortcuts.

    Args:
        width_mult: factor on all numbers of channels, rounded down.
        num_classes: number of logits; 0 for none.
        in_channels: channels of the images.
        conv: factory of the depthwise convolutions, called with the arguments of `nnx.Conv`, or a mapping with one for
            the path of each, `features.1.conv1` to `features.13.conv1`. None takes `GroupedConv`.
        norm: factory of normalisations, called with the arguments of `nnx.BatchNorm`.
        act: activation; stored, so use a named function.
        global_pool: "avg", or "" for none.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` stream.

    Raises:
        ValueError: if an argument is out of its range, or if a layer refuses its channels.

    Source:
        Howard et al., MobileNets, arXiv 1704.04861, table 1.

    Example:
        >>> model = nnx.eval_shape(lambda: MobileNetV1(width_mult=0.25, rngs=nnx.Rngs(0)))  # shapes only
        >>> [(f["module"], f["num_chs"], f["reduction"]) for f in model.feature_info[-2:]]
        [('features.11', 128, 16), ('features.13', 256, 32)]
    """

    def __init__(
        self,
        *,
        width_mult: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        conv: ConvFactory = None,
        norm: Callable[..., Layer] = batch_norm,
        act: Callable[[jax.Array], jax.Array] = nnx.relu,
        global_pool: str = "avg",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive("in_channels", in_channels, "colour images have 3")
        stem, *channels = scaled((32, *(own for own, _ in V1_UNITS)), width_mult)
        parts = Parts(conv=conv, norm=norm, act=act, dtype=dtype, param_dtype=param_dtype)
        self.in_channels = in_channels
        first = ConvNormAct(in_channels, stem, 3, 2, parts=parts, name="features.0", rngs=rngs)
        layers: list[tuple[Layer, int, int]] = [(first, stem, 2)]
        inputs = stem
        for number, (features, (_, strides)) in enumerate(zip(channels, V1_UNITS, strict=True), start=1):
            unit = SeparableConv(inputs, features, strides, parts=parts, name=f"features.{number}", rngs=rngs)
            layers.append((unit, features, strides))
            inputs = features
        self._make_head(self._set_features(layers), num_classes, global_pool, param_dtype, rngs)
        check_conv_paths(self, conv)


class MobileNetV2(MobileNet):
    """MobileNetV2: a 3x3 stem, 17 inverted residual blocks, and a 1x1 convolution to 1280 channels.

    There is no dropout before the classifier.

    Args:
        width_mult: factor on all numbers of channels, which are rounded to multiples of 8; the last ones, 1280, are
            multiplied only if it is greater than 1.
        num_classes: number of logits; 0 for none.
        in_channels: channels of the images.
        conv: factory of the depthwise convolutions, called with the arguments of `nnx.Conv`, or a mapping with one for
            the path of each, `features.1.conv2` to `features.17.conv2`. None takes `GroupedConv`.
        norm: factory of normalisations, called with the arguments of `nnx.BatchNorm`.
        act: activation; stored, so use a named function.
        global_pool: "avg", or "" for none.
        zero_init_last: start each block with a shortcut as its shortcut.
        drop_path_rate: probability of dropping the last block's branch in training; earlier blocks' grow linearly.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Raises:
        ValueError: if an argument is out of its range, or if a layer refuses its channels.

    Source:
        Sandler et al., MobileNetV2, arXiv 1801.04381, table 2; rounding as in its public code.

    Example:
        >>> model = nnx.eval_shape(lambda: MobileNetV2(rngs=nnx.Rngs(0)))  # shapes only
        >>> [(f["num_chs"], f["reduction"]) for f in model.feature_info]
        [(16, 2), (24, 4), (32, 8), (96, 16), (1280, 32)]
    """

    def __init__(
        self,
        *,
        width_mult: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        conv: ConvFactory = None,
        norm: Callable[..., Layer] = batch_norm,
        act: Callable[[jax.Array], jax.Array] = nnx.relu6,
        global_pool: str = "avg",
        zero_init_last: bool = False,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive("in_channels", in_channels, "colour images have 3")
        check_drop_path_rate(drop_path_rate)
        table = (32, *(own for _, own, _ in V2_BLOCKS))
        stem, *channels = scaled(table, width_mult, _divisible_by_8)
        last = _divisible_by_8(1280 * max(1.0, width_mult))
        parts = Parts(
            conv=conv, norm=norm, act=act, zero_init_last=zero_init_last, dtype=dtype, param_dtype=param_dtype
        )
        self.in_channels = in_channels
        first = ConvNormAct(in_channels, stem, 3, 2, parts=parts, name="features.0", rngs=rngs)
        layers: list[tuple[Layer, int, int]] = [(first, stem, 2)]
        inputs = stem
        for number, (features, (expansion, _, strides)) in enumerate(zip(channels, V2_BLOCKS, strict=True), start=1):
            block = InvertedResidual(
                inputs,
                features,
                strides,
                expansion,
                parts=parts,
                name=f"features.{number}",
                drop_path_rate=drop_path_rate * (number - 1) / (len(V2_BLOCKS) - 1),
                rngs=rngs,
            )
            layers.append((block, features, strides))
            inputs = features
        name = f"features.{len(layers)}"
        layers.append((ConvNormAct(inputs, last, 1, 1, parts=parts, name=name, rngs=rngs), last, 1))
        self._make_head(self._set_features(layers), num_classes, global_pool, param_dtype, rngs)
        check_conv_paths(self, conv)


MODELS = (
    ModelEntry(
        "mobilenetv1",
        MobileNetV1,
        {},
        paper="Howard et al., MobileNets, arXiv 1704.04861",
        published=Published("MobileNets paper, table 4", "4.2", "0.569", 70.6),
        **IMAGENET,
    ),
    ModelEntry(
        "mobilenetv2",
        MobileNetV2,
        {},
        paper="Sandler et al., MobileNetV2, arXiv 1801.04381",
        published=Published("OctConv paper, table 5", "3.5", "0.300", 72.0, weights="BSD-3-Clause"),
        **IMAGENET,
    ),
)
