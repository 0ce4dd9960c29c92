"""Published PyTorch weights in this library's modules: the mechanism, and each paper's names in a file of its own.

Importing the package imports all its modules, so that each registers its rules.
"""

import importlib
import pkgutil

from msconv_jax.torch_weights.conversion import Conversion, conversion_of, load_state_dict
from msconv_jax.torch_weights.files import load_torch_checkpoint, read_state_dict, write_safetensors

__all__ = [
    "Conversion",
    "conversion_of",
    "load_state_dict",
    "load_torch_checkpoint",
    "read_state_dict",
    "write_safetensors",
]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
