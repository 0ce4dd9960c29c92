"""XLA's convolution on its fast paths: correct sums for every geometry, with the fast dimension order."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend.core import jaxprs_in_params

from msconv_jax.convolution import convolve
from msconv_jax.lowering.xla import live_taps, xla_convolution
from tests.reference import by_taps, whole


@st.composite
def geometries(draw):
    """Sizes, kernels (possibly larger than the image) and pads (possibly larger than the kernel, or negative)."""

    def axis():
        size, taps = draw(st.integers(1, 6)), draw(st.integers(1, 7))
        stride, gap = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        low, high = draw(st.integers(-1, 8)), draw(st.integers(-1, 8))
        missing = (taps - 1) * gap + 1 - size - low - high
        return size, taps, stride, (low, high + max(missing, 0)), gap

    return draw(st.sampled_from(("cpu", "gpu"))), list(zip(*(axis() for _ in range(2)), strict=True))


def check(backend, geometry, groups=1):
    size, taps, strides, pads, dilation = geometry
    x, kernel = whole((2, *size, 2 * groups), 0), whole((*taps, 2, 3 * groups), 1)
    reference = functools.partial(by_taps, strides=strides, pads=pads, dilation=dilation, groups=groups)
    tested = functools.partial(
        xla_convolution,
        strides=strides,
        pads=pads,
        kernel_dilation=dilation,
        groups=groups,
        backend=backend,
        precision=None,
        preferred_element_type=None,
    )
    cotangent = whole(jax.eval_shape(reference, x, kernel).shape, 2)

    def everything(function, x, kernel):
        y, pullback = jax.vjp(function, x, kernel)
        _, tangent = jax.jvp(function, (x, kernel), (x + 1, kernel - 1))
        return y, tangent, pullback(cotangent)

    expected, got = (jax.jit(functools.partial(everything, f))(x, kernel) for f in (reference, tested))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@settings(deadline=None, max_examples=4)
@given(geometries())
def test_any_geometry(case):
    check(*case)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(geometries())
def test_any_geometry_at_length(case):
    check(*case)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_two_taps_with_stride_two(backend):
    check(backend, ((5, 4), (2, 6), (2, 2), ((1, 1), (1, 1)), (1, 1)))
    check(backend, ((6, 4), (2, 3), (2, 3), ((1, 1), (0, 0)), (1, 1)))


def test_groups():
    check("cpu", ((3, 5), (5, 5), (1, 2), ((4, 2), (2, 2)), (1, 2)), groups=2)


@pytest.mark.parametrize(
    ("arguments", "live"),
    [
        ((3, 8, 1, (1, 1), 1), (0, 3)),
        ((3, 4, 1, (4, 4), 4), (1, 2)),  # a dilation as large as the image
        ((9, 1, 1, (4, 4), 1), (4, 5)),
        ((9, 7, 1, (4, 4), 1), (0, 9)),
        ((3, 1, 2, (2, 0), 1), (2, 3)),
    ],
)
def test_live_taps(arguments, live):
    assert live_taps(*arguments) == live


def convolutions(function, *arguments):
    """Dimension numbers and kernel shapes of all convolutions in the function's program."""
    found = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive is lax.conv_general_dilated_p:
                found.append((equation.params["dimension_numbers"], equation.invars[1].aval.shape))
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gradients_have_their_channels_last(ndim):
    x, kernel = jnp.ones((2, *[6] * ndim, 4)), jnp.ones((*[3] * ndim, 4, 5))
    found = convolutions(jax.grad(lambda x, k: convolve(x, k, 2, kernel_dilation=2).sum() ** 2, (0, 1)), x, kernel)
    spatial = tuple(range(1, ndim + 1))
    images, kernels = (0, ndim + 1, *spatial), (ndim + 1, ndim, *range(ndim))
    assert len(found) == 3
    assert {tuple(numbers) for numbers, _ in found} == {(images, kernels, images)}


def test_no_kernel_is_larger_than_the_image():
    x, kernel = jnp.ones((2, 3, 7, 4)), jnp.ones((9, 9, 4, 4))
    found = convolutions(lambda x, k: convolve(x, k), x, kernel)
    assert sorted(shape[:2] for _, shape in found) == [(2, 4), (2, 5), (3, 4), (3, 5)]


def test_only_wanted_gradients_are_computed():
    """The kernel's gradient alone needs no convolution for the image's gradient."""
    x, kernel = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 4, 5))
    assert len(convolutions(jax.grad(lambda k: convolve(x, k).sum() ** 2), kernel)) == 2


def test_half_precision_in_pieces_is_rounded_once():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 64)).astype(jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (9, 9, 64, 8)).astype(jnp.bfloat16)
    wide = by_taps(x.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), ((4, 4),) * 2, (1, 1))
    got = convolve(x, kernel)
    assert got.dtype == jnp.bfloat16
    error = jnp.abs(got.astype(jnp.float32) - wide) / (jnp.abs(wide) + 1)
    assert float(error.max()) < 2**-7
    gradients = jax.grad(lambda x, k: convolve(x, k).astype(jnp.float32).sum(), (0, 1))(x, kernel)
    assert {g.dtype for g in gradients} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.slow
def test_derivatives_of_derivatives():
    x, kernel = jnp.asarray(whole((1, 4, 4, 2), 0)), jnp.asarray(whole((5, 3, 2, 2), 1))

    def loss(function):
        return lambda k: (function(x, k) ** 3).sum()

    reference = loss(lambda x, k: by_taps(x, k, (1, 1), ((2, 2), (1, 1)), (1, 1)))
    tested = loss(convolve)
    for derivative in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f)), lambda f: jax.jacfwd(jax.jacfwd(f))):
        np.testing.assert_allclose(derivative(tested)(kernel), derivative(reference)(kernel), rtol=1e-4, atol=1e-2)


def test_a_loop_over_layers_gives_the_gradients_of_the_layers():
    x, kernels = jnp.asarray(whole((2, 5, 5, 3), 0)), jnp.asarray(whole((3, 3, 3, 3, 3), 1)) / 8

    def looped(x, kernels):
        return (lax.scan(lambda x, k: (convolve(x, k), None), x, kernels)[0] ** 2).sum()

    def unrolled(x, kernels):
        return (functools.reduce(convolve, kernels, x) ** 2).sum()

    a, b = (jax.grad(f, (0, 1))(x, kernels) for f in (looped, unrolled))
    for left, right in zip(a, b, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-3)
