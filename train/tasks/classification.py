"""Classification: one label an image.

The loss is the cross entropy in nats; the config can smooth and mix its targets. The best network has the highest
accuracy.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from train.config.schema import Classification as ClassificationSettings
from train.config.schema import Config, Split
from train.data.images import as_pixels
from train.data.resizing import resize
from train.data.sample import Generator, Sample
from train.data.source import Source
from train.data.transforms import check_equal_sizes, create_augmentation
from train.data.transforms.evaluation import create_evaluation
from train.errors import UserError
from train.page import axis_labels, figure_png, thumbnail
from train.task import Batch, Metric, Picture, Pixels, Predictions, Result, Row, Rows, Section, Terms
from train.tasks.mixing import mix
from train.tasks.network import create_network
from train.untrusted import escaped, shortened

_TOP_5_FROM = 11  # classes; with fewer, the top-5 accuracy is not reported
_MISTAKES = 24  # shown in the report
_MAX_NAMED = 30  # classes whose names fit on the axes of the confusion matrix
_MAX_DRAWN = 200  # classes in the confusion matrix; of more, the _MOST_NAMED that are confused most often
_MAX_SAMPLES = 100  # classes


class Classification:
    """The task of assigning one label to every image; see `train.task.Task`.

    Args:
        config: of the run.
        source: its data.

    Raises:
        UserError: if the augmentation or the evaluated crop does not fit the images, or a batch has no pairs to mix.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"label"})
    best: ClassVar[Metric] = Metric("accuracy")
    terms: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    def __init__(self, config: Config, source: Source):
        assert isinstance(config.task, ClassificationSettings)
        self.config, self.settings, self.source = config, config.task, source
        self.names: Sequence[str] = source.classes
        self.pixels = Pixels(source.mean, source.std)
        if config.task.is_mixed and config.batch_size % 2:
            raise UserError(
                f"config.batch_size is {config.batch_size} but must be even for Mixup and CutMix, which mix images in "
                f"pairs; {config.batch_size + 1} would do"
            )
        check_equal_sizes(config.data, source)
        self._augment = create_augmentation(config.data.augment, source)
        crops = {"eval_size": config.task.eval_size, "eval_resize": config.task.eval_resize}
        self._evaluate = create_evaluation(source, **crops, eval_crops=config.task.eval_crops)

    @staticmethod
    def line(result: Mapping[str, float]) -> str:
        """Writes the accuracies of a result."""
        top_5 = f", top-5 {result['top5_accuracy']:.4f}" if "top5_accuracy" in result else ""
        return f"accuracy {result['accuracy']:.4f}{top_5}"

    def create(self) -> nnx.Module:
        """Builds the network with initial parameters."""
        return create_network(self.config, len(self.source.classes), self.source.image_shape[-1])

    # --- on the host ---

    def transform(self, *, training: bool) -> Callable[[Sample, Generator | None], Row]:
        """Returns rows of "image", (height, width, channels) uint8, and "label", () int32.

        In evaluation with 10 crops, "image" is (10, height, width, channels).
        """

        def augmented(sample: Sample, rng: Generator | None) -> Row:
            assert rng is not None
            return {"image": self._augment(sample, rng).pixels, "label": np.asarray(sample.label, np.int32)}

        def centred(sample: Sample, rng: Generator | None) -> Row:
            return {"image": self._evaluate(sample.image), "label": np.asarray(sample.label, np.int32)}

        return augmented if training else centred

    def evaluator(self, split: Split) -> "ClassificationEvaluator":
        """Returns an empty evaluator of a split."""
        return ClassificationEvaluator(self.source, split)

    def samples(self) -> dict[str, np.ndarray]:
        """Returns the first image of each class, for the first hundred classes, by the name of the class."""
        found: dict[int, np.ndarray] = {}
        for sample in self.source.splits["validation"]:
            label = int(np.asarray(sample.label))
            if label not in found:
                found[label] = as_pixels(sample.image, self.source.image_shape[-1])
            if len(found) == min(len(self.source.classes), _MAX_SAMPLES):
                break
        return {self.source.classes[label]: image for label, image in found.items()}

    # --- on devices ---

    def targets(self, batch: Batch, key: jax.Array) -> Batch:
        """Normalizes and mixes images; adds "target", (n, classes) probabilities, and "weight", 1/n for each row."""
        settings = self.settings
        images = self.pixels.normalized(batch["image"])
        one_hot = jax.nn.one_hot(batch["label"], len(self.source.classes))
        target = optax.smooth_labels(one_hot, settings.label_smoothing)
        if settings.is_mixed:
            rates = settings.mixup_alpha, settings.cutmix_alpha, settings.mix_probability
            images, target = mix(images, target, key, *rates)
        weight = jnp.full(len(images), 1 / len(images), jnp.float32)
        return {"image": images, "label": batch["label"], "target": target, "weight": weight}

    def loss(self, network: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Terms]:
        """Returns the weighted sum of the cross entropies.

        Training accuracy compares with the unmixed label.
        """
        logits = _logits(network, batch["image"])
        losses = optax.softmax_cross_entropy(logits, batch["target"])
        is_correct = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
        count = jnp.sum(jnp.ones_like(losses))
        terms = {"loss": (jnp.sum(losses), count), "accuracy": (jnp.sum(is_correct), count)}
        return jnp.sum(losses * batch["weight"]), terms

    def score(self, network: Any, batch: Batch) -> Batch:
        """Returns "label", "predicted" (the most probable class), "loss" without smoothing, and "rank".

        The rank is the number of classes that are more probable than the label. The probabilities of several crops are
        averaged first.
        """
        logits = _crops_logits(network, self.pixels.normalized(batch["image"]))
        label = batch["label"]
        label_logits = jnp.take_along_axis(logits, label[:, None], axis=-1)
        return {
            "label": label,
            "predicted": jnp.argmax(logits, axis=-1).astype(jnp.int32),
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, label),
            "rank": jnp.sum(~(logits <= label_logits), axis=-1, dtype=jnp.int32),  # a NaN ranks last
        }

    def predict(self, network: Any, images: jax.Array) -> Predictions:
        """Returns "probabilities", (n, classes); images may be (n, crops, height, width, channels)."""
        return {"probabilities": jax.nn.softmax(_crops_logits(network, self.pixels.normalized(images)))}

    # --- whole images ---

    def scores_images(self, split: Split) -> bool:
        """Returns False: every split is scored in batches."""
        return False

    def predict_image(self, predict: Callable[[np.ndarray], Predictions], image: np.ndarray) -> Predictions:
        """Returns "probabilities", (classes,), of an image.

        If all images of the source have one size, the image is first resized to it.
        """
        if self.source.is_sized:
            image = resize(image, *self.source.image_shape[:2])
        return {"probabilities": predict(self._evaluate(image)[None])["probabilities"][0]}

    def score_image(self, sample: Sample, prediction: Predictions) -> Rows:
        """Raises an AssertionError, because `scores_images` is False for every split."""
        raise AssertionError("classification scores batches")

    def show(self, image: np.ndarray, prediction: Predictions, limit: int | None) -> tuple[str, None]:
        """Names the most probable classes, three or as many as `limit`, with their probabilities."""
        classes, probabilities = self.source.classes, prediction["probabilities"]
        best = np.argsort(-probabilities, kind="stable")[: limit or 3]
        return ", ".join(f"{shortened(escaped(classes[i]), 300)} {probabilities[i]:.1%}" for i in best), None


def _logits(network: Any, images: jax.Array) -> jax.Array:
    return network(images).astype(jnp.float32)


def _crops_logits(network: Any, images: jax.Array) -> jax.Array:
    """Returns the logits of (n, height, width, channels) images.

    For (n, crops, height, width, channels), returns the logarithms of the mean probabilities over the crops.
    """
    if images.ndim == 4:
        return _logits(network, images)
    logits = _logits(network, images.reshape(-1, *images.shape[2:]))
    by_crop = jax.nn.log_softmax(logits).reshape(*images.shape[:2], -1)
    return jax.nn.logsumexp(by_crop, axis=1) - jnp.log(images.shape[1])


class ClassificationEvaluator:
    """The evaluator of classification: predictions for the samples of a split.

    Args:
        source: the data.
        split: the split.
    """

    def __init__(self, source: Source, split: Split):
        self._source = source
        self._split: Split = split
        self._rows: list[Rows] = []

    def add(self, rows: Rows) -> None:
        """Adds the rows of `Classification.score`."""
        self._rows.append(rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns "labels", "predicted", "losses" and "ranks", (n,) arrays."""
        names = {"labels": "label", "predicted": "predicted", "losses": "loss", "ranks": "rank"}
        return {plural: np.concatenate([rows[name] for rows in self._rows]) for plural, name in names.items()}

    def result(self) -> Result:
        """Returns "loss", the mean cross entropy in nats, "accuracy", and with many classes "top5_accuracy"."""
        found = self.arrays()
        result = {
            "loss": float(found["losses"].mean(dtype=np.float64)),
            "accuracy": float((found["labels"] == found["predicted"]).mean()),
        }
        if len(self._source.classes) >= _TOP_5_FROM:
            result["top5_accuracy"] = float((found["ranks"] < 5).mean())
        return result

    def sections(self) -> Iterator[Section]:
        """Yields the confusion of classes and the worst mistakes.

        Memory grows with the number of samples, not with the square of the number of classes.
        """
        found, classes = self.arrays(), self._source.classes
        pairs = confused_pairs(found["labels"], found["predicted"])
        shown = range(len(classes))
        text, caption = "", "confusion matrix"
        if len(classes) > _MAX_DRAWN:
            # The classes of the most frequent confusions.
            shown = sorted(list(dict.fromkeys(number for pair in pairs for number in pair[:2]))[:_MAX_NAMED])
            text = f"There are {len(classes):,} classes; the picture shows those that are confused most often. "
            caption = f"confusion matrix of {len(shown)} classes; shares are of all images of a class"
        labels, explanation = axis_labels(classes, shown) if len(shown) <= _MAX_NAMED else ([], "")
        yield Section(
            title="Confusion of the test images",
            text=(text + explanation).strip() if shown else "None.",
            columns=("most often confused: class", "taken for", "images"),
            rows=[(classes[label], classes[predicted], count) for label, predicted, count in pairs[:10]],
            pictures=[Picture(_draw_confusion(found, len(classes), shown, labels), caption)] if shown else [],
        )
        mistakes = np.flatnonzero(found["predicted"] != found["labels"])
        worst = mistakes[np.argsort(-found["losses"][mistakes], kind="stable")][:_MISTAKES]
        pictures = []
        for place in map(int, worst):
            image = as_pixels(self._source.splits[self._split][place].image, self._source.image_shape[-1])
            label, predicted = classes[found["labels"][place]], classes[found["predicted"][place]]
            caption = f"{label}\ntaken for {predicted}\nloss {found['losses'][place]:.2f}"
            pictures.append(Picture(thumbnail(image), caption, is_small=True))
        text = "" if pictures else "None: every test image is taken for what it is."
        yield Section(title="Worst mistakes", text=text, pictures=pictures)


def confused_pairs(labels: np.ndarray, predicted: np.ndarray) -> list[tuple[int, int, int]]:
    """Returns (class, prediction, images) of all confusions, the most frequent first.

    Example:
        >>> confused_pairs(np.array([0, 1, 2, 2]), np.array([0, 2, 1, 1]))
        [(2, 1, 2), (1, 2, 1)]
    """
    is_wrong = labels != predicted
    pairs, counts = np.unique(np.stack([labels, predicted])[:, is_wrong], axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(pairs[0, place]), int(pairs[1, place]), int(counts[place])) for place in order]


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Returns (classes, classes): the number of images of a class (row) by predicted class (column)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def _draw_confusion(found: Mapping[str, np.ndarray], classes: int, shown: Sequence[int], names: Sequence[str]) -> bytes:
    """Draws the confusion matrix of the classes `shown`, with names on the axes if there are any."""
    labels, predicted = found["labels"], found["predicted"]
    place = np.full(classes, -1)
    place[shown] = np.arange(len(shown))
    rows, columns = place[labels], place[predicted]
    is_shown = (rows >= 0) & (columns >= 0)
    counts = confusion_matrix(rows[is_shown], columns[is_shown], len(shown))
    totals = np.bincount(labels, minlength=classes)[shown]
    shares = counts / np.maximum(totals[:, None], 1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xlabel="taken for", ylabel="class")
        if names:
            axes.set_xticks(range(len(shown)), names, rotation=90 if max(map(len, names)) > 3 else 0)
            axes.set_yticks(range(len(shown)), names)
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
        figure.colorbar(image, ax=axes, label="share of the class", shrink=0.8)

    return figure_png((8, 7) if names else (6, 5.5), draw)
