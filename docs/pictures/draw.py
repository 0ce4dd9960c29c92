"""Draws the pictures of the documents into this folder.

    python docs/pictures/draw.py

The lattices come from the operators, receptive fields and times from the tables in `benchmarks/results`, accuracies
from `configs/compare_scaled_digits.md`. It takes seconds; the same versions of the packages write the same files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

import msconv_jax as ms
from msconv_jax.analysis import plot_lattice

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLUE, ORANGE, GREY = "#1f6fb4", "#d9822b", "#9aa5b1"

STYLE = {
    "svg.hashsalt": "msconv_jax",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def lattices() -> dict[str, Any]:
    """Operators of 16 channels that are described by one kernel lattice."""
    rngs = nnx.Rngs(0)
    return {
        "PSConv": ms.PSConv(16, 16, (3, 3), layout="lattice", rngs=rngs),
        "DynamicPSConv": ms.DynamicPSConv(16, 16, (3, 3), rngs=rngs),
        "PyConv": ms.PyConv(16, 16, (3, 5, 7, 9), groups=(1, 2, 4, 4), rngs=rngs),
        "ICConv": ms.ICConv(16, 16, (3, 3), pattern=((1, 1, 5), (1, 2, 4), (2, 1, 4), (4, 4, 3)), rngs=rngs),
        "HetConv": ms.HetConv(16, 16, (3, 3), parts=4, rngs=rngs),
        "GroupedConv": ms.GroupedConv(16, 16, (3, 3), feature_group_count=4, rngs=rngs),
    }


def save(figure: Figure, name: str) -> None:
    """Writes `name`.svg without a date, so that equal pictures are equal files."""
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None}, facecolor="white")
    print(f"wrote {name}.svg")


def draw_lattices() -> None:
    """A picture of each lattice, and four of them side by side."""
    found = lattices()
    for name, operator in found.items():
        save(plot_lattice(operator, title=f"{name}, 16 to 16 channels"), f"lattice_{name.lower()}")
    figure = Figure(figsize=(8.4, 7.2), layout="constrained")
    for axes, name in zip(figure.subplots(2, 2).flat, ("PSConv", "PyConv", "ICConv", "HetConv"), strict=True):
        plot_lattice(found[name], axes, title=name)
    save(figure, "lattices")


def extents(apply: Callable[[jax.Array], jax.Array], channels: int, side: int = 25) -> np.ndarray:
    """The side, in pixels, of the square of input channel k that output channel c depends on at the middle: (c, k)."""
    middle = side // 2
    used: Any = False
    for seed in range(8):  # a ReLU hides what is behind it for some images, not for all
        x = jax.random.normal(jax.random.key(seed), (1, side, side, channels)) * (-1) ** seed + 0.3
        gradients = jax.jacrev(lambda x: apply(x)[0, middle, middle])(x)[:, 0]
        used = used | np.asarray(jnp.abs(gradients) > 1e-12)
    result = np.zeros((used.shape[0], channels), int)
    for c, k in np.ndindex(result.shape):
        places = np.argwhere(used[c, :, :, k])
        if len(places):
            result[c, k] = (np.ptp(places, axis=0) + 1).max()
    return result


def draw_extents() -> None:
    """What each output channel of the composed operators sees of each input channel, from gradients."""
    rngs = nnx.Rngs(0)
    first = ms.OctConv(16, 16, (3, 3), alpha_in=0.25, alpha_out=0.25, rngs=rngs)
    chain = ms.Res2Conv(16, 16, (3, 3), scale=4, rngs=rngs)
    chain.eval()  # batch statistics would join all pixels
    draw_extent(extents(chain, 16), "Res2Conv, 4 slices", "res2conv")
    draw_extent(extents(ms.SISConv(16, 16, (3, 3), kind="basic", rngs=rngs), 16), "SISConv, basic", "sisconv")

    def octave(x: jax.Array) -> jax.Array:
        """The octave convolution on maps of one size: low channels are pooled before it and enlarged after it."""
        low = x[..., 12:].reshape(1, 12, 2, 12, 2, 4).mean((2, 4))
        high, low = first((x[..., :12], low))
        return jnp.concatenate([high, low.repeat(2, 1).repeat(2, 2)], -1)

    draw_extent(extents(octave, 16, side=24), "OctConv, the last 4 channels low", "octconv")


def draw_extent(sides: np.ndarray, title: str, name: str) -> None:
    """One picture: a row for each output channel, a column for each input channel."""
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    axes = figure.subplots()
    values = [int(value) for value in np.unique(sides)]
    colours = mpl.colormaps["YlGnBu"](np.linspace(0.25, 0.95, len(values)))
    if values[0] == 0:
        colours[0] = (1, 1, 1, 1)
    axes.imshow(
        np.searchsorted(values, sides), cmap=mpl.colors.ListedColormap(colours), vmin=-0.5, vmax=len(values) - 0.5
    )
    for edge in range(1, 16):
        axes.axhline(edge - 0.5, color="white", linewidth=1)
        axes.axvline(edge - 0.5, color="white", linewidth=1)
    axes.set(xlabel="input channel", ylabel="output channel", title=title)
    labels = [f"{value}x{value}" if value else "nothing" for value in values]
    patches = [
        mpl.patches.Patch(facecolor=colour, edgecolor="grey", label=label)
        for colour, label in zip(colours, labels, strict=True)
    ]
    axes.legend(handles=patches, title="pixels seen", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    save(figure, f"extent_{name}")


def draw_adapting() -> None:
    """The taps of a 9x9 PACConv at three pixels of a guide with one edge."""
    rows, columns = np.mgrid[:32, :32]
    guide = np.where(columns + 0.4 * rows < 22, 0.25, 0.75) + 0.03 * np.sin(rows * 1.3) * np.cos(columns * 1.7)
    kernel = np.asarray(
        ms.operators.pac_kernel(jnp.asarray(guide * 6, jnp.float32)[None, ..., None], (9, 9), padding=4)
    )
    figure = Figure(figsize=(8.4, 2.5), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1.15, 1, 1, 1))
    places = [(16, 5), (16, 14), (16, 24)]
    axes[0].imshow(guide, cmap="gray", vmin=0, vmax=1)
    axes[0].set_title("guide")
    for number, (row, column) in enumerate(places):
        axes[0].plot(column, row, "o", color=ORANGE, markersize=6)
        axes[0].annotate(
            "ABC"[number], (column, row), color=ORANGE, fontsize=13, xytext=(4, 4), textcoords="offset points"
        )
        image = axes[number + 1].imshow(kernel[0, row, column].reshape(9, 9), cmap="YlGnBu", vmin=0, vmax=1)
        axes[number + 1].set_title(f"taps' weights at {'ABC'[number]}")
    for each in axes:
        each.set_xticks([])
        each.set_yticks([])
    figure.colorbar(image, ax=axes[3], shrink=0.8)
    save(figure, "adapting_kernel")


def table(path: Path, pattern: str) -> list[tuple[str, ...]]:
    """The rows of a document's tables that match, as the pattern's groups."""
    rows = re.findall(pattern, path.read_text(), re.MULTILINE)
    if not rows:
        raise ValueError(f"{path.name} has no row like {pattern!r}: was its table changed?")
    return rows


def bars(axes: Any, labels: Sequence[str], series: dict[str, Sequence[float]], colours: Sequence[str]) -> None:
    """Horizontal bars, the first label at the top."""
    places, height = np.arange(len(labels)), 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        offset = (number - (len(series) - 1) / 2) * height
        axes.barh(places + offset, values, height, color=colours[number], label=name)
        for place, value in zip(places + offset, values, strict=True):
            axes.text(value, place, f" {value:g}", va="center", fontsize=7)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="lower right")


def draw_times() -> None:
    """Times over the plain convolution, from the kept measurement."""
    rows = table(
        RESULTS / "x86-2-cores.md",
        r"^\| (PSConv|PyConv|ICConv|HetConv|OctConv|GroupedConv) \| nnx.Conv \| ([\d.]+)[^|]*\|[^|]*\| ([\d.]+)",
    )
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    series = {"forward": [float(row[1]) for row in rows], "forward + backward": [float(row[2]) for row in rows]}
    bars(axes, [row[0] for row in rows], series, (BLUE, GREY))
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel("time over nnx.Conv, 2 CPU cores (below 1: faster)")
    save(figure, "times")


def draw_receptive_fields() -> None:
    """Effective receptive fields at the end of stage 2, with random weights, from the kept measurement."""
    rows = table(RESULTS / "receptive-fields.md", r"^\| (\w+) \| layer2 \| \d+ \| ([\d.]+) ± ([\d.]+)")
    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    axes.barh(places, [float(row[1]) for row in rows], xerr=[float(row[2]) for row in rows], color=BLUE)
    axes.set_yticks(places, [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("side of the effective receptive field after stage 2, pixels (random weights)")
    save(figure, "receptive_fields")


def draw_scaled_digits() -> None:
    """Test accuracy on digits of many sizes, from the table of the kept comparison."""
    rows = table(ROOT / "configs" / "compare_scaled_digits.md", r"^\| ([^|]+) \| 3 \| ([\d.]+) ± ([\d.]+)")
    figure = Figure(figsize=(8.4, 7.2), layout="constrained")
    axes = figure.subplots()
    names, means, deviations = zip(*rows, strict=True)
    mean, deviation = np.array(means, float), np.array(deviations, float)
    better = mean > mean[0]
    places = np.arange(len(rows))
    plain = places == 0
    for chosen, colour in ((plain, "black"), (better, BLUE), (~better & ~plain, ORANGE)):
        axes.errorbar(
            mean[chosen], places[chosen], xerr=deviation[chosen], fmt="D", color=colour, capsize=4, linewidth=2
        )
    axes.axvline(mean[0], color="grey", linestyle="--", linewidth=1)
    axes.set_yticks(places, names, fontsize=13)
    axes.tick_params(axis="x", labelsize=12)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("test accuracy, per cent: mean and deviation of 3 seeds", fontsize=13)
    axes.set_title("Digits at 1 to 6 times their size, 3 epochs, one small ResNet", fontsize=13)
    save(figure, "scaled_digits")


def main() -> None:
    """Draws all pictures."""
    with mpl.rc_context(STYLE):
        draw_lattices()
        draw_extents()
        draw_adapting()
        draw_times()
        draw_receptive_fields()
        draw_scaled_digits()


if __name__ == "__main__":
    main()
