"""Histograms of dilations: the share of each layer's filters with each pair of dilations.

J. Liu et al.: "Inception Convolution with Efficient Dilation Search", CVPR 2021. :func:`msconv_jax.edo.select`
implements its search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from msconv_jax.analysis.figures import panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["dilation_shares", "plot_dilation_shares"]

Patterns = Mapping[str, Sequence[Sequence[int]]]


def dilation_shares(patterns: Patterns | Sequence[Patterns], d_max: int) -> dict[str, np.ndarray]:
    """The share of each layer's filters with each combination of dilations.

    Args:
        patterns: a dictionary from the path of each layer to the dilations ``(d_h, d_w)`` of each filter, from
            :func:`msconv_jax.edo.select`; or a sequence of such dictionaries, of searches with several seeds, whose
            filters are counted together.
        d_max: the largest dilation of the search.

    Returns:
        A dictionary from each path to an array ``(d_max, d_max)``; its entry [d_h - 1, d_w - 1] is the share of these
        dilations, and all entries sum to 1. The array has one axis per spatial axis of the filters.

    Raises:
        ValueError: if there is no layer, a layer has no filter or filters of different numbers of axes, or a dilation
            is not a whole number from 1 to `d_max`.

    Example:
        >>> dilation_shares({"conv": [(1, 1), (2, 1), (1, 1), (1, 1)]}, 2)["conv"].tolist()
        [[0.75, 0.0], [0.25, 0.0]]
    """
    searches = [patterns] if isinstance(patterns, Mapping) else list(patterns)
    counts: dict[str, np.ndarray] = {}
    for search in searches:
        for path, pattern in search.items():
            filters = [tuple(dilations) for dilations in pattern]
            for dilations in filters:
                if any(isinstance(d, bool) or d not in range(1, d_max + 1) for d in dilations):
                    raise ValueError(
                        f"{path} has the dilations {dilations}: expected whole numbers from 1 to d_max={d_max}; give "
                        "the d_max of the search."
                    )
            axes = {len(dilations) for dilations in filters}
            if path in counts:
                axes.add(counts[path].ndim)
            if len(axes) != 1:
                raise ValueError(f"{path} has filters of {sorted(axes)} axes: expected one number for all.")
            of_layer = counts.setdefault(path, np.zeros((d_max,) * axes.pop()))
            for dilations in filters:
                of_layer[tuple(d - 1 for d in dilations)] += 1
    if not counts:
        raise ValueError("patterns is empty: expected the dilations of at least one layer, from edo.select.")
    return {path: of_layer / of_layer.sum() for path, of_layer in counts.items()}


def plot_dilation_shares(
    shares: Mapping[str, np.ndarray], axes: Sequence[Axes] | np.ndarray | None = None, *, title: str | None = None
) -> Any:
    """Draws the shares of each layer's filters, in per cent, as a table of coloured cells.

    Args:
        shares: result of :func:`dilation_shares` for layers with two spatial axes.
        axes: an array or sequence with an Axes per layer; None creates a figure.
        title: title of a created figure; None gives a default title.

    Returns:
        `axes`, or the ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if there is no layer, a layer does not have two axes, or there are too few Axes.
        ImportError: if matplotlib is missing.

    Example:
        >>> figure = plot_dilation_shares(dilation_shares({"conv": [(1, 1), (2, 1)]}, 2))
        >>> sorted(text.get_text() for text in figure.axes[0].texts)
        ['0', '0', '50', '50']
    """
    if not shares:
        raise ValueError("shares is empty: expected at least one layer, from dilation_shares.")
    for path, share in shares.items():
        if np.ndim(share) != 2:
            raise ValueError(f"{path} has shares of {np.ndim(share)} axes: only layers with two axes can be drawn.")
    places, result = panels(axes, len(shares), 6, 2.1, 2.3)
    from matplotlib.cm import ScalarMappable  # panels() has checked that matplotlib is installed
    from matplotlib.colors import Normalize

    largest = max(float(share.max()) for share in shares.values())
    norm = Normalize(0, largest)
    for own, (path, share) in zip(places, shares.items(), strict=True):
        rows, columns = share.shape
        extent = (0.5, columns + 0.5, 0.5, rows + 0.5)
        own.imshow(share, norm=norm, cmap="viridis", origin="lower", extent=extent)
        for (d_h, d_w), value in np.ndenumerate(share):
            colour = "black" if value > 0.6 * largest else "white"
            own.text(d_w + 1, d_h + 1, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=8)
        own.set(xticks=range(1, columns + 1), yticks=range(1, rows + 1))
        own.set_title(path, fontsize=9)
    if axes is None:
        width, height = result.get_size_inches()
        result.set_size_inches(max(width + 1.2, 4.2), height + 1.0)  # space for labels, colour bar and title
        result.supxlabel("horizontal dilation", fontsize=10)
        result.supylabel("vertical dilation", fontsize=10)
        result.colorbar(ScalarMappable(norm, "viridis"), ax=result.axes, label="share of the filters", shrink=0.8)
        result.suptitle("dilations, percent of each layer's filters" if title is None else title, fontsize=11)
    return result
