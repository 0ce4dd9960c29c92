"""A run on one page, ``report.html``: result, curves, confusion matrix, worst mistakes, speed, settings, versions.

The page stands alone: pictures are inside it and nothing is loaded from anywhere.
"""

import base64
import html
import io
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from train.config import write_text
from train.data.opencv import cv2

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless")
_MOST_NAMED = 30  # classes whose names fit beside the matrix
_THUMBNAIL = 96  # pixels

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
.result { font-size: 1.3rem; } .note { opacity: .75; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
tr + tr td { border-top: 1px solid var(--faint); } td.number { text-align: right; font-variant-numeric: tabular-nums; }
code { overflow-wrap: anywhere; } img.plot { max-width: 100%; background: white; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 96px; height: 96px; object-fit: contain; background: var(--faint); }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere }
"""


class Mistake(NamedTuple):
    """An image that the network takes for another class.

    Attributes:
        image: (height, width, channels) uint8.
        label: the class that it is of.
        predicted: the class that the network gives.
        loss: its cross entropy, nats.
    """

    image: np.ndarray
    label: int
    predicted: int
    loss: float


class RunReport(NamedTuple):
    """What the page of a run shows.

    Attributes:
        title: the heading.
        result: the line that training printed last.
        config: the settings, flat.
        curves: a PNG file, or None if no epoch has ended.
        classes: the name of every class.
        confusion: (classes, classes) how many test images of a class (row) were taken for which (column).
        mistakes: the worst first.
        speeds: records with "epoch", "images_per_second" and "waiting", the share of the time in which it waited.
        notes: lines on the data, such as what was left out.
    """

    title: str
    result: str
    config: Mapping[str, Any]
    curves: bytes | None
    classes: Sequence[str]
    confusion: np.ndarray
    mistakes: Sequence[Mistake]
    speeds: Sequence[Mapping[str, float]]
    notes: str = ""


def write_report(path: Path, report: RunReport) -> None:
    """Writes the page of a run."""
    parts = [
        f"<h1>{_text(report.title)}</h1>",
        f'<p class="result">{_text(report.result)}</p>',
        "<h2>Curves</h2>",
        _picture(report.curves, "loss and accuracy by epoch") if report.curves else "<p>No epoch has ended.</p>",
        "<h2>Confusion of the test images</h2>",
        *_confusion(report),
        "<h2>Worst mistakes</h2>",
        *_mistakes(report),
        "<h2>Speed</h2>",
        _speeds(report.speeds),
        *(["<h2>Data</h2>", f"<pre>{_text(report.notes)}</pre>"] if report.notes else []),
        "<h2>Settings</h2>",
        _table([(f"<code>{_text(key)}</code>", f"<code>{_text(repr(v))}</code>") for key, v in report.config.items()]),
        "<h2>Versions</h2>",
        _table([(_text(name), _text(version)) for name, version in versions().items()]),
    ]
    head = f'<meta charset="utf-8"><title>{_text(report.title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    write_text(path, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')


def versions() -> dict[str, str]:
    """The versions of what computed, and the devices."""
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # another build of it, under another name
            found[package] = "unknown"
    device = jax.devices()[0]
    found["devices"] = (
        f"{jax.device_count()} {device.device_kind} ({device.platform}), {jax.process_count()} process(es)"
    )
    return found


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) how many images of a class (row) were taken for which (column)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def _confusion(report: RunReport) -> list[str]:
    counts = report.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(report.classes) <= _MOST_NAMED
    figure = Figure(figsize=(8, 7) if few else (6, 5.5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="taken for", ylabel="class")
    if few:
        places = range(len(report.classes))
        names = [name if len(name) <= 20 else name[:19] + "\u2026" for name in report.classes]
        axes.set_xticks(places, names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(places, names)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the class", shrink=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    parts = [_picture(buffer.getvalue(), "confusion matrix")]
    wrong = counts - np.diag(np.diag(counts))
    pairs = [divmod(int(place), len(counts)) for place in np.argsort(-wrong, axis=None, kind="stable")[:10]]
    rows = [
        (_text(report.classes[row]), _text(report.classes[column]), str(counts[row, column]))
        for row, column in pairs
        if wrong[row, column]
    ]
    if rows:
        parts += ["<p>Most often confused:</p>", _table([("<b>class</b>", "<b>taken for</b>", "<b>images</b>"), *rows])]
    return parts


def _mistakes(report: RunReport) -> list[str]:
    if not report.mistakes:
        return ["<p>None: every test image is taken for what it is.</p>"]
    figures = []
    for image, label, predicted, loss in report.mistakes:
        words = f"{_text(report.classes[label])}<br>taken for {_text(report.classes[predicted])}<br>loss {loss:.2f}"
        figures.append(
            f"<figure>{_picture(_thumbnail(image), '', plot=False)}<figcaption>{words}</figcaption></figure>"
        )
    return ['<div class="mistakes">', *figures, "</div>"]


def _speeds(speeds: Sequence[Mapping[str, float]]) -> str:
    if not speeds:
        return "<p>This run was too short to measure it.</p>"
    per_second = [record["images_per_second"] for record in speeds]
    waiting = [record["waiting"] for record in speeds]
    return (
        f"<p>{np.median(per_second):,.0f} images a second (median of {len(speeds)} epochs, without compilation and "
        f"evaluation; {min(per_second):,.0f} to {max(per_second):,.0f}); {np.median(waiting):.1%} of the time went "
        "into waiting for data.</p>"
    )


def _thumbnail(image: np.ndarray) -> bytes:
    height, width = image.shape[:2]
    factor = _THUMBNAIL / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    # Small images are shown by their pixels.
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    _, png = cv2.imencode(".png", resized[..., ::-1] if resized.ndim == 3 else resized)  # OpenCV: blue, green, red
    return png.tobytes()


def _picture(png: bytes, words: str, *, plot: bool = True) -> str:
    kind = ' class="plot"' if plot else ""
    return f'<img{kind} alt="{_text(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "<table>" + "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows) + "</table>"


def _text(value: object) -> str:
    return html.escape(str(value))
