"""What a run tells about itself: metrics.jsonl, speeds.jsonl, TensorBoard events, curves.png, the progress bar.

All of it is written by process 0 alone; the others get a `MetricsLog` that writes nothing.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from train.config import write_text

Record = dict[str, Any]  # one line of metrics.jsonl
Batch = TypeVar("Batch")


def read_metrics(path: Path, last_step: int) -> list[Record]:
    """Reads the lines up to a step.

    Args:
        path: a ``metrics.jsonl``; it need not exist.
        last_step: later lines are left out.

    Returns:
        One record a line. A line that is not JSON, as a crash leaves one, ends the reading.
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
    """Appends to ``metrics.jsonl``, ``speeds.jsonl`` and the TensorBoard events of a run.

    What an earlier process wrote after the step from which this one goes on is dropped, so that no
    step appears twice.

    Args:
        workdir: the folder of the run.
        first_step: steps done when this process begins.
        enabled: whether to write at all.
    """

    def __init__(self, workdir: Path, first_step: int, *, enabled: bool = True):
        self.path = workdir / "metrics.jsonl"
        self.curves = workdir / "curves.png"
        self.records = read_metrics(self.path, first_step)
        # By themselves, for they differ from run to run, and metrics.jsonl does not.
        self._speeds = workdir / "speeds.jsonl"
        self.speeds = read_metrics(self._speeds, first_step)
        self._events = None
        if enabled:
            write_text(self.path, "".join(map(_line, self.records)))
            write_text(self._speeds, "".join(map(_line, self.speeds)))
            self._events = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=first_step + 1 if first_step else None
            )

    def write(self, record: Record) -> None:
        """Adds a record, which has a "step"; its numbers become TensorBoard scalars."""
        self._append(self.path, self.records, record)

    def write_speed(self, record: Record) -> None:
        """Adds a record of the speed, which has a "step"; its numbers become TensorBoard scalars."""
        self._append(self._speeds, self.speeds, record)

    def _append(self, path: Path, records: list[Record], record: Record) -> None:
        records.append(record)
        if self._events is None:
            return
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
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
        if self._events is not None:
            try:
                self._events.close()
            except OSError:
                # TensorBoard's writer would try again when the program ends, and show a traceback.
                writers: Any = self._events.all_writers or {}
                for writer in writers.values():
                    writer.event_writer._closed = True
                raise
            if self.records:
                draw_curves(self.records, self.curves)


class SpeedMeter:
    """Measures how many images a second are trained on, and how long the loop waits for the next batch."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Forgets what it has measured."""
        self._started = time.monotonic()
        self._waited = 0.0
        self._images = 0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Gives the batches, and counts the time that each is waited for."""
        iterator, nothing = iter(batches), object()
        while True:
            began = time.monotonic()
            batch = next(iterator, nothing)
            self._waited += time.monotonic() - began
            if batch is nothing:
                return
            yield batch  # type: ignore[misc]

    def count(self, images: int) -> None:
        """Adds images that have been trained on."""
        self._images += images

    @property
    def images_per_second(self) -> float:
        """Images a second since it was restarted."""
        return self._images / max(time.monotonic() - self._started, 1e-9)

    @property
    def waiting(self) -> float:
        """The share of that time, 0..1, in which a batch was waited for."""
        return self._waited / max(time.monotonic() - self._started, 1e-9)


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def draw_curves(records: list[Record], path: Path) -> None:
    """Draws loss and accuracy of the train and validation splits over the epochs as a PNG file."""
    epochs = [record["epoch"] for record in records]
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, style in (("train", "C0-"), ("validation", "C1-")):
            values = [record[f"{split}_{quantity}"] for record in records]
            axes.plot(epochs, values, style, marker=".", label=split)
        axes.set(xlabel="epoch", ylabel=quantity, title=quantity)
        axes.grid(alpha=0.3)
        axes.legend()
    best = max(records, key=lambda record: (record["validation_accuracy"], record["step"]))
    figure.suptitle(
        f"best validation accuracy {best['validation_accuracy']:.4f} at epoch {best['epoch']}\n"
        "train: on augmented images, in training mode; its loss with smoothed labels",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)


class ProgressReport:
    """Shows how training goes: a bar on a terminal, else a line an epoch.

    Args:
        total_steps: steps of the whole run.
        first_step: steps done when this process begins.
        console: where to write; stdout if not given.
        enabled: whether to show anything.
    """

    def __init__(
        self,
        total_steps: int,
        first_step: int,
        console: Console | None = None,
        *,
        enabled: bool = True,
    ):
        self._console = console or Console(highlight=False, soft_wrap=True, quiet=not enabled)
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=first_step, numbers="")
        self._shown = 0.0

    def __enter__(self) -> "ProgressReport":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def is_due(self) -> bool:
        """Says whether a bar is shown that has not been renewed for a fifth of a second."""
        return self._console.is_terminal and time.monotonic() - self._shown > 0.2

    def step(self, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Renews the bar with the running means of the epoch."""
        numbers = f"loss {loss:.3f}  accuracy {accuracy:.3f}  {images_per_second:.0f} images/s"
        self._bar.update(self._task, completed=step, numbers=numbers)
        self._shown = time.monotonic()

    def epoch(self, record: Record, epochs: int, images_per_second: float) -> None:
        """Prints the line of an epoch."""
        self._console.print(
            f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}"
            f"  train loss {record['train_loss']:.4f} accuracy {record['train_accuracy']:.4f}"
            f"  validation loss {record['validation_loss']:.4f}"
            f" accuracy {record['validation_accuracy']:.4f}"
            f"  {images_per_second:.0f} images/s"
        )
