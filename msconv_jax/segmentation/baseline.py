"""The baseline of the papers' comparisons of heads: one 3x3 convolution on a dilated backbone.

It is PSPNet's public code without its pyramid of poolings; see Duta et al., "Pyramidal Convolution", arXiv 2006.11538,
supplement, Table 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.families.res2net_dla import ConvNormAct
from msconv_jax.models.image_model import FeatureBackbone
from msconv_jax.models.parts import Parts
from msconv_jax.models.registry import ADE20K, ModelEntry, register_model
from msconv_jax.models.resnet import Convs
from msconv_jax.segmentation.segmenter import Segmenter, create_backbone
from msconv_jax.signatures import explains_arguments

__all__ = ["SegBaseline", "seg_baseline"]


class SegBaseline(Segmenter):
    """The segmentation network whose head is a 3x3 convolution with norm and ReLU; see `Segmenter` for its calls.

    Args:
        backbone: see `Segmenter`.
        num_classes: number of logits of a pixel; ADE20K has 150.
        zoom: see `Segmenter`.
        features: channels of the head.
        auxiliary: whether there is an auxiliary head.
        auxiliary_features: channels of the auxiliary head before its classifier.
        dropout_rate: probability of dropping a channel before either classifier, in training.
        dtype: compute type of the heads; None infers it from the input and the parameters.
        param_dtype: type of the heads' parameters.
        rngs: source of the `params` and, with dropout, `dropout` streams.

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
        zoom: int = 8,
        features: int = 512,
        auxiliary: bool = True,
        auxiliary_features: int = 256,
        dropout_rate: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive("features", features, "the public code uses 512")

        def head(in_features: int) -> nnx.Module:
            parts = Parts(dtype=dtype, param_dtype=param_dtype)
            return ConvNormAct(in_features, features, 3, 1, parts=parts, name="head", rngs=rngs)

        super().__init__(
            backbone,
            head,
            features,
            num_classes=num_classes,
            zoom=zoom,
            auxiliary=auxiliary,
            auxiliary_features=auxiliary_features,
            dropout_rate=dropout_rate,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )


def seg_baseline(
    backbone: str,
    *,
    num_classes: int = 150,
    in_channels: int = 3,
    output_stride: int = 8,
    conv: Convs = None,
    zoom: int = 8,
    features: int = 512,
    auxiliary: bool = True,
    auxiliary_features: int = 256,
    dropout_rate: float = 0.1,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    backbone_options: Mapping[str, Any] | None = None,
    rngs: nnx.Rngs,
) -> SegBaseline:
    """Builds a `SegBaseline` on a registered network, in training mode.

    Args:
        backbone: name of a network that takes an `output_stride`, such as "resnet50".
        num_classes: number of logits of a pixel; ADE20K has 150.
        in_channels: channels of the images.
        output_stride: of the backbone, 8 or 16.
        conv: factory of the backbone's spatial convolutions, see `ResNet`; None keeps the network's.
        zoom: see `Segmenter`.
        features: channels of the head.
        auxiliary: whether there is an auxiliary head.
        auxiliary_features: channels of the auxiliary head before its classifier.
        dropout_rate: probability of dropping a channel before either classifier, in training.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        backbone_options: other arguments of the backbone, see `create_model`.
        rngs: source of the `params` and, with dropout, `dropout` streams.

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
        dtype=dtype,
        param_dtype=param_dtype,
        options=backbone_options,
        rngs=rngs,
    )
    return SegBaseline(
        maps,
        num_classes,
        zoom=zoom,
        features=features,
        auxiliary=auxiliary,
        auxiliary_features=auxiliary_features,
        dropout_rate=dropout_rate,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


_PAPER = "Zhao et al., Pyramid Scene Parsing Network, arXiv 1612.01105"
_SMALL = {"features": 64, "auxiliary_features": 32}

# Name of the backbone, arguments, images, paper. The last is this library's, for tests and small machines.
_NETWORKS: tuple[tuple[str, dict[str, Any], dict[str, Any], str], ...] = (
    ("resnet50", {}, ADE20K, f"{_PAPER} (without its pyramid)"),
    ("resnet101", {}, ADE20K, f"{_PAPER} (without its pyramid)"),
    ("resnet152", {}, ADE20K, f"{_PAPER} (without its pyramid)"),
    ("ps_resnet8", _SMALL, {**ADE20K, "num_classes": 11, "input_size": (33, 33, 3)}, f"{_PAPER} (own network)"),
)

for _backbone, _config, _images, _paper in _NETWORKS:
    register_model(
        ModelEntry(
            name=f"seg_baseline_{_backbone}",
            builder=seg_baseline,
            config={"backbone": _backbone, **_config},
            paper=_paper,
            task="segmentation",
            **_images,
        )
    )
