"""The one pipeline that feeds training and evaluation.

Training data flows through grain in a fixed order::

    source -> seed -> shuffle -> repeat -> augment -> this process's share -> batch

Augmentation stands before the share is taken, so an image is augmented by its place in the global
order, and a process's share of a batch is the part of it that its devices hold: a global batch has the same
images in the same places for any number of processes, devices and threads. A resumed
run slices the same endless list of batches at its step; there is no iterator state to store.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from train.data.augment import create_augmentation
from train.data.evaluation import create_evaluation
from train.data.images import ImageError
from train.data.sources import Batch, Record, Source, Split
from train.errors import UserError
from train.settings import Config


def train_batches(
    source: Source,
    config: Config,
    first_step: int,
    last_step: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterable[Batch]:
    """Gives this process's part of the batches of steps `first_step` to before `last_step`.

    Returns:
        Batches with "image" (n, height, width, channels) uint8 and "label" (n,), where n is
        `batch_size / process_count`.

    Raises:
        UserError: while iterating, if an image cannot be read; the message names its file.
    """
    augment = create_augmentation(config, source)

    def prepare(record: Record, rng: np.random.Generator) -> Record:
        with _names_file(record):
            image = augment(record["image"], rng)
        return {"image": image, "label": np.int32(record["label"])}

    images = grain.MapDataset.source(source.splits["train"]).seed(config.seed).shuffle().repeat().random_map(prepare)
    batches = _share(images, config.batch_size, process_index, process_count)
    return batches[first_step:last_step].to_iter_dataset(_read_options(config))


def evaluation_batches(
    source: Source,
    split: Split,
    config: Config,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterable[Batch]:
    """Gives this process's part of every image of a split, once and in order.

    The last batch is filled up with copies of the first image that weigh nothing, so every batch
    has the same shape.

    Returns:
        Batches as in `train_batches`, and "weight" (n,) float32: 1 for images of the split, 0 for
        the filling. With `config.eval_crops` 10, "image" is (n, 10, height, width, channels).

    Raises:
        UserError: while iterating, if an image cannot be read; the message names its file.
    """
    records = source.splits[split]
    crop = create_evaluation(config, source)

    def prepare(position: int) -> Record:
        inside = position < len(records)
        record = records[position if inside else 0]
        with _names_file(record):
            image = crop(record["image"])
        return {
            "image": image,
            "label": np.int32(record["label"]),
            "weight": np.float32(inside),
        }

    batch_count = -(-len(records) // config.batch_size)
    positions = grain.MapDataset.range(batch_count * config.batch_size)
    batches = _share(positions.map(prepare), config.batch_size, process_index, process_count)
    return batches.to_iter_dataset(_read_options(config))


@contextlib.contextmanager
def _names_file(record: Record) -> Iterator[None]:
    """Says which file it is that cannot be read."""
    try:
        yield
    except ImageError as error:
        name = record.get("file", "an image of the data set")
        raise UserError(f"{name}: {error}; repair or remove it, then give the same command again") from error


@dataclasses.dataclass(frozen=True)
class _Share(Sequence[Any]):
    """This process's part of every batch: a block of neighbours, as its devices are neighbours in the mesh."""

    images: grain.MapDataset
    batch_size: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return len(self.images) // self.process_count

    def __getitem__(self, position: Any) -> Any:
        batch, place = divmod(int(position), self.batch_size // self.process_count)
        first = batch * self.batch_size + self.process_index * (self.batch_size // self.process_count)
        return self.images[first + place]


def _share(images: grain.MapDataset, batch_size: int, process_index: int, process_count: int) -> grain.MapDataset:
    share: Any = _Share(images, batch_size, process_index, process_count)
    return grain.MapDataset.source(share).batch(batch_size // process_count)


def _read_options(config: Config) -> grain.ReadOptions:
    threads = config.data_threads
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
