"""The operators, one file per paper, each with its pure function and its Flax NNX module."""

from msconv_jax.operators.acnet import ACConv, ACGraph, ac_graph, graph_constants
from msconv_jax.operators.dynamic_psconv import DynamicPSConv
from msconv_jax.operators.grouped import GroupedConv
from msconv_jax.operators.hetconv import HetConv
from msconv_jax.operators.icconv import ICConv
from msconv_jax.operators.octave.maps import oct_map
from msconv_jax.operators.octave.octconv import OctConv
from msconv_jax.operators.pac.functions import pac_convolve, pac_convolve_transpose, pac_kernel, pac_pool
from msconv_jax.operators.pac.modules import PACConv, PACConvTranspose, PACPool
from msconv_jax.operators.psconv import PSConv
from msconv_jax.operators.pyconv import PyConv
from msconv_jax.operators.res2net import Res2Conv, res2conv
from msconv_jax.operators.sis import SISConv

DROP_IN = (GroupedConv, PSConv, DynamicPSConv, ICConv, PyConv, HetConv, Res2Conv, SISConv, ACConv)
"""The modules that take ``nnx.Conv``'s place: its arguments, and its output's shape."""

__all__ = [
    "DROP_IN",
    "ACConv",
    "ACGraph",
    "DynamicPSConv",
    "GroupedConv",
    "HetConv",
    "ICConv",
    "OctConv",
    "PACConv",
    "PACConvTranspose",
    "PACPool",
    "PSConv",
    "PyConv",
    "Res2Conv",
    "SISConv",
    "ac_graph",
    "graph_constants",
    "oct_map",
    "pac_convolve",
    "pac_convolve_transpose",
    "pac_kernel",
    "pac_pool",
    "res2conv",
]
