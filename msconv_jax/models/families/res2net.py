"""Res2Net and Res2NeXt: the block for `ResNet(block=...)`, the stem and shortcut of the v1b networks, the names."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.blocks import ResidualBlock
from msconv_jax.models.layers import Layer, Parts
from msconv_jax.models.pooling import average_pool
from msconv_jax.models.registry import CIFAR_100, IMAGENET, ModelEntry, Published
from msconv_jax.models.resnet import CIFAR_STEM, LAYERS, ResNet, Stem
from msconv_jax.modes.picklable import Picklable
from msconv_jax.operators.res2net import Kind, LastSlice, Res2Conv

__all__ = ["DEEP_STEM", "MODELS", "AveragePoolShortcut", "DeepStem", "DeepStemConv", "Res2Bottleneck"]


class DeepStemConv(Picklable):
    """Three 3x3 convolutions in the place of the 7x7, the first with the stride; normalised and activated in between.

    Args:
        in_features: channels of the images.
        out_features: output channels; the first two convolutions have half as many.
        strides: stride of the first convolution.
        parts: the network's parts.
        name: path of the stem in the model, for error messages.
        rngs: source of the `params` stream.

    Source:
        He et al., Bag of Tricks for Image Classification, arXiv 1812.01187, figure 2b.

    Example:
        >>> import jax.numpy as jnp
        >>> stem = DeepStemConv(3, 64, 2, parts=Parts(), name="conv1", rngs=nnx.Rngs(0))
        >>> stem(jnp.ones((1, 9, 9, 3))).shape
        (1, 5, 5, 64)
    """

    def __init__(self, in_features: int, out_features: int, strides: int, *, parts: Parts, name: str, rngs: nnx.Rngs):
        half = out_features // 2
        self.act = parts.act
        self.conv1 = parts.dense(f"{name}.conv1", in_features, half, 3, strides, rngs)
        self.bn1 = parts.normalise(f"{name}.bn1", half, rngs)
        self.conv2 = parts.dense(f"{name}.conv2", half, half, 3, 1, rngs)
        self.bn2 = parts.normalise(f"{name}.bn2", half, rngs)
        self.conv3 = parts.dense(f"{name}.conv3", half, out_features, 3, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), out_features), neither normalised nor activated."""
        x = self.act(self.bn1(self.conv1(x)))
        return self.conv3(self.act(self.bn2(self.conv2(x))))


class DeepStem(Stem):
    """The stem of the v1b networks, `DeepStemConv` with the same arguments as `Stem`."""

    def build(self, parts: Parts, in_channels: int, features: int, rngs: nnx.Rngs) -> Layer:
        """Builds the model's `conv1`: (N, H, W, in_channels) -> (N, ceil(H/s), ., features)."""
        return DeepStemConv(in_channels, features, self.strides, parts=parts, name="conv1", rngs=rngs)


DEEP_STEM = DeepStem(kernel_size=3, strides=2, max_pool=True)


class AveragePoolShortcut(nnx.Module):
    """Projection on the shortcut: average over strides x strides pixels, 1x1 convolution, normalisation.

    A replacement for `ConvShortcut`. A last row or column of windows that reaches beyond the map averages the pixels
    that there are. With stride 1 there is no pooling; where the parts do not take the stride, windows of its size begin
    at every pixel.

    Args:
        in_features: input channels.
        out_features: output channels.
        strides: the block's stride, and the side of the windows.
        parts: the network's parts.
        name: path of the shortcut in the model, for error messages.
        rngs: source of the `params` stream.

    Source:
        He et al., Bag of Tricks for Image Classification, arXiv 1812.01187, figure 2c; public code of Res2Net, v1b
        networks.

    Example:
        >>> import jax.numpy as jnp
        >>> shortcut = AveragePoolShortcut(8, 16, 2, parts=Parts(), name="downsample", rngs=nnx.Rngs(0))
        >>> shortcut(jnp.ones((1, 7, 7, 8))).shape
        (1, 4, 4, 16)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int,
        *,
        parts: Parts,
        name: str,
        rngs: nnx.Rngs,
    ):
        self.strides = strides
        self.step = parts.step(strides)
        self.conv = parts.dense(f"{name}.conv", in_features, out_features, 1, 1, rngs)
        self.bn = parts.normalise(f"{name}.bn", out_features, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Projects maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), out_features)."""
        if self.strides > 1:
            x = average_pool(x, self.strides, self.step)
        return self.bn(self.conv(x))


class Res2Bottleneck(ResidualBlock):
    """1x1, the slices of `Res2Conv`, 1x1; the slices' 3x3 are the network's spatial convolution.

    A slice has `floor(planes * base_width / 64) * groups` channels, and there are `scale` of them; the output has
    `4 * planes` channels. With `parts.se_reduction` squeeze-and-excitation follows the last normalisation, as in the
    other blocks.

    Args:
        in_features: input channels.
        planes: a quarter of the output channels.
        strides: stride of the block.
        parts: the network's parts. Its spatial convolution, normalisation and activation are those of every slice;
            with `conv=SISConv` the block is the scale-in-scale block.
        name: path of the block in the model, for error messages.
        drop_path_rate: probability of dropping the branch in training.
        scale: number of slices.
        base_width: channels of one slice of one group when `planes` is 64, `26` in `26w`; None takes the parts'.
        groups: groups of each slice's convolution, Res2NeXt's cardinality; None takes the parts'.
        kind: "stage" or "normal", see `Res2Conv`. None is "stage" if the shortcut projects, that is if the stride is
            not 1 or the channels change, and else "normal". In every network of the public code this makes the first
            block of each stage, also of stride 1, a "stage" block and no other.
        last_slice: "pool" or "conv" for the last slice of "stage" blocks, see `Res2Conv`; "normal" blocks pass it on.
        kernel_dilation: dilation of the slices' convolutions; None takes the parts'.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Raises:
        ValueError: if a slice would have no channels, or if a layer refuses its arguments.

    Source:
        Gao et al., Res2Net, arXiv 1904.01169, figure 2b and section 3.2; "stage" blocks: the public code.

    Example:
        >>> import jax.numpy as jnp
        >>> parts = Parts(base_width=26)
        >>> block = Res2Bottleneck(64, 64, parts=parts, name="layer1.0", rngs=nnx.Rngs(0))
        >>> block.conv2.kind, [conv.kernel.shape for conv in block.conv2.convs]
        ('stage', [(3, 3, 26, 26), (3, 3, 26, 26), (3, 3, 26, 26)])
        >>> block(jnp.ones((1, 5, 5, 64))).shape
        (1, 5, 5, 256)
    """

    expansion: ClassVar[int] = 4
    reference_planes: ClassVar[int] = 64  # for so many planes a slice has `base_width` channels in each group

    def __init__(
        self,
        in_features: int,
        planes: int,
        strides: int = 1,
        *,
        parts: Parts,
        name: str,
        drop_path_rate: float = 0.0,
        scale: int = 4,
        base_width: int | None = None,
        groups: int | None = None,
        kind: Kind | None = None,
        last_slice: LastSlice = "pool",
        kernel_dilation: int | None = None,
        rngs: nnx.Rngs,
    ):
        base_width = parts.base_width if base_width is None else base_width
        groups = parts.groups if groups is None else groups
        dilation = parts.dilation if kernel_dilation is None else kernel_dilation
        for argument, value, way_out in (
            ("scale", scale, "the paper uses 4"),
            ("base_width", base_width, "the paper uses 26"),
            ("groups", groups, "1 is Res2Net, 8 Res2NeXt"),
            ("kernel_dilation", dilation, "1 is the paper's"),
        ):
            check_positive(f"{name}: {argument}", value, way_out)
        slice_width = planes * base_width // self.reference_planes * groups
        if slice_width < 1:
            raise ValueError(
                f"{name}: planes={planes}, base_width={base_width}: floor(planes * base_width / "
                f"{self.reference_planes}) is 0, so the slices have no channels; use a larger base_width or width"
            )
        width, out_features = slice_width * scale, planes * self.expansion
        super().__init__(
            in_features,
            out_features,
            strides,
            parts=parts,
            name=name,
            drop_path_rate=drop_path_rate,
            rngs=rngs,
        )
        if kind is None:
            kind = "stage" if strides != 1 or in_features != out_features else "normal"
        of_slices = dataclasses.replace(parts, groups=groups, dilation=dilation)
        own_conv = of_slices.spatial_conv(f"{name}.conv2")

        def split(*shape: Any, **options: Any) -> Layer:
            return Res2Conv(
                *shape,
                scale=scale,
                kind=kind,
                last_slice=last_slice if kind == "stage" else "pool",
                conv=own_conv,
                norm=parts.norm,
                act=parts.act,
                **options,
            )

        self.conv1 = parts.dense(f"{name}.conv1", in_features, width, 1, 1, rngs)
        self.bn1 = parts.normalise(f"{name}.bn1", width, rngs)
        self.conv2 = dataclasses.replace(of_slices, conv=split).spatial(f"{name}.conv2", width, width, strides, rngs)
        self.conv3 = parts.dense(f"{name}.conv3", width, out_features, 1, 1, rngs)
        self.bn3 = parts.normalise(f"{name}.bn3", out_features, rngs, last_of_block=True)

    def branch(self, x: jax.Array) -> jax.Array:
        """The residual branch's map of the block's input (N, H, W, in_features)."""
        y = self.conv2(self.act(self.bn1(self.conv1(x))))
        return self.bn3(self.conv3(y))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), 4 * planes)."""
        return self.join(x, self.branch(x))


_PAPER = "Gao et al., Res2Net, arXiv 1904.01169"
_CODE = "list of the public code"
_NC = "non-commercial"
_V1B: dict[str, Any] = {"stem": DEEP_STEM, "shortcut": AveragePoolShortcut, "base_width": 26}


def _entry(name: str, depth: int, scale: int, results: Published, **config: Any) -> ModelEntry:
    """An ImageNet network. As in the public code, no block starts at zero."""
    config = {"layers": LAYERS[depth], "block": partial(Res2Bottleneck, scale=scale), "zero_init_last": False, **config}
    return ModelEntry(name, ResNet, config, paper=_PAPER, published=results, **IMAGENET)


MODELS = (
    _entry("res2net50_48w_2s", 50, 2, Published(_CODE, "25.29", "4.2", 77.32, 93.53, weights=_NC), base_width=48),
    _entry("res2net50_26w_4s", 50, 4, Published(_CODE, "25.70", "4.2", 77.99, 93.85, weights=_NC), base_width=26),
    _entry("res2net50_14w_8s", 50, 8, Published(_CODE, "25.06", "4.2", 78.14, 93.86, weights=_NC), base_width=14),
    _entry("res2net50_26w_6s", 50, 6, Published(_CODE, "37.05", "6.3", 78.58, 94.13, weights=_NC), base_width=26),
    _entry("res2net50_26w_8s", 50, 8, Published(_CODE, "48.40", "8.3", 79.20, 94.37, weights=_NC), base_width=26),
    _entry("res2net101_26w_4s", 101, 4, Published(_CODE, "45.21", "8.1", 79.19, 94.43, weights=_NC), base_width=26),
    _entry("res2next50", 50, 4, Published(_CODE, "24.67", "4.2", 78.24, 93.91, weights=_NC), base_width=4, groups=8),
    _entry(
        "se_res2net50",
        50,
        4,
        Published("Res2Net paper, table 1", top1=78.44, top5=94.06),
        base_width=26,
        se_reduction=16,
    ),
    _entry("res2net50_v1b", 50, 4, Published(_CODE, "25.72", "4.5", 80.27, 95.04, weights=_NC), **_V1B),
    _entry("res2net101_v1b", 101, 4, Published(_CODE, "45.23", "8.3", 81.23, 95.36, weights=_NC), **_V1B),
    _entry("res2net152_v1b", 152, 4, Published(weights=_NC), **_V1B),
    ModelEntry(
        "res2next29_8cx25wx4s",
        ResNet,
        # As in the public ResNeXt-29, 25 channels are those of one group at 64 planes.
        {
            "layers": (3, 3, 3),
            "block": Res2Bottleneck,
            "stem": CIFAR_STEM,
            "groups": 8,
            "base_width": 25,
            "zero_init_last": False,
        },
        paper=_PAPER,
        published=Published("SIS paper, table 1", top1=83.07),
        **CIFAR_100,
    ),
)
