"""Figures that notebooks show and nothing else knows of; what the plot functions share.

A plot function draws into the ``matplotlib.axes.Axes`` that it is given and returns it, or makes a figure and returns
that. Such a figure is not pyplot's: it shows as a cell's value in Jupyter, is written with ``figure.savefig("x.png")``,
and goes when nobody holds it. matplotlib is imported when the first one is made.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["new_figure", "panels", "single"]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure whose parts find their places by themselves.

    Args:
        width: in inches.
        height: in inches.

    Raises:
        ImportError: if matplotlib is missing.

    Example:
        >>> figure = new_figure(3, 2)
        >>> figure.get_size_inches().tolist(), figure._repr_png_()[1:4]
        ([3.0, 2.0], b'PNG')
    """
    return _figure_class()(figsize=(width, height), layout="constrained")


def single(axes: Axes | None, width: float, height: float) -> tuple[Axes, Any]:
    """The Axes to draw into, and what the plot function returns: the Axes it was given, or its own figure."""
    if axes is not None:
        return axes, axes
    figure = new_figure(width, height)
    return figure.subplots(), figure


def panels(
    axes: Sequence[Axes] | np.ndarray | None, count: int, columns: int, width: float, height: float
) -> tuple[list[Axes], Any]:
    """An Axes for each of several panels, and what the plot function returns.

    Args:
        axes: at least `count` Axes in an array or sequence of any depth, or None for a figure.
        count: number of panels, at least 1.
        columns: most panels in a row of the figure.
        width: of a panel, in inches.
        height: of a panel, in inches.

    Returns:
        `count` Axes, and `axes` as it was given, or the figure.

    Raises:
        ValueError: if there are too few Axes.
        ImportError: if matplotlib is missing.
    """
    if axes is not None:
        flat = list(np.ravel(np.asarray(axes, object)))
        if len(flat) < count:
            raise ValueError(f"axes holds {len(flat)} Axes: expected {count}, one for each panel; None makes a figure.")
        return flat[:count], axes
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(width * columns, height * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in grid[count:]:
        unused.axis("off")
    return grid[:count], figure


@functools.cache
def _figure_class() -> type[Figure]:
    """The figure of matplotlib, with the picture that Jupyter asks a cell's value for."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need the package matplotlib: pip install 'msconv_jax[analysis]'") from error

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=100)
            return buffer.getvalue()

    return NotebookFigure
