"""Random erasing."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from train.data.sample import Generator, Sample
from train.data.transforms.checks import in_range, is_interval

_TRIES = 10


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Fills a random rectangle with the mean colour, 0 after normalisation (Zhong et al. 2017, torchvision's rule).

    Args:
        mean: the source's mean of each channel, 0..1.
        probability: probability of erasing, 0 to 1.
        area: range of the rectangle's area, as fractions of the image's.
        ratio: range of its height over its width; the logarithm is uniform.
    """

    mean: tuple[float, ...]
    probability: float = 0.5
    area: Sequence[float] = (0.02, 0.33)
    ratio: Sequence[float] = (0.3, 3.3)

    def __post_init__(self) -> None:
        in_range(self, probability=(0, 1))
        is_interval(self, area=(0, 1), ratio=(0, 100))

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Maps a sample to one with a new image; annotations stay, like those of occluded objects."""
        if rng.random() >= self.probability:
            return sample
        image = sample.pixels
        height, width = image.shape[:2]
        for _ in range(_TRIES):
            area = height * width * rng.uniform(self.area[0], self.area[1])
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if rows < height and columns < width:
                top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
                erased = image.copy()
                erased[top : top + rows, left : left + columns] = np.rint(np.multiply(self.mean, 255))
                return sample.replace(image=erased)
        return sample
