"""Efficient dilation optimisation (EDO): searches the dilations of an inception convolution's filters.

J. Liu et al.: "Inception Convolution with Efficient Dilation Search", CVPR 2021, Sec. 3.2. The authors published
networks with the dilations found, but not the search. It has three steps, for any Flax NNX model:

1. :func:`supernet` gives the searched convolutions kernels that contain every dilation. Train it like the network.
2. :func:`select` selects for each filter the dilations that change the output of its large kernel least.
3. :func:`rewrite` builds the network of inception convolutions, which is then trained from scratch.

Example:
    >>> from flax import nnx
    >>> from msconv_jax import edo
    >>> model = nnx.Sequential(nnx.Conv(4, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.relu)
    >>> supernet = edo.supernet(model, d_max=4)  # now train it
    >>> patterns = edo.select(supernet)
    >>> edo.rewrite(model, patterns).layers[0].pattern == tuple(sorted(map(tuple, patterns["layers.0"])))
    True
"""

from msconv_jax.edo.inputs import expected_inputs
from msconv_jax.edo.objective import Objective, best_dilations, dilation_errors
from msconv_jax.edo.patterns import published_patterns, rearranged
from msconv_jax.edo.rewriting import rewrite
from msconv_jax.edo.selection import errors, select
from msconv_jax.edo.supernet import SupernetConv, supernet, supernet_convs

__all__ = [
    "Objective",
    "SupernetConv",
    "best_dilations",
    "dilation_errors",
    "errors",
    "expected_inputs",
    "published_patterns",
    "rearranged",
    "rewrite",
    "select",
    "supernet",
    "supernet_convs",
]
