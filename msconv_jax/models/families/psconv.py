"""The names of PSConv's networks: plain networks with another spatial convolution, and as many parameters.

In the ImageNet networks and the ResNeXt-29 PSConv replaces the 3x3 of every bottleneck, those of stride 2 included
(PSConv paper, section 3.2). The paper has no network of basic blocks: `ps_resnet8` and `ps_resnet20` are this
library's, for tests and small machines; both 3x3 convolutions of their blocks are PSConv.
"""

import dataclasses

from msconv_jax.models.blocks import BasicBlock
from msconv_jax.models.families import resnet
from msconv_jax.models.registry import ModelEntry, Published
from msconv_jax.operators import PSConv

__all__ = ["MODELS"]

_PAPER = "Li et al., PSConv, arXiv 2007.06191"
_PS1, _PS6 = "PSConv paper, table 1", "PSConv paper, table 6"
_MIT = "MIT"  # the weights are the backbones of the public detectors

_RESULTS = {
    "ps_resnet50": Published("PSConv paper, tables 1 and 2", "25.557", "4.089", 78.874, 94.276, weights=_MIT),
    "ps_resnet101": Published(_PS1, top1=80.046, top5=94.948, weights=_MIT),
    "ps_resnet152": Published(),
    "ps_resnext50_32x4d": Published(_PS1, top1=79.622, top5=94.704),
    "ps_resnext101_32x4d": Published(_PS1, top1=80.502, top5=95.276, weights=_MIT),
    "ps_se_resnet50": Published(_PS1, top1=79.186, top5=94.422),
    "ps_se_resnet101": Published(_PS1, top1=80.214, top5=95.076),
    "ps_resnext29_8x64d": Published(_PS6, top1=82.862),
    "ps_resnext29_16x64d": Published(_PS6, top1=83.472),
    "ps_resnet8": Published(),
    "ps_resnet20": Published(),
}


def _with_psconv(plain: ModelEntry, name: str, results: Published) -> ModelEntry:
    paper = f"{_PAPER} (own network)" if plain.config.get("block") is BasicBlock else _PAPER
    config = {**plain.config, "conv": PSConv}
    return dataclasses.replace(plain, name=name, config=config, paper=paper, published=results)


_PLAIN = {f"ps_{entry.name}": entry for entry in resnet.MODELS}
MODELS = tuple(_with_psconv(_PLAIN[name], name, results) for name, results in _RESULTS.items())
