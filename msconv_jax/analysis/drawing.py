"""Kernel lattices as arrays and as pictures: the kernel between each input channel and each output channel.

The pictures follow Figs. 2 to 5 of the PSConv paper (ECCV 2020): rows are output channels (filters), columns are input
channels, colours are kinds of kernels, and empty cells are white.
"""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

import numpy as np

from msconv_jax.analysis.figures import single
from msconv_jax.lattice import KernelLattice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["lattice_grid", "lattice_of", "plot_lattice", "scale_label"]

Scale = tuple[tuple[int, ...], tuple[int, ...]]  # kernel size and dilation

_LINED = 32  # most cells along an axis with separating lines
_DRAWN = 256  # most cells along an axis with one pixel per cell


def lattice_of(lattice: KernelLattice | Any) -> KernelLattice:
    """The kernel lattice itself, or an operator's lattice.

    Raises:
        ValueError: if it is neither a lattice nor has one.
    """
    found = getattr(lattice, "lattice", lattice)
    if not isinstance(found, KernelLattice):
        raise ValueError(
            f"{type(lattice).__name__} is no kernel lattice and has none: expected a KernelLattice, or an operator "
            "with the attribute lattice, such as PSConv."
        )
    return found


def scale_label(kernel_size: tuple[int, ...], dilation: tuple[int, ...] | None = None) -> str:
    """A kind of kernel in words; equal dilations become one number, and one-tap kernels show no dilation.

    Example:
        >>> scale_label((3, 3), (2, 2)), scale_label((3, 3), (1, 4)), scale_label((5, 5)), scale_label((1, 1), (2, 2))
        ('3x3, dilation 2', '3x3, dilation 1x4', '5x5', '1x1')
    """
    size = "x".join(map(str, kernel_size))
    if dilation is None or max(kernel_size) == 1:
        return size
    return f"{size}, dilation {'x'.join(map(str, dilation)) if len(set(dilation)) > 1 else dilation[0]}"


def lattice_grid(lattice: KernelLattice | Any) -> dict[str, Any]:
    """A kernel lattice as arrays; rows are output channels, columns are input channels.

    Args:
        lattice: a :class:`msconv_jax.KernelLattice`, or an operator with one.

    Returns:
        A dictionary with

        * "kernel_size": int (out_features, in_features, ndim), taps along each axis, 0 in empty cells;
        * "dilation": likewise, pixels between taps;
        * "empty": bool (out_features, in_features);
        * "scales": list of the kinds of kernels, ``(kernel_size, dilation)``, ascending;
        * "scale": int (out_features, in_features), each cell's index into "scales", -1 in empty cells.

    Raises:
        ValueError: if `lattice` is no lattice and has none.

    Source: Fig. 2 of the PSConv paper.

    Example:
        >>> from msconv_jax.operators.psconv import psconv_lattice
        >>> grid = lattice_grid(psconv_lattice(4, 4, (3, 3), pattern=(1, 2, 1, 4)))
        >>> grid["dilation"][:, :, 0]
        array([[2, 1, 4, 1],
               [1, 2, 1, 4],
               [4, 1, 2, 1],
               [1, 4, 1, 2]])
        >>> [scale_label(*scale) for scale in grid["scales"]], bool(grid["empty"].any())
        (['3x3, dilation 1', '3x3, dilation 2', '3x3, dilation 4'], False)
    """
    found = lattice_of(lattice)
    of_tile = [(tile.kernel_size, tile.dilation) for tile in found.tiles]
    scales = sorted(set(of_tile))
    number = np.array([*(scales.index(scale) for scale in of_tile), -1])
    scale = number[found.cells]  # index -1 is the last element: empty
    return {
        "kernel_size": found.kernel_sizes,
        "dilation": found.dilations,
        "empty": scale < 0,
        "scales": scales,
        "scale": scale,
    }


def plot_lattice(
    lattice: KernelLattice | Any,
    axes: Axes | None = None,
    *,
    outputs: slice = slice(None),
    inputs: slice = slice(None),
    title: str | None = None,
    legend: bool = True,
) -> Any:
    """Draws a kernel lattice: rows are output channels, columns input channels, colours kinds of kernels.

    The hue is the kernel size, and the lightness is the dilation. With one kernel size and different dilations along
    the two axes (inception convolutions), the hue is the dilation of the first axis. Empty cells are white. Beyond 256
    channels a pixel is the mean colour of several cells, without the empty ones.

    Args:
        lattice: a :class:`msconv_jax.KernelLattice` of any kernel sizes, or an operator with one.
        axes: the axes to draw on; None creates a figure.
        outputs: slice of the output channels to draw.
        inputs: slice of the input channels to draw.
        title: title of the axes; None shows the numbers of channels.
        legend: whether to list the kinds of kernels on the right.

    Returns:
        `axes`, or the ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if `lattice` is no lattice and has none, or no channel is drawn.
        ImportError: if matplotlib is missing.

    Source: Figs. 2 to 5 of the PSConv paper.

    Example:
        >>> from msconv_jax.operators.psconv import psconv_lattice
        >>> figure = plot_lattice(psconv_lattice(16, 16, (3, 3), feature_group_count=2, layout="lattice"))
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['3x3, dilation 1', '3x3, dilation 2', '3x3, dilation 4', 'no kernel']
    """
    grid = lattice_grid(lattice)
    scales: list[Scale] = grid["scales"]
    scale: np.ndarray = grid["scale"][outputs, inputs]
    if not scale.size:
        raise ValueError(
            f"outputs={outputs}, inputs={inputs} of a lattice of {grid['scale'].shape[0]} outputs and "
            f"{grid['scale'].shape[1]} inputs: no cell is left to draw."
        )
    colours = scale_colours(scales)
    ratio = scale.shape[1] / scale.shape[0]
    own, result = single(axes, 4.2 * min(max(ratio, 0.5), 2.5) + (1.9 if legend else 0.3), 4.4)
    from matplotlib.patches import Patch  # imported late, since matplotlib is optional
    from matplotlib.ticker import MaxNLocator

    first_row, first_column = outputs.indices(grid["scale"].shape[0])[0], inputs.indices(grid["scale"].shape[1])[0]
    rows, columns = scale.shape
    own.imshow(
        _picture(scale, colours),
        extent=(first_column - 0.5, first_column + columns - 0.5, first_row + rows - 0.5, first_row - 0.5),
        aspect="equal" if 0.3 < ratio < 3.5 else "auto",
        interpolation="nearest" if max(scale.shape) <= _DRAWN else "auto",
    )
    for count, first, draw in ((rows, first_row, own.axhline), (columns, first_column, own.axvline)):
        if max(rows, columns) <= _LINED:
            for edge in range(1, count):
                draw(first + edge - 0.5, color="white", linewidth=1.0)
    own.set(xlabel="input channel", ylabel="output channel")
    for axis in (own.xaxis, own.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    shape = grid["scale"].shape
    own.set_title(f"{shape[1]} to {shape[0]} channels" if title is None else title)
    if legend:
        present = set(np.unique(scale).tolist())
        dilated = any(max(dilation) > 1 for _, dilation in scales)
        entries = [
            Patch(color=colours[number], label=scale_label(size, dilation if dilated else None))
            for number, (size, dilation) in enumerate(scales)
            if number in present
        ]
        if -1 in present:
            entries.append(Patch(facecolor="white", edgecolor="grey", label="no kernel"))
        own.legend(
            handles=entries,
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            borderaxespad=0.0,
            frameon=False,
            fontsize=9 if len(entries) <= 18 else 7,
            ncols=-(-len(entries) // 24),
        )
    return result


def scale_colours(scales: list[Scale]) -> list[tuple[float, float, float]]:
    """A colour (red, green, blue) for each kind of kernel, as described in :func:`plot_lattice`.

    Example:
        >>> len(set(scale_colours([((3, 3), (rows, columns)) for rows in (1, 2) for columns in (1, 2, 3)])))
        6
    """
    sizes = {size for size, _ in scales}
    anisotropic = any(len(set(dilation)) > 1 for _, dilation in scales)
    if len(sizes) == 1 and anisotropic:
        hues, tones = [dilation[0] for _, dilation in scales], [dilation[1:] for _, dilation in scales]
    else:
        hues, tones = [size for size, _ in scales], [dilation for _, dilation in scales]
    all_hues = sorted(set(hues), key=lambda hue: (np.prod(hue), hue))
    colours = []
    for hue, tone in zip(hues, tones, strict=True):
        of_hue = sorted({t for h, t in zip(hues, tones, strict=True) if h == hue}, key=lambda t: (np.prod(t), t))
        if len(of_hue) > 1:
            lightness = 0.78 - 0.5 * of_hue.index(tone) / (len(of_hue) - 1)
        else:  # different hues also differ in greyscale
            lightness = 0.7 - 0.35 * all_hues.index(hue) / max(len(all_hues) - 1, 1)
        # Starts at blue, so that the smallest of few kinds is not an alarming red.
        angle = (0.58 + all_hues.index(hue) / max(len(all_hues), 3)) % 1.0
        colours.append(colorsys.hls_to_rgb(angle, lightness, 0.65))
    return colours


def _picture(scale: np.ndarray, colours: list[tuple[float, float, float]]) -> np.ndarray:
    """The cells' colours (rows, columns, 3); averages several cells per pixel in a large lattice."""
    rgb = np.array([*colours, (0.0, 0.0, 0.0)])
    steps = [-(-n // _DRAWN) for n in scale.shape]
    if steps != [1, 1]:
        pads = [(0, -n % step) for n, step in zip(scale.shape, steps, strict=True)]
        scale = np.pad(scale, pads, constant_values=-1)
    total = np.zeros((scale.shape[0] // steps[0], scale.shape[1] // steps[1], 3))
    count = np.zeros((*total.shape[:2], 1))
    for row in range(steps[0]):
        for column in range(steps[1]):
            own = scale[row :: steps[0], column :: steps[1]]
            total += rgb[own]  # index -1 is the last element: black, which adds nothing
            count += own[..., None] >= 0
    return np.where(count > 0, total / np.maximum(count, 1), 1.0)
