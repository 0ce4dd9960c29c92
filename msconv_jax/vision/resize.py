"""Maps brought to another size as PyTorch does it: linear along each axis, so one small matrix for each."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from msconv_jax.arguments import check_positive

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


def resize_bilinear(x: jax.Array, size: Sequence[int], *, align_corners: bool = True) -> jax.Array:
    """Interpolates linearly between the nearest positions, without smoothing where it shrinks.

    `jax.image.resize` has no ``align_corners``, and smooths where it shrinks.

    Args:
        x: maps (N, H, W, C).
        size: rows and columns of the result.
        align_corners: whether the first and the last positions fall together. Otherwise the outer edges of the pixels
            do, so that position i of n lies at (i + 1/2) L / n - 1/2 of L, held within the map.

    Returns:
        (N, *size, C).

    Raises:
        ValueError: if a size is no positive int.

    Source:
        PyTorch's ``interpolate(mode="bilinear")``.

    Example:
        >>> x = jnp.array([0.0, 4.0]).reshape(1, 2, 1, 1)
        >>> resize_bilinear(x, (5, 1)).ravel().tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0]
        >>> resize_bilinear(x, (4, 1), align_corners=False).ravel().tolist()
        [0.0, 1.0, 3.0, 4.0]
    """
    places = _corner_places if align_corners else _half_pixel_places
    matrices = (_interpolation(old, places(old, new)) for old, new in zip(x.shape[1:3], _checked(size), strict=True))
    return _along_both(x, *matrices)


def _checked(size: Sequence[int]) -> Sequence[int]:
    for side in size:
        check_positive("size", side, "give the rows and columns of the result")
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


def _corner_places(size: int, new: int) -> np.ndarray:
    return np.arange(new) * ((size - 1) / max(new - 1, 1))


def _half_pixel_places(size: int, new: int) -> np.ndarray:
    return np.clip((np.arange(new) + 0.5) * (size / new) - 0.5, 0, size - 1)


def _interpolation(size: int, places: np.ndarray) -> np.ndarray:
    """The matrix (places, size) of the interpolation at places within 0 and size - 1."""
    matrix = np.zeros((len(places), size))
    rows = np.arange(len(places))
    low = np.minimum(places.astype(int), max(size - 2, 0))
    matrix[rows, low] += 1 - (places - low)
    matrix[rows, np.minimum(low + 1, size - 1)] += places - low
    return matrix
