"""What every drop-in operator promises, over all of them: it stands where ``nnx.Conv`` stood."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax.operators import DROP_IN, GroupedConv, PSConv

# How each operator is made to be the plain convolution. A new operator needs a row here.
PLAIN_SETTING = {
    GroupedConv: {},
    PSConv: {"pattern": (1,)},
}
# Settings under which the promises are kept, beside the defaults.
SETTINGS = {
    GroupedConv: [{}, {"feature_group_count": 4}, {"feature_group_count": 8}],
    PSConv: [
        {},
        {"layout": "lattice"},
        {"vary": "in", "pattern": (1, 3)},
        {"vary": "out"},
        {"vary": "none"},
        {"feature_group_count": 2},
        {"feature_group_count": 8},
    ],
}
CASES = [(operator, setting) for operator in DROP_IN for setting in SETTINGS[operator]]
over_cases = pytest.mark.parametrize(
    ("operator", "setting"), CASES, ids=[f"{operator.__name__}-{setting}" for operator, setting in CASES]
)
over_operators = pytest.mark.parametrize("operator", DROP_IN)


def build(operator, *, features=(8, 8), kernel_size=(3, 3), strides=1, seed=0, **options):
    return operator(*features, kernel_size, strides, rngs=nnx.Rngs(seed), **options)


def image(shape=(2, 7, 6, 8), dtype=jnp.float32, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def test_every_operator_has_its_rows():
    assert set(DROP_IN) == set(PLAIN_SETTING) == set(SETTINGS)


SIZES = ((15, 15), (8, 11), (16, 17), (1, 20))


def output_shapes(operator, **options):
    """Shapes for images of every size, without computing anything."""

    def run(*images):
        module = build(operator, **options)
        return tuple(module(x) for x in images)

    images = [jax.ShapeDtypeStruct((2, *size, 8), jnp.float32) for size in SIZES]
    return [y.shape for y in jax.eval_shape(run, *images)]


def check_output_shapes(operator, setting, strides, paddings, **options):
    for padding in paddings:
        expected = output_shapes(nnx.Conv, strides=strides, padding=padding, **options)
        got = output_shapes(operator, strides=strides, padding=padding, **options, **setting)
        assert got == expected, padding


@over_cases
@pytest.mark.parametrize("strides", [1, 2, (3, 1)])
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 5)])
def test_output_shapes_are_those_of_nnx_conv(operator, setting, strides, kernel_size):
    check_output_shapes(operator, setting, strides, ("SAME", "VALID", 1), kernel_size=kernel_size)


@pytest.mark.slow
@over_cases
@pytest.mark.parametrize("strides", [1, 2, 3, (2, 1), None])
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (3, 5), (7, 7)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_output_shapes_over_the_full_grid(operator, setting, strides, kernel_size, dilation):
    paddings = ("SAME", "VALID", 0, 1, 3, (2, 1), ((0, 1), (2, 0)), [1, (0, 2)])
    check_output_shapes(operator, setting, strides, paddings, kernel_size=kernel_size, kernel_dilation=dilation)


@over_cases
def test_parameters_are_those_of_nnx_conv(operator, setting):
    groups = setting.get("feature_group_count", 1)
    ours, theirs = build(operator, **setting), build(nnx.Conv, feature_group_count=groups)
    for a, b in zip((ours.kernel, ours.bias), (theirs.kernel, theirs.bias), strict=True):
        np.testing.assert_array_equal(a[...], b[...])  # equal seeds, equal initial values
    names = ("in_features", "out_features", "kernel_size", "strides", "padding", "feature_group_count", "use_bias")
    for name in (*names, "kernel_shape", "dtype", "param_dtype", "precision", "kernel_dilation", "input_dilation"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert build(operator, use_bias=False, **setting).bias is None


@over_operators
@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, ((0, 2), (1, 0))])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2},
        {"strides": (3, 1), "kernel_size": (5, 3)},
        {"kernel_dilation": 2},
        {"feature_group_count": 4, "strides": 2},
        {"feature_group_count": 8, "use_bias": False},
        {"dtype": jnp.bfloat16},
    ],
    ids=str,
)
def test_the_degenerate_setting_is_the_plain_convolution(operator, padding, options):
    ours, theirs = (
        build(kind, padding=padding, bias_init=nnx.initializers.normal(), **options, **setting)
        for kind, setting in ((operator, PLAIN_SETTING[operator]), (nnx.Conv, {}))
    )
    x = image()
    got, expected = ours(x), theirs(x)
    assert got.dtype == expected.dtype
    tolerance = 2e-2 if got.dtype == jnp.bfloat16 else 2e-6
    np.testing.assert_allclose(np.float32(got), np.float32(expected), rtol=tolerance, atol=tolerance)


@over_cases
def test_gradients_are_finite_and_reach_every_parameter(operator, setting):
    graphdef, state = nnx.split(build(operator, strides=2, padding=1, **setting))

    @jax.jit
    def gradient(state, x):
        return jax.grad(lambda state, x: jnp.mean(nnx.merge(graphdef, state)(x) ** 2), argnums=(0, 1))(state, x)

    for leaf in jax.tree.leaves(gradient(state, image((2, 17, 18, 8)))):
        assert bool(jnp.isfinite(leaf).all())
        assert bool((leaf != 0).any())
    for leaf in jax.tree.leaves(gradient(state, image((2, 17, 18, 8)))[0]):
        assert bool((leaf != 0).all()), "a weight without gradient: it does not take part"


@over_cases
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_in_gives_half_precision_out(operator, setting, dtype):
    x = image()
    exact = build(operator, **setting)(x)
    for options in ({}, {"dtype": dtype}, {"dtype": dtype, "param_dtype": dtype}):
        module = build(operator, **options, **setting)
        y = module(x.astype(dtype))
        assert y.dtype == dtype
        assert module.kernel[...].dtype == options.get("param_dtype", jnp.float32)
        if "param_dtype" in options:  # other random bits, other weights
            assert bool(jnp.isfinite(y).all())
        else:
            assert float(jnp.abs(y.astype(jnp.float32) - exact).max()) < 5e-2
    assert build(operator, **setting)(x).dtype == jnp.float32


@over_cases
def test_two_builds_have_equal_graph_definitions(operator, setting):
    first, second = (nnx.split(build(operator, seed=seed, **setting))[0] for seed in (0, 1))
    assert first == second
    assert hash(first) == hash(second)


@over_cases
def test_build_without_allocation_and_merge(operator, setting):
    abstract = nnx.eval_shape(lambda: build(operator, **setting))
    real = build(operator, **setting)
    merged = nnx.merge(nnx.graphdef(abstract), nnx.state(real))
    np.testing.assert_array_equal(merged(image()), real(image()))


@over_cases
def test_unbatched_and_several_batch_axes(operator, setting):
    module = build(operator, **setting)
    x = image((2, 3, 5, 6, 8))
    y = module(x)
    assert y.shape == (2, 3, 5, 6, 8)
    np.testing.assert_allclose(module(x[1, 2]), y[1, 2], rtol=1e-5, atol=1e-5)


@over_operators
def test_the_kernel_lattice_counts_as_many_weights_as_the_kernel(operator):
    module = build(operator, feature_group_count=2)
    assert module.lattice.num_parameters == module.kernel[...].size


@over_operators
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 3}, r"kernel_size=\(3, 3\)"),
        ({"kernel_size": ()}, "kernel_size"),
        ({"kernel_size": (3, 0)}, "kernel_size"),
        ({"kernel_size": 3.0}, "kernel_size"),
        ({"features": (0, 8)}, "in_features"),
        ({"features": (8, -8)}, "out_features"),
        ({"features": (8.0, 8)}, "in_features"),
        ({"feature_group_count": 3}, "feature_group_count=3"),
        ({"feature_group_count": 0}, "feature_group_count=0"),
        ({"strides": 0}, "strides=0"),
        ({"strides": (1, 1, 1)}, "strides"),
        ({"kernel_dilation": 0}, "kernel_dilation=0"),
        ({"kernel_dilation": (1, 2, 3)}, "kernel_dilation"),
        ({"input_dilation": 2}, "input_dilation=2"),
        ({"padding": "CIRCULAR"}, "CIRCULAR"),
        ({"padding": "SOME"}, "SOME"),
        ({"padding": (1, 2, 3)}, "padding"),
        ({"mask": np.ones((3, 3, 8, 8))}, "mask"),
        ({"conv_general_dilated": print}, "conv_general_dilated"),
        ({"lowering": "quick"}, "lowering='quick'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_at_construction(operator, options, message):
    with pytest.raises(ValueError, match=message):
        build(operator, **options)


@over_operators
def test_unknown_arguments_are_refused(operator):
    with pytest.raises(TypeError, match="paddding"):
        build(operator, paddding=1)


@over_operators
def test_bad_input_is_refused(operator):
    with pytest.raises(ValueError, match="8 channels"):
        build(operator)(image((1, 5, 5, 4)))


DEVICES_PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.operators.test_contract import CASES, build, image

largest = {}
for operator, setting in CASES:
    graphdef, state = nnx.split(build(operator, strides=2, padding=1, **setting))
    x = image((8, 9, 10, 8))

    @jax.jit
    def run(state, x):
        def loss(state, x):
            y = nnx.merge(graphdef, state)(x)
            return jnp.mean(y ** 2), y
        (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(state, x)
        return y, gradients

    results = []
    for devices in (1, 4):
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
                             devices=jax.devices()[:devices])
        placed = jax.device_put(x, NamedSharding(mesh, P("data"))), jax.device_put(state, NamedSharding(mesh, P()))
        results.append(jax.tree.leaves(run(placed[1], placed[0])))
        assert len(results[-1][0].sharding.device_set) == devices
    gaps = [np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in zip(*results, strict=True)]
    largest[f"{operator.__name__} {setting}"] = float(max(gaps))
print(json.dumps(largest))
"""


@functools.cache
def device_gaps():
    done = subprocess.run(
        [sys.executable, "-c", DEVICES_PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@over_cases
def test_one_and_four_devices_agree(operator, setting):
    assert device_gaps()[f"{operator.__name__} {setting}"] < 1e-5
