"""The families of networks: one paper a file, which ends with the table of its names."""

from msconv_jax.models.families import (
    acnet,
    hetconv,
    icconv,
    mobilenet,
    psconv,
    pyconv,
    res2net,
    res2net_dla,
    resnet,
    sis,
    vgg,
)
from msconv_jax.models.families.octave import mobilenet as oct_mobilenet
from msconv_jax.models.families.octave import resnet as oct_resnet

__all__ = ["MODELS"]

MODELS = (
    *resnet.MODELS,
    *psconv.MODELS,
    *pyconv.MODELS,
    *icconv.MODELS,
    *hetconv.MODELS,
    *sis.MODELS,
    *acnet.MODELS,
    *res2net.MODELS,
    *res2net_dla.MODELS,
    *vgg.MODELS,
    *mobilenet.MODELS,
    *oct_resnet.MODELS,
    *oct_mobilenet.MODELS,
)
