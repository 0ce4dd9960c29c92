"""The logs of a run: metrics.jsonl, speeds.jsonl, TensorBoard events, curves.png and the progress bar.

Process 0 alone writes them; the `MetricsLog` of other processes writes nothing.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from train.config import write_text
from train.errors import warn_on_failure
from train.page import figure_png
from train.task import Metric
from train.untrusted import escaped, finite, load_json, quoted, shortened

Record = dict[str, Any]  # one line of metrics.jsonl
Batch = TypeVar("Batch")
SPEEDS = ("images_per_second", "waiting")  # the names in speeds.jsonl besides "step" and "epoch"
_MAX_BYTES = 2**16  # of a line
_MAX_FAULTS = 5  # shown


class Lines(NamedTuple):
    """The records of a file, and its faults."""

    records: list[Record]  # in the order of their steps
    faults: list[str]  # a sentence about each of the first lines that were skipped
    skipped: int  # the number of lines that were skipped


def read_metrics(path: Path, last_step: int, needed: Iterable[str] = ()) -> Lines:
    """Reads the lines of a ``metrics.jsonl`` up to a step; the file need not exist.

    A valid line is a JSON object of finite numbers, with names of at most 100 characters. It has the `needed` names and
    a whole "step" and "epoch" above 0, and no earlier line has its step. Invalid lines are skipped and described in
    `faults`. Lines beyond `last_step` are omitted.
    """
    found: dict[int, Record] = {}
    faults, skipped = [], 0
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = _record(line, needed)
            if record["step"] in found:
                raise ValueError(f"its step {record['step']} is in an earlier line")
        except ValueError as error:
            skipped += 1
            if len(faults) < _MAX_FAULTS:
                faults.append(f"line {number}: {shortened(escaped(str(error)), 200)}")
            continue
        if record["step"] <= last_step:
            found[record["step"]] = record
    return Lines([found[step] for step in sorted(found)], faults, skipped)


def _lines(path: Path) -> Iterator[bytes]:
    """Yields the lines of a file; a line of more than `_MAX_BYTES` is cut after one byte more."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while line := file.readline(_MAX_BYTES + 1):
            end = line
            while len(end) > _MAX_BYTES and not end.endswith(b"\n"):
                end = file.readline(_MAX_BYTES + 1)
            yield line


def _record(line: bytes, needed: Iterable[str]) -> Record:
    """Parses a line; raises a ValueError that describes its fault."""
    if len(line) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
    try:
        record = load_json(line)
    except ValueError:  # also if the bytes are not UTF-8
        raise ValueError("it is not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    for name in ("step", "epoch", *needed):
        if name not in record:
            raise ValueError(f"it has no {name!r}")
    for name, value in record.items():
        if len(name) > 100 or not name.isprintable():
            raise ValueError(f"it has the name {quoted(name)}")
        try:
            finite(value)
        except (ValueError, TypeError):
            raise ValueError(f"its {name!r} is {quoted(value)}, which is not a finite number") from None
    for name in ("step", "epoch"):
        if not isinstance(record[name], int) or record[name] < 1:
            raise ValueError(f"its {name!r} is {quoted(record[name])}, which is not a whole number above 0")
    return record


def repair_records(path: Path, last_step: int, needed: Iterable[str]) -> list[Record]:
    """Reads a file like `read_metrics`, and rewrites it with the valid lines.

    If lines are skipped, stderr names them, and the damaged file is kept as ``NAME.damaged``, ``NAME.damaged2``, ...
    """
    records, faults, skipped = read_metrics(path, last_step, needed)
    if skipped:
        kept, number = path.with_name(f"{path.name}.damaged"), 1
        while kept.exists():
            number += 1
            kept = path.with_name(f"{path.name}.damaged{number}")
        shutil.copyfile(path, kept)
        more = f"; {skipped - len(faults)} more" if skipped > len(faults) else ""
        print(f"{path} is damaged and is kept as {kept.name}; skipped: {'; '.join(faults)}{more}", file=sys.stderr)
    text = "".join(json.dumps(record) + "\n" for record in records)
    if skipped or not path.exists() or path.read_bytes() != text.encode():
        write_text(path, text)
    return records


class MetricsLog:
    """Appends to ``metrics.jsonl``, ``speeds.jsonl`` and the TensorBoard events of a run, if it is enabled.

    Records after `first_step`, from which this process resumes, are dropped, so no step appears twice. The title of the
    curves names the metric `best`.
    """

    def __init__(self, workdir: Path, first_step: int, best: Metric, *, enabled: bool = True):
        self.path = workdir / "metrics.jsonl"
        # A separate file, because speeds differ between equal runs and metrics.jsonl does not.
        self._speeds = workdir / "speeds.jsonl"
        self._best = best
        self._records: list[Record] = []
        self._events = None
        if enabled:
            self._records = repair_records(self.path, first_step, [f"validation_{best.name}"])
            repair_records(self._speeds, first_step, SPEEDS)
            dropped = first_step + 1 if first_step else None
            self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=dropped)

    def write(self, record: Record) -> None:
        """Appends a record with a "step"; its numbers become TensorBoard scalars."""
        self._records.append(record)
        self._append(self.path, record)

    def write_speed(self, record: Record) -> None:
        """Appends a record of the speed, likewise."""
        self._append(self._speeds, record)

    def _append(self, path: Path, record: Record) -> None:
        if self._events is None:
            return
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name, value in record.items():
            if name not in ("step", "epoch"):
                # train_loss becomes train/loss: TensorBoard groups by the part before the slash.
                self._events.add_scalar(name.replace("_", "/", 1), value, record["step"])
        self._events.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # After an exception, a full disk must not hide it.
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self.close()

    def close(self) -> None:
        """Draws the curves and closes the events."""
        if self._events is None:
            return
        try:
            self._events.close()
        except OSError:
            # TensorBoard's writer would retry at exit and print a traceback.
            writers: dict[str, Any] = self._events.all_writers or {}
            for writer in writers.values():
                writer.event_writer._closed = True
            raise
        if self._records:
            draw_curves(self._records, self._best, self.path.with_name("curves.png"))


def draw_curves(records: list[Record], best: Metric, path: Path) -> None:
    """Draws every quantity of the train and validation splits over the epochs as a PNG file.

    A failure is a note on stderr.
    """
    png = b""
    with warn_on_failure(path.name):
        png = _curves(records, best)
    if png:
        path.write_bytes(png)


def _curves(records: list[Record], best: Metric) -> bytes:
    names = dict.fromkeys(name for record in records for name in record if name.startswith(("train_", "validation_")))
    quantities = dict.fromkeys(name.partition("_")[2] for name in names)
    columns = min(len(quantities), 3)
    rows = -(-len(quantities) // columns)

    def draw(figure: Figure) -> None:
        for number, quantity in enumerate(quantities, start=1):
            axes = figure.add_subplot(rows, columns, number)
            for split, style in (("train", "C0.-"), ("validation", "C1.-")):
                name = f"{split}_{quantity}"
                points = [(record["epoch"], record[name]) for record in records if name in record]
                if points:
                    axes.plot(*zip(*points, strict=True), style, label=split)
            words = quantity.replace("_", " ")
            axes.set(xlabel="epoch", ylabel=words, title=words)
            axes.grid(alpha=0.3)
            axes.legend()
        name = f"validation_{best.name}"
        top = max(records, key=lambda record: (best.sign(record[name]), record["step"]))
        title = f"best {name.replace('_', ' ')} {top[name]:.4f} at epoch {top['epoch']}"
        figure.suptitle(f"{title}\ntrain: on augmented images, in training mode", fontsize=10)

    return figure_png((5 * columns, 3.6 * rows + 0.4), draw, dpi=120)


class SpeedMeter:
    """Measures the speed of training, and the time spent waiting for batches."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Restarts the measurement."""
        self._started = time.monotonic()
        self._waited = 0.0
        self._images = 0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches; counts their images and the time of waiting for each."""
        began = time.monotonic()
        for batch in batches:
            self._waited += time.monotonic() - began
            self._images += self._batch_size
            yield batch
            began = time.monotonic()

    def measured(self) -> dict[str, float]:
        """Returns the images per second, and the share of the time, 0..1, spent waiting for batches."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        return {"images_per_second": self._images / seconds, "waiting": self._waited / seconds}


class ProgressReport(Progress):
    """Shows the progress on the console, stdout by default: a bar on a terminal, else a line for each epoch."""

    def __init__(self, total_steps: int, first_step: int, console: Console | None = None, *, enabled: bool = True):
        console = console or Console(highlight=False, soft_wrap=True, quiet=not enabled)
        super().__init__(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = self.add_task("", total=total_steps, completed=first_step, numbers="")
        self._updated = 0.0

    def is_due(self) -> bool:
        """Whether a bar is shown that was not updated for a fifth of a second."""
        return self.console.is_terminal and time.monotonic() - self._updated > 0.2

    def step(self, step: int, means: Mapping[str, float], images_per_second: float) -> None:
        """Updates the bar with the running means of the epoch."""
        words = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in means.items())
        self.update(self._bar, completed=step, numbers=f"{words}  {images_per_second:.0f} images/s")
        self._updated = time.monotonic()

    def epoch(self, record: Record, epochs: int, images_per_second: float) -> None:
        """Prints the line of an epoch: the numbers of the train and validation splits."""
        parts = [f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}"]
        for split in ("train", "validation"):
            numbers = {name.partition("_")[2]: value for name, value in record.items() if name.startswith(f"{split}_")}
            words = (f"{name.replace('_', ' ')} {value:.4f}" for name, value in numbers.items())
            parts.append(f"{split} {' '.join(words)}")
        self.console.print("  ".join([*parts, f"{images_per_second:.0f} images/s"]))
