"""Scikit-learn's handwritten digits."""

from typing import Any

import numpy as np

from train.config.schema import Config
from train.data.sample import Sample
from train.data.source import Source


def digits(config: Config) -> Source:
    """Loads handwritten digits: 1797 real 8x8 grey images, white on black, shipped with scikit-learn.

    The split of an image depends on its number within its class, in the order of the file, modulo 20:
    0, 5, 10, 15 are test (364 images), 2, 9, 16 validation (270), the others train (1163).
    The split is therefore stratified, and fixed without a random generator.
    """
    from sklearn.datasets import load_digits  # slow import (a second), only needed here

    data: Any = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = data.target
    number = np.empty(len(labels), int)
    for label in range(10):
        number[labels == label] = np.arange(np.sum(labels == label))
    test = np.isin(number % 20, (0, 5, 10, 15))
    validation = np.isin(number % 20, (2, 9, 16))

    def samples(chosen: np.ndarray) -> list[Sample]:
        return [
            Sample(image=image, label=int(label)) for image, label in zip(images[chosen], labels[chosen], strict=True)
        ]

    return Source(
        splits={
            "train": samples(~test & ~validation),
            "validation": samples(validation),
            "test": samples(test),
        },
        classes=tuple("0123456789"),
        image_shape=(8, 8, 1),
        is_sized=True,
        mean=(0.306,),
        std=(0.376,),
    )
