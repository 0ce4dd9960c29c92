"""PyConvResNet and PyConvHGResNet: their blocks, their shortcut that pools, their names.

Duta et al., "Pyramidal Convolution", 2020, Table 1. The parsing head of Fig. 4 is in `msconv_jax.segmentation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import jax
from flax import nnx

from msconv_jax.models.blocks import BasicBlock, Bottleneck
from msconv_jax.models.layers import Layer, Parts
from msconv_jax.models.pooling import PaddingRule, max_pool
from msconv_jax.models.registry import IMAGENET, ModelEntry, Published
from msconv_jax.models.resnet import LAYERS, ResNet, Stem
from msconv_jax.operators import PyConv

__all__ = ["MODELS", "MaxPoolShortcut", "PyConvBasicBlock", "WideBottleneck"]


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


_PY3 = "PyConv paper, table 3"
_MIT = "MIT"
_LEVELS = ((3, 5, 7, 9), (3, 5, 7), (3, 5), (3,))  # kernel sizes, stage by stage
_GROUPS = ((1, 4, 8, 16), (1, 4, 8), (1, 4), (1,))
_MANY_GROUPS = ((32, 32, 32, 32), (32, 64, 64), (32, 64), (32,))


def _entry(
    name: str, depth: int, results: Published, groups: Sequence[Sequence[int]] = _GROUPS, **config: Any
) -> ModelEntry:
    """A network without the stem's max-pooling that strides in every stage, the first included.

    Source:
        Duta et al., "Pyramidal Convolution", Table 1, and the public code.
    """
    convs = tuple(partial(PyConv, kernel_sizes=k, groups=g) for k, g in zip(_LEVELS, groups, strict=True))
    config = {
        "layers": LAYERS[depth],
        "conv": convs,
        "stem": Stem(7, 2, max_pool=False),
        "strides": (2, 2, 2, 2),
        "shortcut": MaxPoolShortcut,
        "zero_init_last": False,
        **config,
    }
    paper = "Duta et al., Pyramidal Convolution, arXiv 2006.11538"
    return ModelEntry(name, ResNet, config, paper=paper, published=results, **IMAGENET)


def _hg_entry(name: str, depth: int, results: Published) -> ModelEntry:
    """A network with more groups, and blocks of twice the width."""
    return _entry(name, depth, results, _MANY_GROUPS, base_width=128)


MODELS = (
    # The public code has PyConvResNet-18 and -34 without results.
    _entry("pyconv_resnet18", 18, Published(), block=PyConvBasicBlock),
    _entry("pyconv_resnet34", 34, Published(), block=PyConvBasicBlock),
    _entry("pyconv_resnet50", 50, Published(_PY3, "24.85", "3.88", 77.88, 93.80, weights=_MIT)),
    _entry("pyconv_resnet101", 101, Published(_PY3, "42.31", "7.31", 79.01, 94.47, weights=_MIT)),
    _entry("pyconv_resnet152", 152, Published(_PY3, "56.64", "10.72", 79.52, 94.73, weights=_MIT)),
    _hg_entry("pyconvhg_resnet50", 50, Published(_PY3, "25.23", "4.61", 78.48, 94.06, weights=_MIT)),
    _hg_entry("pyconvhg_resnet101", 101, Published(_PY3, "44.63", "8.42", 79.22, 94.43, weights=_MIT)),
    _hg_entry("pyconvhg_resnet152", 152, Published(_PY3, "60.66", "12.29", 79.36, 94.73, weights=_MIT)),
)
