# pyright: strict
"""The interface between a run and its task.

A run knows steps, devices and checkpoints. A task knows the meaning of a sample: network, loss and metrics. It is one
object, made from the config and the source of a run; `train.tasks` lists the tasks by name.
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

Batch = dict[str, jax.Array]  # stacked rows
Terms = dict[str, tuple[jax.Array, jax.Array]]  # name -> (total, weight), () float32; the mean is total / weight
Rows = dict[str, np.ndarray]  # the input of an evaluator for n samples, (n, ...) arrays
Predictions = dict[str, Any]  # arrays, (n, ...) for a batch, (...) for one image
Result = dict[str, float]


class Metric(NamedTuple):
    """A number by which networks are compared."""

    name: str  # its key in the results of an evaluator
    larger_is_better: bool = True

    def sign(self, value: float) -> float:
        """Returns the value with a sign such that larger is better."""
        return value if self.larger_is_better else -value


class Pixels(NamedTuple):
    """The normalization of pixels for a network."""

    mean: tuple[float, ...]  # of each channel, for pixels scaled to 0..1
    std: tuple[float, ...]  # standard deviation of each channel, likewise
    is_bgr: bool = False  # network, mean and std have the order blue, green, red; images are red, green, blue

    def normalized(self, images: jax.Array) -> jax.Array:
        """Maps (..., channels) values of 0..255 to the network's float32 input.

        This runs on the device, because bytes are quicker to transfer and the host is busy.
        """
        scaled = (images[..., ::-1] if self.is_bgr else images).astype(jnp.float32) / 255
        axes = range(scaled.ndim - 1)
        mean, std = (jnp.expand_dims(np.array(value, np.float32), axes) for value in (self.mean, self.std))
        return (scaled - mean) / std


class Picture(NamedTuple):
    """A picture of the report."""

    png: bytes  # a PNG file
    caption: str  # the line of text below it
    is_small: bool = False  # small pictures stand side by side


class Section(NamedTuple):
    """A section of the report page: a heading, and optionally a paragraph, a table and pictures."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()  # the headings of the table
    rows: Sequence[Sequence[str | int | float]] = ()  # of the table; numbers are aligned to the right
    pictures: Sequence[Picture] = ()


class Evaluator(Protocol):
    """Collects the rows of `Task.score` for the samples of a split, on the host."""

    def add(self, rows: Rows) -> None:
        """Adds the rows of some samples, in the order of the split and without padding."""

    def result(self) -> Result:
        """Returns finite numbers by their names in metrics.jsonl and result.json."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays of test_answers.npz, for the samples of the test split."""

    def sections(self) -> Iterable[Section]:
        """Returns the sections of the report on this split."""


class Task(Protocol):
    """A kind of training.

    The device functions are pure and traced. `targets` gets the global batch and divides the weights of its rows by the
    normaliser of this batch. So the loss is a sum over rows, whose gradients add up over parts of a batch and devices.
    """

    needs: ClassVar[frozenset[str]]  # the fields of `Sample` that the task requires of a source
    best: ClassVar[Metric]  # the metric of the validation split that selects checkpoints
    terms: ClassVar[tuple[str, ...]]  # the names of the loss's terms in logs; the first is "loss"
    names: Sequence[str]  # of the classes of a prediction
    pixels: Pixels  # the normalization of images; published weights may replace the source's

    def __init__(self, config: Config, source: Source): ...

    @staticmethod
    def line(result: Mapping[str, float]) -> str:
        """Formats the important numbers of a result."""

    def create(self) -> nnx.Module:
        """Builds the network with initial parameters from the seed of the config."""

    # On the host.

    def transform(self, *, training: bool) -> Callable[[Sample, Generator | None], Row]:
        """Returns the function from samples to rows; in evaluation it gets no random generator."""

    def evaluator(self, split: Split) -> Evaluator:
        """Returns an empty evaluator."""

    def samples(self) -> Mapping[str, np.ndarray]:
        """Returns a few images of the validation split for `train.predict`, by names for files."""

    # On devices.

    def targets(self, batch: Batch, key: jax.Array) -> Batch:
        """Prepares a global batch for the loss: normalises, mixes, matches, weights. `key` is that of the step."""

    def loss(self, network: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Terms]:
        """Returns the loss, a sum over rows of `targets`, and its terms; the network is in training mode."""

    def score(self, network: Any, batch: Batch) -> Batch:
        """Returns the evaluator's input for each row of an evaluation batch; the network is in evaluation mode."""

    def predict(self, network: Any, images: jax.Array) -> Predictions:
        """Predicts for (n, height, width, channels) pixels of 0..255, which `predict_image` has prepared."""

    # Whole images, of any size.

    def scores_images(self, split: Split) -> bool:
        """Whether a split is scored image by image with `predict_image`, not in batches."""

    def predict_image(self, predict: Callable[[np.ndarray], Predictions], image: np.ndarray) -> Predictions:
        """Predicts for an image, (height, width, channels) uint8 of any size.

        `predict` maps any number of prepared images to host arrays of `Task.predict`.
        """

    def score_image(self, sample: Sample, prediction: Predictions) -> Rows:
        """Returns the evaluator's input, rows of length 1, for a decoded sample; see `scores_images`."""

    def show(self, image: np.ndarray, prediction: Predictions, limit: int | None) -> tuple[str, np.ndarray | None]:
        """Describes a prediction: a line with at most `limit` of `names`, and a picture or None."""
