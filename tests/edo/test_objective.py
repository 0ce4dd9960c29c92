import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from msconv_jax import edo
from msconv_jax.edo.objective import residual_masks

RNGS = nnx.Rngs(0)


@pytest.mark.parametrize("objective", ["sum", "abs"])
@pytest.mark.parametrize(("size", "d_max"), [((3, 3), 3), ((5, 5), 2), ((3,), 4)])
def test_errors_are_the_unsampled_weights(objective, size, d_max):
    large = tuple((k - 1) * d_max + 1 for k in size)
    kernel = np.random.default_rng(0).standard_normal((*large, 4, 3))
    errors = edo.dilation_errors(kernel, size, objective=objective)
    assert errors.shape == (3, *(d_max,) * len(size))
    for place in np.ndindex(*errors.shape[1:]):
        rest = kernel.copy()
        for tap in np.ndindex(*size):
            rest[tuple(n // 2 + (t - k // 2) * (d + 1) for n, t, k, d in zip(large, tap, size, place, strict=True))] = 0
        axes = tuple(range(kernel.ndim - 1))
        expected = np.abs(rest.sum(axes)) if objective == "sum" else np.abs(rest).sum(axes)
        np.testing.assert_allclose(errors[(slice(None), *place)], expected, atol=1e-12)


def test_a_filter_of_one_dilation_is_found():
    kernel = np.zeros((9, 9, 2, 3))
    truth = [(1, 4), (3, 2), (4, 4)]
    for number, (rows, columns) in enumerate(truth):
        taps = np.ix_(4 + rows * np.arange(-1, 2), 4 + columns * np.arange(-1, 2))
        kernel[(*taps, slice(None), number)] = 1 + np.random.default_rng(number).random((3, 3, 2))
    for objective in ("sum", "abs"):
        assert edo.best_dilations(edo.dilation_errors(kernel, (3, 3), objective=objective)).tolist() == [
            list(dilation) for dilation in truth
        ]


def test_the_literal_reading_lets_weights_cancel():
    kernel = np.zeros((5, 5, 1, 1))
    kernel[0, 1], kernel[0, 3], kernel[1, 1] = 1.0, -1.0, 0.1  # the first two cancel
    assert edo.best_dilations(edo.dilation_errors(kernel, (3, 3))).tolist() == [[1, 1]]
    assert edo.best_dilations(edo.dilation_errors(kernel, (3, 3), objective="abs")).tolist() == [[2, 1]]


@pytest.mark.parametrize(
    ("shape", "size", "strides", "padding", "dilation"),
    [
        ((7, 9), (3, 3), 1, ((2, 2), (2, 2)), 1),
        ((7, 10), (3, 3), 2, "SAME", 1),
        ((12, 11), (3, 3), (1, 2), ((3, 0), (1, 2)), (1, 2)),
        ((10,), (5,), 3, ((4, 4),), 1),
        ((5, 6, 7), (3, 1, 3), 1, "SAME", 1),
        ((30, 30), (3, 3), 1, "VALID", 1),
    ],
)
def test_with_borders_the_errors_are_a_convolution_of_ones(shape, size, strides, padding, dilation):
    large = tuple((k - 1) * 2 + 1 for k in size)
    kernel = np.random.default_rng(0).standard_normal((*large, 3, 4)).astype(np.float32)
    errors = edo.dilation_errors(
        kernel,
        size,
        objective="same",
        map_size=shape,
        strides=strides,
        padding=padding,
        kernel_dilation=dilation,
    )
    for dilations, left_out in residual_masks(large, size):
        rest = kernel * left_out[..., None, None]
        conv = nnx.Conv(3, 4, large, strides, padding=padding, kernel_dilation=dilation, use_bias=False, rngs=RNGS)
        conv.kernel[...] = rest
        expected = np.abs(np.asarray(conv(jnp.ones((1, *shape, 3))), np.float64)).sum(tuple(range(len(shape) + 1)))
        place = (slice(None), *(d - 1 for d in dilations))
        np.testing.assert_allclose(errors[place], expected, rtol=1e-5)


def test_far_from_borders_same_is_sum():
    kernel = np.random.default_rng(0).standard_normal((5, 5, 3, 4))
    inside = edo.dilation_errors(kernel, (3, 3), objective="same", map_size=(30, 20), padding="VALID")
    np.testing.assert_allclose(inside, 26 * 16 * edo.dilation_errors(kernel, (3, 3)), rtol=1e-12)


@given(
    arrays(np.float64, (5, 5, 2, 3), elements=st.floats(0, 1)),
    st.floats(0.1, 10),
)
def test_scale_does_not_matter_and_positive_weights_cannot_cancel(kernel, scale):
    errors = edo.dilation_errors(kernel, (3, 3))
    np.testing.assert_allclose(errors, edo.dilation_errors(kernel, (3, 3), objective="abs"), atol=1e-12)
    np.testing.assert_allclose(edo.dilation_errors(-scale * kernel, (3, 3)), scale * errors, atol=1e-10)


def test_an_axis_of_one_tap_has_dilation_1():
    kernel = np.zeros((7, 1, 1, 1))
    kernel[::3] = 1.0
    assert edo.best_dilations(edo.dilation_errors(kernel, (3, 1))).tolist() == [[3, 1]]


def test_no_second_kernel_is_made():
    kernel = np.ones((9, 9, 256, 256), np.float32)
    for objective in ("sum", "abs"):
        tracemalloc.start()
        edo.dilation_errors(kernel, (3, 3), objective=objective)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < kernel.nbytes / 8


def test_half_precision_is_summed_in_full():
    kernel = jnp.full((5, 5, 64, 1), 0.1, jnp.bfloat16)
    expected = 16 * 64 * float(jnp.bfloat16(0.1))
    np.testing.assert_allclose(edo.dilation_errors(kernel, (3, 3))[0], expected, rtol=1e-12)


def test_equal_errors_give_the_smallest_dilations():
    assert edo.best_dilations(np.zeros((2, 3, 3))).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("shape", "size", "objective", "message"),
    [
        ((9, 9, 1, 1), (3, 3), "l1", "objective='l1'"),
        ((8, 8, 1, 1), (3, 3), "sum", "taps"),
        ((9, 5, 1, 1), (3, 3), "sum", "one whole d_max"),
        ((9, 9, 1, 1), (4, 4), "sum", "odd"),
        ((9, 9, 1, 1), (3,), "sum", "kernel_size"),
        ((1, 1, 1, 1), (3, 3), "sum", "taps"),
        ((1, 1, 1, 1), (1, 1), "sum", "not all of them 1"),
        ((5, 5, 1, 1), (3, 1), "sum", "taps"),
        ((5, 5, 1, 1), (3, 3), "same", "needs map_size"),
    ],
)
def test_bad_arguments_are_refused(shape, size, objective, message):
    with pytest.raises(ValueError, match=message):
        edo.dilation_errors(np.zeros(shape), size, objective=objective)
