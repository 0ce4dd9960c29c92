"""What a residual network is made of: its convolutions, normalisation, activation and shortcut."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.models.layers import (
    PaddingRule,
    SqueezeExcite,
    batch_norm,
    kaiming_normal,
    naming_layer,
)
from msconv_jax.operators import GroupedConv

__all__ = ["ConvShortcut", "Layer", "Parts", "shortened"]

Layer = Any  # a module called with one array; the factories below decide which


class ConvShortcut(nnx.Module):
    """Projection on the shortcut: 1x1 convolution with the block's stride, then normalisation.

    A replacement takes the same arguments. It is built only where the block changes the stride or
    the number of channels; elsewhere the shortcut is the identity.

    Args:
        in_features: input channels.
        out_features: output channels.
        strides: the block's stride.
        parts: the network's parts.
        name: path of the shortcut in the model, for error messages.
        rngs: source of the `params` stream.

    Source:
        He et al., Deep Residual Learning, arXiv 1512.03385, section 3.3, option B.

    Example:
        >>> shortcut = ConvShortcut(8, 16, 2, parts=Parts(), name="downsample", rngs=nnx.Rngs(0))
        >>> shortcut(jnp.ones((1, 7, 7, 8))).shape
        (1, 4, 4, 16)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int,
        *,
        parts: "Parts",
        name: str,
        rngs: nnx.Rngs,
    ):
        self.conv = parts.dense(f"{name}.conv", in_features, out_features, 1, strides, rngs)
        self.bn = parts.normalise(f"{name}.bn", out_features, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Projects maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), out_features)."""
        return self.bn(self.conv(x))


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the blocks of one network (or stage) are made of.

    Only used while a network is built and never stored on it: factories such as
    `functools.partial` compare unequal from one build to the next and would make `jax.jit`
    compile again.

    Attributes:
        conv: factory of the blocks' spatial convolutions, with the arguments of `nnx.Conv`; or a mapping with a
            factory for each by its path in the model, such as `layer1.0.conv2`. None takes `nnx.Conv`, or
            `GroupedConv` when `groups > 1`.
        norm: factory with the arguments of `nnx.BatchNorm`.
        act: activation function. It is stored, so use a named function rather than a lambda.
        shortcut: factory with the arguments of `ConvShortcut`.
        groups: groups of the spatial convolution.
        base_width: width of one group when `planes` is 64.
        se_reduction: reduction of the squeeze-and-excitation; None leaves it out.
        zero_init_last: start the scale of each block's last normalisation at zero, so that every
            block starts as its shortcut.
        dilation: factor on the dilations of the spatial convolutions.
        strided: whether strides are taken. Without, a block with a stride keeps all that the stride decides (its
            projection, the windows of its poolings) and its map's size.
        padding: "torch" pads by half of each kernel on either side; "tf" is TensorFlow's "SAME", for networks whose
            published weights are from there.
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        use_bias: whether the convolutions have a bias, as few networks have beside their normalisations.

    Example:
        >>> conv = Parts(groups=4).spatial("conv2", 8, 8, 1, nnx.Rngs(0))
        >>> type(conv).__name__, conv.kernel.shape
        ('GroupedConv', (3, 3, 2, 8))
    """

    conv: Callable[..., Layer] | Mapping[str, Callable[..., Layer]] | None = None
    norm: Callable[..., Layer] = batch_norm
    act: Callable[[jax.Array], jax.Array] = nnx.relu
    shortcut: Callable[..., Layer] = ConvShortcut
    groups: int = 1
    base_width: int = 64
    se_reduction: int | None = None
    zero_init_last: bool = True
    dilation: int = 1
    strided: bool = True
    padding: PaddingRule = "torch"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = False

    def dense(
        self,
        name: str,
        in_features: int,
        out_features: int,
        kernel_size: int,
        strides: int,
        rngs: nnx.Rngs,
    ) -> nnx.Conv:
        """Builds a plain convolution (stem, 1x1), padded by the network's rule, not dilated."""
        return self._convolution(nnx.Conv, name, in_features, out_features, kernel_size, strides, 1, 1, rngs)

    def step(self, strides: int) -> int:
        """The pixels from one output to the next where a block has these strides: 1 without `strided`."""
        return strides if self.strided else 1

    def spatial_conv(self, name: str) -> Callable[..., Layer]:
        """The factory of a block's spatial convolution: `conv`, what it has for the path, or what its None stands for.

        Raises:
            ValueError: if a mapping has nothing for the path.
        """
        if isinstance(self.conv, Mapping):
            if name not in self.conv:
                raise ValueError(f"conv has no factory for {name}: it has {shortened(self.conv)}")
            return self.conv[name]
        return self.conv or (nnx.Conv if self.groups == 1 else GroupedConv)

    def spatial(self, name: str, in_features: int, out_features: int, strides: int, rngs: nnx.Rngs) -> Layer:
        """Builds the 3x3 convolution of a block with the network's factory and groups."""
        return self._convolution(
            self.spatial_conv(name), name, in_features, out_features, 3, strides, self.groups, self.dilation, rngs
        )

    def _convolution(
        self,
        factory: Callable[..., Layer],
        name: str,
        in_features: int,
        out_features: int,
        kernel_size: int,
        strides: int,
        groups: int,
        dilation: int,
        rngs: nnx.Rngs,
    ) -> Layer:
        with naming_layer(name):
            return factory(
                in_features,
                out_features,
                # By name: an operator whose third argument is another one can tell them apart.
                kernel_size=(kernel_size, kernel_size),
                strides=self.step(strides),
                # 'SAME' pads unevenly at stride 2 and would shift the maps of PyTorch's weights.
                padding="SAME" if self.padding == "tf" else kernel_size // 2 * dilation,
                kernel_dilation=dilation,
                feature_group_count=groups,
                use_bias=self.use_bias,
                kernel_init=kaiming_normal,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                rngs=rngs,
            )

    def normalise(self, name: str, features: int, rngs: nnx.Rngs, *, last_of_block: bool = False) -> Layer:
        """Builds a normalisation; the last of a block starts at zero if `zero_init_last`."""
        zero = last_of_block and self.zero_init_last
        scale_init = {"scale_init": nnx.initializers.zeros_init()} if zero else {}
        with naming_layer(name):
            return self.norm(features, dtype=self.dtype, param_dtype=self.param_dtype, rngs=rngs, **scale_init)

    def gate(self, name: str, features: int, rngs: nnx.Rngs) -> SqueezeExcite | None:
        """Builds the squeeze-and-excitation, or nothing without `se_reduction`."""
        if self.se_reduction is None:
            return None
        with naming_layer(name):
            return SqueezeExcite(
                features,
                reduction=self.se_reduction,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                rngs=rngs,
            )


def shortened(names: Iterable[str]) -> str:
    """The first names of many."""
    first = list(itertools.islice(names, 5))
    return ", ".join(first) + (", ..." if len(first) == 5 else "")
