"""The names of the HetConv networks: ResNet-50 and VGG-16, with 4 parts.

All 3x3 convolutions of the blocks are HetConv; in VGG all but the first, because three channels do not divide into
parts. Another number of parts: ``create_model("het_vgg16", conv=partial(HetConv, parts=8))``.
"""

from __future__ import annotations

from functools import partial

from msconv_jax.models.families.vgg import CIFAR_VGG16, UNNORMALISED_CIFAR_10, VGG, VGG16
from msconv_jax.models.registry import IMAGENET, ModelEntry, Published
from msconv_jax.models.resnet import LAYERS, ResNet
from msconv_jax.operators import HetConv

__all__ = ["MODELS"]

_PAPER = "Singh et al., HetConv, arXiv 1903.04120"
_CONV = partial(HetConv, parts=4)

MODELS = (
    ModelEntry(
        "het_resnet50",
        ResNet,
        {"layers": LAYERS[50], "conv": _CONV},
        paper=_PAPER,
        published=Published("HetConv paper, table 7", macs="2.85", top1=76.16),
        **IMAGENET,
    ),
    ModelEntry(
        "het_vgg16",
        VGG,
        {**VGG16, "use_bias": False, "conv": _CONV},
        paper=_PAPER,
        published=Published("HetConv paper, table 5", top1=71.2, top5=90.2),
        **IMAGENET,
    ),
    ModelEntry(
        "het_vgg16_cifar",
        VGG,
        {**CIFAR_VGG16, "conv": _CONV},
        paper=_PAPER,
        published=Published("HetConv paper, table 2", macs="0.10598", top1=93.93, weights="not stated"),
        **UNNORMALISED_CIFAR_10,
    ),
)
