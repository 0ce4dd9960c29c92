"""Semantic segmentation: one class a pixel.

The network returns logits for every pixel, (n, height, width, classes), or in training mode a pair of these and the
logits of an auxiliary head. The loss is the mean cross entropy over the valid pixels of the batch, plus
`auxiliary_weight` times that of the auxiliary head. The best network has the highest mean IoU on centre crops of the
validation images, as in the public code of PyConvSegNet. Test images are scored whole, by sliding windows.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from msconv_jax.vision.losses import segmentation_cross_entropy
from msconv_jax.vision.resize import resize_bilinear
from train.config.schema import Config, Split
from train.config.schema import Segmentation as SegmentationSettings
from train.data.sample import Generator, Sample
from train.data.source import Source
from train.data.transforms import RandomCrop, create_augmentation
from train.errors import UserError
from train.page import axis_labels, encode_png, figure_png, squares
from train.task import Batch, Metric, Picture, Pixels, Predictions, Result, Row, Rows, Section, Terms
from train.tasks.miou import confusion, segmentation_metrics
from train.tasks.network import create_network
from train.tasks.sliding import sliding_probabilities
from train.untrusted import escaped, shortened

IGNORED = 255  # the label of ignored pixels, in rows
_SHOWN = 8  # test images in the report
_MAX_DRAWN = 150  # classes whose names fit under the bars of their IoU
_BLENDED = 2**20  # pixels at a time, to limit memory
_MAX_VALUES = 2**28  # probabilities of an image, 1 GiB


class Segmentation:
    """The task of assigning a class to every pixel; see `train.task.Task`.

    Args:
        config: of the run.
        source: its data.

    Raises:
        UserError: if the size of the crops is unknown or the network refuses it, or the augmentation does not fit the
            images.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    best: ClassVar[Metric] = Metric("miou")
    terms: ClassVar[tuple[str, ...]] = ("loss", "main_loss", "auxiliary_loss", "pixel_accuracy")

    def __init__(self, config: Config, source: Source):
        assert isinstance(config.task, SegmentationSettings)
        self.config, self.settings, self.source = config, config.task, source
        self.names: Sequence[str] = source.segmentation_classes
        if len(self.names) > IGNORED:
            raise UserError(
                f"{config.data.source!r} has {len(self.names):,} classes of pixels, but a pixel's class is stored in a "
                f"byte, of which {IGNORED} means that it does not count; join classes until there are at most {IGNORED}"
            )
        self.pixels = Pixels(source.mean, source.std)
        self.crop = _crop_size(config, source)
        self._augment = create_augmentation(config.data.augment, source)
        self._crop = RandomCrop(*self.crop, mean=source.mean)
        self._check_logits()

    @staticmethod
    def line(result: Mapping[str, float]) -> str:
        """Formats the mean IoU and the pixel accuracy of a result."""
        return f"mean IoU {result['miou']:.4f}, pixel accuracy {result['pixel_accuracy']:.4f}"

    def create(self) -> nnx.Module:
        """Builds the network with initial parameters."""
        return create_network(self.config, len(self.names), self.source.image_shape[-1])

    def _check_logits(self) -> None:
        """Refuses a network without logits for every pixel of the crops, before training."""
        height, width = self.crop
        images = jnp.zeros((1, height, width, self.source.image_shape[-1]))

        def logits() -> jax.Array:
            network: Any = self.create()
            network.eval()
            return network(images)

        try:
            shape = nnx.eval_shape(logits).shape
        except ValueError as error:
            raise UserError(f"config.task.crop is {[height, width]} but the network refuses it: {error}") from error
        if shape[1:3] != self.crop:
            raise UserError(
                f"the network {self.config.model.name!r} gives {shape[1]} x {shape[2]} logits for crops of {height} x "
                f"{width} pixels, but training needs one a pixel; set config.model.kwargs={{'zoom': 8}}"
            )

    # --- on the host ---

    def transform(self, *, training: bool) -> Callable[[Sample, Generator | None], Row]:
        """Returns rows of "image", (height, width, channels), and "segmentation", (height, width) uint8, of crops.

        The crop is random in training and central in evaluation. It is padded with the mean colour and ignored
        labels.
        """

        def augmented(sample: Sample, rng: Generator | None) -> Row:
            assert rng is not None
            return self._row(self._crop(self._augment(self._prepared(sample), rng), rng))

        def centred(sample: Sample, rng: Generator | None) -> Row:
            return self._row(self._crop.centred(self._prepared(sample)))

        return augmented if training else centred

    def _prepared(self, sample: Sample) -> Sample:
        sample = sample.decoded(self.source.image_shape[-1])
        labels = np.asarray(sample.segmentation)
        labels = np.where(labels == self.settings.ignore_label, np.uint8(IGNORED), labels)
        wrong = labels[(labels >= len(self.names)) & (labels != IGNORED)]
        if wrong.size:
            raise UserError(
                f"the segmentation of {sample.file or 'an image of the data set'} has the label {wrong.max()}, but "
                f"labels are 0 to {len(self.names) - 1}, or {self.settings.ignore_label} for pixels that do not count; "
                "correct the file, or set config.task.ignore_label"
            )
        return sample.replace(segmentation=labels)

    def _row(self, sample: Sample) -> Row:
        return {"image": np.asarray(sample.image), "segmentation": np.asarray(sample.segmentation)}

    def evaluator(self, split: Split) -> "SegmentationEvaluator":
        """Returns an empty evaluator of a split."""
        return SegmentationEvaluator(self.names)

    def samples(self) -> dict[str, np.ndarray]:
        """Returns for each class the first of a hundred images that shows it, by the name of the class."""
        found: dict[str, np.ndarray] = {}
        images = self.source.splits["validation"]
        for place in range(min(len(images), 100)):
            sample = self._prepared(images[place])
            for number in np.unique(np.asarray(sample.segmentation)):
                if number != IGNORED:
                    found.setdefault(self.names[int(number)], np.asarray(sample.image))
            if len(found) == len(self.names):
                break
        return found

    # --- on devices ---

    def targets(self, batch: Batch, key: jax.Array) -> Batch:
        """Normalizes images; adds "weight", (n, height, width): 1 over the number of valid pixels, 0 where ignored."""
        is_valid = (batch["segmentation"] != IGNORED).astype(jnp.float32)
        weight = is_valid / jnp.maximum(jnp.sum(is_valid), 1)
        return {**batch, "image": self.pixels.normalized(batch["image"]), "weight": weight}

    def loss(self, network: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Terms]:
        """Returns the weighted sum of the cross entropies of both heads.

        The terms are means over the pixels of a batch, each batch weighted by 1.
        """
        outputs = network(batch["image"])
        logits, auxiliary = outputs if isinstance(outputs, tuple) else (outputs, None)
        weight = batch["weight"]
        main = jnp.sum(self._losses(logits, batch["segmentation"]) * weight)
        second = jnp.zeros(())
        if auxiliary is not None:
            second = jnp.sum(self._losses(auxiliary, batch["segmentation"]) * weight)
        total = main + self.settings.auxiliary_weight * second
        is_hit = jnp.argmax(logits, axis=-1) == batch["segmentation"].astype(jnp.int32)
        hits = jnp.sum(jnp.where(is_hit, weight, 0))
        share = jnp.sum(weight)
        values = dict(zip(self.terms, (total, main, second, hits), strict=True))
        return total, {name: (value, share) for name, value in values.items()}

    def _losses(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        losses, _ = segmentation_cross_entropy(logits, labels, ignore_label=IGNORED)
        return losses

    def score(self, network: Any, batch: Batch) -> Batch:
        """Returns "confusion", (n, classes, classes) int32: pixels by class (row) and prediction (column); and "loss".

        "loss" is the sum over the valid pixels of a row.
        """
        classes, labels = len(self.names), batch["segmentation"]
        logits = network(self.pixels.normalized(batch["image"]))
        losses = self._losses(logits, labels)
        predicted = jnp.argmax(logits, axis=-1)
        is_valid = labels != IGNORED
        cells = jnp.where(is_valid, labels.astype(jnp.int32) * classes + predicted, classes * classes)

        def count(cells: jax.Array) -> jax.Array:
            return jnp.zeros(classes * classes, jnp.int32).at[cells.ravel()].add(1, mode="drop")

        return {
            "confusion": jax.vmap(count)(cells).reshape(-1, classes, classes),
            "loss": jnp.sum(losses, axis=(1, 2)),
        }

    def predict(self, network: Any, images: jax.Array) -> Predictions:
        """Returns "probabilities", (n, height, width, classes), of windows."""
        logits = network(self.pixels.normalized(images)).astype(jnp.float32)
        if logits.shape[1:3] != images.shape[1:3]:
            logits = resize_bilinear(logits, images.shape[1:3])
        return {"probabilities": jax.nn.softmax(logits)}

    # --- whole images ---

    def scores_images(self, split: Split) -> bool:
        """Returns True for the test split, whose images are scored whole."""
        return split == "test"

    def predict_image(self, predict: Callable[[np.ndarray], Predictions], image: np.ndarray) -> Predictions:
        """Returns "predicted", (height, width) uint8, by sliding windows."""
        height, width = image.shape[:2]
        if height * width * len(self.names) > _MAX_VALUES:
            raise UserError(
                f"an image of {height} x {width} pixels has too many probabilities of {len(self.names)} classes; at "
                f"most {_MAX_VALUES // len(self.names):,} pixels are predicted, so make it smaller"
            )
        probabilities = sliding_probabilities(
            image,
            lambda windows: predict(windows)["probabilities"],
            crop=self.crop,
            base_size=self.settings.base_size,
            scales=self.settings.scales,
            mean=tuple(255 * value for value in self.source.mean),
            mirror=self.settings.mirror,
        )
        return {"predicted": probabilities.argmax(axis=-1).astype(np.uint8)}

    def score_image(self, sample: Sample, prediction: Predictions) -> Rows:
        """Returns the "confusion" of an image, and the image with both label maps, for the report."""
        sample = self._prepared(sample)
        labels, predicted = np.asarray(sample.segmentation), prediction["predicted"]
        counts = confusion(predicted, labels, len(self.names), IGNORED)
        return {
            "confusion": counts[None],
            "image": np.asarray(sample.image)[None],
            "segmentation": labels[None],
            "predicted": predicted[None],
        }

    def show(self, image: np.ndarray, prediction: Predictions, limit: int | None) -> tuple[str, np.ndarray]:
        """Names the classes that cover most of the image, with their shares of it; shows them in colours."""
        predicted = prediction["predicted"]
        shares = np.bincount(predicted.ravel(), minlength=len(self.names)) / predicted.size
        order = [int(number) for number in np.argsort(-shares, kind="stable")[: limit or 3] if shares[number]]
        line = ", ".join(f"{shortened(escaped(self.names[number]), 300)} {shares[number]:.1%}" for number in order)
        return line, overlay(image, predicted)


def _crop_size(config: Config, source: Source) -> tuple[int, int]:
    assert isinstance(config.task, SegmentationSettings)
    crop = config.task.crop
    if not crop and source.is_sized:
        return source.image_shape[:2]
    if len(crop) != 2:
        raise UserError(
            f"config.task.crop is {crop} but must be [height, width]: the images of {config.data.source!r} vary in size"
            if not crop
            else f"config.task.crop is {crop} but must be [height, width]"
        )
    return crop[0], crop[1]


class SegmentationEvaluator:
    """The evaluator of segmentation: the confusion of all pixels.

    Args:
        names: of the classes.
    """

    def __init__(self, names: Sequence[str]):
        self._names = names
        self._total = np.zeros((len(names), len(names)), np.int64)
        self._losses: list[float] = []
        self._ious: list[float] = []
        self._worst: list[tuple[float, int, Rows]] = []  # a heap of (-IoU, place, rows)

    def add(self, rows: Rows) -> None:
        """Adds the rows of `Segmentation.score` or `Segmentation.score_image`."""
        self._total += rows["confusion"].sum(axis=0, dtype=np.int64)
        self._losses += [float(loss) for loss in rows.get("loss", ())]
        for counts in rows["confusion"]:
            self._ious.append(segmentation_metrics(counts)["miou_present"])
        if "predicted" in rows:
            heapq.heappush(self._worst, (-self._ious[-1], -len(self._ious), rows))
            if len(self._worst) > _SHOWN:
                heapq.heappop(self._worst)

    def result(self) -> Result:
        """Returns "miou" over all classes, "mean_accuracy" and "pixel_accuracy", and for batches "loss".

        The loss is the mean cross entropy over the valid pixels, in nats.
        """
        found = segmentation_metrics(self._total)
        result = {name: float(found[name]) for name in ("miou", "mean_accuracy", "pixel_accuracy")}
        if self._losses:
            result = {"loss": float(np.sum(self._losses)) / max(int(self._total.sum()), 1), **result}
        return result

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns "confusion", (classes, classes), and "ious", (n,): the mean IoU of each image over its classes."""
        return {"confusion": self._total, "ious": np.array(self._ious)}

    def sections(self) -> Iterator[Section]:
        """Yields the IoU of each class and the images with the lowest mean IoU."""
        found = segmentation_metrics(self._total)
        ious, pixels = found["iou"], self._total.sum(axis=1)
        recalls = np.diag(self._total) / np.maximum(pixels, 1)
        rows = [
            (name, float(iou), float(recall), f"{count / max(pixels.sum(), 1):.2%}")
            for name, iou, recall, count in zip(self._names, ious, recalls, pixels, strict=True)
        ]
        picture, text = _draw_ious(self._names, ious, found["miou"])
        yield Section(
            title="IoU of the test images by class",
            text=text,
            columns=("class", "IoU", "accuracy", "share of the pixels"),
            rows=rows,
            pictures=[picture],
        )
        pictures = []
        for negative_iou, _, row in sorted(self._worst, key=lambda entry: -entry[0]):
            image, labels, predicted = (row[name][0] for name in ("image", "segmentation", "predicted"))
            panels = np.concatenate([image_rgb(image), overlay(image, labels), overlay(image, predicted)], axis=1)
            panels = squares(panels, max(1, 160 // panels.shape[0]))
            pictures.append(Picture(encode_png(panels), f"mean IoU {-negative_iou:.3f}: image, labels, prediction"))
        yield Section(title="Worst test images", pictures=pictures)


def palette(count: int) -> np.ndarray:
    """Returns PASCAL VOC's colours of `count` classes, (count, 3) uint8; class 0 is black.

    Example:
        >>> palette(16)[[1, 15]].tolist()
        [[128, 0, 0], [192, 128, 128]]
    """
    numbers = np.arange(count)[:, None]
    colours = np.zeros((count, 3), np.uint8)
    for bit in range(8):  # the bits of the number go to red, green and blue in turn, from the highest bit down
        colours |= (((numbers >> (3 * bit + np.arange(3))) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def image_rgb(image: np.ndarray) -> np.ndarray:
    """Converts an image of 1 or 3 channels to 3 channels."""
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Blends the colours of the classes into an image, which class 0 and ignored pixels only darken."""
    colours = palette(256)
    colours[IGNORED] = 0
    blended = np.empty((*labels.shape, 3), np.uint8)
    rows = max(1, _BLENDED // labels.shape[1])
    for first in range(0, len(labels), rows):
        part = slice(first, first + rows)
        blended[part] = np.rint(0.45 * image_rgb(image[part]) + 0.55 * colours[labels[part]].astype(np.float32))
    return blended


def _draw_ious(names: Sequence[str], ious: np.ndarray, mean: float) -> tuple[Picture, str]:
    """Draws the IoU of each class, or of the worst classes; returns the picture and a text that explains its labels."""
    shown = np.sort(np.argsort(ious, kind="stable")[:_MAX_DRAWN])
    labels, text = axis_labels(names, shown.tolist())

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = range(len(shown))
        axes.bar(places, ious[shown], color=palette(len(names))[shown] / 255, edgecolor="black", linewidth=0.5)
        axes.axhline(mean, color="black", linewidth=1, linestyle="--")
        axes.set_xticks(places, labels, rotation=90 if max(map(len, labels)) > 3 else 0, fontsize=8)
        axes.set(ylabel="IoU", ylim=(0, 1))
        axes.grid(axis="y", alpha=0.3)

    which = "IoU by class" if len(shown) == len(names) else f"IoU of the {len(shown)} worst classes"
    png = figure_png((min(16, 2 + 0.45 * len(shown)), 3.6), draw)
    return Picture(png, f"{which}; the line is the mean of all"), text
