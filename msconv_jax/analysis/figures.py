"""Creates the figures and Axes of the plot functions.

A plot function draws into given ``matplotlib.axes.Axes`` and returns them, or creates a figure and returns it. Such a
figure is not registered with pyplot: Jupyter shows it as the value of a cell, ``figure.savefig("x.png")`` writes it,
and it is freed with its last reference. matplotlib is imported when the first figure is created.
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
    """Creates an empty figure with matplotlib's constrained layout.

    Args:
        width: width in inches.
        height: height in inches.

    Raises:
        ImportError: if matplotlib is missing.

    Example:
        >>> figure = new_figure(3, 2)
        >>> figure.get_size_inches().tolist(), figure._repr_png_()[1:4]
        ([3.0, 2.0], b'PNG')
    """
    return _figure_class()(figsize=(width, height), layout="constrained")


def single(axes: Axes | None, width: float, height: float) -> tuple[Axes, Any]:
    """The Axes to draw into, and the plot function's result: the given Axes, or a new figure."""
    if axes is not None:
        return axes, axes
    figure = new_figure(width, height)
    return figure.subplots(), figure


def panels(
    axes: Sequence[Axes] | np.ndarray | None, count: int, columns: int, width: float, height: float
) -> tuple[list[Axes], Any]:
    """The Axes of several panels, and the plot function's result.

    Args:
        axes: at least `count` Axes in an array or nested sequence; None creates a figure.
        count: number of panels, at least 1.
        columns: largest number of panels in a row of the figure.
        width: width of a panel in inches.
        height: height of a panel in inches.

    Returns:
        `count` Axes, and the given `axes` or the new figure.

    Raises:
        ValueError: if there are too few Axes.
        ImportError: if matplotlib is missing.
    """
    if axes is not None:
        flat = list(np.ravel(np.asarray(axes, object)))
        if len(flat) < count:
            raise ValueError(f"axes holds {len(flat)} Axes: expected {count}, one per panel; None creates a figure.")
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
    """The figure of matplotlib with the method by which Jupyter shows the value of a cell."""
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
