"""What the PyConv networks have besides PyConv: their shortcut, their wide bottleneck and their parsing head's blocks.

Duta et al., "Pyramidal Convolution", 2020: Table 1 (PyConvResNet and PyConvHGResNet) and Fig. 4 (PyConvPH).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.models.blocks import BasicBlock, Bottleneck
from msconv_jax.models.layers import PaddingRule, batch_norm, check_positive, max_pool
from msconv_jax.models.parts import Layer, Parts
from msconv_jax.operators import PyConv
from msconv_jax.vision.resize import adaptive_average_pool, resize_bilinear

__all__ = ["GlobalPyConvBlock", "LocalPyConvBlock", "MaxPoolShortcut", "PyConvBasicBlock", "WideBottleneck"]


class MaxPoolShortcut(nnx.Module):
    """Projection on the shortcut: 3x3 max-pooling with the block's stride, then a 1x1 convolution and normalisation.

    Without a stride there is no pooling, with equal channels nothing but the pooling. Where the parts do not take the
    stride, the same windows are pooled at every pixel.

    Args:
        in_features: input channels.
        out_features: output channels.
        strides: the block's stride.
        parts: the network's parts.
        name: path of the shortcut in the model, for error messages.
        rngs: source of the `params` stream.

    Source:
        Duta et al., "Pyramidal Convolution", Sec. 4, and the public code.

    Example:
        >>> shortcut = MaxPoolShortcut(8, 16, 2, parts=Parts(), name="downsample", rngs=nnx.Rngs(0))
        >>> shortcut(jnp.ones((1, 7, 7, 8))).shape
        (1, 4, 4, 16)
    """

    def __init__(self, in_features: int, out_features: int, strides: int, *, parts: Parts, name: str, rngs: nnx.Rngs):
        self.strides = strides
        self.step = parts.step(strides)
        self.padding: PaddingRule = parts.padding
        self.conv: Layer | None = nnx.data(None)
        self.bn: Layer | None = nnx.data(None)
        if in_features != out_features:
            self.conv = parts.dense(f"{name}.conv", in_features, out_features, 1, 1, rngs)
            self.bn = parts.normalise(f"{name}.bn", out_features, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), out_features)."""
        if self.strides != 1:
            x = max_pool(x, self.step, self.padding)
        return x if self.conv is None or self.bn is None else self.bn(self.conv(x))


class WideBottleneck(Bottleneck):
    """The bottleneck of PyConvHGResNet: its output has `2 * planes` channels.

    Example:
        >>> block = WideBottleneck(64, 32, parts=Parts(groups=32), name="layer1.0", rngs=nnx.Rngs(0))
        >>> block.conv2.kernel.shape, block.conv3.kernel.shape
        ((3, 3, 32, 1024), (1, 1, 1024, 64))
    """

    expansion: ClassVar[int] = 2


class PyConvBasicBlock(BasicBlock):
    """The block of PyConvResNet-18 and -34: `BasicBlock` whose second convolution is a 1x1.

    Source:
        Public code of PyConv, its second basic block.

    Example:
        >>> block = PyConvBasicBlock(8, 16, 2, parts=Parts(), name="layer2.0", rngs=nnx.Rngs(0))
        >>> block.conv2.kernel.shape, block(jnp.ones((1, 9, 9, 8))).shape
        ((1, 1, 16, 16), (1, 5, 5, 16))
    """

    def _second_convolution(self, parts: Parts, name: str, planes: int, rngs: nnx.Rngs) -> Layer:
        return parts.dense(name, planes, planes, 1, 1, rngs)


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
    """The parsing head's global branch: average pooling to a grid, 1x1, PyConv, 1x1, and back to the input's size.

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
        Duta et al., "Pyramidal Convolution", Fig. 4 and Sec. 5; the way of pooling and of enlarging is PyTorch's
        ``AdaptiveAvgPool2d`` and bilinear with ``align_corners``, as in the public code.

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
