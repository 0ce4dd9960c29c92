"""Multi-scale convolutions for JAX and Flax."""

from msconv_jax.convolution import lattice_convolve
from msconv_jax.lattice import KernelLattice, Tile
from msconv_jax.models import create_model, list_models
from msconv_jax.operators import GroupedConv, PSConv

__all__ = ["GroupedConv", "KernelLattice", "PSConv", "Tile", "create_model", "lattice_convolve", "list_models"]
