"""The registered HetConv networks: ResNet-50 and VGG-16, with 4 parts.

All 3x3 convolutions of the blocks are HetConv, in VGG all but the first, whose three channels have no parts. Another
number of parts: ``create_model("het_vgg16", conv=partial(HetConv, parts=8))``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from msconv_jax.models.image_model import ImageModel
from msconv_jax.models.registry import ModelEntry, register_model
from msconv_jax.models.resnet import LAYERS, ResNet
from msconv_jax.models.vgg import CIFAR_VGG16, VGG, VGG16
from msconv_jax.operators import HetConv

__all__: list[str] = []

_PARTS = 4

# Name, network, further arguments, classes, side of the images, table of the HetConv paper.
_NETWORKS: tuple[tuple[str, type[ImageModel], dict[str, Any], int, int, int], ...] = (
    ("het_resnet50", ResNet, {"layers": LAYERS[50]}, 1000, 224, 7),
    ("het_vgg16", VGG, {**VGG16, "use_bias": False}, 1000, 224, 5),
    ("het_vgg16_cifar", VGG, CIFAR_VGG16, 10, 32, 2),
)

for _name, _builder, _config, _classes, _side, _table in _NETWORKS:
    register_model(
        ModelEntry(
            name=_name,
            builder=_builder,
            config={**_config, "conv": partial(HetConv, parts=_PARTS)},
            num_classes=_classes,
            input_size=(_side, _side, 3),
            paper="Singh et al., HetConv, arXiv 1903.04120",
            table=f"HetConv paper, table {_table}",
        )
    )
