"""PyConvSegNet: semantic segmentation with the pyramidal parsing head, on any backbone.

Duta et al., "Pyramidal Convolution", arXiv 2006.11538, Sec. 5 and Fig. 4. The paper leaves dropout, upsampling and the
auxiliary head open; they follow the public code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.backbone import FeatureBackbone
from msconv_jax.models.layers import ConvNormAct, Parts, batch_norm
from msconv_jax.models.registry import ADE20K, ModelEntry, Published
from msconv_jax.models.stages import Convs
from msconv_jax.operators import PyConv
from msconv_jax.segmentation.segmenter import Segmenter, SegmenterOptions, create_backbone
from msconv_jax.signatures import explains_arguments
from msconv_jax.vision.resize import adaptive_average_pool, resize_bilinear

__all__ = [
    "MODELS",
    "GlobalPyConvBlock",
    "LocalPyConvBlock",
    "PyConvHead",
    "PyConvSegNet",
    "PyConvSegNetOptions",
    "pyconv_segnet",
]


class LocalPyConvBlock(nnx.Module):
    """The parsing head's local branch: 1x1 to a quarter of the channels, PyConv, 1x1; each with norm and ReLU.

    Args:
        in_features: input channels C.
        out_features: output channels.
        reduced_features: channels of the PyConv; None is C / 4.
        kernel_sizes: of the PyConv's levels.
        groups: of the PyConv's levels.
        dtype: compute type.
        param_dtype: type of the parameters.
        rngs: source of the `params` stream.

    Source:
        Duta et al., "Pyramidal Convolution", Fig. 4 and Sec. 5.

    Example:
        >>> block = LocalPyConvBlock(256, 32, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((1, 13, 11, 256))).shape
        (1, 13, 11, 32)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        reduced_features: int | None = None,
        kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        groups: Sequence[int] = (1, 4, 8, 16),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = in_features // 4 if reduced_features is None else reduced_features
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv1 = nnx.Conv(in_features, width, (1, 1), use_bias=False, **common)
        self.bn1 = batch_norm(width, **common)
        self.pyconv = PyConv(width, width, kernel_sizes, groups=groups, use_bias=False, **common)
        self.bn2 = batch_norm(width, **common)
        self.conv2 = nnx.Conv(width, out_features, (1, 1), use_bias=False, **common)
        self.bn3 = batch_norm(out_features, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, H, W, out_features)."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.pyconv(y)))
        return nnx.relu(self.bn3(self.conv2(y)))


class GlobalPyConvBlock(nnx.Module):
    """The parsing head's global branch: average pooling to a grid, 1x1, PyConv, 1x1, upsampling to the input's size.

    Args:
        in_features: input channels.
        out_features: output channels.
        bins: rows and columns of the grid.
        kernel_sizes: of the PyConv's levels.
        groups: of the PyConv's levels.
        dtype: compute type.
        param_dtype: type of the parameters.
        rngs: source of the `params` stream.

    Raises:
        ValueError: if `bins` is not a positive int.

    Source:
        Duta et al., "Pyramidal Convolution", Fig. 4 and Sec. 5. As in the public code, pooling is PyTorch's
        ``AdaptiveAvgPool2d``, and upsampling is bilinear with ``align_corners``.

    Example:
        >>> block = GlobalPyConvBlock(32, 64, bins=9, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((1, 13, 11, 32))).shape
        (1, 13, 11, 64)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bins: int = 9,
        kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        groups: Sequence[int] = (1, 4, 8, 16),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive("bins", bins, "the paper uses 9")
        self.bins = bins
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv1 = nnx.Conv(in_features, out_features, (1, 1), use_bias=False, **common)
        self.bn1 = batch_norm(out_features, **common)
        self.pyconv = PyConv(out_features, out_features, kernel_sizes, groups=groups, use_bias=False, **common)
        self.bn2 = batch_norm(out_features, **common)
        self.conv2 = nnx.Conv(out_features, out_features, (1, 1), use_bias=False, **common)
        self.bn3 = batch_norm(out_features, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, H, W, out_features)."""
        y = adaptive_average_pool(x, (self.bins, self.bins))
        y = nnx.relu(self.bn1(self.conv1(y)))
        y = nnx.relu(self.bn2(self.pyconv(y)))
        y = nnx.relu(self.bn3(self.conv2(y)))
        return resize_bilinear(y, x.shape[1:3])


class PyConvHead(nnx.Module):
    """The parsing head without its classifier: local and global context, concatenated and merged by a 3x3 convolution.

    Args:
        in_features: channels of the backbone's last map.
        features: channels of either context.
        merged_features: output channels.
        reduced_features: channels of the local context's PyConv; None is a quarter of `in_features`.
        level_groups: groups of the four levels of both PyConvs. The default divides their channels,
            `reduced_features` and `features`, if 64 does.
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
        features: channels of the head's contexts.
        merged_features: channels before either classifier.
        reduced_features: see `PyConvHead`.
        level_groups: see `PyConvHead`.
        rngs: source of the `params` and, with dropout, `dropout` streams.
        **options: see `Segmenter`.

    Raises:
        ValueError: see `Segmenter` and `PyConvHead`.

    Source:
        Duta et al., "Pyramidal Convolution", arXiv 2006.11538, Sec. 5, Table 4. The paper upsamples before it
        classifies, the public code after; with a 1x1 convolution both are the same linear map.

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
        features: int = 512,
        merged_features: int = 256,
        reduced_features: int | None = None,
        level_groups: Sequence[int] = (1, 4, 8, 16),
        rngs: nnx.Rngs,
        **options: Unpack[SegmenterOptions],
    ):
        def head(in_features: int) -> PyConvHead:
            return PyConvHead(
                in_features,
                features=features,
                merged_features=merged_features,
                reduced_features=reduced_features,
                level_groups=level_groups,
                dtype=options.get("dtype"),
                param_dtype=options.get("param_dtype", jnp.float32),
                rngs=rngs,
            )

        super().__init__(
            backbone,
            head,
            merged_features,
            num_classes=num_classes,
            auxiliary_features=merged_features,
            rngs=rngs,
            **options,
        )


class PyConvSegNetOptions(SegmenterOptions, total=False):
    """The arguments of `PyConvSegNet` besides its backbone and `rngs`."""

    num_classes: int
    features: int
    merged_features: int
    reduced_features: int | None
    level_groups: Sequence[int]


def pyconv_segnet(
    backbone: str,
    *,
    in_channels: int = 3,
    output_stride: int = 8,
    conv: Convs = None,
    backbone_options: Mapping[str, Any] | None = None,
    rngs: nnx.Rngs,
    **options: Unpack[PyConvSegNetOptions],
) -> PyConvSegNet:
    """Builds a `PyConvSegNet` on a registered network, in training mode.

    Args:
        backbone: name of a network that takes an `output_stride`, such as "pyconv_resnet50" or "resnet50".
        in_channels: channels of the images.
        output_stride: of the backbone, 8 or 16.
        conv: factory of the backbone's spatial convolutions, see `ResNet`; None keeps the network's.
        backbone_options: other arguments of the backbone, see `create_model`.
        rngs: source of the `params` and, with dropout, `dropout` streams.
        **options: see `PyConvSegNet`; `dtype` and `param_dtype` are the backbone's too.

    Returns:
        The network. `msconv_jax.load_torch_checkpoint` loads weights of the public code into it, and weights of a
        classifier into its `backbone`, with ``strict=False`` to leave their last layer out.

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
        dtype=options.get("dtype"),
        param_dtype=options.get("param_dtype", jnp.float32),
        options=backbone_options,
        rngs=rngs,
    )
    return PyConvSegNet(maps, rngs=rngs, **options)


def _entry(backbone: str, parameters: str, macs: str, miou: float, accuracy: float) -> ModelEntry:
    """A row of the paper's table 4, whose multiply-accumulates include the auxiliary head."""
    return ModelEntry(
        f"pyconv_segnet_{backbone}",
        pyconv_segnet,
        {"backbone": backbone},
        paper="Duta et al., Pyramidal Convolution, arXiv 2006.11538",
        task="segmentation",
        published=Published(
            "PyConv paper, table 4", parameters, macs, miou=miou, pixel_accuracy=accuracy, weights="not stated"
        ),
        **ADE20K,
    )


MODELS = (
    _entry("resnet50", "34.40", "116.84", 41.54, 80.18),
    _entry("resnet101", "53.39", "185.47", 42.88, 80.75),
    _entry("resnet152", "69.03", "242.00", 44.04, 81.18),
    _entry("pyconv_resnet50", "33.69", "114.18", 42.08, 80.31),
    _entry("pyconv_resnet101", "51.15", "177.29", 42.93, 80.91),
    _entry("pyconv_resnet152", "65.48", "229.11", 44.36, 81.54),
)
