"""Networks built from the operators, by name (`create_model`) or by part (`ResNet`)."""

from msconv_jax.models.backbone import FeatureBackbone
from msconv_jax.models.blocks import BasicBlock, Bottleneck, ResidualBlock
from msconv_jax.models.families import MODELS
from msconv_jax.models.families.acnet import ACResNet
from msconv_jax.models.families.icconv import list_ic_patterns, published_ic_convs
from msconv_jax.models.families.mobilenet import MobileNetV1, MobileNetV2
from msconv_jax.models.families.octave.mobilenet import OctMobileNetV1, OctMobileNetV2
from msconv_jax.models.families.octave.resnet import OctBasicBlock, OctBottleneck, OctResNet
from msconv_jax.models.families.res2net_dla import DLA
from msconv_jax.models.families.vgg import VGG
from msconv_jax.models.image_model import ImageModel
from msconv_jax.models.layers import ConvShortcut, Parts, SqueezeExcite
from msconv_jax.models.registry import (
    ModelEntry,
    Published,
    create_model,
    list_models,
    model_entry,
    register_model,
)
from msconv_jax.models.resnet import CIFAR_STEM, IMAGENET_STEM, ResNet, Stem

for _entry in MODELS:
    register_model(_entry)

__all__ = [
    "CIFAR_STEM",
    "DLA",
    "IMAGENET_STEM",
    "VGG",
    "ACResNet",
    "BasicBlock",
    "Bottleneck",
    "ConvShortcut",
    "FeatureBackbone",
    "ImageModel",
    "MobileNetV1",
    "MobileNetV2",
    "ModelEntry",
    "OctBasicBlock",
    "OctBottleneck",
    "OctMobileNetV1",
    "OctMobileNetV2",
    "OctResNet",
    "Parts",
    "Published",
    "ResNet",
    "ResidualBlock",
    "SqueezeExcite",
    "Stem",
    "create_model",
    "list_ic_patterns",
    "list_models",
    "model_entry",
    "published_ic_convs",
    "register_model",
]
