"""The baseline of the papers' comparisons of heads: one 3x3 convolution on a dilated backbone.

It is PSPNet's public code without its pyramid of poolings; see Duta et al., "Pyramidal Convolution", arXiv 2006.11538,
supplement, Table 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.backbone import FeatureBackbone
from msconv_jax.models.layers import ConvNormAct, Parts
from msconv_jax.models.registry import ADE20K, ModelEntry, Published
from msconv_jax.models.stages import Convs
from msconv_jax.segmentation.segmenter import Segmenter, SegmenterOptions, create_backbone
from msconv_jax.signatures import explains_arguments

__all__ = ["MODELS", "SegBaseline", "SegBaselineOptions", "seg_baseline"]


class SegBaseline(Segmenter):
    """The segmentation network whose head is a 3x3 convolution with norm and ReLU; see `Segmenter` for its calls.

    Args:
        backbone: see `Segmenter`.
        num_classes: number of logits of a pixel; ADE20K has 150.
        features: channels of the head.
        auxiliary_features: channels of the auxiliary head before its classifier.
        rngs: source of the `params` and, with dropout, `dropout` streams.
        **options: see `Segmenter`.

    Raises:
        ValueError: see `Segmenter`.

    Source:
        Public code of PSPNet, with ``use_ppm=False``.

    Example:
        >>> from msconv_jax.models import create_model
        >>> def build():
        ...     backbone = create_model("ps_resnet8", output_stride=8, features_only=True, rngs=nnx.Rngs(0))
        ...     return SegBaseline(backbone, 5, features=16, auxiliary_features=16, rngs=nnx.Rngs(1))
        >>> model = nnx.eval_shape(build)  # shapes only
        >>> model.eval()
        >>> nnx.eval_shape(lambda model: model(jnp.ones((1, 33, 41, 3))), model).shape
        (1, 33, 41, 5)
    """

    @explains_arguments
    def __init__(
        self,
        backbone: FeatureBackbone,
        num_classes: int = 150,
        *,
        features: int = 512,
        auxiliary_features: int = 256,
        rngs: nnx.Rngs,
        **options: Unpack[SegmenterOptions],
    ):
        check_positive("features", features, "the public code uses 512")

        def head(in_features: int) -> nnx.Module:
            parts = Parts(dtype=options.get("dtype"), param_dtype=options.get("param_dtype", jnp.float32))
            return ConvNormAct(in_features, features, 3, 1, parts=parts, name="head", rngs=rngs)

        super().__init__(
            backbone,
            head,
            features,
            num_classes=num_classes,
            auxiliary_features=auxiliary_features,
            rngs=rngs,
            **options,
        )


class SegBaselineOptions(SegmenterOptions, total=False):
    """The arguments of `SegBaseline` besides its backbone and `rngs`."""

    num_classes: int
    features: int
    auxiliary_features: int


def seg_baseline(
    backbone: str,
    *,
    in_channels: int = 3,
    output_stride: int = 8,
    conv: Convs = None,
    backbone_options: Mapping[str, Any] | None = None,
    rngs: nnx.Rngs,
    **options: Unpack[SegBaselineOptions],
) -> SegBaseline:
    """Builds a `SegBaseline` on a registered network, in training mode.

    Args:
        backbone: name of a network that takes an `output_stride`, such as "resnet50".
        in_channels: channels of the images.
        output_stride: of the backbone, 8 or 16.
        conv: factory of the backbone's spatial convolutions, see `ResNet`; None keeps the network's.
        backbone_options: other arguments of the backbone, see `create_model`.
        rngs: source of the `params` and, with dropout, `dropout` streams.
        **options: see `SegBaseline`; `dtype` and `param_dtype` are the backbone's too.

    Returns:
        The network. Weights of PSPNet's public code without its pyramid fit it.

    Raises:
        ValueError: if the name is unknown or an argument out of its range.
        TypeError: if the backbone has no argument of a name in `backbone_options`, or no `output_stride`.

    Source:
        Duta et al., "Pyramidal Convolution", supplement, Table 6.

    Example:
        >>> from msconv_jax.counting import count_parameters
        >>> count_parameters(nnx.eval_shape(lambda: seg_baseline("resnet50", rngs=nnx.Rngs(0))))
        35421548
    """
    maps = create_backbone(
        backbone,
        output_stride=output_stride,
        conv=conv,
        in_channels=in_channels,
        dtype=options.get("dtype"),
        param_dtype=options.get("param_dtype", jnp.float32),
        options=backbone_options,
        rngs=rngs,
    )
    return SegBaseline(maps, rngs=rngs, **options)


def _entry(
    backbone: str, note: str, results: Published, images: Mapping[str, Any] = ADE20K, **config: Any
) -> ModelEntry:
    return ModelEntry(
        f"seg_baseline_{backbone}",
        seg_baseline,
        {"backbone": backbone, **config},
        paper=f"Zhao et al., Pyramid Scene Parsing Network, arXiv 1612.01105 ({note})",
        task="segmentation",
        published=results,
        **images,
    )


_NO_PYRAMID = "without its pyramid"

MODELS = (
    _entry(
        "resnet50",
        _NO_PYRAMID,
        Published("PyConv supplement, table 6", "35.42", "131.37", miou=37.87, pixel_accuracy=78.17),
    ),
    _entry("resnet101", _NO_PYRAMID, Published()),
    _entry("resnet152", _NO_PYRAMID, Published()),
    # For tests and small machines.
    _entry(
        "ps_resnet8",
        "own network",
        Published(),
        {**ADE20K, "num_classes": 11, "input_size": (33, 33, 3)},
        features=64,
        auxiliary_features=32,
    ),
)
