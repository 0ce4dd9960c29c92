"""VGG: stages of 3x3 convolutions with a pooling after each, and a classifier of several layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.image_model import ImageModel
from msconv_jax.models.layers import Layer, Parts, batch_norm, check_drop_path_rate
from msconv_jax.models.pooling import max_pool
from msconv_jax.models.registry import CIFAR_10, IMAGENET, ModelEntry, Published
from msconv_jax.models.stages import Convs, check_conv_paths, check_stages, conv_of_each_stage
from msconv_jax.modes.dtypes import wide_dtype
from msconv_jax.modes.picklable import Picklable
from msconv_jax.vision.resize import adaptive_average_pool

__all__ = ["CIFAR_VGG16", "MODELS", "UNNORMALISED_CIFAR_10", "VGG", "VGG16", "VGGClassifier", "VGGStage"]

_LAST_WIDTH = 8  # times the first stage's: the fifth is as wide as the fourth


class VGGStage(Picklable):
    """3x3 convolutions of stride 1, each with normalisation and activation.

    Args:
        convs: the convolutions.
        bns: their normalisations.
        act: activation.
        place: place of the first convolution in the public code's list of layers (three for each convolution, one for
            each pooling), by which published weights are named.

    Example:
        >>> conv = nnx.Conv(3, 8, (3, 3), padding=1, rngs=nnx.Rngs(0))
        >>> stage = VGGStage([conv], [batch_norm(8, rngs=nnx.Rngs(0))], nnx.relu, 0)
        >>> stage(jnp.ones((1, 5, 7, 3))).shape
        (1, 5, 7, 8)
    """

    def __init__(self, convs: Sequence[Layer], bns: Sequence[Layer], act: Callable[[jax.Array], jax.Array], place: int):
        self.convs = nnx.List(convs)
        self.bns = nnx.List(bns)
        self.act = act
        self.place = place

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, H, W, features)."""
        for conv, bn in zip(self.convs, self.bns, strict=True):
            x = self.act(bn(conv(x)))
        return x


class VGGClassifier(Picklable):
    """Averages over bins x bins windows, then linear layers, all but the last activated.

    Pixels are flattened channel by channel, as published weights have it.

    Args:
        in_features: channels C of the last map.
        num_classes: number of logits.
        bins: rows and columns to which the map is averaged.
        hidden_features: outputs of the layers before the last.
        hidden_norm: whether batch normalisation follows each of them.
        dropout_rate: probability of dropping an activation of these layers in training.
        act: activation.
        dtype: compute type of the layers before the last; logits are float32 with float32 parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with dropout, `dropout` streams.

    Source:
        Simonyan and Zisserman, arXiv 1409.1556, section 2 and 3.1 (initialisation with a deviation of 0.01, dropout).

    Example:
        >>> classifier = VGGClassifier(8, 5, bins=2, hidden_features=(16,), rngs=nnx.Rngs(0))
        >>> classifier(jnp.ones((1, 3, 4, 8))).shape
        (1, 5)
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bins: int = 7,
        hidden_features: Sequence[int] = (4096, 4096),
        hidden_norm: bool = False,
        dropout_rate: float = 0.0,
        act: Callable[[jax.Array], jax.Array] = nnx.relu,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.bins = bins
        self.act = act
        self.param_dtype = param_dtype
        inputs = (in_features * bins**2, *hidden_features)
        self.hidden = nnx.List(
            [
                _linear(own, features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
                for own, features in zip(inputs[:-1], hidden_features, strict=True)
            ]
        )
        self.bns: nnx.List[nnx.BatchNorm] | None = nnx.data(None)
        if hidden_norm:
            self.bns = nnx.List(
                [batch_norm(own, dtype=dtype, param_dtype=param_dtype, rngs=rngs) for own in hidden_features]
            )
        self.dropout = nnx.Dropout(dropout_rate, rngs=rngs if dropout_rate > 0 else None)
        self.reset_last(num_classes, rngs=rngs, features=inputs[-1])

    def reset_last(self, num_classes: int, *, rngs: nnx.Rngs, features: int | None = None) -> None:
        """Replaces the last layer; it takes as many `features` as before."""
        features = self.last.in_features if features is None else features
        self.last = _linear(features, num_classes, dtype=None, param_dtype=self.param_dtype, rngs=rngs)

    def __call__(self, maps: jax.Array) -> jax.Array:
        """Classifies maps (N, H, W, in_features) of any size: logits (N, num_classes)."""
        maps = maps.astype(wide_dtype(maps.dtype))
        pooled = adaptive_average_pool(maps, (self.bins, self.bins))
        x = pooled.transpose(0, 3, 1, 2).reshape(len(pooled), -1)
        for number, layer in enumerate(self.hidden):
            x = layer(x)
            x = self.dropout(self.act(x if self.bns is None else self.bns[number](x)))
        with jax.numpy_dtype_promotion("standard"):  # it computes in the wider of the two dtypes
            return self.last(x)


def _linear(inputs: int, outputs: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=nnx.initializers.normal(0.01),
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


class VGG(Picklable, ImageModel):
    """VGG with batch normalisation: stages of 3x3 convolutions, a 2x2 max-pooling after each, a classifier.

    Stage s (from 0) has `layers[s]` convolutions of `width * min(2**s, 8)` channels. The first one is plain and has a
    bias, all others are the network's spatial convolution. `feature_info` lists the stages' maps before their poolings
    and the last map after its own. A map of an odd size keeps its last row and column in a pooling, so that every map
    has ceil(size / reduction) rows; the public code leaves them out, which is the same for images of multiples of 32.

    The classifier is `VGGClassifier`, all of whose layers `num_classes=0` leaves out: the call then gives the last
    map's mean. `reset_classifier` keeps the layers before the last.

    Args:
        layers: number of convolutions of each stage; any number of stages.
        width: channels of the first stage.
        num_classes: number of logits; 0 for none.
        in_channels: channels of the images.
        conv: factory of the convolutions but the first, called with the arguments of `nnx.Conv`: a class, a
            `functools.partial` of one, a sequence with one factory for each stage, or a mapping with one for each
            path, such as `layer1.convs.1`. None takes `nnx.Conv`.
        use_bias: whether these convolutions have a bias.
        norm: factory of their normalisations, called with the arguments of `nnx.BatchNorm`.
        act: activation; stored, so use a named function.
        bins: rows and columns to which the classifier averages the last map, of whatever size it is.
        hidden_features: outputs of the classifier's layers before the last.
        hidden_norm: whether batch normalisation follows each of these.
        dropout_rate: probability of dropping one of their activations in training.
        global_pool: "avg", or "" for none.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` and, with dropout, `dropout` streams.

    Raises:
        ValueError: if an argument is out of its range, or if a layer refuses its channels (the message then starts with
            the layer's path).

    Source:
        Simonyan and Zisserman, Very Deep Convolutional Networks, arXiv 1409.1556, table 1, column D, with batch
        normalisation (Ioffe and Szegedy, arXiv 1502.03167) as in torchvision's vgg16_bn.

    Example:
        >>> model = VGG((1, 2), width=8, num_classes=5, bins=2, hidden_features=(16,), rngs=nnx.Rngs(0))
        >>> images = jnp.ones((2, 9, 9, 3))
        >>> model(images).shape, [m.shape[1:] for m in model.feature_maps(images)]
        ((2, 5), [(9, 9, 8), (5, 5, 16), (3, 3, 16)])
    """

    classifier_name: ClassVar[str] = "fc.last"

    def __init__(
        self,
        layers: Sequence[int],
        *,
        width: int = 64,
        num_classes: int = 1000,
        in_channels: int = 3,
        conv: Convs = None,
        use_bias: bool = True,
        norm: Callable[..., Layer] = batch_norm,
        act: Callable[[jax.Array], jax.Array] = nnx.relu,
        bins: int = 7,
        hidden_features: Sequence[int] = (4096, 4096),
        hidden_norm: bool = False,
        dropout_rate: float = 0.5,
        global_pool: str = "avg",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layers, _ = check_stages(layers, None)
        check_positive("width", width, "the paper uses 64")
        check_positive("in_channels", in_channels, "colour images have 3")
        check_positive("bins", bins, "the paper's images give 7")
        for features in hidden_features:
            check_positive("hidden_features", features, "the paper uses (4096, 4096), () leaves the layers out")
        check_drop_path_rate(dropout_rate, "dropout_rate")
        self.in_channels = in_channels
        parts = Parts(norm=norm, act=act, dtype=dtype, param_dtype=param_dtype)
        outputs: list[tuple[str, int, int]] = []
        features, place = in_channels, 0
        for stage, (depth, own) in enumerate(zip(layers, conv_of_each_stage(conv, len(layers)), strict=True)):
            name, planes = f"layer{stage + 1}", width * min(2**stage, _LAST_WIDTH)
            of_stage = dataclasses.replace(parts, conv=own)
            convs, bns = [], []
            for number in range(depth):
                path = f"{name}.convs.{number}"
                if place == number == 0:
                    convs.append(parts.dense(path, features, planes, 3, 1, rngs, use_bias=True))
                else:
                    convs.append(of_stage.spatial(path, features, planes, 1, rngs, use_bias=use_bias))
                bns.append(parts.normalise(f"{name}.bns.{number}", planes, rngs))
                features = planes
            setattr(self, name, VGGStage(convs, bns, act, place))
            outputs.append((name, features, 2**stage))
            place += 3 * depth + 1
        self._outputs = (*outputs, (f"pool{len(layers)}", features, 2 ** len(layers)))
        check_conv_paths(self, conv)
        self._classifier = (  # the arguments of VGGClassifier, as plain static data
            ("bins", bins),
            ("hidden_features", tuple(hidden_features)),
            ("hidden_norm", hidden_norm),
            ("dropout_rate", dropout_rate),
            ("act", act),
            ("dtype", dtype),
        )
        self.fc = nnx.data(None)
        self._make_head(features, num_classes, global_pool, param_dtype, rngs)

    def _make_classifier(self, num_classes: int, rngs: nnx.Rngs) -> VGGClassifier:
        """The present classifier with another last layer, or a new one."""
        if self.fc is not None:
            self.fc.reset_last(num_classes, rngs=rngs)
            return self.fc
        options: dict[str, Any] = dict(self._classifier)
        return VGGClassifier(self.num_features, num_classes, param_dtype=self._param_dtype, rngs=rngs, **options)

    def feature_maps(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Computes each stage's map before its pooling, and the last one after it.

        Args:
            x: images (N, H, W, in_channels), floating point.

        Returns:
            One NHWC map for each entry of `feature_info`.

        Raises:
            ValueError: if `x` has another number of axes or channels.
        """
        self.check_images(x)
        maps = []
        for name, *_ in self._outputs[:-1]:
            maps.append(getattr(self, name)(x))
            x = max_pool(maps[-1], 2, "tf", window=2)  # reaches beyond an odd size behind
        return (*maps, x)

    def forward_head(self, maps: jax.Array, *, pre_logits: bool = False) -> jax.Array:
        """Classifies the last map; see `ImageModel`. `pre_logits` stops before all of the classifier's layers."""
        if not self.global_pool or self.fc is None or pre_logits:
            return super().forward_head(maps, pre_logits=True)
        return self.fc(maps)


VGG16: dict[str, Any] = {"layers": (2, 2, 3, 3, 3)}
# One hidden layer on a map of one pixel; only the first convolution has a bias.
CIFAR_VGG16: dict[str, Any] = {
    **VGG16,
    "use_bias": False,
    "bins": 1,
    "hidden_features": (512,),
    "hidden_norm": True,
    "dropout_rate": 0.0,
}

# The images of the HetConv networks and of the plain network that their paper compares with.
UNNORMALISED_CIFAR_10: dict[str, Any] = {**CIFAR_10, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


_PAPER = "Simonyan and Zisserman, VGG, arXiv 1409.1556"

MODELS = (
    ModelEntry(
        "vgg16_bn",
        VGG,
        VGG16,
        paper=_PAPER,
        published=Published("HetConv paper, table 5", top1=71.3, top5=90.2, weights="BSD-3-Clause"),
        **IMAGENET,
    ),
    ModelEntry(
        "vgg16_cifar",
        VGG,
        CIFAR_VGG16,
        paper=_PAPER,
        published=Published("HetConv paper, table 2", macs="0.31374", top1=94.06, weights="not stated"),
        **UNNORMALISED_CIFAR_10,
    ),
)
