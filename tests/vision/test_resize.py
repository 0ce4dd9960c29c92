"""Resizing and pooling against plain loops, and against `jax.image.resize` for half pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msconv_jax.vision import adaptive_average_pool, resize_bilinear


def interpolated(x, size, place):
    """Bilinear interpolation, pixel by pixel; `place` maps an index of the result to a position among the old ones."""
    x = np.asarray(x, np.float64)
    y = np.zeros((x.shape[0], *size, x.shape[-1]))
    for i, j in np.ndindex(*size):
        row, column = (place(n, old, new) for n, old, new in zip((i, j), x.shape[1:3], size, strict=True))
        top, left = min(int(row), x.shape[1] - 2), min(int(column), x.shape[2] - 2)
        a, b = row - top, column - left
        above = (1 - b) * x[:, top, left] + b * x[:, top, left + 1]
        below = (1 - b) * x[:, top + 1, left] + b * x[:, top + 1, left + 1]
        y[:, i, j] = (1 - a) * above + a * below
    return y


@pytest.mark.parametrize(("old", "new"), [((5, 6), (33, 41)), ((9, 9), (7, 12))])
def test_fixed_corners(old, new):
    x = jax.random.normal(jax.random.key(0), (2, *old, 3))
    expected = interpolated(x, new, lambda n, old, new: n * (old - 1) / (new - 1))
    np.testing.assert_allclose(resize_bilinear(x, new), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [((5, 6), (33, 41)), ((9, 9), (4, 12))])
def test_half_pixels(old, new):
    x = jax.random.normal(jax.random.key(0), (2, *old, 3))
    expected = interpolated(x, new, lambda n, old, new: min(max((n + 0.5) * old / new - 0.5, 0), old - 1))
    got = resize_bilinear(x, new, align_corners=False)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    theirs = jax.image.resize(x, (2, *new, 3), "linear", antialias=False)
    np.testing.assert_allclose(got, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("align_corners", [True, False])
def test_of_one_pixel_and_to_one_pixel(align_corners):
    x = jnp.array([1.0, 5.0]).reshape(1, 2, 1, 1)
    options = {"align_corners": align_corners}
    middle = 1.0 if align_corners else 3.0  # as in PyTorch, whose one fixed corner is the first
    assert resize_bilinear(x, (1, 3), **options).ravel().tolist() == [middle] * 3
    assert resize_bilinear(x[:, 1:], (3, 1), **options).ravel().tolist() == [5.0, 5.0, 5.0]


def test_adaptive_pooling():
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 13, 7, 3)))
    got = np.asarray(adaptive_average_pool(x, (9, 9)))
    for i, j in np.ndindex(9, 9):
        rows, columns = (slice(n * size // 9, -(-(n + 1) * size // 9)) for n, size in zip((i, j), (13, 7), strict=True))
        np.testing.assert_allclose(got[:, i, j], x[:, rows, columns].mean((1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [adaptive_average_pool, resize_bilinear])
def test_a_size_of_no_pixels_is_refused(function):
    with pytest.raises(ValueError, match="size=0: must be an integer of at least 1"):
        function(jnp.ones((1, 4, 4, 1)), (0, 3))
