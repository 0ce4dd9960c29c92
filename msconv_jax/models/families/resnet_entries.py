"""The registered ResNets: two tables, from which the plain and the PSConv networks are made.

PSConv's networks differ from their plain counterparts in the blocks' spatial convolution alone and
have as many parameters. In the ImageNet networks and the ResNeXt-29 this is the 3x3 of every
bottleneck, those of stride 2 included (PSConv paper, section 3.2). The paper has no network of
basic blocks: `ps_resnet8` and `ps_resnet20` are this library's own, for tests and small machines,
and make both 3x3 convolutions of a block PSConv.
"""

from typing import Any

from msconv_jax.models.blocks import BasicBlock
from msconv_jax.models.registry import CIFAR_10, CIFAR_100, IMAGENET, ModelEntry, register_model
from msconv_jax.models.resnet import CIFAR_STEM, LAYERS, ResNet
from msconv_jax.operators import PSConv

__all__: list[str] = []

_PSCONV_PAPER = "Li et al., PSConv, arXiv 2007.06191"
_RESNET_PAPER = "He et al., Deep Residual Learning, arXiv 1512.03385"
_RESNEXT_PAPER = "Xie et al., ResNeXt, arXiv 1611.05431"
_SENET_PAPER = "Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507"

_RESNEXT = {"groups": 32, "base_width": 4}
_SE = {"se_reduction": 16}

# ImageNet, bottlenecks: name, depth, further arguments, paper of the plain network.
_BOTTLENECK_NETWORKS: tuple[tuple[str, int, dict[str, Any], str], ...] = (
    ("resnet50", 50, {}, _RESNET_PAPER),
    ("resnet101", 101, {}, _RESNET_PAPER),
    ("resnet152", 152, {}, _RESNET_PAPER),
    ("resnext50_32x4d", 50, _RESNEXT, _RESNEXT_PAPER),
    ("resnext101_32x4d", 101, _RESNEXT, _RESNEXT_PAPER),
    ("se_resnet50", 50, _SE, _SENET_PAPER),
    ("se_resnet101", 101, _SE, _SENET_PAPER),
)

# CIFAR, three stages behind a 3x3 stem: name, blocks of a stage, further arguments, images, paper.
_CIFAR_NETWORKS: tuple[tuple[str, int, dict[str, Any], dict[str, Any], str], ...] = (
    ("resnext29_8x64d", 3, {"groups": 8}, CIFAR_100, _RESNEXT_PAPER),
    ("resnext29_16x64d", 3, {"groups": 16}, CIFAR_100, _RESNEXT_PAPER),
    ("resnet8", 1, {"block": BasicBlock, "width": 16}, CIFAR_10, _RESNET_PAPER),
    ("resnet20", 3, {"block": BasicBlock, "width": 16}, CIFAR_10, _RESNET_PAPER),
)


def _register_with_psconv(name: str, config: dict[str, Any], images: dict[str, Any], paper: str) -> None:
    """Registers a network and, under `ps_` and its name, the same with PSConv."""
    own = config.get("block") is BasicBlock
    for prefix, extra, source in (
        ("", {}, paper),
        ("ps_", {"conv": PSConv}, f"{_PSCONV_PAPER} (own network)" if own else _PSCONV_PAPER),
    ):
        register_model(
            ModelEntry(
                name=prefix + name,
                builder=ResNet,
                config={**config, **extra},
                paper=source,
                **images,
            )
        )


for _depth in (18, 34):
    register_model(
        ModelEntry(
            name=f"resnet{_depth}",
            builder=ResNet,
            config={"layers": LAYERS[_depth], "block": BasicBlock},
            paper=_RESNET_PAPER,
            **IMAGENET,
        )
    )

for _name, _depth, _extra, _paper in _BOTTLENECK_NETWORKS:
    _register_with_psconv(_name, {"layers": LAYERS[_depth], **_extra}, IMAGENET, _paper)

for _name, _blocks, _extra, _images, _paper in _CIFAR_NETWORKS:
    _register_with_psconv(_name, {"layers": (_blocks,) * 3, "stem": CIFAR_STEM, **_extra}, _images, _paper)
