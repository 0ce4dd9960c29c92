"""What a comparison of networks found: its rows, its table and its picture."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from msconv_jax.counting import count_parameters, layer_macs
from train.config import read_config
from train.data import load_source
from train.network import create_network
from train.results import read_answers


class Row(NamedTuple):
    """A network of a comparison.

    Attributes:
        title: what it is called.
        seeds: those of its trainings.
        accuracies: of each training the test accuracy, 0..1.
        by_scale: of each training the test accuracies between the edges of the scales, 0..1.
        parameters: their number.
        macs: multiply-accumulates for one image.
        step_seconds: how long a training step takes.
    """

    title: str
    seeds: list[int]
    accuracies: list[float]
    by_scale: list[list[float]]
    parameters: int
    macs: int
    step_seconds: float


def read_row(title: str, folder: Path, seeds: Sequence[int], edges: Sequence[float], step_seconds: float) -> Row:
    """Gathers what the finished trainings of a network left, in ``seed0/run`` and so on.

    Raises:
        UserError: if one is not finished.
    """
    runs = [folder / f"seed{seed}" / "run" for seed in seeds]
    config = read_config(runs[0])
    source = load_source(config)
    scales = np.array([record["scale"] for record in source.splits["test"]])
    answers = [read_answers(run) for run in runs]
    right = [own.predicted == own.labels for own in answers]
    network = nnx.eval_shape(lambda: create_network(config, source))
    return Row(
        title=title,
        seeds=list(seeds),
        accuracies=[float(own.mean()) for own in right],
        by_scale=[accuracy_by(scales, own, edges) for own in right],
        parameters=count_parameters(network),
        macs=sum(layer_macs(network, source.image_shape).values()),
        step_seconds=step_seconds,
    )


def accuracy_by(values: np.ndarray, right: np.ndarray, edges: Sequence[float]) -> list[float]:
    """The share of right answers among those whose value is from one edge to below the next.

    Args:
        values: (n,) what is told apart, such as scales.
        right: (n,) bool.
        edges: rising numbers.

    Returns:
        A share between each two edges; nan where there are no values.

    Example:
        >>> accuracy_by(np.array([1.0, 1.5, 3.0]), np.array([True, False, True]), (1, 2, 4))
        [0.5, 1.0]
    """
    between = [(low <= values) & (values < high) for low, high in itertools.pairwise(edges)]
    return [float(right[own].mean()) if own.any() else float("nan") for own in between]


def gains(row: Row, baseline: Row) -> list[float]:
    """By how much each training is better than the baseline's of the same seed, 0..1."""
    theirs = dict(zip(baseline.seeds, baseline.accuracies, strict=True))
    return [a - theirs[seed] for seed, a in zip(row.seeds, row.accuracies, strict=True) if seed in theirs]


def table(rows: Sequence[Row], baseline: int, edges: Sequence[float]) -> str:
    """The comparison in Markdown: accuracies in per cent, mean and standard deviation over the seeds."""
    plain = rows[baseline]
    spans = [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]
    heads = ["network", "seeds", "test accuracy", f"over {plain.title}", *spans]
    heads += ["parameters", "million MACs", "step, ms", f"step over {plain.title}"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        scales = np.mean(row.by_scale, axis=0)
        gain = "" if row is plain else with_spread(gains(row, plain), sign="+")
        cells = [row.title, str(len(row.seeds)), with_spread(row.accuracies), gain, *(f"{100 * s:.1f}" for s in scales)]
        cells += [f"{row.parameters:,}", f"{row.macs / 1e6:.2f}", f"{1e3 * row.step_seconds:.1f}"]
        cells += [f"{row.step_seconds / plain.step_seconds:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_spread(shares: Sequence[float], sign: str = "") -> str:
    """Shares in per cent: their mean and, of several, their standard deviation.

    Example:
        >>> with_spread([0.25, 0.26, 0.27]), with_spread([0.5], sign="+"), with_spread([])
        ('26.0 ± 1.0', '+50.0', '-')
    """
    if not shares:
        return "-"
    spread = f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * mean(shares):{sign}.1f}{spread}"


def draw(rows: Sequence[Row], baseline: int, edges: Sequence[float], path: Path) -> None:
    """Draws accuracies with their spread, and by how much each network is better at each scale, as a PNG file."""
    plain = rows[baseline]
    places = np.arange(len(rows))
    figure = Figure(figsize=(10, 1.4 + 0.32 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, row in zip(places, rows, strict=True):
        own = 100 * np.array(row.accuracies)
        left.plot(own, np.full(len(own), place), ".", color="tab:gray", markersize=5)
        spread = own.std(ddof=1) if len(own) > 1 else 0.0
        left.errorbar(own.mean(), place, xerr=spread, fmt="D", color="tab:blue", markersize=5, capsize=3)
    left.axvline(100 * mean(plain.accuracies), color="tab:gray", linewidth=1, linestyle="--")
    left.set(xlabel="test accuracy, per cent; a dot for each seed, mean and standard deviation", yticks=places)
    left.set_yticklabels([row.title for row in rows])
    left.invert_yaxis()
    left.grid(axis="x", alpha=0.3)
    theirs = np.mean(plain.by_scale, axis=0)
    better = 100 * np.array([np.mean(row.by_scale, axis=0) - theirs for row in rows])
    largest = max(float(np.nanmax(np.abs(better))), 1e-9)
    right.imshow(better, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    for (place, span), value in np.ndenumerate(better):
        colour = "white" if abs(value) > 0.6 * largest else "black"
        text = "" if place == baseline else f"{value:+.1f}"
        right.text(span, place, text, ha="center", va="center", fontsize=8, color=colour)
    spans = [f"{low:.3g}x to\n{high:.3g}x" for low, high in itertools.pairwise(edges)]
    right.set(xticks=range(len(spans)), xlabel=f"scale; points above {plain.title}")
    right.set_xticklabels(spans, fontsize=8)
    right.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=120)
