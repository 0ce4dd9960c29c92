"""The names of ResNet, ResNeXt and SE-ResNet; `psconv.py` has the same networks with PSConv."""

from collections.abc import Mapping
from typing import Any

from msconv_jax.models.blocks import BasicBlock
from msconv_jax.models.registry import CIFAR_10, CIFAR_100, IMAGENET, ModelEntry, Published
from msconv_jax.models.resnet import CIFAR_STEM, LAYERS, ResNet

__all__ = ["MODELS"]

_RESNET = "He et al., Deep Residual Learning, arXiv 1512.03385"
_RESNEXT = "Xie et al., ResNeXt, arXiv 1611.05431"
_SENET = "Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507"

# The results are from the papers that compare their networks with these; the weights are torchvision's.
_IC1 = "IC-Conv paper, table 1"
_PS1, _PS6 = "PSConv paper, table 1", "PSConv paper, table 6"
_PY3 = "PyConv paper, table 3"
_BSD = "BSD-3-Clause"

_BASIC: dict[str, Any] = {"block": BasicBlock}
_X4D: dict[str, Any] = {"groups": 32, "base_width": 4}
_LAYERS_29: dict[str, Any] = {"layers": (3, 3, 3), "stem": CIFAR_STEM}
_SMALL: dict[str, Any] = {**_BASIC, "stem": CIFAR_STEM, "width": 16}


def _entry(
    name: str, paper: str, results: Published, images: Mapping[str, Any] = IMAGENET, **config: Any
) -> ModelEntry:
    return ModelEntry(name, ResNet, config, paper=paper, published=results, **images)


MODELS = (
    _entry("resnet18", _RESNET, Published(_IC1, top1=70.67, top5=89.74, weights=_BSD), layers=LAYERS[18], **_BASIC),
    _entry("resnet34", _RESNET, Published(weights=_BSD), layers=LAYERS[34], **_BASIC),
    _entry("resnet50", _RESNET, Published(_PS1, "25.557", "4.089", 77.150, 93.468, weights=_BSD), layers=LAYERS[50]),
    _entry("resnet101", _RESNET, Published(_PS1, top1=78.898, top5=94.304, weights=_BSD), layers=LAYERS[101]),
    _entry("resnet152", _RESNET, Published(_PY3, "60.19", "11.62", 78.45, 94.26, weights=_BSD), layers=LAYERS[152]),
    _entry(
        "resnext50_32x4d",
        _RESNEXT,
        Published(_PS1, top1=78.198, top5=93.916, weights=_BSD),
        layers=LAYERS[50],
        **_X4D,
    ),
    _entry("resnext101_32x4d", _RESNEXT, Published(_PS1, top1=79.498, top5=94.610), layers=LAYERS[101], **_X4D),
    _entry("se_resnet50", _SENET, Published(_PS1, top1=77.808, top5=93.960), layers=LAYERS[50], se_reduction=16),
    _entry("se_resnet101", _SENET, Published(_PS1, top1=79.268, top5=94.594), layers=LAYERS[101], se_reduction=16),
    _entry("resnext29_8x64d", _RESNEXT, Published(_PS6, top1=81.926), CIFAR_100, groups=8, **_LAYERS_29),
    _entry("resnext29_16x64d", _RESNEXT, Published(_PS6, top1=82.462), CIFAR_100, groups=16, **_LAYERS_29),
    _entry("resnet8", _RESNET, Published(), CIFAR_10, layers=(1, 1, 1), **_SMALL),
    _entry("resnet20", _RESNET, Published(), CIFAR_10, layers=(3, 3, 3), **_SMALL),
)
