import numpy as np
import pytest

from msconv_jax import edo


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
    ],
)
def test_bad_arguments_are_refused(shape, size, objective, message):
    with pytest.raises(ValueError, match=message):
        edo.dilation_errors(np.zeros(shape), size, objective=objective)
