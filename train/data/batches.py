"""The input pipeline of training and evaluation.

Training data flows through grain in a fixed order::

    source -> seed -> shuffle -> repeat -> transform -> this process's share -> batch

The transform precedes the split by process, so the augmentation of a sample depends on its global position only. A
process loads the rows of its own devices. Global batches are therefore equal for any number of processes, devices and
threads. A resumed run slices the endless list of batches at its step, so no iterator state is stored.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from train.config.schema import Config, Split
from train.data.images import ImageError
from train.data.sample import Generator, Sample
from train.data.source import Source
from train.errors import UserError

Row = dict[str, np.ndarray]  # one sample of a batch: arrays of fixed shapes


def train_batches(
    source: Source,
    config: Config,
    transform: Callable[[Sample, Generator], Row],
    first_step: int,
    last_step: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterable[Row]:
    """Loads this process's part of the batches for steps `first_step` (included) to `last_step` (excluded).

    Args:
        source: the data.
        config: a checked config.
        transform: maps a sample and a generator, seeded by position, to a row: ``task.transform(training=True)``.
        first_step: the step of the first batch.
        last_step: the step after the last batch.
        process_index: this process, from 0.
        process_count: the number of processes.

    Returns:
        Batches of rows, each array (n, ...), where n is `batch_size / process_count`.

    Raises:
        UserError: while iterating, if an image cannot be read, or the shapes of its row differ from the first row's;
            the message names the file.
    """
    prepare = _Prepare(transform)
    rows = grain.MapDataset.source(source.splits["train"]).seed(config.seed).shuffle().repeat().random_map(prepare)
    batches = _share(rows, config.batch_size, process_index, process_count)
    return batches[first_step:last_step].to_iter_dataset(_read_options(config))


def evaluation_batches(
    source: Source,
    split: Split,
    config: Config,
    transform: Callable[[Sample, None], Row],
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterable[Row]:
    """Loads this process's part of a split, every sample once and in order.

    The last batch is padded with copies of the first sample of weight 0, so every batch has the same shape.

    Args:
        source: the data.
        split: the split.
        config: a checked config.
        transform: maps a sample and None to a row: ``task.transform(training=False)``.
        process_index: this process, from 0.
        process_count: the number of processes.

    Returns:
        Batches as in `train_batches`, and "weight" (n,) float32: 1 for samples of the split, 0 for padding.

    Raises:
        UserError: while iterating, if an image cannot be read, or the shapes of its row differ from the first row's;
            the message names the file.
    """
    samples = source.splits[split]
    prepare = _Prepare(transform)

    def weighted(position: int) -> Row:
        is_inside = position < len(samples)
        row = prepare(samples[position if is_inside else 0], None)
        return {**row, "weight": np.asarray(is_inside, np.float32)}

    batch_count = -(-len(samples) // config.batch_size)
    positions = grain.MapDataset.range(batch_count * config.batch_size)
    batches = _share(positions.map(weighted), config.batch_size, process_index, process_count)
    return batches.to_iter_dataset(_read_options(config))


class _Prepare:
    """Makes rows; its errors name files that cannot be read, and rows whose shapes differ from the first row's.

    Args:
        transform: maps a sample and a generator, or None, to a row.
    """

    def __init__(self, transform: Callable[[Sample, Any], Row]):
        self._transform = transform
        self._first: dict[str, tuple[int, ...]] | None = None

    def __call__(self, sample: Sample, rng: Generator | None) -> Row:
        with _names_file(sample):
            row = self._transform(sample, rng)
        shapes = {name: np.shape(value) for name, value in row.items()}
        self._first = self._first or shapes
        if shapes != self._first:
            raise UserError(
                f"{_name_of(sample)} gives arrays of the shapes {shapes}, but a batch holds arrays of one shape, and "
                f"the first image gave {self._first}; add a crop or a resize to the transforms that makes them equal"
            )
        return row


@contextlib.contextmanager
def _names_file(sample: Sample) -> Iterator[None]:
    """Names the unreadable file in the error."""
    try:
        yield
    except ImageError as error:
        raise UserError(
            f"{_name_of(sample)}: {error}; repair or remove it, then give the same command again"
        ) from error


def _name_of(sample: Sample) -> str:
    return sample.file or "an image of the data set"


@dataclasses.dataclass(frozen=True)
class _Share(Sequence[Any]):
    """This process's rows of every batch: a contiguous block, as its devices are contiguous in the mesh."""

    rows: grain.MapDataset
    batch_size: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return len(self.rows) // self.process_count

    def __getitem__(self, position: Any) -> Any:
        batch, place = divmod(int(position), self.batch_size // self.process_count)
        first = batch * self.batch_size + self.process_index * (self.batch_size // self.process_count)
        return self.rows[first + place]


def _share(rows: grain.MapDataset, batch_size: int, process_index: int, process_count: int) -> grain.MapDataset:
    share: Any = _Share(rows, batch_size, process_index, process_count)
    return grain.MapDataset.source(share).batch(batch_size // process_count)


def _read_options(config: Config) -> grain.ReadOptions:
    threads = config.data.threads
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
