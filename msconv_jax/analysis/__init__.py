"""Analyses networks: kernel lattices, receptive fields, scales, dilations, connections and class activations.

Each function returns arrays or dictionaries, and has a plot function that draws them into given Axes or into a new
figure, which a notebook shows. Only the plot functions need matplotlib (``pip install 'msconv_jax[analysis]'``).

Example:
    >>> from msconv_jax import PSConv, analysis
    >>> from flax import nnx
    >>> grid = analysis.lattice_grid(PSConv(8, 8, (3, 3), rngs=nnx.Rngs(0)))
    >>> grid["scale"].shape, len(grid["scales"])
    ((8, 8), 3)
"""

from msconv_jax.analysis.activation_maps import class_activation_maps, plot_class_activation_maps
from msconv_jax.analysis.connections import connection_maps, plot_connection_maps
from msconv_jax.analysis.drawing import lattice_grid, plot_lattice, scale_label
from msconv_jax.analysis.histograms import dilation_shares, plot_dilation_shares
from msconv_jax.analysis.receptive_fields import (
    ReceptiveField,
    effective_receptive_field,
    plot_receptive_field,
    receptive_field_radius,
    receptive_field_size,
    theoretical_receptive_field,
)
from msconv_jax.analysis.scales import plot_scale_allocation, scale_allocation

__all__ = [
    "ReceptiveField",
    "class_activation_maps",
    "connection_maps",
    "dilation_shares",
    "effective_receptive_field",
    "lattice_grid",
    "plot_class_activation_maps",
    "plot_connection_maps",
    "plot_dilation_shares",
    "plot_lattice",
    "plot_receptive_field",
    "plot_scale_allocation",
    "receptive_field_radius",
    "receptive_field_size",
    "scale_allocation",
    "scale_label",
    "theoretical_receptive_field",
]
