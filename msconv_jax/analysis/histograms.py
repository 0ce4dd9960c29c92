"""Histograms of chosen dilations: which share of each layer's filters has which.

J. Liu et al.: "Inception Convolution with Efficient Dilation Search", CVPR 2021, whose search
:func:`msconv_jax.edo.select` is.
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
    """For each layer the share of its filters with each combination of dilations.

    Args:
        patterns: for the path of each layer the dilations of each filter, ``(d_h, d_w)``, as
            :func:`msconv_jax.edo.select` gives them; or several such, of searches with other seeds, whose filters are
            counted together.
        d_max: the search's largest dilation.

    Returns:
        For each path an array ``(d_max, d_max)`` whose entry [d_h - 1, d_w - 1] is a share; they add up to 1. Filters
        with another number of axes than two have one of as many axes.

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
        raise ValueError("patterns is empty: expected the dilations of at least one layer, as edo.select gives them.")
    return {path: of_layer / of_layer.sum() for path, of_layer in counts.items()}


def plot_dilation_shares(
    shares: Mapping[str, np.ndarray], axes: Sequence[Axes] | np.ndarray | None = None, *, title: str | None = None
) -> Any:
    """Draws for each layer the shares of its filters, in per cent, as a table of coloured cells.

    Args:
        shares: what :func:`dilation_shares` gives, of layers with two axes.
        axes: an Axes for each layer, in an array or sequence; None makes a figure.
        title: of the whole figure, where it makes one; None says what is drawn.

    Returns:
        `axes`, or the ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if there is no layer, a layer has not two axes, or there are too few Axes.
        ImportError: if matplotlib is missing.

    Example:
        >>> figure = plot_dilation_shares(dilation_shares({"conv": [(1, 1), (2, 1)]}, 2))
        >>> sorted(text.get_text() for text in figure.axes[0].texts)
        ['0', '0', '50', '50']
    """
    if not shares:
        raise ValueError("shares is empty: expected at least one layer, as dilation_shares gives them.")
    for path, share in shares.items():
        if np.ndim(share) != 2:
            raise ValueError(f"{path} has shares of {np.ndim(share)} axes: only those of two can be drawn.")
    places, result = panels(axes, len(shares), 6, 2.1, 2.3)
    from matplotlib.cm import ScalarMappable  # here, where matplotlib is known to be there
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
        result.set_size_inches(max(width + 1.2, 4.2), height + 1.0)  # room for what follows
        result.supxlabel("horizontal dilation", fontsize=10)
        result.supylabel("vertical dilation", fontsize=10)
        result.colorbar(ScalarMappable(norm, "viridis"), ax=result.axes, label="share of the filters", shrink=0.8)
        result.suptitle("dilations, percent of each layer's filters" if title is None else title, fontsize=11)
    return result
