"""The operators, one file per paper, each with its pure function and its Flax NNX module."""

from msconv_jax.operators.grouped import GroupedConv
from msconv_jax.operators.psconv import PSConv, psconv

DROP_IN = (GroupedConv, PSConv)
"""The modules that take ``nnx.Conv``'s place: its arguments, parameters and shapes."""

__all__ = ["DROP_IN", "GroupedConv", "PSConv", "psconv"]
