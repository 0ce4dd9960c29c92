"""The registered HetConv networks: ResNet-50 and VGG-16, with 4 parts.

All 3x3 convolutions of the blocks are HetConv, in VGG all but the first, whose three channels have no parts. Another
number of parts: ``create_model("het_vgg16", conv=partial(HetConv, parts=8))``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from msconv_jax.models.families.vgg import CIFAR_VGG16, UNNORMALISED_CIFAR_10, VGG, VGG16
from msconv_jax.models.image_model import ImageModel
from msconv_jax.models.registry import IMAGENET, ModelEntry, register_model
from msconv_jax.models.resnet import LAYERS, ResNet
from msconv_jax.operators import HetConv

__all__: list[str] = []

_PARTS = 4

# Name, network, further arguments, images.
_NETWORKS: tuple[tuple[str, type[ImageModel], dict[str, Any], dict[str, Any]], ...] = (
    ("het_resnet50", ResNet, {"layers": LAYERS[50]}, IMAGENET),
    ("het_vgg16", VGG, {**VGG16, "use_bias": False}, IMAGENET),
    ("het_vgg16_cifar", VGG, CIFAR_VGG16, UNNORMALISED_CIFAR_10),
)

for _name, _builder, _config, _images in _NETWORKS:
    register_model(
        ModelEntry(
            name=_name,
            builder=_builder,
            config={**_config, "conv": partial(HetConv, parts=_PARTS)},
            paper="Singh et al., HetConv, arXiv 1903.04120",
            **_images,
        )
    )
