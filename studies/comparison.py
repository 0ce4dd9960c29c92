"""The results of a comparison of networks: rows, table and picture."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from msconv_jax.counting import count_parameters, layer_macs
from train.config import read_config
from train.data import Source, load_source
from train.data.record import check_data
from train.engine.results import read_arrays
from train.errors import UserError
from train.tasks.network import create_network


class Row(NamedTuple):
    """A network of a comparison.

    Attributes:
        title: its name in the table.
        seeds: the seeds of its trainings.
        accuracies: the test accuracy of each training, 0..1.
        by_scale: the test accuracies of each training between the edges of the scales, 0..1.
        parameters: the number of parameters.
        macs: multiply-accumulates for one image.
        step_seconds: the time of a training step.
    """

    title: str
    seeds: list[int]
    accuracies: list[float]
    by_scale: list[list[float]]
    parameters: int
    macs: int
    step_seconds: float


def read_row(title: str, folder: Path, seeds: Sequence[int], edges: Sequence[float], step_seconds: float) -> Row:
    """Reads the results of the finished trainings of a network, in ``seed0/run`` and so on.

    Raises:
        UserError: if a training is not finished or had other data; with edges, also if the data lack the scale of each
            image, or no image has a scale between two edges.
    """
    runs = [folder / f"seed{seed}" / "run" for seed in seeds]
    config = read_config(runs[0])
    source = load_source(config)
    for run in runs:
        check_data(run, source)
    scales = scales_of_test(source) if edges else np.empty(0)
    found = [read_arrays(run) for run in runs]
    right = [arrays["predicted"] == arrays["labels"] for arrays in found]
    network = nnx.eval_shape(lambda: create_network(config, len(source.classes), source.image_shape[-1]))
    return Row(
        title=title,
        seeds=list(seeds),
        accuracies=[float(is_right.mean()) for is_right in right],
        by_scale=[accuracy_by(scales, is_right, edges) for is_right in right],
        parameters=count_parameters(network),
        macs=sum(layer_macs(network, source.image_shape).values()),
        step_seconds=step_seconds,
    )


def scales_of_test(source: Source) -> np.ndarray:
    """Returns the scale of each test image.

    Raises:
        UserError: if the data lack it.
    """
    samples = source.splits["test"]
    if "scale" not in samples[0].numbers:
        raise UserError(
            "config.scale_edges is set but the data lack the scale of an image; take "
            "config.training.data.source='scaled_digits', or set config.scale_edges=()"
        )
    return np.array([sample.numbers["scale"] for sample in samples])


def accuracy_by(values: np.ndarray, right: np.ndarray, edges: Sequence[float]) -> list[float]:
    """Returns the share of correct predictions among values from one edge to below the next.

    Args:
        values: (n,), such as scales.
        right: (n,) bool, whether each prediction is correct.
        edges: rising numbers.

    Returns:
        A share for each pair of neighbouring edges.

    Raises:
        UserError: if there are no values between two edges.

    Example:
        >>> accuracy_by(np.array([1.0, 1.5, 3.0]), np.array([True, False, True]), (1, 2, 4))
        [0.5, 1.0]
    """
    shares = []
    for low, high in itertools.pairwise(edges):
        is_inside = (low <= values) & (values < high)
        if not is_inside.any():
            raise UserError(f"config.scale_edges has {low:g} and {high:g}, but no test image's scale is between them")
        shares.append(float(right[is_inside].mean()))
    return shares


def gains(row: Row, baseline: Row) -> list[float]:
    """Returns each training's accuracy less that of the baseline with the same seed, 0..1."""
    theirs = dict(zip(baseline.seeds, baseline.accuracies, strict=True))
    return [a - theirs[seed] for seed, a in zip(row.seeds, row.accuracies, strict=True) if seed in theirs]


def table(rows: Sequence[Row], baseline: int, edges: Sequence[float]) -> str:
    """Formats the comparison in Markdown: accuracies in per cent, mean and standard deviation over the seeds."""
    plain = rows[baseline]
    spans = [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]
    heads = ["network", "seeds", "test accuracy", f"over {plain.title}", *spans]
    heads += ["parameters", "million MACs", "step, ms", f"step over {plain.title}"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        scales = np.mean(row.by_scale, axis=0) if edges else []
        gain = "" if row is plain else with_spread(gains(row, plain), sign="+")
        cells = [row.title, str(len(row.seeds)), with_spread(row.accuracies), gain, *(f"{100 * s:.1f}" for s in scales)]
        cells += [f"{row.parameters:,}", f"{row.macs / 1e6:.2f}", f"{1e3 * row.step_seconds:.1f}"]
        cells += [f"{row.step_seconds / plain.step_seconds:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_spread(shares: Sequence[float], sign: str = "") -> str:
    """Formats shares in per cent: their mean and, for several, their standard deviation.

    Example:
        >>> with_spread([0.25, 0.26, 0.27]), with_spread([0.5], sign="+"), with_spread([])
        ('26.0 ± 1.0', '+50.0', '-')
    """
    if not shares:
        return "-"
    spread = f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * mean(shares):{sign}.1f}{spread}"


def draw(rows: Sequence[Row], baseline: int, edges: Sequence[float], path: Path) -> None:
    """Draws the accuracies with their spread, and the gain of each network at each scale, as a PNG file."""
    figure = Figure(figsize=(10 if edges else 7, 1.4 + 0.32 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2), squeeze=False) if edges else None
    left = figure.subplots() if panels is None else panels[0, 0]
    plain = rows[baseline]
    for place, row in enumerate(rows):
        values = 100 * np.array(row.accuracies)
        left.plot(values, np.full(len(values), place), ".", color="tab:gray", markersize=5)
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        left.errorbar(values.mean(), place, xerr=spread, fmt="D", color="tab:blue", markersize=5, capsize=3)
    left.axvline(100 * mean(plain.accuracies), color="tab:gray", linewidth=1, linestyle="--")
    left.set(xlabel="test accuracy, per cent: each seed, their mean and standard deviation", yticks=range(len(rows)))
    left.set_yticklabels([row.title for row in rows])
    left.invert_yaxis()
    left.grid(axis="x", alpha=0.3)
    if panels is not None:
        _draw_gains(panels[0, 1], rows, baseline, edges)
    figure.savefig(path, dpi=120)


def _draw_gains(axes: Axes, rows: Sequence[Row], baseline: int, edges: Sequence[float]) -> None:
    """Draws the gain over the baseline, in points, for each network and range of scales."""
    theirs = np.mean(rows[baseline].by_scale, axis=0)
    better = 100 * np.array([np.mean(row.by_scale, axis=0) - theirs for row in rows])
    largest = max(float(np.abs(better).max()), 1e-9)
    axes.imshow(better, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    for (place, span), value in np.ndenumerate(better):
        colour = "white" if abs(value) > 0.6 * largest else "black"
        text = "" if place == baseline else f"{value:+.1f}"
        axes.text(span, place, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set(xticks=range(len(edges) - 1), xlabel=f"scale of the digit; points above {rows[baseline].title}")
    axes.set_xticklabels([f"{low:.3g}x to\n{high:.3g}x" for low, high in itertools.pairwise(edges)], fontsize=8)
    axes.tick_params(axis="y", length=0)
