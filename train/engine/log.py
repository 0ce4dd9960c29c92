"""What a run tells about itself: metrics.jsonl, speeds.jsonl, TensorBoard events, curves.png, the progress bar.

All of it is written by process 0 alone; the others get a `MetricsLog` that writes nothing.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from train.config import write_text
from train.task import Metric

Record = dict[str, Any]  # one line of metrics.jsonl
Batch = TypeVar("Batch")


def read_metrics(path: Path, last_step: int) -> list[Record]:
    """Reads the lines of a ``metrics.jsonl``, which need not exist, up to a step.

    A line that is not JSON, as a crash leaves one, ends the reading.
    """
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            if record["step"] <= last_step:
                records.append(record)
        except (ValueError, KeyError, TypeError):
            break
    return records


class MetricsLog:
    """Appends to ``metrics.jsonl``, ``speeds.jsonl`` and the TensorBoard events of a run, if it is enabled.

    What an earlier process wrote after `first_step`, from which this one goes on, is dropped, so that no step appears
    twice. The title of the curves names the metric `best`.
    """

    def __init__(self, workdir: Path, first_step: int, best: Metric, *, enabled: bool = True):
        self.path = workdir / "metrics.jsonl"
        # By themselves, for they differ from run to run, and metrics.jsonl does not.
        self._speeds = workdir / "speeds.jsonl"
        self._best = best
        self._records = read_metrics(self.path, first_step)
        self._events = None
        if enabled:
            for path in (self.path, self._speeds):
                write_text(path, "".join(json.dumps(record) + "\n" for record in read_metrics(path, first_step)))
            dropped = first_step + 1 if first_step else None
            self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=dropped)

    def write(self, record: Record) -> None:
        """Adds a record, which has a "step"; its numbers become TensorBoard scalars."""
        self._records.append(record)
        self._append(self.path, record)

    def write_speed(self, record: Record) -> None:
        """Adds a record of the speed, likewise."""
        self._append(self._speeds, record)

    def _append(self, path: Path, record: Record) -> None:
        if self._events is None:
            return
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if name not in ("step", "epoch"):
                # train_loss becomes train/loss: TensorBoard groups by the part before the stroke.
                self._events.add_scalar(name.replace("_", "/", 1), value, record["step"])
        self._events.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # What ended the run counts, not that a full disk ends this too.
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self.close()

    def close(self) -> None:
        """Draws the curves and closes the events."""
        if self._events is None:
            return
        try:
            self._events.close()
        except OSError:
            # TensorBoard's writer would try again when the program ends, and show a traceback.
            writers: dict[str, Any] = self._events.all_writers or {}
            for writer in writers.values():
                writer.event_writer._closed = True
            raise
        if self._records:
            draw_curves(self._records, self._best, self.path.with_name("curves.png"))


def draw_curves(records: list[Record], best: Metric, path: Path) -> None:
    """Draws every quantity of the train and validation splits over the epochs as a PNG file."""
    epochs = [record["epoch"] for record in records]
    names = [name for name in records[0] if name.startswith(("train_", "validation_"))]
    quantities = dict.fromkeys(name.partition("_")[2] for name in names)
    columns = min(len(quantities), 3)
    rows = -(-len(quantities) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows + 0.4), layout="constrained")
    for number, quantity in enumerate(quantities, start=1):
        axes = figure.add_subplot(rows, columns, number)
        for split, style in (("train", "C0.-"), ("validation", "C1.-")):
            if f"{split}_{quantity}" in records[0]:
                axes.plot(epochs, [record[f"{split}_{quantity}"] for record in records], style, label=split)
        words = quantity.replace("_", " ")
        axes.set(xlabel="epoch", ylabel=words, title=words)
        axes.grid(alpha=0.3)
        axes.legend()
    name = f"validation_{best.name}"
    top = max(records, key=lambda record: (best.sign(record[name]), record["step"]))
    title = f"best {name.replace('_', ' ')} {top[name]:.4f} at epoch {top['epoch']}"
    figure.suptitle(f"{title}\ntrain: on augmented images, in training mode", fontsize=10)
    figure.savefig(path, dpi=120)


class SpeedMeter:
    """Measures how quickly the loop trains, and how long it waits for the next batch."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Measures from now on."""
        self._started = time.monotonic()
        self._waited = 0.0
        self._images = 0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Gives the batches, counts their images and the time that each is waited for."""
        began = time.monotonic()
        for batch in batches:
            self._waited += time.monotonic() - began
            self._images += self._batch_size
            yield batch
            began = time.monotonic()

    def measured(self) -> dict[str, float]:
        """Gives the images a second, and the share of the time, 0..1, in which a batch was waited for."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        return {"images_per_second": self._images / seconds, "waiting": self._waited / seconds}


class ProgressReport(Progress):
    """Shows how training goes on the console, stdout by default: a bar on a terminal, else a line an epoch."""

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
        self._shown = 0.0

    def is_due(self) -> bool:
        """Says whether a bar is shown that has not been renewed for a fifth of a second."""
        return self.console.is_terminal and time.monotonic() - self._shown > 0.2

    def step(self, step: int, means: Mapping[str, float], images_per_second: float) -> None:
        """Renews the bar with the running means of the epoch."""
        words = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in means.items())
        self.update(self._bar, completed=step, numbers=f"{words}  {images_per_second:.0f} images/s")
        self._shown = time.monotonic()

    def epoch(self, record: Record, epochs: int, images_per_second: float) -> None:
        """Prints the line of an epoch: the numbers of the train and validation splits."""
        parts = [f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}"]
        for split in ("train", "validation"):
            numbers = {name.partition("_")[2]: value for name, value in record.items() if name.startswith(f"{split}_")}
            words = (f"{name.replace('_', ' ')} {value:.4f}" for name, value in numbers.items())
            parts.append(f"{split} {' '.join(words)}")
        self.console.print("  ".join([*parts, f"{images_per_second:.0f} images/s"]))
