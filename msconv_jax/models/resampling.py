"""Maps on another grid of pixels: PyTorch's adaptive average pooling, and its bilinear enlargement."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["adaptive_average_pool", "resize_aligned"]


def adaptive_average_pool(x: jax.Array, bins: int) -> jax.Array:
    """Averages maps of any size over bins x bins windows, as PyTorch's ``AdaptiveAvgPool2d``.

    Window i covers the pixels from floor(i size / bins) to ceil((i + 1) size / bins); where the bins do not divide the
    size, or are more than it, neighbours share pixels.

    Args:
        x: maps (N, H, W, C).
        bins: rows and columns of the result.

    Returns:
        Maps (N, bins, bins, C).

    Example:
        >>> adaptive_average_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2)[0, :, :, 0].tolist()
        [[2.0, 3.0], [5.0, 6.0]]
    """
    height, width = x.shape[1:3]
    return _along_both(x, _means(height, bins), _means(width, bins))


def resize_aligned(x: jax.Array, height: int, width: int) -> jax.Array:
    """Interpolates maps linearly so that their corners stay corners, PyTorch's bilinear with ``align_corners``.

    Args:
        x: maps (N, H, W, C).
        height: new number of rows.
        width: new number of columns.

    Returns:
        Maps (N, height, width, C).

    Example:
        >>> resize_aligned(jnp.arange(4.0).reshape(1, 2, 2, 1), 3, 2)[0, :, 0, 0].tolist()
        [0.0, 1.0, 2.0]
    """
    return _along_both(x, _interpolation(x.shape[1], height), _interpolation(x.shape[2], width))


def _along_both(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """A linear map (new, old) along the height and one along the width."""
    return jnp.einsum(
        "ph,qw,nhwc->npqc", jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype), x, precision="highest"
    )


def _means(size: int, bins: int) -> np.ndarray:
    matrix = np.zeros((bins, size))
    for i in range(bins):
        first, last = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def _interpolation(size: int, new: int) -> np.ndarray:
    matrix = np.zeros((new, size))
    for i in range(new):
        place = i * (size - 1) / (new - 1) if new > 1 else 0.0
        low = min(int(place), max(size - 2, 0))
        matrix[i, low] += 1 - (place - low)
        matrix[i, min(low + 1, size - 1)] += place - low
    return matrix
