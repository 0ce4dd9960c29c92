"""Scaled digits: scikit-learn's handwritten digits at sizes from 8 to 48 pixels over photographs, a test of scale.

The papers claim that their operators recognise objects of very different sizes better. Here only the size varies
much, and it is known for every image, so that accuracy can be measured by size. The images are made from scikit-learn's
data, on any machine, in seconds::

    python -m train.prepare --dataset=scaled_digits

An image has 64x64 pixels: a dimmed crop of a photograph, distracting pen strokes, and one digit, 1 to 6 times its
scanned size by a log-uniform factor, at any place where it is whole. The digit is lighter than everything else, so that
a small network learns in minutes and only the size is difficult. Each digit of scikit-learn appears at several sizes.
The label is the digit; `scale` is the factor, `bbox` the digit's box and `mask` its pixels, for detection and
segmentation.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from train.data.opencv import cv2

SIDE = 64  # pixels of an image
LARGEST = 6.0  # times the 8 pixels of a scanned digit
DIMMED = 0.3  # the photograph's brightness factor
STROKES, DIGITS = (60, 140), (210, 255)  # ranges of each channel's value

# Mean and standard deviation of each channel over the train split, values scaled to 0..1; verified by a test.
MEAN = (0.180, 0.174, 0.159)
STD = (0.199, 0.189, 0.195)

SEGMENTATION_CLASSES = ("background", *"0123456789")


class Part(NamedTuple):
    """The sources of a split, disjoint from those of other splits.

    Attributes:
        digits: the indices of scikit-learn's digits. Its file is ordered by writer, each with the same list of digits,
            and parts start where a new list starts.
        columns: the columns of each photograph, of 640.
        copies: the number of images of each digit, at different sizes and places.
    """

    digits: range
    columns: range
    copies: int


PARTS = {
    "train": Part(range(1157), range(400), copies=6),
    "validation": Part(range(1157, 1415), range(400, 520), copies=4),
    "test": Part(range(1415, 1797), range(520, 640), copies=5),
}


class Example(NamedTuple):
    """An image and its annotations.

    Attributes:
        image: (64, 64, 3) uint8.
        label: the digit.
        digit: its index among scikit-learn's digits.
        scale: its size over the scanned size, 1 to 6.
        box: top, left, bottom and right of the mask in pixels; bottom and right are exclusive.
        mask: (64, 64) bool, true where the digit covers at least half.
    """

    image: np.ndarray
    label: int
    digit: int
    scale: float
    box: tuple[int, int, int, int]
    mask: np.ndarray


def segmentation(mask: np.ndarray, label: int) -> np.ndarray:
    """Labels the digit's pixels, where the mask is not 0, with class `label` + 1, and all others with 0.

    Example:
        >>> segmentation(np.array([[0, 255]], np.uint8), 7)
        array([[0, 8]], dtype=uint8)
    """
    return np.where(mask > 0, np.uint8(label + 1), np.uint8(0))


def examples(split: str) -> Iterator[Example]:
    """Draws the images of "train", "validation" or "test", the same in every call.

    Example:
        >>> first = next(examples("test"))
        >>> first.image.shape, first.label, 1 <= first.scale < 6
        ((64, 64, 3), 0, True)
    """
    part = PARTS[split]
    from sklearn.datasets import load_digits, load_sample_image  # slow import (a second)

    data: Any = load_digits()
    photographs = [load_sample_image(name)[:, part.columns] for name in ("china.jpg", "flower.jpg")]
    for copy in range(part.copies):
        for digit in part.digits:
            rng = np.random.default_rng((digit, copy))
            ink = data.images[digit].astype(np.float32) / 16
            yield _draw(ink, int(data.target[digit]), digit, photographs[rng.integers(2)], rng)


def _draw(ink: np.ndarray, label: int, digit: int, photograph: np.ndarray, rng: np.random.Generator) -> Example:
    scale = float(LARGEST ** rng.random())
    image = _background(photograph, rng)
    for _ in range(rng.integers(2, 5)):
        image = _painted(image, _stroke(rng), rng.uniform(*STROKES, size=3))
    covered = _enlarged(ink, scale)
    top, left = (rng.integers(SIDE - side + 1) for side in covered.shape)
    alpha = np.zeros((SIDE, SIDE), np.float32)
    alpha[top : top + covered.shape[0], left : left + covered.shape[1]] = covered
    image = _painted(image, alpha, rng.uniform(*DIGITS, size=3))
    mask = alpha >= 0.5
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    return Example(np.rint(image).astype(np.uint8), label, digit, scale, box, mask)


def _background(photograph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Makes a dimmed background from a square crop of 64 to 120 pixels, randomly flipped: (64, 64, 3) float32."""
    side = int(rng.integers(SIDE, min(*photograph.shape[:2], 120) + 1))
    top, left = (int(rng.integers(size - side + 1)) for size in photograph.shape[:2])
    crop = photograph[top : top + side, left : left + side]
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    small = cv2.resize(np.ascontiguousarray(crop), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) * np.float32(DIMMED)


def _stroke(rng: np.random.Generator) -> np.ndarray:
    """Draws the mask of a line of one or two straight pieces, as long and thick as those of digits of any scale."""
    scale = LARGEST ** rng.random()
    points = [rng.uniform(0, SIDE, size=2)]
    for _ in range(rng.integers(1, 3)):
        points.append(points[-1] + rng.uniform(-6, 6, size=2) * scale)
    cover = np.zeros((SIDE, SIDE), np.uint8)
    # Coordinates in sixteenths of a pixel, for smooth lines.
    line = np.rint(np.asarray(points) * 16).astype(np.int32)
    cv2.polylines(cover, [line], False, 255, max(1, round(1.2 * scale)), cv2.LINE_AA, shift=4)
    return cover.astype(np.float32) / 255


def _enlarged(ink: np.ndarray, scale: float) -> np.ndarray:
    """Makes the mask of a digit: its grey levels, smoothly enlarged, with edges as sharp as the pixels allow."""
    side = round(8 * scale)
    smooth = cv2.resize(ink, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip((smooth - 0.5) * np.float32(scale) + 0.5, 0, 1)


def _painted(image: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Blends one colour into an image by the mask `cover`."""
    return image + cover[..., None] * (colour.astype(np.float32) - image)


class ScaledDigits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits at 1 to 6 times their size over photographs, 64x64; see the top of this file."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list("0123456789")),
            "scale": tfds.features.Scalar(np.float32),
            "digit": tfds.features.Scalar(np.int32),
            "bbox": tfds.features.BBoxFeature(),
            "mask": tfds.features.Image(shape=(SIDE, SIDE, 1), encoding_format="png"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in PARTS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, example in enumerate(examples(split)):
            top, left, bottom, right = (edge / SIDE for edge in example.box)
            # Encoded here, because tfds would use TensorFlow.
            yield (
                key,
                {
                    "image": _png(example.image[..., ::-1]),  # OpenCV's order is blue, green, red
                    "label": example.label,
                    "scale": example.scale,
                    "digit": example.digit,
                    "bbox": tfds.features.BBox(ymin=top, xmin=left, ymax=bottom, xmax=right),
                    "mask": _png(example.mask.astype(np.uint8) * 255),
                },
            )


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()
