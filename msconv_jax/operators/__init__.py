"""The operators, one paper a file.

A new operator needs its import here, its place in `DROP_IN` or `OTHERS`, and its name in `__all__`. The package, the
Linen forms, the programs' configs and the tests of all operators read these.
"""

from msconv_jax.operators.acgraph import ACGraph
from msconv_jax.operators.acgraph import ac_graph as ac_graph
from msconv_jax.operators.acgraph import graph_constants as graph_constants
from msconv_jax.operators.acnet import ACConv
from msconv_jax.operators.dynamic_psconv import DynamicPSConv
from msconv_jax.operators.grouped import GroupedConv
from msconv_jax.operators.hetconv import HetConv
from msconv_jax.operators.icconv import ICConv
from msconv_jax.operators.octave.maps import oct_map as oct_map
from msconv_jax.operators.octave.octconv import OctConv
from msconv_jax.operators.pac.functions import pac_convolve as pac_convolve
from msconv_jax.operators.pac.functions import pac_convolve_transpose as pac_convolve_transpose
from msconv_jax.operators.pac.functions import pac_kernel as pac_kernel
from msconv_jax.operators.pac.functions import pac_pool as pac_pool
from msconv_jax.operators.pac.modules import PACConv, PACConvTranspose, PACPool
from msconv_jax.operators.psconv import PSConv
from msconv_jax.operators.pyconv import PyConv
from msconv_jax.operators.res2net import Res2Conv
from msconv_jax.operators.res2net import res2conv as res2conv
from msconv_jax.operators.sis import SISConv

DROP_IN = (GroupedConv, PSConv, DynamicPSConv, ICConv, PyConv, HetConv, Res2Conv, SISConv, ACConv)
"""The operators with ``nnx.Conv``'s arguments and output shape."""

OTHERS = (OctConv, PACConv, PACConvTranspose, PACPool, ACGraph)
"""The operators with other inputs or outputs: pairs of maps, a guide, a graph."""

ALL = (*DROP_IN, *OTHERS)

__all__ = [
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
]
