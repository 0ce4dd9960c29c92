"""Multi-scale convolutions for JAX and Flax."""

from msconv_jax import analysis, edo, heads, linen, segmentation, surgery, vision
from msconv_jax.convolution import lattice_convolve
from msconv_jax.exporting import export_onnx, export_stablehlo
from msconv_jax.folding import fold_batch_norm
from msconv_jax.lattice import KernelLattice, Tile
from msconv_jax.lowering.explain import explain
from msconv_jax.models import create_model, list_models
from msconv_jax.operators import (
    ACConv,
    ACGraph,
    DynamicPSConv,
    GroupedConv,
    HetConv,
    ICConv,
    OctConv,
    PACConv,
    PACConvTranspose,
    PACPool,
    PSConv,
    PyConv,
    Res2Conv,
    SISConv,
)
from msconv_jax.surgery import replace_convs
from msconv_jax.torch_weights import load_state_dict, load_torch_checkpoint, read_state_dict, write_safetensors

__all__ = [
    "ACConv",
    "ACGraph",
    "DynamicPSConv",
    "GroupedConv",
    "HetConv",
    "ICConv",
    "KernelLattice",
    "OctConv",
    "PACConv",
    "PACConvTranspose",
    "PACPool",
    "PSConv",
    "PyConv",
    "Res2Conv",
    "SISConv",
    "Tile",
    "analysis",
    "create_model",
    "edo",
    "explain",
    "export_onnx",
    "export_stablehlo",
    "fold_batch_norm",
    "heads",
    "lattice_convolve",
    "linen",
    "list_models",
    "load_state_dict",
    "load_torch_checkpoint",
    "read_state_dict",
    "replace_convs",
    "segmentation",
    "surgery",
    "vision",
    "write_safetensors",
]
