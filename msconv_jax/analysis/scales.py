"""Scale allocation: the share of each scale in the weights of each layer.

D. Li, A. Yao, Q. Chen: "PSConv", ECCV 2020, Appendix D and Fig. 6. The paper computes the mean absolute weight of each
spatial kernel, takes the maximum over the kernels of each dilation, and divides by the sum over the dilations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from flax import nnx

from msconv_jax.analysis.figures import single
from msconv_jax.arguments import dilated_extent
from msconv_jax.lattice import KernelLattice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Allocation", "plot_scale_allocation", "scale_allocation"]

By = Literal["dilation", "extent"]
Statistic = Literal["max", "mean", "sum"]
Allocation = dict[str, dict[tuple[int, ...], float]]


def scale_allocation(model: nnx.Module, *, by: By = "dilation", statistic: Statistic = "max") -> Allocation:
    """The proportion of each scale in the weights of each layer that has a kernel lattice.

    Let m(c, k) be the mean absolute weight of the kernel from input k to output c. The value of a scale is the
    statistic of m over the kernels of this scale, divided by the sum of the statistics of all scales of the layer.

    Args:
        model: any NNX model with operators of this library; an operator itself has the path "". The extra kernels of
            ``PSConv(official_compat=True)``, which the paper does not have, are ignored.
        by: definition of a scale: "dilation" as in the paper, or "extent", the pixels that a kernel spans along each
            axis, which also separates the kernel sizes of PyConv and HetConv.
        statistic: "max" as in the paper; "mean", which does not grow with the number of kernels; or "sum", which gives
            each scale's share of all mean absolute weights.

    Returns:
        A dictionary from the path of each layer to its scales, ascending, and their proportions, which sum to 1. A
        scale is a tuple with an int for each spatial axis, such as (1, 1), (2, 2) and (4, 4).

    Raises:
        ValueError: for an unknown argument, a model without such a layer, or weights that are all zero or not finite.

    Source: Appendix D and Fig. 6 of the PSConv paper.

    Example:
        >>> from msconv_jax.models import create_model
        >>> shares = scale_allocation(create_model("ps_resnet8", rngs=nnx.Rngs(0)))
        >>> list(shares)[:2], list(shares["layer1.0.conv1"])
        (['layer1.0.conv1', 'layer1.0.conv2'], [(1, 1), (2, 2), (4, 4)])
        >>> round(sum(shares["layer1.0.conv1"].values()), 6)
        1.0
    """
    for name, value, known in (("by", by, get_args(By)), ("statistic", statistic, get_args(Statistic))):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}.")
    shares = {
        ".".join(map(str, path)): _shares(".".join(map(str, path)), layer, by, statistic)
        for path, layer in nnx.iter_modules(model)
        if hasattr(layer, "lattice_kernels")
    }
    if not shares:
        raise ValueError(
            f"{type(model).__name__} has no layer with a kernel lattice, such as PSConv: build it with conv=..., or "
            "replace its convolutions with msconv_jax.replace_convs."
        )
    return dict(sorted(shares.items(), key=lambda item: _natural(item[0])))


def _natural(path: str) -> list[tuple[bool, int, str]]:
    """A key that sorts numbers in a path by value, so that 10 follows 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in path.split(".")]


def _shares(path: str, layer: Any, by: By, statistic: Statistic) -> dict[tuple[int, ...], float]:
    lattice: KernelLattice = layer.lattice
    found: dict[tuple[int, ...], list[np.ndarray]] = {}
    for bank, kernel in zip(lattice.banks, layer.lattice_kernels, strict=True):
        axes = tuple(range(lattice.ndim))
        means = np.abs(np.asarray(kernel, np.float64)).mean(axis=axes)  # (fan_in, outputs)
        outputs = np.array(bank.outputs)
        rows = lattice.row_of_output[outputs]
        places = lattice.bank_places(bank)
        for row in np.unique(rows):
            own = means[:, rows == row]
            tiles = lattice.rows[row]
            for number in np.unique(tiles[places[row] >= 0]):
                tile = lattice.tiles[number]
                scale = tile.dilation if by == "dilation" else dilated_extent(tile.kernel_size, tile.dilation)
                found.setdefault(scale, []).append(own[places[row][tiles == number]].ravel())
    kernels = {scale: np.concatenate(values) for scale, values in sorted(found.items())}
    if not all(np.isfinite(values).all() for values in kernels.values()):
        raise ValueError(f"{path} has weights that are not finite numbers: its training has diverged.")
    amounts = {scale: float(getattr(np, statistic)(values)) for scale, values in kernels.items()}
    total = math.fsum(amounts.values())
    if total == 0:
        raise ValueError(f"{path} has only zero weights, so its proportions are undefined.")
    return {scale: amount / total for scale, amount in amounts.items()}


def plot_scale_allocation(
    allocation: Mapping[str, Mapping[tuple[int, ...], float]],
    axes: Axes | None = None,
    *,
    label: str = "dilation",
    title: str = "",
) -> Any:
    """Draws a stacked bar for each layer, with one part for each scale.

    Args:
        allocation: result of :func:`scale_allocation`, or some of its layers.
        axes: the Axes to draw into; None creates a figure.
        label: title of the legend, such as the definition of a scale.
        title: title of the plot.

    Returns:
        `axes`, or the ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if there is no layer.
        ImportError: if matplotlib is missing.

    Source: Fig. 6 of the PSConv paper.

    Example:
        >>> figure = plot_scale_allocation({"layer1.0.conv2": {(1, 1): 0.5, (2, 2): 0.25, (4, 4): 0.25}})
        >>> figure.savefig("allocation.png")  # doctest: +SKIP
    """
    if not allocation:
        raise ValueError("allocation is empty: expected at least one layer, from scale_allocation.")
    own, result = single(axes, max(4.0, 2.2 + 0.3 * len(allocation)), 4.0)
    scales = sorted({scale for shares in allocation.values() for scale in shares}, key=lambda s: (math.prod(s), s))
    from matplotlib import colormaps  # single() has checked that matplotlib is installed

    places = np.arange(len(allocation))
    bottom = np.zeros(len(allocation))
    for number, scale in enumerate(scales):
        heights = np.array([shares.get(scale, 0.0) for shares in allocation.values()])
        colour = colormaps["viridis_r"](0.1 + 0.9 * number / max(len(scales) - 1, 1))
        name = str(scale[0]) if len(set(scale)) == 1 else "x".join(map(str, scale))
        own.bar(places, heights, 0.85, bottom, color=colour, label=name)
        bottom += heights
    own.set(xlim=(-0.6, len(allocation) - 0.4), ylim=(0, 1), ylabel="proportion of the weights", title=title)
    own.set_xticks(places, list(allocation), rotation=90, fontsize=8)
    handles, labels = own.get_legend_handles_labels()
    own.legend(  # the topmost part of the bars first
        handles[::-1],
        labels[::-1],
        title=label,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        frameon=False,
        ncols=-(-len(labels) // 16),
    )
    return result
