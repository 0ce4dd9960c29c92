"""Published PyTorch weights in this library's modules: the mechanism, and each paper's names in a file of its own."""

from msconv_jax.torch_weights import (
    acnet,
    hetconv,
    icconv,
    layers,
    mobilenet,
    octconv,
    pac,
    psconv,
    pyconv,
    res2net,
    segmentation,
    sis,
    vgg,
)
from msconv_jax.torch_weights.conversion import Conversion, conversion_of, load_state_dict
from msconv_jax.torch_weights.files import load_torch_checkpoint, read_state_dict, write_safetensors

__all__ = [
    "Conversion",
    "acnet",
    "conversion_of",
    "hetconv",
    "icconv",
    "layers",
    "load_state_dict",
    "load_torch_checkpoint",
    "mobilenet",
    "octconv",
    "pac",
    "psconv",
    "pyconv",
    "read_state_dict",
    "res2net",
    "segmentation",
    "sis",
    "vgg",
    "write_safetensors",
]
