"""PyConvSegNet: semantic segmentation with the pyramidal parsing head, on any backbone.

Duta et al., "Pyramidal Convolution", arXiv 2006.11538, Sec. 5 and Fig. 4. What the paper leaves open is the public
code's: where channels are dropped, how maps are enlarged, the auxiliary head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.families.pyconv import GlobalPyConvBlock, LocalPyConvBlock
from msconv_jax.models.families.res2net_dla import ConvNormAct
from msconv_jax.models.image_model import FeatureBackbone
from msconv_jax.models.parts import Parts
from msconv_jax.models.registry import ADE20K, ModelEntry, register_model
from msconv_jax.models.resnet import Convs
from msconv_jax.segmentation.segmenter import Segmenter, create_backbone
from msconv_jax.signatures import explains_arguments

__all__ = ["PyConvHead", "PyConvSegNet", "pyconv_segnet"]


class PyConvHead(nnx.Module):
    """The parsing head without its classifier: local and global context side by side, merged by a 3x3 convolution.

    Args:
        in_features: channels of the backbone's last map.
        features: channels of either context.
        merged_features: output channels.
        reduced_features: channels of the local context's PyConv; None is a quarter of `in_features`.
        level_groups: groups of the four levels of both PyConvs, whose channels (`reduced_features`, `features`) are
            shared by the levels and divided by the groups: with these by 64.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` stream.

    Raises:
        ValueError: if the PyConv levels do not divide the channels.

    Source:
        Duta et al., "Pyramidal Convolution", Fig. 4.

    Example:
        >>> def run(x):
        ...     return PyConvHead(256, features=64, merged_features=32, rngs=nnx.Rngs(0))(x)
        >>> jax.eval_shape(run, jnp.ones((1, 5, 7, 256))).shape
        (1, 5, 7, 32)
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        *,
        features: int = 512,
        merged_features: int = 256,
        reduced_features: int | None = None,
        level_groups: Sequence[int] = (1, 4, 8, 16),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value in (("features", features), ("merged_features", merged_features)):
            check_positive(name, value, "the paper uses 512 and 256")
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        context: dict[str, Any] = {**common, "groups": level_groups, "rngs": rngs}
        self.local_context = LocalPyConvBlock(in_features, features, reduced_features=reduced_features, **context)
        self.global_context = GlobalPyConvBlock(in_features, features, **context)
        self.merge_context = ConvNormAct(
            2 * features, merged_features, 3, 1, parts=Parts(**common), name="merge_context", rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, H, W, merged_features)."""
        return self.merge_context(jnp.concatenate([self.local_context(x), self.global_context(x)], axis=-1))


class PyConvSegNet(Segmenter):
    """The segmentation network with `PyConvHead`; see `Segmenter` for its calls.

    Args:
        backbone: see `Segmenter`.
        num_classes: number of logits of a pixel; ADE20K has 150.
        zoom: see `Segmenter`.
        features: channels of the head's contexts.
        merged_features: channels before either classifier.
        reduced_features: see `PyConvHead`.
        level_groups: see `PyConvHead`.
        auxiliary: whether there is an auxiliary head.
        dropout_rate: probability of dropping a channel before either classifier, in training.
        dtype: compute type of the heads; None infers it from the input and the parameters.
        param_dtype: type of the heads' parameters.
        rngs: source of the `params` and, with dropout, `dropout` streams.

    Raises:
        ValueError: see `Segmenter` and `PyConvHead`.

    Source:
        Duta et al., "Pyramidal Convolution", arXiv 2006.11538, Sec. 5, Table 4. The paper enlarges before it
        classifies, the public code after; a 1x1 convolution makes these one linear map.

    Example:
        >>> from msconv_jax.models import create_model
        >>> def build():
        ...     backbone = create_model("resnet18", output_stride=8, features_only=True, rngs=nnx.Rngs(0))
        ...     return PyConvSegNet(backbone, 5, rngs=nnx.Rngs(1))
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
        merged_features: int = 256,
        reduced_features: int | None = None,
        level_groups: Sequence[int] = (1, 4, 8, 16),
        auxiliary: bool = True,
        dropout_rate: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        def head(in_features: int) -> PyConvHead:
            return PyConvHead(
                in_features,
                features=features,
                merged_features=merged_features,
                reduced_features=reduced_features,
                level_groups=level_groups,
                **common,
            )

        super().__init__(
            backbone,
            head,
            merged_features,
            num_classes=num_classes,
            zoom=zoom,
            auxiliary=auxiliary,
            auxiliary_features=merged_features,
            dropout_rate=dropout_rate,
            **common,
        )


def pyconv_segnet(
    backbone: str,
    *,
    num_classes: int = 150,
    in_channels: int = 3,
    output_stride: int = 8,
    conv: Convs = None,
    zoom: int = 8,
    features: int = 512,
    merged_features: int = 256,
    reduced_features: int | None = None,
    level_groups: Sequence[int] = (1, 4, 8, 16),
    auxiliary: bool = True,
    dropout_rate: float = 0.1,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    backbone_options: Mapping[str, Any] | None = None,
    rngs: nnx.Rngs,
) -> PyConvSegNet:
    """Builds a `PyConvSegNet` on a registered network, in training mode.

    Args:
        backbone: name of a network that takes an `output_stride`, such as "pyconv_resnet50" or "resnet50".
        num_classes: number of logits of a pixel; ADE20K has 150.
        in_channels: channels of the images.
        output_stride: of the backbone, 8 or 16.
        conv: factory of the backbone's spatial convolutions, see `ResNet`; None keeps the network's.
        zoom: see `Segmenter`.
        features: channels of the head's contexts.
        merged_features: channels before either classifier.
        reduced_features: see `PyConvHead`.
        level_groups: see `PyConvHead`.
        auxiliary: whether there is an auxiliary head.
        dropout_rate: probability of dropping a channel before either classifier, in training.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        backbone_options: other arguments of the backbone, see `create_model`.
        rngs: source of the `params` and, with dropout, `dropout` streams.

    Returns:
        The network. Weights of the public code fit it: `msconv_jax.load_torch_checkpoint`; those of a classifying
        network fit its `backbone`, with ``strict=False`` to leave their classifier out.

    Raises:
        ValueError: if the name is unknown or an argument out of its range.
        TypeError: if the backbone has no argument of a name in `backbone_options`, or no `output_stride`.

    Source:
        Duta et al., "Pyramidal Convolution", Table 4.

    Example:
        >>> from msconv_jax.counting import count_parameters
        >>> count_parameters(nnx.eval_shape(lambda: pyconv_segnet("pyconv_resnet50", rngs=nnx.Rngs(0))))
        33688236
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
    return PyConvSegNet(
        maps,
        num_classes,
        zoom=zoom,
        features=features,
        merged_features=merged_features,
        reduced_features=reduced_features,
        level_groups=level_groups,
        auxiliary=auxiliary,
        dropout_rate=dropout_rate,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


for _backbone in ("resnet", "pyconv_resnet"):
    for _depth in (50, 101, 152):
        register_model(
            ModelEntry(
                name=f"pyconv_segnet_{_backbone}{_depth}",
                builder=pyconv_segnet,
                config={"backbone": f"{_backbone}{_depth}"},
                paper="Duta et al., Pyramidal Convolution, arXiv 2006.11538",
                task="segmentation",
                **ADE20K,
            )
        )
