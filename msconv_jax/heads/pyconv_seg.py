"""PyConvSegNet: semantic segmentation with the pyramidal parsing head, on any backbone.

Duta et al., "Pyramidal Convolution", arXiv 2006.11538, Sec. 5 and Fig. 4. What the paper leaves open is the public
code's: where channels are dropped, how maps are enlarged, the auxiliary head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.models.image_model import FeatureBackbone
from msconv_jax.models.layers import check_positive
from msconv_jax.models.parts import Parts
from msconv_jax.models.pyconv import GlobalPyConvBlock, LocalPyConvBlock
from msconv_jax.models.registry import create_model
from msconv_jax.models.res2net_dla import ConvNormAct
from msconv_jax.models.resampling import resize_bilinear

__all__ = ["AuxiliaryHead", "MapClassifier", "PyConvHead", "PyConvSegNet", "pyconv_segnet"]


class PyConvHead(nnx.Module):
    """The parsing head without its classifier: local and global context side by side, merged by a 3x3 convolution.

    Args:
        in_features: channels of the backbone's last map; a quarter of them, and `features`, are divisible by 64.
        features: channels of either context.
        merged_features: output channels.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` stream.

    Raises:
        ValueError: if the PyConv levels (groups 1, 4, 8, 16) do not divide the channels.

    Source:
        Duta et al., "Pyramidal Convolution", Fig. 4.

    Example:
        >>> def run(x):
        ...     return PyConvHead(256, features=64, merged_features=32, rngs=nnx.Rngs(0))(x)
        >>> jax.eval_shape(run, jnp.ones((1, 5, 7, 256))).shape
        (1, 5, 7, 32)
    """

    def __init__(
        self,
        in_features: int,
        *,
        features: int = 512,
        merged_features: int = 256,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value in (("features", features), ("merged_features", merged_features)):
            check_positive(name, value, "the paper uses 512 and 256")
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.local_context = LocalPyConvBlock(in_features, features, **common)
        self.global_context = GlobalPyConvBlock(in_features, features, **common)
        parts = Parts(dtype=dtype, param_dtype=param_dtype)
        self.merge_context = ConvNormAct(
            2 * features, merged_features, 3, 1, parts=parts, name="merge_context", rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, H, W, merged_features)."""
        return self.merge_context(jnp.concatenate([self.local_context(x), self.global_context(x)], axis=-1))


class MapClassifier(nnx.Module):
    """Drops whole channels in training, then classifies each pixel by a 1x1 convolution with bias.

    As the networks' classifiers it has no compute type: half-precision maps give logits in the parameters' type.

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

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        dropout_rate: float = 0.1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive("num_classes", num_classes, "PyConvHead gives the map without a classifier")
        if not 0.0 <= dropout_rate < 1.0:
            raise ValueError(f"dropout_rate={dropout_rate!r}: must be in [0, 1); 0 turns it off")
        self.dropout = nnx.Dropout(dropout_rate, broadcast_dims=(1, 2), rngs=rngs if dropout_rate > 0 else None)
        self.conv = nnx.Conv(in_features, num_classes, (1, 1), param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to logits (N, H, W, num_classes)."""
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


class PyConvSegNet(nnx.Module):
    """Segmentation network: backbone, `PyConvHead`, `MapClassifier`, enlarging; an `AuxiliaryHead` in training.

    A call in evaluation mode gives logits. In training mode, the initial one, it gives ``(logits, auxiliary logits)``,
    of one shape, unless the network has no auxiliary head. The public training adds 0.4 times the second's loss to the
    first's.

    Args:
        backbone: `create_model(..., features_only=True, output_stride=8)`, or 16. Its last map goes into the head, the
            one before, if it gives more than one, into the auxiliary head.
        num_classes: number of logits of a pixel; ADE20K has 150.
        zoom: 1, 2, 4 or 8: an H x W image has ``(H - 1) // 8 * zoom + 1`` rows of logits, whatever the backbone's
            output stride. 8 is the image's size; 1 leaves the logits on the backbone's grid.
        features: channels of the head's contexts.
        merged_features: channels before either classifier.
        auxiliary: whether there is an auxiliary head.
        dropout_rate: probability of dropping a channel before either classifier, in training.
        dtype: compute type of the heads; None infers it from the input and the parameters.
        param_dtype: type of the heads' parameters.
        rngs: source of the `params` and, with dropout, `dropout` streams.

    Raises:
        ValueError: if an argument is out of its range, or the backbone is none or gives too few maps.

    Source:
        Duta et al., "Pyramidal Convolution", arXiv 2006.11538, Sec. 5, Table 4. The paper enlarges before it
        classifies, the public code after; a 1x1 convolution makes these one linear map.

    Example:
        >>> from msconv_jax.models import create_model
        >>> def build():
        ...     backbone = create_model("resnet18", output_stride=8, features_only=True, rngs=nnx.Rngs(0))
        ...     return PyConvSegNet(backbone, 5, rngs=nnx.Rngs(1))
        >>> model = nnx.eval_shape(build)  # shapes only
        >>> images = jnp.ones((1, 33, 41, 3))
        >>> logits, auxiliary = nnx.eval_shape(lambda model: model(images), model)
        >>> model.eval()
        >>> nnx.eval_shape(lambda model: model(images), model).shape
        (1, 33, 41, 5)
    """

    def __init__(
        self,
        backbone: FeatureBackbone,
        num_classes: int = 150,
        *,
        zoom: int = 8,
        features: int = 512,
        merged_features: int = 256,
        auxiliary: bool = True,
        dropout_rate: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not isinstance(backbone, FeatureBackbone):
            raise ValueError(
                f"backbone of type {type(backbone).__name__}: must give maps; build it by create_model(..., "
                "features_only=True, output_stride=8)"
            )
        info = backbone.feature_info
        if auxiliary and len(info) < 2:
            raise ValueError(
                "backbone gives one map, and the auxiliary head needs the one before it: take out_indices=(-2, -1), "
                "or auxiliary=False"
            )
        if zoom not in (1, 2, 4, 8):
            raise ValueError(f"zoom={zoom!r}: must be 1, 2, 4 or 8; 8 gives logits of the image's size")
        self.zoom = zoom
        self.num_classes = num_classes
        self.deterministic = False  # train() and eval() set it, as they set nnx.Dropout's
        common: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.backbone = backbone
        self.head = PyConvHead(
            info[-1]["num_chs"], features=features, merged_features=merged_features, dtype=dtype, **common
        )
        self.classifier = MapClassifier(merged_features, num_classes, dropout_rate=dropout_rate, **common)
        self.auxiliary: AuxiliaryHead | None = nnx.data(None)
        if auxiliary:
            self.auxiliary = AuxiliaryHead(
                info[-2]["num_chs"],
                num_classes,
                features=merged_features,
                dropout_rate=dropout_rate,
                dtype=dtype,
                **common,
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
                f"the corners of all maps fall together; crop or pad them to {_fitting(height)} x {_fitting(width)}"
            )
        size = ((height - 1) // 8 * self.zoom + 1, (width - 1) // 8 * self.zoom + 1)
        maps = self.backbone(images)
        logits = self._enlarged(self.classifier(self.head(maps[-1])), size)
        if self.deterministic or self.auxiliary is None:
            return logits
        return logits, self._enlarged(self.auxiliary(maps[-2]), size)

    def _enlarged(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        return logits if self.zoom == 1 else resize_bilinear(logits, size)


def _fitting(size: int) -> int:
    """The next size that is 1 more than a multiple of 8."""
    return -(-(size - 1) // 8) * 8 + 1


def pyconv_segnet(
    backbone: str,
    *,
    num_classes: int = 150,
    output_stride: int = 8,
    zoom: int = 8,
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
        output_stride: of the backbone, 8 or 16.
        zoom: see `PyConvSegNet`.
        auxiliary: whether there is an auxiliary head.
        dropout_rate: probability of dropping a channel before either classifier, in training.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        backbone_options: other arguments of the network, see `create_model`.
        rngs: source of the `params` and, with dropout, `dropout` streams.

    Returns:
        The network. Weights of the public code fit it: `msconv_jax.load_torch_checkpoint`; those of a classifying
        network fit its `backbone`, with ``strict=False`` to leave their classifier out.

    Raises:
        ValueError: if the name is unknown or an argument out of its range.
        TypeError: if the network has no argument of a name in `backbone_options`, or no `output_stride`.

    Source:
        Duta et al., "Pyramidal Convolution", Table 4.

    Example:
        >>> from msconv_jax.counting import count_parameters
        >>> count_parameters(nnx.eval_shape(lambda: pyconv_segnet("pyconv_resnet50", rngs=nnx.Rngs(0))))
        33688236
    """
    maps = create_model(
        backbone,
        features_only=True,
        out_indices=(-2, -1),
        output_stride=output_stride,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
        **(backbone_options or {}),
    )
    return PyConvSegNet(
        maps,
        num_classes,
        zoom=zoom,
        auxiliary=auxiliary,
        dropout_rate=dropout_rate,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
