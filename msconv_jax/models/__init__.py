"""Networks built from the operators, by name (`create_model`) or by part (`ResNet`)."""

from msconv_jax.models import resnet_entries as resnet_entries  # registers the ResNets' names
from msconv_jax.models.blocks import BasicBlock, Bottleneck, ResidualBlock
from msconv_jax.models.layers import SqueezeExcite
from msconv_jax.models.parts import ConvShortcut, Parts
from msconv_jax.models.registry import (
    ModelEntry,
    create_model,
    list_models,
    model_entry,
    register_model,
)
from msconv_jax.models.resnet import CIFAR_STEM, IMAGENET_STEM, ResNet, Stem

__all__ = [
    "CIFAR_STEM",
    "IMAGENET_STEM",
    "BasicBlock",
    "Bottleneck",
    "ConvShortcut",
    "ModelEntry",
    "Parts",
    "ResNet",
    "ResidualBlock",
    "SqueezeExcite",
    "Stem",
    "create_model",
    "list_models",
    "model_entry",
    "register_model",
]
