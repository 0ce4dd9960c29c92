"""Lattices as numbers and pictures, against the operators' own definitions and the pixels drawn."""

import io

import numpy as np
import pytest
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.image import imread

from msconv_jax import GroupedConv, ICConv, KernelLattice, PSConv, PyConv, Tile
from msconv_jax.analysis import lattice_grid, plot_lattice
from msconv_jax.analysis.drawing import _picture, scale_colours

RNGS = nnx.Rngs(0)


def legend_of(result):
    axes = result.axes[0] if isinstance(result, Figure) else result
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_grid_of_psconv_is_the_papers_pattern():
    conv = PSConv(12, 8, (3, 3), layout="lattice", rngs=RNGS)
    grid = lattice_grid(conv)
    for output in range(8):
        for place in range(12):
            dilation = (1, 2, 1, 4)[(place - output + 1) % 4]
            assert grid["dilation"][output, place].tolist() == [dilation, dilation]
            assert grid["scales"][grid["scale"][output, place]] == ((3, 3), (dilation, dilation))
    assert not grid["empty"].any()
    assert (grid["kernel_size"] == 3).all()


def test_cells_without_a_kernel_are_empty():
    grid = lattice_grid(PyConv(8, 8, (3, 5), groups=(1, 4), rngs=RNGS).lattice)
    expected = np.ones((8, 8), bool)
    expected[:4] = False
    for output in range(4):  # of the second level, a group of two inputs each
        expected[4 + output, 2 * output : 2 * output + 2] = False
    np.testing.assert_array_equal(grid["empty"], expected)
    np.testing.assert_array_equal(grid["scale"] == -1, expected)
    np.testing.assert_array_equal(grid["kernel_size"][4:].max(axis=-1), np.where(expected[4:], 0, 5))


def test_lattices_of_one_and_three_axes_have_grids():
    for size, dilation in (((5,), (2,)), ((3, 3, 3), (1, 2, 2))):
        lattice = KernelLattice(2, 3, (Tile(slice(0, 3), slice(0, 1), size, dilation),))
        grid = lattice_grid(lattice)
        assert grid["dilation"].shape == (3, 2, len(size))
        assert grid["scales"] == [(size, dilation)]
        assert grid["empty"].tolist() == [[False, True]] * 3


def test_what_is_no_lattice_is_refused():
    with pytest.raises(ValueError, match="Conv is no kernel lattice and has none"):
        lattice_grid(nnx.Conv(4, 4, (3, 3), rngs=RNGS))


def test_the_drawn_pixels_are_the_cells():
    lattice = PyConv(8, 8, (3, 5), groups=(1, 4), rngs=RNGS).lattice
    grid = lattice_grid(lattice)
    figure = plot_lattice(lattice)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    pixels = imread(io.BytesIO(buffer.getvalue()))[..., :3]
    colours = scale_colours(grid["scales"])
    for (output, place), scale in np.ndenumerate(grid["scale"]):
        column, row = figure.axes[0].transData.transform((place, output))
        drawn = pixels[pixels.shape[0] - 1 - round(row), round(column)]
        np.testing.assert_allclose(drawn, colours[scale] if scale >= 0 else (1, 1, 1), atol=0.01)


def test_the_legend_names_what_is_drawn_and_nothing_else():
    pattern = [(1, 1, 3), (1, 4, 1)]
    assert legend_of(plot_lattice(ICConv(2, 4, (3, 3), pattern=pattern, rngs=RNGS))) == [
        "3x3, dilation 1",
        "3x3, dilation 1x4",
    ]
    part = plot_lattice(ICConv(2, 4, (3, 3), pattern=pattern, rngs=RNGS), outputs=slice(3, 4))
    assert legend_of(part) == ["3x3, dilation 1x4"]
    bands = plot_lattice(PyConv(8, 8, (3, 5), groups=(1, 4), rngs=RNGS))
    assert legend_of(bands) == ["3x3", "5x5", "no kernel"]


def test_a_part_keeps_its_channels_numbers():
    figure = Figure()
    axes = figure.subplots()
    assert plot_lattice(PSConv(64, 64, (3, 3), rngs=RNGS), axes, outputs=slice(8, 24), inputs=slice(40, None)) is axes
    assert axes.get_xlim() == (39.5, 63.5)
    assert axes.get_ylim() == (23.5, 7.5)
    with pytest.raises(ValueError, match="no cell is left"):
        plot_lattice(PSConv(64, 64, (3, 3), rngs=RNGS), axes, inputs=slice(64, 70))


def test_the_diagonal_of_many_channels_is_not_lost():
    scale = lattice_grid(GroupedConv(600, 600, (3, 3), feature_group_count=600, rngs=RNGS))["scale"]
    picture = _picture(scale, [(0.2, 0.4, 0.6)])
    assert picture.shape == (200, 200, 3)
    expected = np.where(np.eye(200, dtype=bool)[..., None], (0.2, 0.4, 0.6), (1.0, 1.0, 1.0))
    np.testing.assert_allclose(picture, expected)


def test_kinds_have_colours_of_their_own():
    scales = [((3, 3), (rows, columns)) for rows in range(1, 5) for columns in range(1, 5)]
    colours = np.array(scale_colours(scales))
    gaps = np.abs(colours[:, None] - colours[None]).max(axis=-1) + np.eye(16)
    assert gaps.min() > 0.08
