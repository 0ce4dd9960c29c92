"""Oct-ResNet: a ResNet whose maps have two frequencies in all stages but the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.image_model import ImageModel
from msconv_jax.models.layers import Parts, batch_norm, check_drop_path_rate, drop_path, kaiming_normal, naming_layer
from msconv_jax.models.pooling import max_pool
from msconv_jax.models.registry import CIFAR_10, IMAGENET, ModelEntry, Published
from msconv_jax.models.resnet import CIFAR_STEM, IMAGENET_STEM, LAYERS, Stem
from msconv_jax.models.stages import check_stages, stage_grids
from msconv_jax.operators.octave.maps import Maps, OctBatchNorm, oct_upsample
from msconv_jax.operators.octave.octconv import OctConvNormAct

__all__ = ["MODELS", "OctBasicBlock", "OctBlock", "OctBottleneck", "OctResNet", "in_one", "oct_unit"]


def oct_unit(
    name: str,
    in_features: int,
    out_features: int,
    kernel_size: int,
    strides: int,
    *,
    kernel_dilation: int = 1,
    **options: Any,
) -> OctConvNormAct:
    """Builds an octave convolution with normalisation and activation as the networks have it.

    Args:
        name: path of the unit in the model, for error messages.
        in_features: input channels, high and low together.
        out_features: output channels, high and low together.
        kernel_size: side of the kernel, padded by half of it.
        strides: 1 or 2.
        kernel_dilation: pixels between taps.
        **options: the other arguments of :class:`OctConvNormAct`, which refuses unknown ones.

    Returns:
        The unit.

    Raises:
        ValueError: starting with the path, if an argument does not fit.

    Example:
        >>> unit = oct_unit("conv1", 8, 16, 3, 2, alpha_in=0, alpha_out=0.25, rngs=nnx.Rngs(0))
        >>> unit.conv.out_split
        (12, 4)
    """
    with naming_layer(name):
        return OctConvNormAct(
            in_features,
            out_features,
            (kernel_size, kernel_size),
            strides,
            padding=kernel_size // 2 * kernel_dilation,
            kernel_dilation=kernel_dilation,
            kernel_init=kaiming_normal,
            **options,
        )


class OctBlock(nnx.Module):
    """The frame of an octave block: a branch and a shortcut; frequencies are added and activated one by one.

    A block derives from it, builds the units of its branch by `oct_unit`, then the frame, and ends its call with
    `self.join(maps, branch)`.

    Args:
        in_features: input channels, high and low together.
        out_features: output channels, high and low together.
        strides: stride of the block, 1 or 2.
        alpha_in: share of the input channels that are low.
        alpha_out: share of all other maps' channels that are low.
        drop_path_rate: probability of dropping the branch in training.
        name: path of the block in the model, for error messages.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Example:
        >>> block = OctBlock(8, 8, 1, alpha_in=0, alpha_out=0, drop_path_rate=0.0, name="block", rngs=nnx.Rngs(0))
        >>> x = jnp.ones((1, 4, 4, 8))
        >>> bool((block.join(x, 2 * x) == 3).all())
        True
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int,
        *,
        alpha_in: float,
        alpha_out: float,
        drop_path_rate: float,
        name: str,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.downsample: Any = nnx.data(None)
        if strides != 1 or in_features != out_features or alpha_in != alpha_out:
            self.downsample = oct_unit(
                f"{name}.downsample",
                in_features,
                out_features,
                1,
                strides,
                alpha_in=alpha_in,
                alpha_out=alpha_out,
                activation=None,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
        self.drop_path = drop_path(drop_path_rate, rngs)

    def join(self, maps: Maps, branch: Any) -> Any:
        """Adds a block's input to its branch's result and activates."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        first = jax.tree.leaves(branch)[0]
        keep = self.drop_path(jnp.ones((first.shape[0], 1, 1, 1), first.dtype))  # of both frequencies or of none
        return jax.tree.map(lambda a, b: nnx.relu(a * keep + b), branch, shortcut)


class OctBasicBlock(OctBlock):
    """Two 3x3 octave convolutions and a shortcut, for small networks; the papers' have bottlenecks.

    Args:
        in_features: input channels, high and low together.
        planes: output channels.
        strides: stride of the first convolution, 1 or 2.
        alpha_in: share of the input channels that are low.
        alpha_out: share of all other maps' channels that are low.
        groups: 1; a basic block has no groups.
        base_width: 64; a basic block has no other width.
        kernel_dilation: dilation of both convolutions.
        zero_init_last: start the block as its shortcut.
        drop_path_rate: probability of dropping the branch in training.
        name: path of the block in the model, for error messages.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Raises:
        ValueError: for groups or another base width, or if a layer refuses its arguments.

    Source:
        Chen et al., arXiv 1904.05049, sec. 3.2, for the block of He et al., arXiv 1512.03385, figure 5 left.

    Example:
        >>> block = OctBasicBlock(8, 16, 2, alpha_in=0, alpha_out=0.5, name="layer1.0", rngs=nnx.Rngs(0))
        >>> high, low = block(jnp.ones((1, 9, 9, 8)))
        >>> high.shape, low.shape
        ((1, 5, 5, 8), (1, 3, 3, 8))
    """

    def __init__(
        self,
        in_features: int,
        planes: int,
        strides: int = 1,
        *,
        alpha_in: float,
        alpha_out: float,
        groups: int = 1,
        base_width: int = 64,
        kernel_dilation: int = 1,
        zero_init_last: bool = False,
        drop_path_rate: float = 0.0,
        name: str,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if groups != 1 or base_width != 64:
            raise ValueError(
                f"{name}: groups={groups}, base_width={base_width}: an OctBasicBlock takes groups=1 and base_width=64 "
                "only; use block=OctBottleneck"
            )
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        unit = partial(oct_unit, alpha_out=alpha_out, kernel_dilation=kernel_dilation, **common)
        self.conv1 = unit(f"{name}.conv1", in_features, planes, 3, strides, alpha_in=alpha_in)
        last = {"activation": None, "norm": _last_norm(zero_init_last)}
        self.conv2 = unit(f"{name}.conv2", planes, planes, 3, 1, alpha_in=alpha_out, **last)
        super().__init__(
            in_features,
            planes,
            strides,
            alpha_in=alpha_in,
            alpha_out=alpha_out,
            drop_path_rate=drop_path_rate,
            name=name,
            **common,
        )

    def __call__(self, maps: Maps) -> Any:
        """Maps what :class:`msconv_jax.OctConv` takes to what it gives."""
        return self.join(maps, self.conv2(self.conv1(maps)))


class OctBottleneck(OctBlock):
    """1x1, 3x3, 1x1 octave convolutions and a shortcut; frequencies are added and activated one by one.

    Args:
        in_features: input channels, high and low together.
        planes: a quarter of the output channels.
        strides: stride of the 3x3 convolution, 1 or 2.
        alpha_in: share of the input channels that are low.
        alpha_out: share of all other maps' channels that are low.
        groups: groups of the 3x3 convolution.
        base_width: width of one group when `planes` is 64.
        kernel_dilation: dilation of the 3x3 convolution.
        zero_init_last: start the block as its shortcut.
        drop_path_rate: probability of dropping the branch in training.
        name: path of the block in the model, for error messages.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Raises:
        ValueError: if a layer refuses its arguments.

    Source:
        Chen et al., arXiv 1904.05049, sec. 3.2; its places in the network are the PyTorch port's.

    Example:
        >>> block = OctBottleneck(32, 8, 2, alpha_in=0.5, alpha_out=0.5, name="layer2.0", rngs=nnx.Rngs(0))
        >>> high, low = block((jnp.ones((1, 8, 8, 16)), jnp.ones((1, 4, 4, 16))))
        >>> high.shape, low.shape
        ((1, 4, 4, 16), (1, 2, 2, 16))
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        in_features: int,
        planes: int,
        strides: int = 1,
        *,
        alpha_in: float,
        alpha_out: float,
        groups: int = 1,
        base_width: int = 64,
        kernel_dilation: int = 1,
        zero_init_last: bool = False,
        drop_path_rate: float = 0.0,
        name: str,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width, out_features = planes * base_width // 64 * groups, planes * self.expansion
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        unit = partial(oct_unit, alpha_out=alpha_out, **common)
        self.conv1 = unit(f"{name}.conv1", in_features, width, 1, 1, alpha_in=alpha_in)
        self.conv2 = unit(
            f"{name}.conv2",
            width,
            width,
            3,
            strides,
            alpha_in=alpha_out,
            kernel_dilation=kernel_dilation,
            feature_group_count=groups,
        )
        last = {"activation": None, "norm": _last_norm(zero_init_last)}
        self.conv3 = unit(f"{name}.conv3", width, out_features, 1, 1, alpha_in=alpha_out, **last)
        super().__init__(
            in_features,
            out_features,
            strides,
            alpha_in=alpha_in,
            alpha_out=alpha_out,
            drop_path_rate=drop_path_rate,
            name=name,
            **common,
        )

    def __call__(self, maps: Maps) -> Any:
        """Maps what :class:`msconv_jax.OctConv` takes to what it gives."""
        return self.join(maps, self.conv3(self.conv2(self.conv1(maps))))


def _last_norm(zero_init: bool) -> Callable[..., Any]:
    """The normalisation at the end of a branch, which may start at zero."""
    return partial(OctBatchNorm, scale_init=nnx.initializers.zeros_init()) if zero_init else OctBatchNorm


class OctResNet(ImageModel):
    """ResNet of octave blocks. The last stage, whose maps are too small for a lower frequency, has one.

    The stem and its max-pooling are plain. A stage's map of two frequencies comes out of `feature_maps` as one, the
    low channels enlarged behind the high ones; `octave_maps` has them apart.

    Args:
        layers: number of blocks of each stage.
        block: class of the blocks, `OctBottleneck` or `OctBasicBlock`.
        stem: `IMAGENET_STEM`, `CIFAR_STEM` or another `Stem`; it is plain.
        strides: stride of each stage's first block, 1 or 2; None is 1, 2, 2, ...
        alpha: share of the channels that are low, in all stages but the last.
        width: channels of the stem and planes of the first stage.
        num_classes: number of logits; 0 for none.
        in_channels: channels of the images.
        groups: groups of the 3x3 convolutions.
        base_width: width of one group when `planes` is 64.
        output_stride: as in `ResNet`, of the high maps; low ones have twice as much.
        global_pool: "avg", or "" for none.
        zero_init_last: start each block as its shortcut.
        drop_path_rate: probability of dropping the last block's branch in training; earlier blocks' grow linearly.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Raises:
        ValueError: if an argument is out of its range.

    Source:
        Chen et al., Drop an Octave, arXiv 1904.05049; the layout is that of its PyTorch port.

    Example:
        >>> model = OctResNet((1, 1), width=8, num_classes=5, rngs=nnx.Rngs(0))
        >>> images = jnp.ones((1, 33, 49, 3))
        >>> model(images).shape, [m.shape for m in model.octave_maps(images)[0]]
        ((1, 5), [(1, 9, 13, 16), (1, 5, 7, 16)])
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        block: Callable[..., OctBlock] = OctBottleneck,
        stem: Stem = IMAGENET_STEM,
        strides: Sequence[int] | None = None,
        alpha: float = 0.5,
        width: int = 64,
        num_classes: int = 1000,
        in_channels: int = 3,
        groups: int = 1,
        base_width: int = 64,
        output_stride: int = 32,
        global_pool: str = "avg",
        zero_init_last: bool = False,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layers, strides = check_stages(layers, strides)
        for name, value in (
            ("width", width),
            ("in_channels", in_channels),
            ("groups", groups),
            ("base_width", base_width),
        ):
            check_positive(name, value, "see the paper's networks")
        check_drop_path_rate(drop_path_rate)
        grids = stage_grids(strides, stem.reduction, output_stride)
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.in_channels = in_channels
        self.stem_pool = stem.max_pool
        self.conv1 = stem.build(Parts(dtype=dtype, param_dtype=param_dtype), in_channels, width, rngs)
        self.bn1 = batch_norm(width, **common)
        outputs = [("act1", width, stem.strides)]
        features, low, built, total = width, 0.0, 0, sum(layers)
        for stage, depth in enumerate(layers):
            own = alpha if stage + 1 < len(layers) else 0.0
            blocks = []
            for index in range(depth):
                built_block = block(
                    features,
                    width * 2**stage,
                    strides[stage] if index == 0 and grids[stage].strided else 1,
                    alpha_in=low,
                    alpha_out=own,
                    groups=groups,
                    base_width=base_width,
                    kernel_dilation=grids[stage].dilation,
                    zero_init_last=zero_init_last,
                    drop_path_rate=drop_path_rate * built / max(total - 1, 1),
                    name=f"layer{stage + 1}.{index}",
                    **common,
                )
                features, low, built = width * 2**stage * built_block.expansion, own, built + 1
                blocks.append(built_block)
            setattr(self, f"layer{stage + 1}", nnx.List(blocks))
            outputs.append((f"layer{stage + 1}", features, grids[stage].reduction))
        self._outputs = tuple(outputs)
        self._make_head(features, num_classes, global_pool, param_dtype, rngs)

    def octave_maps(self, x: jax.Array) -> tuple[Any, ...]:
        """Computes every stage's output, ``(high, low)`` or one array, of images (N, H, W, in_channels)."""
        return tuple(self._all_maps(x)[1:])

    def _all_maps(self, x: jax.Array) -> list[Any]:
        self.check_images(x)
        maps: list[Any] = [nnx.relu(self.bn1(self.conv1(x)))]
        y: Any = max_pool(maps[0], 2) if self.stem_pool else maps[0]
        for name, *_ in self._outputs[1:]:
            for block in getattr(self, name):
                y = block(y)
            maps.append(y)
        return maps

    def feature_maps(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Computes the stem's and every stage's map, one NHWC array for each entry of `feature_info`."""
        return tuple(in_one(maps) for maps in self._all_maps(x))


def in_one(maps: Any) -> jax.Array:
    """High and low channels in one map of the high ones' size.

    Example:
        >>> in_one((jnp.ones((1, 5, 5, 6)), jnp.ones((1, 3, 3, 2)))).shape
        (1, 5, 5, 8)
    """
    if not isinstance(maps, tuple):
        return maps
    parts = [part for part in maps if part is not None]
    size = parts[0].shape[1:3]
    return jnp.concatenate([parts[0], *(oct_upsample(part, size) for part in parts[1:])], axis=-1)


_CODE = "list of the PyTorch port"
_OCT6 = "OctConv paper, table 6"
_NONE = "not stated"
_32X4D: dict[str, Any] = {"groups": 32, "base_width": 4}
_SMALL: dict[str, Any] = {"block": OctBasicBlock, "stem": CIFAR_STEM, "width": 16}


def _entry(
    name: str, layers: Sequence[int], results: Published, images: Mapping[str, Any] = IMAGENET, **config: Any
) -> ModelEntry:
    paper = "Chen et al., Drop an Octave, arXiv 1904.05049" + (" (own network)" if images is CIFAR_10 else "")
    return ModelEntry(name, OctResNet, {"layers": layers, **config}, paper=paper, published=results, **images)


MODELS = (
    _entry("oct_resnet26", (2, 2, 2, 2), Published()),
    _entry("oct_resnet50", LAYERS[50], Published(_CODE, "25.557", "2.367", 77.640, 93.662, weights=_NONE)),
    _entry("oct_resnet101", LAYERS[101], Published(_CODE, None, "3.991", 78.794, 94.330, weights=_NONE)),
    _entry("oct_resnet152", LAYERS[152], Published(_CODE, None, "5.615", 79.258, 94.480, weights=_NONE)),
    _entry("oct_resnet200", (3, 24, 36, 3), Published()),
    _entry("oct_resnext50_32x4d", LAYERS[50], Published(_OCT6, "25.0", "2.4", 78.3), **_32X4D),
    _entry("oct_resnext101_32x4d", LAYERS[101], Published(_OCT6, "44.2", "4.0", 78.9), **_32X4D),
    # The paper has no network of basic blocks; these two are this library's, for tests and small machines.
    _entry("oct_resnet8", (1, 1, 1), Published(), CIFAR_10, **_SMALL),
    _entry("oct_resnet20", (3, 3, 3), Published(), CIFAR_10, **_SMALL),
)
