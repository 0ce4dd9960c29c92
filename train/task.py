"""What a run asks of a task.

A run knows steps, devices and checkpoints. A task knows what a sample means: what is computed, lost and measured. It
is one object, made from the config and the source of a run; `train.tasks` has them by name.
"""
# The methods of a protocol have no bodies.
# pyright: reportReturnType=false

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from train.config.schema import Config, Split
from train.data.batches import Row
from train.data.sample import Generator, Sample
from train.data.source import Source

Batch = dict[str, jax.Array]  # rows under each other
Terms = dict[str, tuple[jax.Array, jax.Array]]  # name -> (total, weight), () float32; the mean is total / weight
Rows = dict[str, np.ndarray]  # what an evaluator needs of some samples, (n, ...) arrays
Predictions = dict[str, Any]  # arrays, (n, ...) of a batch, without n of one image
Result = dict[str, float]


class Metric(NamedTuple):
    """A number by which networks are compared."""

    name: str  # its key in the results of an evaluator
    larger_is_better: bool = True

    def sign(self, value: float) -> float:
        """Gives a number that grows as the network gets better."""
        return value if self.larger_is_better else -value


class Pixels(NamedTuple):
    """How pixels become the input of a network."""

    mean: tuple[float, ...]  # of each channel, pixels scaled to 0..1
    std: tuple[float, ...]  # standard deviation of each channel likewise
    is_bgr: bool = False  # the network and the two above take blue, green, red; images are red, green, blue

    def normalized(self, images: jax.Array) -> jax.Array:
        """Maps (..., channels) values of 0..255 to the network's input, float32 whatever it computes in.

        This happens on the device because the host has little time and bytes are quicker to move.
        """
        scaled = (images[..., ::-1] if self.is_bgr else images).astype(jnp.float32) / 255
        axes = range(scaled.ndim - 1)
        mean, std = (jnp.expand_dims(jnp.asarray(value, jnp.float32), axes) for value in (self.mean, self.std))
        return (scaled - mean) / std


class Picture(NamedTuple):
    """A picture of the report."""

    png: bytes  # a PNG file
    caption: str  # a line of text under it; it describes the picture
    is_small: bool = False  # whether several stand side by side


class Section(NamedTuple):
    """A part of the report page: a heading, and a paragraph, a table and pictures if they are given."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()  # the headings of the table
    rows: Sequence[Sequence[str | int | float]] = ()  # of the table; numbers are aligned to the right
    pictures: Sequence[Picture] = ()


class Evaluator(Protocol):
    """Gathers what `Task.score` gives for the samples of a split, on the host."""

    def add(self, rows: Rows) -> None:
        """Takes the rows of some samples, in the order of the split; padding has been removed."""

    def result(self) -> Result:
        """Gives the numbers under the names that metrics.jsonl and result.json have them under, all finite."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Gives what is kept of every sample of the test split, in test_answers.npz."""

    def sections(self) -> Iterable[Section]:
        """Gives the sections of the report on this split."""


class Task(Protocol):
    """A kind of training.

    The device functions are pure and are traced. `targets` sees the whole batch; it divides the weights of the rows by
    the normaliser of that batch, so that the loss is a plain sum over rows and its gradients add up over parts of a
    batch and over devices.
    """

    needs: ClassVar[frozenset[str]]  # the fields of `Sample` that a source must have
    best: ClassVar[Metric]  # the number of the validation split by which checkpoints are kept
    terms: ClassVar[tuple[str, ...]]  # the names of the terms of the loss, as they are shown; the first is "loss"
    names: Sequence[str]  # of the things that a prediction tells apart
    pixels: Pixels  # how images are normalized; published weights may ask for another way than the source's

    def __init__(self, config: Config, source: Source): ...

    @staticmethod
    def line(result: Mapping[str, float]) -> str:
        """Writes the important numbers of a result in a few words."""

    def create(self) -> nnx.Module:
        """Builds the network with fresh parameters, which the seed of the config determines."""

    # On the host.

    def transform(self, *, training: bool) -> Callable[[Sample, Generator | None], Row]:
        """Makes the function from samples to rows; in evaluation it draws no random numbers and gets no generator."""

    def evaluator(self, split: Split) -> Evaluator:
        """Makes an evaluator without any samples yet."""

    def samples(self) -> Mapping[str, np.ndarray]:
        """Gives a few images of the validation split to try `train.predict` on, by names for files."""

    # On devices.

    def targets(self, batch: Batch, key: jax.Array) -> Batch:
        """Turns a global batch into what the loss needs: normalises, mixes, matches, weights. `key` is the step's."""

    def loss(self, network: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Terms]:
        """Gives the loss of rows of `targets`, a sum over them, and its terms; the network is in training mode."""

    def score(self, network: Any, batch: Batch) -> Batch:
        """Gives what the evaluator needs of each row of an evaluation batch; the network is in evaluation mode."""

    def predict(self, network: Any, images: jax.Array) -> Predictions:
        """Gives the predictions for (n, height, width, channels) pixels of 0..255, prepared as `predict_image` does."""

    # Whole images, of any size.

    def scores_images(self, split: Split) -> bool:
        """Says whether a split is scored image by image by `predict_image`, in place of batches."""

    def predict_image(self, predict: Callable[[np.ndarray], Predictions], image: np.ndarray) -> Predictions:
        """Gives the predictions for an image, (height, width, channels) uint8 of any size.

        `predict` maps any number of prepared images to the predictions of `Task.predict` on the host.
        """

    def score_image(self, sample: Sample, prediction: Predictions) -> Rows:
        """Gives the rows, of length 1, that the evaluator needs of a decoded sample; see `scores_images`."""

    def show(self, image: np.ndarray, prediction: Predictions, limit: int | None) -> tuple[str, np.ndarray | None]:
        """Describes a prediction: a line that names at most `limit` of `names`, and a picture or None."""
