"""Maps brought to another size as PyTorch does it: linear along each axis, so one small matrix for each."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from msconv_jax.models.layers import check_positive

__all__ = ["adaptive_average_pool", "resize_bilinear"]


def adaptive_average_pool(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Averages over a grid of bins, which overlap where the size is no multiple of theirs.

    Args:
        x: maps (N, H, W, C).
        size: rows and columns of the grid.

    Returns:
        (N, *size, C). Of n bins over L pixels bin i covers those from floor(i L / n) to ceil((i + 1) L / n) - 1.

    Raises:
        ValueError: if a size is no positive int.

    Source:
        PyTorch's ``AdaptiveAvgPool2d``.

    Example:
        >>> adaptive_average_pool(jnp.arange(5.0).reshape(1, 5, 1, 1), (2, 1)).ravel().tolist()
        [1.0, 3.0]
    """
    return _along_both(x, *(_pooling(old, new) for old, new in zip(x.shape[1:3], _checked(size), strict=True)))


def resize_bilinear(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Interpolates linearly; the first and the last positions fall together (``align_corners``).

    `jax.image.resize` has no such rule, and smooths where it shrinks.

    Args:
        x: maps (N, H, W, C).
        size: rows and columns of the result.

    Returns:
        (N, *size, C).

    Raises:
        ValueError: if a size is no positive int.

    Source:
        PyTorch's ``interpolate(mode="bilinear", align_corners=True)``.

    Example:
        >>> resize_bilinear(jnp.array([0.0, 4.0]).reshape(1, 2, 1, 1), (5, 1)).ravel().tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    return _along_both(x, *(_interpolation(old, new) for old, new in zip(x.shape[1:3], _checked(size), strict=True)))


def _checked(size: Sequence[int]) -> Sequence[int]:
    for own in size:
        check_positive("size", own, "give the rows and columns of the result")
    return size


def _along_both(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """A linear map (new, old) along the height and one along the width."""
    return jnp.einsum(
        "ph,qw,nhwc->npqc", jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype), x, precision="highest"
    )


def _pooling(size: int, bins: int) -> np.ndarray:
    """The matrix (bins, size) of the means over the bins."""
    matrix = np.zeros((bins, size))
    for i in range(bins):
        first, last = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def _interpolation(size: int, new: int) -> np.ndarray:
    """The matrix (new, size) of the interpolation."""
    matrix = np.zeros((new, size))
    for i in range(new):
        place = i * (size - 1) / (new - 1) if new > 1 else 0.0
        low = min(int(place), max(size - 2, 0))
        matrix[i, low] += 1 - (place - low)
        matrix[i, min(low + 1, size - 1)] += place - low
    return matrix
