"""The report of a run on one page, ``report.html``: result, curves, sections of the task, speed, settings, versions.

The page is complete in itself: pictures are inside it and nothing is loaded from elsewhere. ``page.html.j2`` is its
template.
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
    """What the page of a run shows."""

    title: str
    result: str  # the line that training prints last
    curves: bytes | None  # a PNG file, or None if no epoch has ended
    sections: Sequence[Section]
    speeds: Sequence[Mapping[str, float]]  # "epoch", "images_per_second", and "waiting", a share of the time
    notes: str  # lines on the data, such as what was left out
    config: Mapping[str, Any]  # the settings, flat


def page_html(page: Page) -> str:
    """Gives the page of a run as HTML; texts are shown as they are, and what acts on a reader's page is escaped."""
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=_visible
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


def _visible(value: Any) -> Any:
    """Escapes what a page must not hold, such as characters that turn the direction of the text after them."""
    return escaped(value, keep="\n") if isinstance(value, str) else value


def versions() -> dict[str, str]:
    """Gives the versions of what computed, and the devices."""
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # another build of it, under another name
            found[package] = "unknown"
    device, count = jax.devices()[0], jax.device_count()
    found["devices"] = f"{count} {device.device_kind} ({device.platform}), {jax.process_count()} process(es)"
    return found


def figure_png(size: tuple[float, float], draw: Callable[[Figure], None], dpi: int = 100) -> bytes:
    """Gives a figure as the bytes of a PNG file.

    Texts are drawn as they are: dollars begin no formula.

    Args:
        size: its width and height in inches.
        draw: draws it.
        dpi: pixels an inch.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def labels_of(names: Sequence[str], shown: Iterable[int]) -> tuple[list[str], str]:
    """Gives short labels for a figure, of the names at the positions `shown`, and a text that explains them.

    The label of a name with characters that the figure's font lacks is "number N", its position; the text has those
    names, or is "".
    """
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    labels, explained = [], []
    for number in shown:
        name = names[number]
        if name.isprintable() and all(font.get_char_index(ord(c)) for c in name):
            labels.append(shortened(name, 20))
        else:
            labels.append(f"number {number}")
            explained.append(f"number {number} is {shortened(name)}")
    return labels, f"In the picture {', '.join(explained)}." if explained else ""


def encode_png(image: np.ndarray) -> bytes:
    """Gives an image, (height, width, 1 or 3 channels) uint8, as the bytes of a PNG file."""
    _, png = cv2.imencode(".png", image[..., ::-1])  # OpenCV's colours are blue, green, red
    return png.tobytes()


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """Makes every pixel a square, so that the shorter side has at least `side` pixels, as `squares` allows."""
    return squares(image, -(-side // min(image.shape[:2])))


def squares(image: np.ndarray, factor: int) -> np.ndarray:
    """Makes every pixel a square of `factor` pixels, or fewer if a side would have more than 16,384.

    Of an image that is larger itself, rows and columns are left out evenly.
    """
    longer = max(image.shape[:2])
    step, factor = -(-longer // _MAX_SIDE), max(1, min(factor, _MAX_SIDE // longer))
    return np.kron(image[::step, ::step], np.ones((factor, factor, 1), np.uint8))


def thumbnail(image: np.ndarray) -> bytes:
    """Gives an image, resized so that its longer side has 96 pixels, as the bytes of a PNG file."""
    height, width = image.shape[:2]
    factor = 96 / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    # Small images are shown by their pixels.
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    return encode_png(resized.reshape(size[1], size[0], -1))
