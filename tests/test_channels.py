import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msconv_jax.lowering.channels import take_channels


def check(channels, length, axis):
    shape = (3, length, 2) if axis == -2 else (2, 3, length)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weights = np.random.default_rng(1).standard_normal(np.take(x, channels, axis).shape).astype(np.float32)

    @jax.jit
    def run(x):
        picked, pullback = jax.vjp(lambda x: take_channels(x, channels, axis), x)
        return picked, pullback(weights)[0]

    picked, gradient = run(x)
    np.testing.assert_array_equal(picked, np.take(x, channels, axis))
    expected = np.zeros_like(x)
    np.add.at(np.moveaxis(expected, axis, 0), list(channels), np.moveaxis(weights, axis, 0))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=16), st.sampled_from([-1, -2]))
def test_any_channels(channels, axis):
    check(tuple(channels), 12, axis)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 5), st.integers(1, 4), st.integers(0, 8), st.integers(1, 4), st.integers(0, 8), st.integers(0, 3))
def test_grids(start, outer, outer_step, inner, inner_step, spare):
    grid = start + outer_step * np.arange(outer)[:, None] + inner_step * np.arange(inner)
    channels = tuple(map(int, grid.ravel()))
    check(channels, max(channels) + 1 + spare, -1)


@pytest.mark.parametrize(
    ("channels", "length"),
    [
        (range(4, 8), 16),  # a block
        (range(1, 16, 4), 16),  # every fourth
        ((4, 5, 6, 7, 12, 13, 14, 15), 16),  # two blocks of four
        ((1, 3, 5, 7, 9, 11, 13, 15), 16),
        ((0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), 16),  # residues together
        ((0, 0, 0, 1, 1, 1), 4),  # repeats
        ((0, 1, 0, 1, 0, 1), 4),
    ],
)
def test_regular_sets_need_no_gather(channels, length):
    x = np.zeros((2, length), np.float32)
    text = str(jax.make_jaxpr(lambda x: take_channels(x, tuple(channels)))(x))
    assert "gather" not in text
    check(tuple(channels), length, -1)
