"""Published PyTorch weights in this library's modules: the mechanism, and each paper's names in a file of its own."""

from msconv_jax.torch_weights import acnet, hetconv, icconv, layers, octconv, pac, psconv, pyconv, res2net, sis
from msconv_jax.torch_weights.conversion import Conversion, conversion_of, load_state_dict

__all__ = [
    "Conversion",
    "acnet",
    "conversion_of",
    "hetconv",
    "icconv",
    "layers",
    "load_state_dict",
    "octconv",
    "pac",
    "psconv",
    "pyconv",
    "res2net",
    "sis",
]
