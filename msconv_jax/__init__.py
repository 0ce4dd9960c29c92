"""Multi-scale convolutions for JAX and Flax."""

from msconv_jax.convolution import lattice_convolve
from msconv_jax.lattice import KernelLattice, Tile

__all__ = ["KernelLattice", "Tile", "lattice_convolve"]
