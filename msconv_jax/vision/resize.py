"""Resizing as in PyTorch: linear along each axis, so a product with one small matrix for each axis."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from msconv_jax.arguments import check_positive

__all__ = ["adaptive_average_pool", "resize_bilinear"]


def adaptive_average_pool(x: Float[Array | np.ndarray, "N H W C"], size: Sequence[int]) -> Float[Array, "N h w C"]:
    """Averages over a grid of bins, which overlap if the maps' size is no multiple of the grid's.

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
    sizes = zip(x.shape[1:3], _checked(size), strict=True)
    return _multiply_axes(x, *(_pooling_matrix(old, new) for old, new in sizes))


def resize_bilinear(
    x: Float[Array | np.ndarray, "N H W C"], size: Sequence[int], *, align_corners: bool = True
) -> Float[Array, "N h w C"]:
    """Interpolates linearly between the nearest pixels, without anti-aliasing.

    `jax.image.resize` has no ``align_corners``, and anti-aliases when it downsamples.

    Args:
        x: maps (N, H, W, C).
        size: rows and columns of the result.
        align_corners: whether the centres of the first and last pixels coincide. Otherwise the edges of the maps do:
            pixel i of n is at (i + 1/2) L / n - 1/2 among L pixels, clipped to the map.

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
    positions = _corner_positions if align_corners else _half_pixel_positions
    sizes = zip(x.shape[1:3], _checked(size), strict=True)
    return _multiply_axes(x, *(_interpolation_matrix(old, positions(old, new)) for old, new in sizes))


def _checked(size: Sequence[int]) -> Sequence[int]:
    for side in size:
        check_positive("size", side, "give the rows and columns of the result")
    return size


def _multiply_axes(x: jax.Array | np.ndarray, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Multiplies the height by one matrix (new, old) and the width by another."""
    return jnp.einsum(
        "ph,qw,nhwc->npqc", jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype), x, precision="highest"
    )


def _pooling_matrix(size: int, bins: int) -> np.ndarray:
    """Returns the matrix (bins, size) of the means over the bins."""
    matrix = np.zeros((bins, size))
    for i in range(bins):
        first, last = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def _corner_positions(size: int, new: int) -> np.ndarray:
    return np.arange(new) * ((size - 1) / max(new - 1, 1))


def _half_pixel_positions(size: int, new: int) -> np.ndarray:
    return np.clip((np.arange(new) + 0.5) * (size / new) - 0.5, 0, size - 1)


def _interpolation_matrix(size: int, positions: np.ndarray) -> np.ndarray:
    """Returns the matrix (positions, size) of the interpolation at positions from 0 to size - 1."""
    matrix = np.zeros((len(positions), size))
    rows = np.arange(len(positions))
    low = np.minimum(positions.astype(int), max(size - 2, 0))
    matrix[rows, low] += 1 - (positions - low)
    matrix[rows, np.minimum(low + 1, size - 1)] += positions - low
    return matrix
