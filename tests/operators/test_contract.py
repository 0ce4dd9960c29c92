"""What every drop-in operator promises, over all of them: it stands where ``nnx.Conv`` stood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax.operators import (
    DROP_IN,
    ACConv,
    GroupedConv,
    HetConv,
    ICConv,
    PSConv,
    PyConv,
    Res2Conv,
)
from tests.operators.rows import rows

ROWS = {row.operator: row for row in rows() if row.settings}
# The arguments that make each operator the plain convolution, and those under which it keeps the contract.
PLAIN_SETTING = {operator: row.plain for operator, row in ROWS.items()}
SETTINGS = {operator: row.settings for operator, row in ROWS.items()}
ONE_KERNEL = [operator for operator in DROP_IN if issubclass(operator, nnx.Conv)]
CASES = [(operator, setting) for operator in DROP_IN for setting in SETTINGS[operator]]
over_cases = pytest.mark.parametrize(
    ("operator", "setting"), CASES, ids=[f"{operator.__name__}-{setting}" for operator, setting in CASES]
)
over_operators = pytest.mark.parametrize("operator", DROP_IN)


def build(operator, *, features=(8, 8), kernel_size=(3, 3), strides=1, seed=0, growth=(), **options):
    if operator is PyConv:  # levels whose kernels are larger than the plain one's by these numbers
        kernel_size = [tuple(size + more for size in kernel_size) for more in growth]
    key = jax.random.key(seed, impl="rbg")  # whose draws compile faster than the default ones
    return operator(*features, kernel_size, strides, rngs=nnx.Rngs(key), **options)


def parameters(module):
    return jax.tree.leaves(nnx.state(module, nnx.Param))


def image(shape=(2, 7, 6, 8), dtype=jnp.float32, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def test_every_operator_has_its_row():
    assert set(DROP_IN) == set(ROWS)


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
@pytest.mark.parametrize(("strides", "kernel_size"), [(1, (3, 5)), (2, (1, 1)), ((3, 1), (3, 5))])
def test_output_shapes_are_those_of_nnx_conv(operator, setting, strides, kernel_size):
    check_output_shapes(operator, setting, strides, ("SAME", "VALID", 1), kernel_size=kernel_size)


@pytest.mark.slow
@over_cases
@pytest.mark.parametrize(
    ("strides", "kernel_size", "dilation"), [(3, (3, 3), 2), ((2, 1), (7, 7), 1), (2, (3, 5), 2), (None, (1, 1), 2)]
)
def test_output_shapes_with_any_padding(operator, setting, strides, kernel_size, dilation):
    paddings = ("SAME", "VALID", 0, 1, 3, (2, 1), ((0, 1), (2, 0)), [1, (0, 2)])
    check_output_shapes(operator, setting, strides, paddings, kernel_size=kernel_size, kernel_dilation=dilation)


@over_cases
def test_attributes_are_those_of_nnx_conv(operator, setting):
    groups = setting.get("feature_group_count", 1)
    ours, theirs = (nnx.eval_shape(lambda k=k, s=s: build(k, **s)) for k, s in ((operator, setting), (nnx.Conv, {})))
    names = ("in_features", "out_features", "kernel_size", "strides", "padding", "dtype", "param_dtype", "precision")
    for name in (*names, "kernel_dilation", "input_dilation"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.feature_group_count == groups
    without = nnx.eval_shape(lambda: build(operator, use_bias=False, **setting))
    assert without.bias is None
    assert not without.use_bias


@pytest.mark.parametrize(
    ("operator", "setting"), [case for case in CASES if case[0] in ONE_KERNEL], ids=lambda value: str(value)[:60]
)
def test_parameters_are_those_of_nnx_conv(operator, setting):
    groups = setting.get("feature_group_count", 1)
    ours, theirs = build(operator, **setting), build(nnx.Conv, feature_group_count=groups)
    for a, b in zip((ours.kernel, ours.bias), (theirs.kernel, theirs.bias), strict=True):
        np.testing.assert_array_equal(a[...], b[...])  # equal seeds, equal initial values
    assert ours.kernel_shape == theirs.kernel_shape


@pytest.mark.parametrize("operator", [operator for operator in DROP_IN if PLAIN_SETTING[operator] is not None])
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
    graphdef, params, rest = nnx.split(build(operator, strides=2, padding=1, **setting), nnx.Param, ...)

    # Weights, so that a normalisation does not undo the loss.
    weights = np.random.default_rng(1).standard_normal((2, 9, 9, 8), np.float32)

    @jax.jit
    def gradient(params, rest, x):
        return jax.grad(lambda p, x: jnp.sum(nnx.merge(graphdef, p, rest, copy=True)(x) * weights), argnums=(0, 1))(
            params, x
        )

    of_params, of_x = gradient(params, rest, image((2, 17, 18, 8)))
    assert bool(jnp.isfinite(of_x).all())
    assert bool((of_x != 0).any())
    for leaf in jax.tree.leaves(of_params):
        assert bool(jnp.isfinite(leaf).all())
        reached = leaf != 0
        # Behind a ReLU some weights may rest; elsewhere one without gradient does not take part.
        assert bool(reached.any() if operator in (Res2Conv, ACConv) else reached.all())


@over_cases
def test_half_precision_in_gives_half_precision_out(operator, setting):
    x, dtype = image(), jnp.bfloat16
    exact = build(operator, **setting)(x)
    for options in ({}, {"dtype": dtype}, {"dtype": dtype, "param_dtype": dtype}):
        module = build(operator, **options, **setting)
        y = module(x.astype(dtype))
        assert y.dtype == dtype
        assert {leaf.dtype for leaf in parameters(module)} == {jnp.dtype(options.get("param_dtype", jnp.float32))}
        if "param_dtype" in options:  # other random bits, other weights
            assert bool(jnp.isfinite(y).all())
        else:
            assert float(jnp.abs(y.astype(jnp.float32) - exact).max()) < 5e-2 * max(1, float(jnp.abs(exact).max()))
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
    module.eval()  # statistics of a batch would join what is compared
    x = image((2, 3, 5, 6, 8))
    y = module(x)
    assert y.shape == (2, 3, 5, 6, 8)
    np.testing.assert_allclose(module(x[1, 2]), y[1, 2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operator", [GroupedConv, PSConv, ICConv, PyConv, HetConv])
def test_the_kernel_lattice_counts_as_many_weights_as_the_kernels(operator):
    module = build(operator, use_bias=False, **SETTINGS[operator][1])
    assert module.lattice.num_parameters == sum(leaf.size for leaf in parameters(module))
    assert module.lattice.in_features == module.lattice.out_features == 8


@over_cases
def test_every_operator_tells_what_it_costs(operator, setting):
    """The weights are those that are stored, and a map twice as high takes twice the multiply-accumulates."""
    without_norm = {"norm": None} if operator is Res2Conv else {}
    module = build(operator, use_bias=False, **{**setting, **without_norm})
    assert module.num_parameters == sum(leaf.size for leaf in parameters(module))
    once, twice = module.macs((5, 6)), module.macs((10, 6))
    fixed = 2 * once - twice  # what does not depend on the size: linear layers of a mean
    assert 0 <= fixed < once
    assert (fixed > 0) == (operator is ACConv)


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
        ({"padding": "CAUSAL"}, "CAUSAL"),
        ({"padding": "SOME"}, "SOME"),
        ({"padding": (1, 2, 3)}, "padding"),
        ({"mask": np.ones((3, 3, 8, 8))}, "mask"),
        ({"conv_general_dilated": print}, "conv_general_dilated"),
        ({"lowering": "quick"}, "lowering='quick'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_at_construction(operator, options, message):
    if operator is PyConv and "kernel_size" in options:
        pytest.skip("PyConv takes kernel_sizes, whose checks are tested beside it")
    with pytest.raises(ValueError, match=message):
        build(operator, **{**SETTINGS[operator][0], **options})


@over_operators
def test_unknown_arguments_are_refused(operator):
    with pytest.raises(TypeError, match="paddding"):
        build(operator, paddding=1, **SETTINGS[operator][0])


@over_operators
def test_bad_input_is_refused(operator):
    with pytest.raises(ValueError, match="8 channels"):
        build(operator, **SETTINGS[operator][0])(image((1, 5, 5, 4)))
