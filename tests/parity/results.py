"""Results of fixtures, and measures of deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tests.families.family import CannotBuildError

MODULE_TOLERANCE = 1e-5  # of the largest value of each array
NETWORK_TOLERANCE = 1e-4  # of the standard deviation of the golden logits or stage outputs

Arrays = Mapping[str, Any]


class Result(NamedTuple):
    """The result of one fixture: its largest relative deviation and the array, or a problem."""

    name: str
    deviation: float
    where: str
    tolerance: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the numbers agree; NaN fails."""
        return not self.problem and self.deviation <= self.tolerance

    def __str__(self) -> str:
        if self.problem:
            return f"FAILED  {self.name}: {self.problem}"
        verdict = "ok    " if self.passed else "FAILED"
        return f"{verdict}  {self.name}: {self.deviation:.2e} in {self.where} (tolerance {self.tolerance:.0e})"


def worst(name: str, deviations: Mapping[str, float], tolerance: float) -> Result:
    """The result of the largest deviation; NaN is the largest."""
    where = max(deviations, key=lambda key: math.inf if math.isnan(deviations[key]) else deviations[key])
    return Result(name, deviations[where], where, tolerance)


def deviation(got: Any, golden: Any, scale: Any) -> float:
    """The largest difference relative to the scale; absolute if the scale is 0."""
    if np.shape(got) != np.shape(golden):
        raise CannotBuildError(f"shape {np.shape(got)} where the fixture has {np.shape(golden)}")
    largest = float(np.abs(np.asarray(got, np.float64) - np.asarray(golden, np.float64)).max())
    return largest if scale == 0 else largest / float(scale)


def relative(got: Any, golden: Any) -> float:
    """The largest difference relative to the largest golden value."""
    return deviation(got, golden, np.abs(golden).max())


def norm_deviations(got: Mapping[str, Any], golden: Mapping[str, float]) -> dict[str, float]:
    """Deviations of gradients' norms, each relative to its golden norm, or at least a thousandth of the largest.

    A bias before a normalisation has no influence, and its gradient is only rounding errors.
    """
    least = 1e-3 * max(golden.values(), default=0.0)
    return {
        f"norm of grad:{key}": deviation(np.linalg.norm(np.asarray(got[key], np.float64)), value, max(value, least))
        for key, value in golden.items()
    }
