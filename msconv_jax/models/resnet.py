"""One ResNet for every network that differs only in its convolutions, blocks, stem or shortcuts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.blocks import Bottleneck
from msconv_jax.models.image_model import ImageModel
from msconv_jax.models.layers import ConvShortcut, Layer, Parts, batch_norm, check_drop_path_rate
from msconv_jax.models.pooling import PaddingRule, check_padding_rule, max_pool
from msconv_jax.models.stages import Convs, check_conv_paths, check_stages, conv_of_each_stage, stage_grids
from msconv_jax.modes.picklable import Picklable

__all__ = ["CIFAR_STEM", "IMAGENET_STEM", "LAYERS", "DilationRule", "ResNet", "Stem"]

# Blocks of each stage, by the depth in the names: basic blocks for 18 and 34 layers, bottlenecks for the others.
LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

# The dilation of the first block of a stage that dilates instead of striding: see `ResNet`.
DilationRule = Literal["all", "torchvision"]


@dataclasses.dataclass(frozen=True)
class Stem:
    """The first convolution of a network and whether a 3x3 max-pooling of stride 2 follows.

    A deeper stem derives from it and returns several layers from `build`.

    Attributes:
        kernel_size: side of the kernel, padded by half of it, or by the network's `padding`.
        strides: stride of the convolution.
        max_pool: whether the pooling follows normalisation and activation.

    Raises:
        ValueError: if the kernel is even, because half of it pads no map symmetrically, or the stride is less than 1.

    Example:
        >>> Stem(7, 2, max_pool=False)  # PyConvHGResNet has no pooling
        Stem(kernel_size=7, strides=2, max_pool=False)
    """

    kernel_size: int
    strides: int
    max_pool: bool

    def __post_init__(self) -> None:
        check_positive("kernel_size", self.kernel_size, "the papers use 7 or 3")
        check_positive("strides", self.strides, "the papers use 2 or 1")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size}: must be odd; the papers use 7 or 3")

    @property
    def reduction(self) -> int:
        """Pixels of the image, along each side, for one pixel of the stem's map."""
        return self.strides * (2 if self.max_pool else 1)

    def build(self, parts: Parts, in_channels: int, features: int, rngs: nnx.Rngs) -> Layer:
        """Builds the model's `conv1`: (N, H, W, in_channels) -> (N, ceil(H/s), ., features)."""
        return parts.dense("conv1", in_channels, features, self.kernel_size, self.strides, rngs)


IMAGENET_STEM = Stem(kernel_size=7, strides=2, max_pool=True)
CIFAR_STEM = Stem(kernel_size=3, strides=1, max_pool=False)


class ResNet(Picklable, ImageModel):
    """Residual network: stem, stages of residual blocks, global average pooling, classifier.

    Stage s (from 0) has `layers[s]` blocks of `width * 2**s` planes. The attributes have the names of PyTorch's
    ResNets: `conv1`, `bn1`, `layer1`, ..., `fc`; in a block `conv1`, `bn1`, ..., `downsample`, `se`.

    With `dtype=jnp.bfloat16` and float32 parameters, convolutions compute in bfloat16 and feature maps are bfloat16;
    batch statistics, pooling, classifier and logits stay float32.

    Args:
        layers: number of blocks of each stage; any number of stages.
        block: class of the blocks, `BasicBlock`, `Bottleneck` or one derived from `ResidualBlock`.
        width: channels of the stem and planes of the first stage.
        num_classes: number of logits; 0 for none.
        in_channels: channels of the images.
        groups: groups of the spatial convolutions (ResNeXt's cardinality).
        base_width: width of one group when `planes` is 64 (`4` in `32x4d`).
        stem: `IMAGENET_STEM`, `CIFAR_STEM` or another `Stem`.
        strides: stride of each stage's first block; None is 1, 2, 2, ...
        output_stride: the largest allowed reduction of a map, 8, 16 or 32. A stage whose stride would exceed it keeps
            its map's size; its spatial convolutions and those of the later stages are dilated by the stride. The
            parameters are the same.
        dilation_rule: dilation of the first block of such a stage: "all" is that of its other blocks, "torchvision"
            that of the stage before. Weights of one rule fit the other only in shape.
        conv: factory of the blocks' spatial convolutions, called with the arguments of `nnx.Conv`: a class, a
            `functools.partial` of one, a sequence with one factory for each stage, or a mapping from each convolution's
            path, such as `layer1.0.conv2`, to its factory. None is `nnx.Conv`, or `GroupedConv` when `groups > 1`.
        norm: factory of normalisations, called with the arguments of `nnx.BatchNorm`.
        act: activation; stored, so use a named function (two lambdas are never equal).
        shortcut: factory of the shortcuts that change the shape, see `ConvShortcut`.
        se_reduction: reduction of the squeeze-and-excitation after each block's last normalisation
            (16 in SE-ResNet); None leaves it out.
        global_pool: "avg", or "" for none.
        zero_init_last: start each block as its shortcut, by a zero scale in its last normalisation.
        drop_path_rate: probability of dropping the last block's branch in training; it grows linearly from 0 at the
            first block.
        padding: "torch" pads every convolution and pooling by half of its kernel on either side; "tf" is TensorFlow's
            "SAME", for weights that were trained with it. Maps have the same sizes, but are shifted.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Raises:
        ValueError: if an argument is out of its range, or if a layer refuses its channels (the
            message then starts with the layer's path).

    Source:
        He et al., arXiv 1512.03385, table 1; ResNeXt: Xie et al., arXiv 1611.05431, table 1;
        SE-ResNet: Hu et al., arXiv 1709.01507. Zero initialisation: Goyal et al., arXiv 1706.02677,
        section 5.1. Output stride: Chen et al., DeepLab, arXiv 1606.00915, section 3.1. Dilation rules:
        public code of PSPNet and of PyConv's segmentation; torchvision and public code of DeepLabv3.

    Example:
        >>> model = ResNet((1, 1), width=8, num_classes=5, stem=CIFAR_STEM, rngs=nnx.Rngs(0))
        >>> images = jnp.ones((2, 9, 9, 3))
        >>> model(images).shape, model.forward_features(images).shape
        ((2, 5), (2, 5, 5, 64))
        >>> [(f["module"], f["num_chs"], f["reduction"]) for f in model.feature_info]
        [('act1', 8, 1), ('layer1', 32, 1), ('layer2', 64, 2)]
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        block: Callable[..., Layer] = Bottleneck,
        width: int = 64,
        num_classes: int = 1000,
        in_channels: int = 3,
        groups: int = 1,
        base_width: int = 64,
        stem: Stem = IMAGENET_STEM,
        strides: Sequence[int] | None = None,
        output_stride: int = 32,
        dilation_rule: DilationRule = "all",
        conv: Convs = None,
        norm: Callable[..., Layer] = batch_norm,
        act: Callable[[jax.Array], jax.Array] = nnx.relu,
        shortcut: Callable[..., Layer] = ConvShortcut,
        se_reduction: int | None = None,
        global_pool: str = "avg",
        zero_init_last: bool = True,
        drop_path_rate: float = 0.0,
        padding: PaddingRule = "torch",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layers, strides = check_stages(layers, strides)
        check_positive("width", width, "the papers use 64")
        check_positive("in_channels", in_channels, "colour images have 3")
        check_positive("groups", groups, "1 is the plain ResNet")
        check_positive("base_width", base_width, "64 is the plain ResNet")
        check_drop_path_rate(drop_path_rate)
        check_padding_rule(padding)
        if dilation_rule not in get_args(DilationRule):
            raise ValueError(
                f"dilation_rule={dilation_rule!r}: must be 'all' (the public code of PSPNet) or 'torchvision'"
            )
        grids = stage_grids(strides, stem.reduction, output_stride)
        parts = Parts(
            norm=norm,
            act=act,
            shortcut=shortcut,
            groups=groups,
            base_width=base_width,
            se_reduction=se_reduction,
            zero_init_last=zero_init_last,
            padding=padding,
            dtype=dtype,
            param_dtype=param_dtype,
        )

        self.in_channels = in_channels
        self.act = act
        self.stem_pool = stem.max_pool
        self.padding: PaddingRule = padding
        self.conv1 = stem.build(parts, in_channels, width, rngs)
        self.bn1 = parts.normalise("bn1", width, rngs)

        features = width
        outputs = [("act1", features, stem.strides)]
        rates = iter(drop_path_rate * number / max(sum(layers) - 1, 1) for number in range(sum(layers)))
        first_dilation = 1
        for stage, (conv_of_stage, grid) in enumerate(zip(conv_of_each_stage(conv, len(layers)), grids, strict=True)):
            name, planes = f"layer{stage + 1}", width * 2**stage
            of_stage = dataclasses.replace(parts, conv=conv_of_stage, dilation=grid.dilation, strided=grid.strided)
            of_first = of_stage
            if dilation_rule == "torchvision":
                of_first = dataclasses.replace(of_stage, dilation=first_dilation)
            first_dilation = grid.dilation
            blocks = []
            for index in range(layers[stage]):
                blocks.append(
                    block(
                        features,
                        planes,
                        1 if index else strides[stage],
                        parts=of_stage if index else of_first,
                        name=f"{name}.{index}",
                        drop_path_rate=next(rates),
                        rngs=rngs,
                    )
                )
                features = planes * blocks[-1].expansion
            setattr(self, name, nnx.List(blocks))
            outputs.append((name, features, grid.reduction))
        self._outputs = tuple(outputs)
        check_conv_paths(self, conv)
        self._make_head(features, num_classes, global_pool, param_dtype, rngs)

    def feature_maps(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Computes the stem's and every stage's maps.

        Args:
            x: images (N, H, W, in_channels), floating point.

        Returns:
            One NHWC map for each entry of `feature_info`; `act1` is the stem before its pooling.

        Raises:
            ValueError: if `x` has another number of axes or channels.
        """
        self.check_images(x)
        x = self.act(self.bn1(self.conv1(x)))
        maps = [x]
        if self.stem_pool:
            x = max_pool(x, 2, self.padding)
        for name, *_ in self._outputs[1:]:
            for block in getattr(self, name):
                x = block(x)
            maps.append(x)
        return tuple(maps)
