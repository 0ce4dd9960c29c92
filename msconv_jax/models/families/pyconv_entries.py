"""The registered PyConv networks: PyConvResNet and PyConvHGResNet.

Both leave the stem's max-pooling out and stride in every stage, the first included; the shortcuts pool instead (PyConv
paper, Table 1, and the public code). PyConvHGResNet has more groups and blocks of twice the width. PyConvResNet-18 and
-34 are the public code's, without published results.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from msconv_jax.models.blocks import Bottleneck
from msconv_jax.models.families.pyconv import MaxPoolShortcut, PyConvBasicBlock
from msconv_jax.models.registry import IMAGENET, ModelEntry, register_model
from msconv_jax.models.resnet import LAYERS, ResNet, Stem
from msconv_jax.operators import PyConv

__all__: list[str] = []

_PAPER = "Duta et al., Pyramidal Convolution, arXiv 2006.11538"
_LEVELS = ((3, 5, 7, 9), (3, 5, 7), (3, 5), (3,))  # kernel sizes, stage by stage
_GROUPS = ((1, 4, 8, 16), (1, 4, 8), (1, 4), (1,))
_MANY_GROUPS = ((32, 32, 32, 32), (32, 64, 64), (32, 64), (32,))


def _register(name: str, depth: int, groups: Sequence[tuple[int, ...]], **config: Any) -> None:
    convs = tuple(partial(PyConv, kernel_sizes=sizes, groups=own) for sizes, own in zip(_LEVELS, groups, strict=True))
    register_model(
        ModelEntry(
            name=name,
            builder=ResNet,
            config={
                "layers": LAYERS[depth],
                "conv": convs,
                "stem": Stem(7, 2, max_pool=False),
                "strides": (2, 2, 2, 2),
                "shortcut": MaxPoolShortcut,
                "zero_init_last": False,
                **config,
            },
            paper=_PAPER,
            **IMAGENET,
        )
    )


for _depth in (18, 34):
    _register(f"pyconv_resnet{_depth}", _depth, _GROUPS, block=PyConvBasicBlock)
for _depth in (50, 101, 152):
    _register(f"pyconv_resnet{_depth}", _depth, _GROUPS, block=Bottleneck)
    _register(f"pyconvhg_resnet{_depth}", _depth, _MANY_GROUPS, base_width=128)
