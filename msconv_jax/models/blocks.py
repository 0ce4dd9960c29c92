"""The residual blocks of ResNet, ResNeXt and SE-ResNet."""

from typing import ClassVar

import jax
from flax import nnx

from msconv_jax.models.layers import Layer, Parts, drop_path
from msconv_jax.modes.picklable import Picklable

__all__ = ["BasicBlock", "Bottleneck", "ResidualBlock"]


class ResidualBlock(Picklable):
    """The frame of a block: `act(shortcut(x) + drop_path(se(residual)))`.

    A block derives from it, builds the layers of its residual branch and ends its call with `self.join(x, residual)`.
    The network calls the block's class with these arguments, but `planes` instead of `out_features`, and expects
    `planes * expansion` output channels.

    Args:
        in_features: input channels.
        out_features: output channels.
        strides: stride of the block.
        parts: the network's parts.
        name: path of the block in the model, for error messages.
        drop_path_rate: probability of dropping the branch in training.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Example:
        >>> import jax.numpy as jnp
        >>> block = ResidualBlock(8, 8, 1, parts=Parts(), name="block", drop_path_rate=0.0, rngs=nnx.Rngs(0))
        >>> x = jnp.ones((1, 4, 4, 8))
        >>> bool((block.join(x, 2 * x) == 3).all())
        True
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int,
        *,
        parts: Parts,
        name: str,
        drop_path_rate: float,
        rngs: nnx.Rngs,
    ):
        self.act = parts.act
        self.se = parts.gate(f"{name}.se", out_features, rngs)
        self.drop_path = drop_path(drop_path_rate, rngs)
        changes = strides != 1 or in_features != out_features
        self.downsample = (
            parts.shortcut(in_features, out_features, strides, parts=parts, name=f"{name}.downsample", rngs=rngs)
            if changes
            else None
        )

    def join(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        """Adds the block's input (N, H, W, in_features) to its branch's result and activates."""
        if self.se is not None:
            residual = self.se(residual)
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.act(shortcut + self.drop_path(residual))


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions; both are the network's spatial convolution.

    Args:
        in_features: input channels.
        planes: channels of both convolutions and of the output.
        strides: stride of the first convolution.
        parts: the network's parts, with `groups=1` and `base_width=64`.
        name: see `ResidualBlock`, as for the arguments below.
        drop_path_rate: probability of dropping the branch in training.
        rngs: source of the random streams.

    Raises:
        ValueError: if `parts` has groups, or if a layer refuses its channels.

    Source:
        He et al., Deep Residual Learning, arXiv 1512.03385, figure 5 left.

    Example:
        >>> import jax.numpy as jnp
        >>> block = BasicBlock(8, 16, 2, parts=Parts(), name="layer2.0", rngs=nnx.Rngs(0))
        >>> block(jnp.ones((1, 9, 9, 8))).shape
        (1, 5, 5, 16)
    """

    def __init__(
        self,
        in_features: int,
        planes: int,
        strides: int = 1,
        *,
        parts: Parts,
        name: str,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        if parts.groups != 1 or parts.base_width != 64:
            raise ValueError(
                f"{name}: groups={parts.groups}, base_width={parts.base_width}: a BasicBlock takes "
                "groups=1 and base_width=64 only; use block=Bottleneck for ResNeXt"
            )
        super().__init__(in_features, planes, strides, parts=parts, name=name, drop_path_rate=drop_path_rate, rngs=rngs)
        self.conv1 = parts.spatial(f"{name}.conv1", in_features, planes, strides, rngs)
        self.bn1 = parts.normalise(f"{name}.bn1", planes, rngs)
        self.conv2 = self._second_convolution(parts, f"{name}.conv2", planes, rngs)
        self.bn2 = parts.normalise(f"{name}.bn2", planes, rngs, last_of_block=True)

    def _second_convolution(self, parts: Parts, name: str, planes: int, rngs: nnx.Rngs) -> Layer:
        return parts.spatial(name, planes, planes, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), planes)."""
        y = self.act(self.bn1(self.conv1(x)))
        return self.join(x, self.bn2(self.conv2(y)))


class Bottleneck(ResidualBlock):
    """1x1, 3x3, 1x1; the 3x3 has the stride and is the network's spatial convolution.

    Its width is `floor(planes * base_width / 64) * groups`, the output has `4 * planes` channels.

    Args:
        in_features: input channels.
        planes: a quarter of the output channels.
        strides: stride of the 3x3 convolution.
        parts: the network's parts.
        name: see `ResidualBlock`, as for the arguments below.
        drop_path_rate: probability of dropping the branch in training.
        rngs: source of the random streams.

    Raises:
        ValueError: if the width would be zero, or if a layer refuses its channels.

    Source:
        He et al., arXiv 1512.03385, figure 5 right, with the stride on the 3x3; groups from Xie et
        al., ResNeXt, arXiv 1611.05431, figure 3c.

    Example:
        >>> parts = Parts(groups=32, base_width=4)
        >>> block = Bottleneck(64, 64, parts=parts, name="layer1.0", rngs=nnx.Rngs(0))
        >>> block.conv2.kernel.shape, block.conv3.kernel.shape
        ((3, 3, 4, 128), (1, 1, 128, 256))
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        in_features: int,
        planes: int,
        strides: int = 1,
        *,
        parts: Parts,
        name: str,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        width = planes * parts.base_width // 64 * parts.groups
        if width < 1:
            raise ValueError(
                f"{name}: planes={planes}, base_width={parts.base_width}: floor(planes * base_width"
                " / 64) is 0, so the block has no channels; use a larger base_width or width"
            )
        out_features = planes * self.expansion
        super().__init__(
            in_features, out_features, strides, parts=parts, name=name, drop_path_rate=drop_path_rate, rngs=rngs
        )
        self.conv1 = parts.dense(f"{name}.conv1", in_features, width, 1, 1, rngs)
        self.bn1 = parts.normalise(f"{name}.bn1", width, rngs)
        self.conv2 = parts.spatial(f"{name}.conv2", width, width, strides, rngs)
        self.bn2 = parts.normalise(f"{name}.bn2", width, rngs)
        self.conv3 = parts.dense(f"{name}.conv3", width, out_features, 1, 1, rngs)
        self.bn3 = parts.normalise(f"{name}.bn3", out_features, rngs, last_of_block=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), 4 * planes)."""
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        return self.join(x, self.bn3(self.conv3(y)))
