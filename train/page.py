"""The report of a run on one page, ``report.html``: result, curves, sections of the task, speed, settings, versions.

The page contains its pictures and loads nothing. ``page.html.j2`` is its template.
"""

import base64
import io
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib import font_manager
from matplotlib.figure import Figure

from train.config import write_text
from train.data.opencv import cv2
from train.task import Section
from train.untrusted import escaped, shortened

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless")
_MAX_SIDE = 2**14  # pixels of an enlarged image


class Page(NamedTuple):
    """The content of the page of a run."""

    title: str
    result: str  # the line that training prints last
    curves: bytes | None  # a PNG file, or None if no epoch has ended
    sections: Sequence[Section]
    speeds: Sequence[Mapping[str, float]]  # "epoch", "images_per_second", and "waiting", a share of the time
    notes: str  # lines on the data, such as files that were left out
    config: Mapping[str, Any]  # the settings, flat


def page_html(page: Page) -> str:
    """Renders the page of a run as HTML; markup and unprintable characters in texts are escaped."""
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=_escaped
    )
    environment.filters |= {"base64": lambda data: base64.b64encode(data).decode(), "repr": repr}
    speed = ""
    if page.speeds:
        speeds, waiting = ([record[name] for record in page.speeds] for name in ("images_per_second", "waiting"))
        speed = (
            f"{np.median(speeds):,.0f} images a second (median of {len(speeds)} epochs, without compilation and "
            f"evaluation; {min(speeds):,.0f} to {max(speeds):,.0f}); {np.median(waiting):.1%} of the time went into "
            "waiting for data."
        )
    return environment.from_string(template).render(page=page, speed=speed, versions=versions()) + "\n"


def write_page(path: Path, page: Page) -> None:
    """Writes the page of a run."""
    write_text(path, page_html(page))


def _escaped(value: Any) -> Any:
    """Escapes unprintable characters, such as those that change the direction of text."""
    return escaped(value, keep="\n") if isinstance(value, str) else value


def versions() -> dict[str, str]:
    """Returns the versions of Python and the packages, and the devices."""
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # another build, under another name
            found[package] = "unknown"
    device, count = jax.devices()[0], jax.device_count()
    found["devices"] = f"{count} {device.device_kind} ({device.platform}), {jax.process_count()} process(es)"
    return found


def figure_png(size: tuple[float, float], draw: Callable[[Figure], None], dpi: int = 100) -> bytes:
    """Draws a figure as the bytes of a PNG file; texts are not parsed as formulas.

    Args:
        size: width and height in inches.
        draw: draws on the figure.
        dpi: pixels per inch.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def axis_labels(names: Sequence[str], positions: Iterable[int]) -> tuple[list[str], str]:
    """Returns short labels for the names at some positions, and a text that explains them.

    If the figure's font lacks a character of a name, its label is "number N", the position. The text lists these names;
    it may be empty.
    """
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    labels, explained = [], []
    for number in positions:
        name = names[number]
        if name.isprintable() and all(font.get_char_index(ord(c)) for c in name):
            labels.append(shortened(name, 20))
        else:
            labels.append(f"number {number}")
            explained.append(f"number {number} is {shortened(name)}")
    return labels, f"In the picture {', '.join(explained)}." if explained else ""


def encode_png(image: np.ndarray) -> bytes:
    """Encodes an image, (height, width, 1 or 3 channels) uint8, as the bytes of a PNG file."""
    _, png = cv2.imencode(".png", image[..., ::-1])  # OpenCV expects blue, green, red
    return png.tobytes()


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """Makes every pixel a square, so that the shorter side has at least `side` pixels if `squares` allows."""
    return squares(image, -(-side // min(image.shape[:2])))


def squares(image: np.ndarray, factor: int) -> np.ndarray:
    """Makes every pixel a square of `factor` pixels a side, or less: no side of the result exceeds 16,384 pixels.

    If the image is larger, every n-th row and column is taken.
    """
    longer = max(image.shape[:2])
    step, factor = -(-longer // _MAX_SIDE), max(1, min(factor, _MAX_SIDE // longer))
    return np.kron(image[::step, ::step], np.ones((factor, factor, 1), np.uint8))


def thumbnail(image: np.ndarray) -> bytes:
    """Resizes an image to 96 pixels on its longer side, and encodes it as the bytes of a PNG file."""
    height, width = image.shape[:2]
    factor = 96 / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    # The pixels of small images stay visible.
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    return encode_png(resized.reshape(size[1], size[0], -1))
