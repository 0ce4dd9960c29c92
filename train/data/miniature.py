"""Two tiny data sets in colour, on which any recipe runs in seconds."""

from collections.abc import Sequence

import numpy as np

from train.data.digits import digits
from train.data.opencv import cv2
from train.data.resizing import resize
from train.data.sources import Record, Source, Split
from train.settings import Config

_IMAGES: dict[Split, int] = {"train": 120, "validation": 40, "test": 40}
_MEAN, _STD = (0.36, 0.36, 0.36), (0.21, 0.21, 0.21)


def miniature(config: Config) -> Source:
    """200 JPEG files, 40 to 80 pixels a side in varying proportions: digits of scikit-learn, enlarged and tinted.

    120 to train, 40 each to validation and test, each from the same split of the digits, the classes equally often.
    The input has `config.image_size` pixels a side, or 32.
    """
    side = config.image_size or 32

    def encoded(image: np.ndarray, rng: np.random.Generator) -> bytes:
        height, width = map(int, rng.integers(40, 81, size=2))
        bgr = cv2.cvtColor(resize(image, height, width), cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes()

    splits: dict[Split, list[Record]] = {
        split: [
            record | {"image": encoded(record["image"], np.random.default_rng(n))} for n, record in enumerate(records)
        ]
        for split, records in _tinted(config).items()
    }
    return Source(splits, tuple("0123456789"), (side, side, 3), is_sized=False, mean=_MEAN, std=_STD)


def miniature32(config: Config) -> Source:
    """The same digits in the same colours as arrays of 32 x 32 pixels, like CIFAR."""
    splits: dict[Split, list[Record]] = {
        split: [record | {"image": resize(record["image"], 32, 32)} for record in records]
        for split, records in _tinted(config).items()
    }
    return Source(splits, tuple("0123456789"), (32, 32, 3), is_sized=True, mean=_MEAN, std=_STD)


def _tinted(config: Config) -> dict[Split, list[Record]]:
    """Digits between two colours drawn anew for each: (8, 8, 3) uint8."""
    source = digits(config)

    def tinted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        paper, ink = rng.uniform(0, 100, size=3), rng.uniform(130, 255, size=3)
        return np.rint(paper + (ink - paper) * (image / 255)).astype(np.uint8)

    splits: dict[Split, list[Record]] = {}
    for split, count in _IMAGES.items():
        chosen = _equally_often(source.splits[split], count)
        splits[split] = [
            {"image": tinted(record["image"], np.random.default_rng((1, n))), "label": record["label"]}
            for n, record in enumerate(chosen)
        ]
    return splits


def _equally_often(records: Sequence[Record], count: int) -> list[Record]:
    """The first records of each class, in turn."""
    by_class = [[record for record in records if record["label"] == label] for label in range(10)]
    return [by_class[n % 10][n // 10] for n in range(count)]
