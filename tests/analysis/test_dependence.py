"""Boxes of dependence against functions whose inputs are spoilt one element at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from msconv_jax.analysis.dependence import input_boxes

FUNCTIONS = {
    "slice": lambda x: x[1:10:3, ::-1],
    "pad": lambda x: lax.pad(x, 0.0, ((2, -1, 1), (-1, 3, 0)))[3:9],
    "concatenate": lambda x: jnp.concatenate([x[4:], x[:2], x[5:8]], axis=0),
    "stack": lambda x: jnp.stack([x[:5], x[3:8], x[6:11]], axis=1),
    "split": lambda x: jnp.split(x, [3, 7], axis=0)[1] * 2,
    "reshape": lambda x: x[:, :6].reshape(11, 3, 2).sum(axis=2),
    "merge": lambda x: x[:10].reshape(5, 2, 7).reshape(10, 7),
    "repeat": lambda x: jnp.repeat(x, 2, axis=0)[1:20],
    "transpose": lambda x: x.T,
    "matrix": lambda x: jnp.ones((3, 11)) @ x,
    "reduction": lambda x: x.sum(axis=1, keepdims=True) + x,
    "window": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (3, 2), (2, 1), ((1, 1), (0, 1))),
    "holes": lambda x: lax.reduce_window(x, 0.0, lax.add, (3, 3), (1, 2), "VALID", (2, 1), (1, 2)),
    "cumulative": lambda x: jnp.cumsum(x, axis=1),
    "nested": jax.jit(lambda x: jax.nn.relu(x[1:]) - jax.checkpoint(jnp.tanh)(x[:-1])),
    "branches": lambda x: lax.cond(x.shape[0] > 3, lambda x: x[2:], lambda x: x[:-2], x),
    "gather": lambda x: x[:, jnp.array([3, 1])],
    "clamp": lambda x: jnp.clip(x, -1.0, 1.0),
}


def spoilt(function, x, unit):
    """The elements whose spoiling spoils a unit of the result: NaN goes through every operation."""
    calls = jax.vmap(lambda place: function(jnp.where(jnp.arange(x.size).reshape(x.shape) == place, jnp.nan, x))[unit])
    return np.isnan(np.asarray(calls(jnp.arange(x.size)))).reshape(x.shape)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_box_is_that_of_the_elements_that_spoil_the_result(name):
    function, x = FUNCTIONS[name], jnp.ones((11, 7))
    traced = jax.make_jaxpr(function)(x)
    shape = traced.out_avals[0].shape
    wide = {"gather": (1,), "cumulative": (1,), "branches": (0,)}.get(name, ())  # axes along which more is promised
    for unit in ((0,) * len(shape), tuple(n // 2 for n in shape), tuple(n - 1 for n in shape)):
        (box,) = input_boxes(traced.jaxpr, [tuple((n, n) for n in unit)])
        seen = np.argwhere(spoilt(function, x, unit))
        if not len(seen):
            assert box is None
            continue
        for axis, (first, last) in enumerate(box):
            if axis in wide:
                assert first <= seen[:, axis].min()
                assert last >= seen[:, axis].max()
            else:
                assert (first, last) == (seen[:, axis].min(), seen[:, axis].max())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (2, 1), "padding": "SAME"},
        {"window_strides": (1, 1), "padding": ((2, 0), (1, 1)), "lhs_dilation": (2, 2)},
        {"window_strides": (1, 3), "padding": "VALID", "rhs_dilation": (2, 3)},
    ],
)
def test_convolutions(options, groups):
    kernel = jnp.ones((3, 2, 4 // groups, 4))

    def convolve(x):
        return lax.conv_general_dilated(
            x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups, **options
        )

    x = jnp.ones((1, 8, 9, 4))
    traced = jax.make_jaxpr(convolve)(x)
    _, height, width, _ = traced.out_avals[0].shape
    for unit in ((0, 0, 0, 0), (0, height // 2, width // 2, 3), (0, height - 1, width - 1, 1)):
        (box,) = input_boxes(traced.jaxpr, [tuple((n, n) for n in unit)])
        influence = jax.grad(lambda x, unit=unit: convolve(x)[unit])(x)  # every tap is 1
        seen = np.argwhere(np.asarray(influence))
        assert box == tuple(zip(seen.min(axis=0), seen.max(axis=0), strict=True))


def test_nothing_is_read_for_nothing():
    traced = jax.make_jaxpr(lambda x, y: (x + 1, y * 2))(jnp.ones(3), jnp.ones(4))
    assert input_boxes(traced.jaxpr, [None, ((1, 2),)]) == [None, ((1, 2),)]


def test_an_unknown_operation_is_named():
    traced = jax.make_jaxpr(jnp.sort)(jnp.ones(3))
    with pytest.raises(ValueError, match="the operation 'sort', whose reach is not known"):
        input_boxes(traced.jaxpr, [((0, 0),)])
