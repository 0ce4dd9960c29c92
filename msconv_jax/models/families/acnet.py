"""AC-ResNet: a ResNet of bottlenecks whose 3x3 convolutions are adaptively connected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.layers import Layer, batch_norm
from msconv_jax.models.pooling import PaddingRule
from msconv_jax.models.registry import IMAGENET, ModelEntry, Published
from msconv_jax.models.resnet import IMAGENET_STEM, LAYERS, ResNet, Stem
from msconv_jax.models.stages import check_stages, stage_grids
from msconv_jax.operators.acnet import ACConv, Kind, Mix

__all__ = ["MODELS", "ACResNet"]


class ACResNet(ResNet):
    """`ResNet` of bottlenecks whose spatial convolutions are :class:`msconv_jax.ACConv`.

    The released networks learn three mixing weights for each position of each map, hence for images of one size
    (`mix="position"`, the default); `mix="scalar"`, what the paper speaks of, takes images of any size. They come from
    TensorFlow, so `padding` is "tf" by default, and their weights expect images whose channels are blue, green, red.

    Args:
        layers: number of blocks of each stage.
        kind: "dataset" for learnt weights, "pixel" for a gate computed from the input.
        mix: which values share a weight, for "dataset" only: "position", "scalar" or "channel". "pixel" has "scalar".
        input_size: height and width of the images in pixels. It matters for `mix="position"` alone.
        width: channels of the stem and planes of the first stage.
        num_classes: number of logits; 0 for none.
        in_channels: channels of the images.
        stem: `IMAGENET_STEM` or another `Stem`.
        strides: stride of each stage's first block; None is 1, 2, 2, ...
        output_stride: 8, 16 or 32, see `ResNet`.
        padding: "tf" or "torch", see `ResNet`.
        norm: factory of normalisations, called with the arguments of `nnx.BatchNorm`.
        act: activation; stored, so use a named function.
        global_pool: "avg", or "" for none.
        zero_init_last: start each block as its shortcut.
        drop_path_rate: probability of dropping the last block's branch in training; earlier blocks' grow linearly.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Raises:
        ValueError: if an argument is out of its range; at a call with `mix="position"`, if the images are of a size
            that gives maps of another one.

    Source:
        Wang et al., Adaptively Connected Neural Networks, arXiv 1904.03579, tables 1 and 2, and its public code.

    Example:
        >>> model = nnx.eval_shape(lambda: ACResNet((1, 1), input_size=(33, 49), rngs=nnx.Rngs(0)))  # shapes only
        >>> model.layer2[0].conv2.mix_logits.shape
        (3, 5, 7, 1)
    """

    published_classifier: ClassVar[str | None] = "linear/"

    def __init__(
        self,
        layers: Sequence[int],
        *,
        kind: Kind = "dataset",
        mix: Mix = "position",
        input_size: Sequence[int] = (224, 224),
        width: int = 64,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: Stem = IMAGENET_STEM,
        strides: Sequence[int] | None = None,
        output_stride: int = 32,
        padding: PaddingRule = "tf",
        norm: Callable[..., Layer] = batch_norm,
        act: Callable[[jax.Array], jax.Array] = nnx.relu,
        global_pool: str = "avg",
        zero_init_last: bool = True,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layers, strides = check_stages(layers, strides)
        conv = partial(ACConv, kind=kind, mix=mix)
        convs: Sequence[Any] = (conv,) * len(layers)
        self.kind: Kind = kind
        self.input_size: tuple[int, int] | None = None
        if mix == "position":
            self.input_size = _checked_size(input_size)
            grids = stage_grids(strides, stem.reduction, output_stride)
            convs = [partial(conv, spatial_shape=_maps_size(self.input_size, grid.reduction)) for grid in grids]
        super().__init__(
            layers,
            width=width,
            num_classes=num_classes,
            in_channels=in_channels,
            stem=stem,
            strides=strides,
            output_stride=output_stride,
            conv=convs,
            norm=norm,
            act=act,
            global_pool=global_pool,
            zero_init_last=zero_init_last,
            drop_path_rate=drop_path_rate,
            padding=padding,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def check_images(self, x: jax.Array) -> None:
        """Raises ValueError unless `x` is (N, H, W, in_channels), of the size that the mixing weights are for."""
        super().check_images(x)
        if self.input_size is None:
            return
        reduction = self._outputs[1][2]  # later stages divide the first stage's size
        if _maps_size(x.shape[1:3], reduction) != _maps_size(self.input_size, reduction):
            raise ValueError(
                f"images of shape {x.shape}: this network has mixing weights for each position of the maps of "
                f"{self.input_size[0]} x {self.input_size[1]} images; build it with input_size={tuple(x.shape[1:3])}, "
                "or with mix='scalar' for images of any size"
            )


def _checked_size(input_size: Sequence[int]) -> tuple[int, int]:
    if not isinstance(input_size, Sequence) or len(input_size) != 2:
        raise ValueError(f"input_size={input_size!r}: must be the images' height and width, as (224, 224)")
    for side in input_size:
        check_positive("input_size", side, "give the images' height and width, as (224, 224)")
    return cast("tuple[int, int]", tuple(input_size))


def _maps_size(size: Sequence[int], reduction: int) -> tuple[int, ...]:
    return tuple(-(-side // reduction) for side in size)


_PAPER = "Wang et al., Adaptively Connected Neural Networks, arXiv 1904.03579"
_BGR = {**IMAGENET, "channel_order": "BGR", "mean": (0.406, 0.456, 0.485), "std": (0.225, 0.224, 0.229)}

MODELS = (
    ModelEntry(
        "ac_resnet50",
        ACResNet,
        {"layers": LAYERS[50], "kind": "dataset", "mix": "position"},
        paper=_PAPER,
        published=Published("ACNet paper, table 1", "29.38", top1=77.5, weights="not stated"),
        **_BGR,
    ),
    ModelEntry(
        "ac_pixel_resnet50",
        ACResNet,
        {"layers": LAYERS[50], "kind": "pixel", "mix": "scalar"},
        paper=_PAPER,
        published=Published("ACNet paper, table 1", "31.85", top1=77.5, weights="not stated"),
        **_BGR,
    ),
)
