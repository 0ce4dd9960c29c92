"""The frame of the segmentation networks: a backbone, a head on its last map, and a classifier of each pixel.

The networks of the papers are in the other files of this folder: a head, and a `Segmenter` with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.backbone import FeatureBackbone
from msconv_jax.models.layers import ConvNormAct, Parts
from msconv_jax.models.registry import create_model
from msconv_jax.models.stages import Convs
from msconv_jax.signatures import explains_arguments
from msconv_jax.vision.resize import resize_bilinear

__all__ = ["AuxiliaryHead", "MapClassifier", "Segmenter", "SegmenterOptions", "create_backbone"]


class MapClassifier(nnx.Module):
    """Drops whole channels in training, then classifies each pixel by a 1x1 convolution with bias.

    Like the classifiers of images it has no compute type: with half-precision maps, logits have the parameters' type.

    Args:
        in_features: input channels.
        num_classes: number of logits of a pixel.
        dropout_rate: probability of dropping a channel of a sample.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with dropout, `dropout` streams.

    Raises:
        ValueError: if `num_classes` is less than 1 or the rate is not in [0, 1).

    Source:
        Public code of PyConvSegNet.

    Example:
        >>> MapClassifier(8, 3, rngs=nnx.Rngs(0))(jnp.ones((1, 4, 5, 8))).shape
        (1, 4, 5, 3)
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        dropout_rate: float = 0.1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive("num_classes", num_classes, "a head alone has no classifier")
        if not 0.0 <= dropout_rate < 1.0:
            raise ValueError(f"dropout_rate={dropout_rate!r}: must be in [0, 1); 0 turns it off")
        self.dropout = nnx.Dropout(dropout_rate, broadcast_dims=(1, 2), rngs=rngs if dropout_rate > 0 else None)
        self.conv = nnx.Conv(in_features, num_classes, (1, 1), param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to logits (N, H, W, num_classes)."""
        with jax.numpy_dtype_promotion("standard"):  # the convolution computes in the wider of the two dtypes
            return self.conv(self.dropout(x))


class AuxiliaryHead(nnx.Module):
    """A second classifier for an earlier map, for training only: 3x3 convolution, norm, ReLU, `MapClassifier`.

    Args:
        in_features: input channels.
        num_classes: number of logits of a pixel.
        features: channels in between.
        dropout_rate: probability of dropping a channel of a sample.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with dropout, `dropout` streams.

    Raises:
        ValueError: see `MapClassifier`.

    Source:
        Zhao et al., Pyramid Scene Parsing Network, arXiv 1612.01105, section 3.3.

    Example:
        >>> def run(x):
        ...     return AuxiliaryHead(16, 3, features=8, rngs=nnx.Rngs(0))(x)
        >>> jax.eval_shape(run, jnp.ones((1, 4, 5, 16))).shape
        (1, 4, 5, 3)
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        features: int = 256,
        dropout_rate: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        parts = Parts(dtype=dtype, param_dtype=param_dtype)
        self.features = ConvNormAct(in_features, features, 3, 1, parts=parts, name="features", rngs=rngs)
        self.classifier = MapClassifier(
            features, num_classes, dropout_rate=dropout_rate, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to logits (N, H, W, num_classes)."""
        return self.classifier(self.features(x))


class SegmenterOptions(TypedDict, total=False):
    """The arguments that `Segmenter` and the networks derived from it share."""

    zoom: int
    auxiliary: bool
    dropout_rate: float
    dtype: Any
    param_dtype: Any


class Segmenter(nnx.Module):
    """Segmentation network: backbone, head, `MapClassifier`, upsampling; an `AuxiliaryHead` in training.

    In evaluation mode a call returns logits. In training mode, the initial one, a network with an auxiliary head
    returns ``(logits, auxiliary logits)``, of one shape. The public training adds 0.4 times the loss of the second to
    the loss of the first.

    Args:
        backbone: `create_model(..., features_only=True, output_stride=8)`, or 16. The head takes its last map, the
            auxiliary head the map before.
        head: function from the number of channels of the last map to the head: a module from (N, H, W, channels) to
            (N, H, W, `head_features`).
        head_features: channels of the head's map.
        num_classes: number of logits of a pixel; ADE20K has 150.
        zoom: 1, 2, 4 or 8: an H x W image has ``(H - 1) // 8 * zoom + 1`` rows of logits with any output stride of the
            backbone. 8 is the image's size; 1 leaves the logits on the backbone's grid.
        auxiliary: whether there is an auxiliary head.
        auxiliary_features: channels of the auxiliary head before its classifier.
        dropout_rate: probability of dropping a channel before either classifier, in training.
        dtype: compute type of the auxiliary head; None infers it from the input and the parameters.
        param_dtype: type of the classifiers' and the auxiliary head's parameters.
        rngs: source of the `params` and, with dropout, `dropout` streams.

    Raises:
        ValueError: if an argument is out of its range, or the backbone is no `FeatureBackbone` or has too few maps.

    Source:
        Zhao et al., Pyramid Scene Parsing Network, arXiv 1612.01105, section 3, and the public code of PyConvSegNet.

    Example:
        >>> from msconv_jax.models import create_model
        >>> def build():
        ...     backbone = create_model("resnet8", output_stride=8, features_only=True, rngs=nnx.Rngs(0))
        ...     head = lambda channels: nnx.Conv(channels, 16, (3, 3), rngs=nnx.Rngs(1))
        ...     return Segmenter(backbone, head, 16, num_classes=5, auxiliary_features=8, rngs=nnx.Rngs(2))
        >>> model = nnx.eval_shape(build)  # shapes only
        >>> images = jnp.ones((1, 33, 41, 3))
        >>> logits, auxiliary = nnx.eval_shape(lambda model: model(images), model)
        >>> model.eval()
        >>> nnx.eval_shape(lambda model: model(images), model).shape
        (1, 33, 41, 5)
    """

    @explains_arguments
    def __init__(
        self,
        backbone: FeatureBackbone,
        head: Callable[[int], nnx.Module],
        head_features: int,
        *,
        num_classes: int = 150,
        zoom: int = 8,
        auxiliary: bool = True,
        auxiliary_features: int = 256,
        dropout_rate: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not isinstance(backbone, FeatureBackbone):
            raise ValueError(
                f"backbone of type {type(backbone).__name__}: must be a FeatureBackbone; use create_model(..., "
                "features_only=True, output_stride=8)"
            )
        info = backbone.feature_info
        if auxiliary and len(info) < 2:
            raise ValueError(
                "backbone returns one map, but the auxiliary head needs the map before: use out_indices=(-2, -1), "
                "or auxiliary=False"
            )
        check_positive("head_features", head_features, "give the channels of the head's map")
        check_positive("auxiliary_features", auxiliary_features, "the public code uses 256")
        if zoom not in (1, 2, 4, 8):
            raise ValueError(f"zoom={zoom!r}: must be 1, 2, 4 or 8; 8 gives logits of the image's size")
        self.zoom = zoom
        self.num_classes = num_classes
        self.deterministic = False  # set by train() and eval(), like nnx.Dropout's
        self.backbone = backbone
        self.head: Any = head(info[-1]["num_chs"])
        common: dict[str, Any] = {"dropout_rate": dropout_rate, "param_dtype": param_dtype, "rngs": rngs}
        self.classifier = MapClassifier(head_features, num_classes, **common)
        self.auxiliary: AuxiliaryHead | None = nnx.data(None)
        if auxiliary:
            self.auxiliary = AuxiliaryHead(
                info[-2]["num_chs"], num_classes, features=auxiliary_features, dtype=dtype, **common
            )

    def __call__(self, images: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Classifies every pixel.

        Args:
            images: (N, H, W, channels), floating point; H - 1 and W - 1 are divisible by 8, as of 473 x 473.

        Returns:
            Logits (N, (H - 1) // 8 * zoom + 1, (W - 1) // 8 * zoom + 1, num_classes); on the backbone's grid with
            ``zoom=1``. In training mode a pair, the auxiliary head's logits second.

        Raises:
            ValueError: if the images have another shape.
        """
        height, width = images.shape[1:3]
        if (height - 1) % 8 or (width - 1) % 8:
            raise ValueError(
                f"images of {height} x {width} pixels: height and width must be 1 more than a multiple of 8, so that "
                f"the corners of all maps coincide; crop or pad them to {_valid_size(height)} x {_valid_size(width)}"
            )
        size = ((height - 1) // 8 * self.zoom + 1, (width - 1) // 8 * self.zoom + 1)
        maps = self.backbone(images)
        logits = self._upsampled(self.classifier(self.head(maps[-1])), size)
        if self.deterministic or self.auxiliary is None:
            return logits
        return logits, self._upsampled(self.auxiliary(maps[-2]), size)

    def _upsampled(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        return logits if self.zoom == 1 else resize_bilinear(logits, size)


def _valid_size(size: int) -> int:
    """The smallest valid size that is not less: 1 more than a multiple of 8."""
    return -(-(size - 1) // 8) * 8 + 1


def create_backbone(
    name: str,
    *,
    output_stride: int = 8,
    conv: Convs = None,
    in_channels: int = 3,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    options: Mapping[str, Any] | None = None,
    rngs: nnx.Rngs,
) -> FeatureBackbone:
    """Builds a registered network as the backbone of a `Segmenter`, with its last two maps.

    Args:
        name: name of a network that takes an `output_stride`.
        output_stride: 8 or 16.
        conv: factory of the blocks' spatial convolutions, see `ResNet`; None keeps the network's.
        in_channels: channels of the images.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        options: other arguments of the network, see `create_model`.
        rngs: source of the `params` stream.

    Returns:
        The backbone.

    Raises:
        ValueError: if the name is unknown, an argument is out of its range, or `options` repeats another argument.
        TypeError: if the network has no argument of a name in `options`, or no `output_stride` or `conv`.

    Example:
        >>> backbone = nnx.eval_shape(lambda: create_backbone("resnet50", rngs=nnx.Rngs(0)))
        >>> [(f["num_chs"], f["reduction"]) for f in backbone.feature_info]
        [(1024, 8), (2048, 8)]
    """
    arguments = {"output_stride": output_stride, "in_channels": in_channels, "dtype": dtype, "param_dtype": param_dtype}
    if conv is not None:
        arguments["conv"] = conv
    options = options or {}
    if twice := sorted({"num_classes", "conv", *arguments} & set(options)):
        raise ValueError(
            f"backbone_options has {', '.join(twice)}: give these as arguments of the segmentation network"
        )
    return create_model(name, features_only=True, out_indices=(-2, -1), rngs=rngs, **arguments, **options)
