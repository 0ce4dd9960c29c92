"""Data sources and the one pipeline that feeds training and evaluation.

Training data flows through grain in a fixed order::

    source -> seed -> shuffle -> repeat -> augment -> this process's share -> batch

Augmentation stands before the share is taken, so an image is augmented by its place in the global
order and a global batch holds the same pixels for any number of processes and threads. A resumed
run slices the same endless list of batches at its step; there is no iterator state to store.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

# Read by OpenCV when it is loaded: larger images are refused before memory is spent on them.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

import cv2
import grain
import numpy as np
from sklearn.datasets import load_digits

from train.config import Config
from train.errors import UserError, suggest

cv2.setNumThreads(0)  # grain's threads already fill the cores

Split = Literal["train", "validation", "test"]
Record = dict[str, Any]  # "image": (height, width, channels) uint8, "label": int
Batch = dict[str, np.ndarray]


class Source(NamedTuple):
    """A labelled image data set.

    Attributes:
        splits: the records of "train", "validation" and "test", by position.
        classes: the name of every class; a label is a position in it.
        image_shape: (height, width, channels) of the model's input.
        mean: mean of each channel of the train split, images scaled to 0..1.
        std: standard deviation of each channel likewise.
        augment: maps an image, the strengths and a generator to a new image of the same shape.
        strengths: the names of the augmentation's strengths, each with its largest value.
    """

    splits: Mapping[Split, Sequence[Record]]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Callable[[np.ndarray, Mapping[str, float], np.random.Generator], np.ndarray]
    strengths: Mapping[str, float]

    def normalise(self, image: np.ndarray) -> np.ndarray:
        """Maps (height, width, channels) values of 0..255 to the float32 input of the model."""
        scaled = image.astype(np.float32) / 255.0
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


def digits() -> Source:
    """Handwritten digits: 1797 real 8x8 grey images, white on black, shipped with scikit-learn.

    Numbered within its class in the order of the file, every image goes by its number modulo 20:
    0, 5, 10, 15 to test (364 images), 2, 9, 16 to validation (270), the others to train (1163).
    So the split is stratified, and fixed without a random generator.
    """
    data: Any = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = data.target
    number = np.empty(len(labels), int)
    for label in range(10):
        number[labels == label] = np.arange(np.sum(labels == label))
    test = np.isin(number % 20, (0, 5, 10, 15))
    validation = np.isin(number % 20, (2, 9, 16))

    def records(chosen: np.ndarray) -> list[Record]:
        return [
            {"image": image, "label": int(label)} for image, label in zip(images[chosen], labels[chosen], strict=True)
        ]

    return Source(
        splits={
            "train": records(~test & ~validation),
            "validation": records(validation),
            "test": records(test),
        },
        classes=tuple("0123456789"),
        image_shape=(8, 8, 1),
        mean=(0.306,),
        std=(0.376,),
        augment=_warp,
        strengths={"shift": 4.0, "rotation": 90.0, "scale": 0.9},
    )


def _warp(image: np.ndarray, strengths: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """Rotates (degrees), scales (a fraction) and shifts (pixels), uniformly up to the strengths.

    There are no flips: a mirrored digit is another sign. Black enters at the border.
    """
    height, width = image.shape[:2]
    angle = rng.uniform(-1, 1) * strengths["rotation"]
    scale = 1 + rng.uniform(-1, 1) * strengths["scale"]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
    matrix[:, 2] += rng.uniform(-1, 1, size=2) * strengths["shift"]
    warped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return warped.reshape(image.shape)  # OpenCV drops a single channel


SOURCES: dict[str, Callable[[], Source]] = {"digits": digits}


def load_source(config: Config) -> Source:
    """Builds the source that a config names, and checks the config's augmentation against it.

    Raises:
        UserError: for an unknown source, or augmentation strengths it lacks, does not know, or
            that are out of range.
    """
    if config.source not in SOURCES:
        raise UserError(f"config.source is {config.source!r}, which does not exist; {suggest(config.source, SOURCES)}")
    source = SOURCES[config.source]()
    for name in config.augment:
        if name not in source.strengths:
            raise UserError(f"config.augment has an unknown key {name!r}; {suggest(name, source.strengths)}")
    for name, largest in source.strengths.items():
        if name not in config.augment:
            raise UserError(f"config.augment lacks {name!r}: set it to 0 or more, 0 turns it off")
        value = config.augment[name]
        if type(value) not in (int, float) or not 0 <= value <= largest:
            raise UserError(f"config.augment.{name} is {value!r} but must be a number from 0 to {largest:g}")
    return source


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
        Batches with "image" (n, height, width, channels) float32 and "label" (n,), where n is
        `batch_size / process_count`.
    """
    strengths = dict(config.augment)

    def prepare(record: Record, rng: np.random.Generator) -> Record:
        image = source.augment(record["image"], strengths, rng)
        return {"image": source.normalise(image), "label": np.int32(record["label"])}

    images = grain.MapDataset.source(source.splits["train"]).seed(config.seed).shuffle().repeat().random_map(prepare)
    share = images[process_index::process_count]
    batches = share.batch(config.batch_size // process_count)
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
        the filling.
    """
    records = source.splits[split]

    def prepare(position: int) -> Record:
        inside = position < len(records)
        record = records[position if inside else 0]
        return {
            "image": source.normalise(record["image"]),
            "label": np.int32(record["label"]),
            "weight": np.float32(inside),
        }

    batch_count = -(-len(records) // config.batch_size)
    positions = grain.MapDataset.range(batch_count * config.batch_size)
    share = positions.map(prepare)[process_index::process_count]
    batches = share.batch(config.batch_size // process_count)
    return batches.to_iter_dataset(_read_options(config))


def _read_options(config: Config) -> grain.ReadOptions:
    threads = config.data_threads
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
