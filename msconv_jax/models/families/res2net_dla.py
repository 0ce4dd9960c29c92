"""Res2Net-DLA and Res2NeXt-DLA: deep layer aggregation with the blocks of Res2Net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.families.dla import Res2TreeBlock, Tree
from msconv_jax.models.image_model import ImageModel
from msconv_jax.models.layers import ConvNormAct, Layer, Parts, batch_norm, check_drop_path_rate, kaiming_normal
from msconv_jax.models.registry import IMAGENET, ModelEntry, Published

__all__ = ["DLA", "MODELS"]


class DLA(ImageModel):
    """Deep layer aggregation: two plain levels, four trees of blocks, average pooling, a 1x1 classifier.

    Args:
        levels: depth of the trees of levels 2 to 5.
        channels: channels of levels 0 to 5.
        block: factory of the blocks, called as `Res2TreeBlock` is.
        num_classes: number of logits; 0 for none.
        in_channels: channels of the images.
        global_pool: "avg", or "" for none.
        conv: factory of the blocks' spatial convolutions, as in `ResNet`.
        norm: factory of normalisations, called with the arguments of `nnx.BatchNorm`.
        act: activation; stored, so use a named function.
        zero_init_last: start each block as its shortcut.
        drop_path_rate: probability of dropping a block's branch in training.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Raises:
        ValueError: if an argument is out of its range.

    Source:
        Yu et al., Deep Layer Aggregation, arXiv 1707.06484, table 1; with Res2Net's blocks: arXiv 1904.01169, table 1.

    Example:
        >>> model = nnx.eval_shape(lambda: DLA(num_classes=5, rngs=nnx.Rngs(0)))  # shapes only
        >>> [(f["module"], f["num_chs"]) for f in model.feature_info[-2:]]
        [('level4', 512), ('level5', 1024)]
    """

    def __init__(
        self,
        levels: Sequence[int] = (1, 2, 3, 1),
        channels: Sequence[int] = (16, 32, 128, 256, 512, 1024),
        *,
        block: Callable[..., Layer] = Res2TreeBlock,
        num_classes: int = 1000,
        in_channels: int = 3,
        global_pool: str = "avg",
        conv: Callable[..., Layer] | None = None,
        norm: Callable[..., Layer] = batch_norm,
        act: Callable[[jax.Array], jax.Array] = nnx.relu,
        zero_init_last: bool = False,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if len(channels) != len(levels) + 2:
            raise ValueError(f"channels={tuple(channels)}: must have {len(levels) + 2} numbers, two more than levels")
        for width in channels:
            check_positive("channels", width, "the paper's are 16 to 1024")
        check_positive("in_channels", in_channels, "colour images have 3")
        check_drop_path_rate(drop_path_rate)
        parts = Parts(
            conv=conv, norm=norm, act=act, zero_init_last=zero_init_last, dtype=dtype, param_dtype=param_dtype
        )
        self.in_channels = in_channels
        first, second, *later = channels
        self.base_layer = ConvNormAct(in_channels, first, 7, 1, parts=parts, name="base_layer", rngs=rngs)
        self.level0 = ConvNormAct(first, first, 3, 1, parts=parts, name="level0", rngs=rngs)
        self.level1 = ConvNormAct(first, second, 3, 2, parts=parts, name="level1", rngs=rngs)
        outputs = [("level0", first, 1), ("level1", second, 2)]
        features = second
        for number, (depth, width) in enumerate(zip(levels, later, strict=True), start=2):
            tree = Tree(
                depth,
                features,
                width,
                2,
                level_root=number > 2,
                block=block,
                parts=parts,
                name=f"level{number}",
                drop_path_rate=drop_path_rate,
                rngs=rngs,
            )
            setattr(self, f"level{number}", tree)
            features = width
            outputs.append((f"level{number}", width, 2**number))
        self._outputs = tuple(outputs)
        self._make_head(features, num_classes, global_pool, param_dtype, rngs)

    def _make_classifier(self, num_classes: int, rngs: nnx.Rngs) -> nnx.Conv:
        """Builds a 1x1 convolution, as in published weights."""
        return nnx.Conv(
            self.num_features,
            num_classes,
            (1, 1),
            kernel_init=kaiming_normal,
            param_dtype=self._param_dtype,
            rngs=rngs,
        )

    def feature_maps(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Computes every level's map, one NHWC array for each entry of `feature_info`."""
        self.check_images(x)
        x = self.base_layer(x)
        maps = []
        for name, *_ in self._outputs:
            x = getattr(self, name)(x)
            maps.append(x)
        return tuple(maps)

    def forward_head(self, maps: jax.Array, *, pre_logits: bool = False) -> jax.Array:
        """Averages the last map over space and classifies; see `ImageModel`."""
        if not self.global_pool:
            return maps
        pooled = super().forward_head(maps, pre_logits=True)
        if self.fc is None or pre_logits:
            return pooled
        with jax.numpy_dtype_promotion("standard"):  # a classifier computes in the wider of the two dtypes
            return self.fc(pooled[:, None, None])[:, 0, 0]


_PAPER = "Gao et al., Res2Net, arXiv 1904.01169"

MODELS = (
    ModelEntry(
        "res2net_dla60",
        DLA,
        {"block": Res2TreeBlock},
        paper=_PAPER,
        published=Published("list of the public code", "21.15", "4.2", 78.47, 94.20, weights="non-commercial"),
        **IMAGENET,
    ),
    ModelEntry(
        "res2next_dla60",
        DLA,
        {"block": partial(Res2TreeBlock, base_width=4, groups=8)},
        paper=_PAPER,
        published=Published("list of the public code", "17.33", "3.6", 78.45, 94.14, weights="non-commercial"),
        **IMAGENET,
    ),
)
