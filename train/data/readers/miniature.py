"""Two tiny colour data sets, on which any recipe runs in seconds."""

from collections.abc import Sequence

import numpy as np

from train.config.schema import Config, Split
from train.data.opencv import cv2
from train.data.readers.digits import digits
from train.data.resizing import resize
from train.data.sample import Sample
from train.data.source import Source

_IMAGES: dict[Split, int] = {"train": 120, "validation": 40, "test": 40}
_MEAN, _STD = (0.36, 0.36, 0.36), (0.21, 0.21, 0.21)


def miniature(config: Config) -> Source:
    """Makes 200 JPEG files, 40 to 80 pixels a side in varying proportions: scikit-learn's digits, enlarged and tinted.

    Train has 120, validation and test 40 each, from the same split of the digits; classes are equally frequent. The
    input has `config.data.image_size` pixels a side, or 32.
    """
    side = config.data.image_size or 32

    def encoded(image: np.ndarray, rng: np.random.Generator) -> bytes:
        height, width = map(int, rng.integers(40, 81, size=2))
        bgr = cv2.cvtColor(resize(image, height, width), cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes()

    splits: dict[Split, list[Sample]] = {
        split: [
            sample.replace(image=encoded(sample.pixels, np.random.default_rng(n)), segmentation=None)
            for n, sample in enumerate(samples)
        ]
        for split, samples in _tinted(config).items()
    }
    return Source(splits, tuple("0123456789"), (side, side, 3), is_sized=False, mean=_MEAN, std=_STD)


def miniature32(config: Config) -> Source:
    """Makes the same digits in the same colours as arrays of 32 x 32 pixels, like CIFAR, with segmentations.

    Class 0 is the background, class d + 1 is digit d.
    """
    names = tuple("0123456789")
    splits: dict[Split, list[Sample]] = {
        split: list(map(_at_32, samples)) for split, samples in _tinted(config).items()
    }
    return Source(
        splits,
        names,
        (32, 32, 3),
        is_sized=True,
        mean=_MEAN,
        std=_STD,
        fields=frozenset({"label", "segmentation"}),
        segmentation_classes=("background", *names),
    )


def _at_32(sample: Sample) -> Sample:
    classes = np.kron(np.asarray(sample.segmentation), np.ones((4, 4), np.uint8))
    return sample.replace(image=resize(sample.pixels, 32, 32), segmentation=classes)


def _tinted(config: Config) -> dict[Split, list[Sample]]:
    """Tints each digit between two random colours: (8, 8, 3) uint8."""
    source = digits(config)

    def tinted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        paper, ink = rng.uniform(0, 100, size=3), rng.uniform(130, 255, size=3)
        return np.rint(paper + (ink - paper) * (image / 255)).astype(np.uint8)

    splits: dict[Split, list[Sample]] = {}
    for split, count in _IMAGES.items():
        chosen = _equally_often(source.splits[split], count)
        splits[split] = [
            sample.replace(image=tinted(sample.pixels, np.random.default_rng((1, n))), segmentation=_classes(sample))
            for n, sample in enumerate(chosen)
        ]
    return splits


def _classes(sample: Sample) -> np.ndarray:
    assert sample.label is not None
    return np.where(sample.pixels[..., 0] >= 128, sample.label + 1, 0).astype(np.uint8)


def _equally_often(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Chooses the first samples of each class, classes in turn."""
    by_class = [[sample for sample in samples if sample.label == label] for label in range(10)]
    return [by_class[n % 10][n // 10] for n in range(count)]
