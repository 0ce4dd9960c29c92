import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from msconv_jax import KernelLattice, Tile, lattice_convolve
from msconv_jax.convolution import convolve
from msconv_jax.lowering.choose import LOWERINGS, choose_plan
from msconv_jax.lowering.cost import Site
from msconv_jax.operators.psconv import psconv_lattice
from tests.reference import by_taps, naive_lattice_convolve, whole

# --- random lattices ---


@st.composite
def partitions(draw, features):
    """Partitions the channels 0 ... features - 1 into slices: residues, contiguous blocks, or all."""
    kind = draw(st.sampled_from(["all", "residues", "blocks"]))
    if kind == "residues":
        step = draw(st.integers(1, min(3, features)))
        return [slice(first, features, step) for first in range(step)]
    if kind == "blocks":
        ends = sorted(draw(st.sets(st.integers(1, features - 1), max_size=2))) if features > 1 else []
        return [slice(a, b) for a, b in zip([0, *ends], [*ends, features], strict=True)]
    return [slice(0, features)]


@st.composite
def lattices(draw):
    in_features, out_features = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    kernel_sizes = draw(st.lists(st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 1)]), min_size=1, max_size=2))
    tiles = []
    for outputs in draw(partitions(out_features)):
        inputs_of_band = draw(partitions(in_features))
        filled = draw(st.lists(st.booleans(), min_size=len(inputs_of_band), max_size=len(inputs_of_band)))
        filled[draw(st.integers(0, len(filled) - 1))] = True  # every output needs a kernel
        for inputs, present in zip(inputs_of_band, filled, strict=True):
            if present:
                dilation = draw(st.sampled_from([(1, 1), (2, 2), (1, 3)]))
                tiles.append(Tile(outputs, inputs, draw(st.sampled_from(kernel_sizes)), dilation))
    base = draw(st.sampled_from([(), (3, 3), (1, 1)]))
    return KernelLattice(in_features, out_features, tuple(draw(st.permutations(tiles))), base)


@st.composite
def cases(draw):
    lattice = draw(lattices())
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    padding = draw(st.sampled_from(["SAME", "SAME_LOWER", "VALID", 0, 1, 2, ((0, 1), (2, 0)), (1, 0)]))
    size = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    return lattice, strides, padding, size


def tile_kernels(lattice):
    return tuple(
        whole((*t.kernel_size, len(range(99)[t.inputs]), len(range(99)[t.outputs])), n)
        for n, t in enumerate(lattice.tiles)
    )


def base_pads(padding, size, lattice, strides):
    """The pads of the base kernel; JAX converts a name."""
    if isinstance(padding, str):
        return lax.padtype_to_pads(size, lattice.base_extent, strides, padding)
    pads = (padding, padding) if isinstance(padding, int) else padding
    return [pad if isinstance(pad, tuple) else (pad, pad) for pad in pads]


def by_expansion(x, kernels, lattice, strides, pads):
    """The reference with gradients: one convolution with the dense kernel, which may exceed the image."""
    grown = [
        (low + offset, high + extent - base - offset)
        for (low, high), offset, extent, base in zip(
            pads, lattice.padding_offset, lattice.extent, lattice.base_extent, strict=True
        )
    ]
    return by_taps(x, lattice.expand(kernels), strides, grown, (1, 1))


def value_and_gradients(function, x, kernels, cotangent):
    """The function's value and both gradients, in one compiled program."""

    @jax.jit
    def run(x, kernels):
        y, pullback = jax.vjp(function, x, kernels)
        return y, pullback(cotangent)

    return run(x, kernels)


def check_lowerings(case, lowerings):
    """Compares forward with plain loops and gradients with the dense expansion, exactly, on whole numbers."""
    lattice, strides, padding, size = case
    x, kernels = whole((2, *size, lattice.in_features), 100), tile_kernels(lattice)
    pads = base_pads(padding, size, lattice, strides)
    expected = naive_lattice_convolve(x, kernels, lattice, strides, pads)
    if expected.size == 0:
        for lowering in lowerings:
            assert lattice_convolve(x, kernels, lattice, strides, padding, lowering=lowering).shape == expected.shape
        return
    cotangent = whole(expected.shape, 200)
    reference = functools.partial(by_expansion, lattice=lattice, strides=strides, pads=pads)
    outputs, gradients = value_and_gradients(reference, x, kernels, cotangent)
    np.testing.assert_array_equal(outputs, expected)
    for lowering in lowerings:

        def convolution(x, kernels, lowering=lowering):
            return lattice_convolve(x, kernels, lattice, strides, padding, lowering=lowering)

        got, pulled = value_and_gradients(convolution, x, kernels, cotangent)
        np.testing.assert_array_equal(got, expected, err_msg=lowering)
        for a, b in zip(jax.tree.leaves(pulled), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=lowering)


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
    """Compiles without optimisations: the tests compile hundreds of small programs."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@settings(deadline=None, max_examples=4)
@given(cases())
def test_every_lowering_equals_the_dense_expansion(case):
    check_lowerings(case, LOWERINGS)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(cases())
def test_every_lowering_equals_the_dense_expansion_at_length(case):
    check_lowerings(case, LOWERINGS)


# --- structured lattices ---


STRUCTURED = {
    "dense": psconv_lattice(8, 8, (3, 3), pattern=(1,)),
    "psconv": psconv_lattice(8, 12, (3, 3)),
    "psconv, literal order": psconv_lattice(5, 7, (3, 3), layout="lattice"),
    "psconv in groups": psconv_lattice(8, 8, (3, 3), feature_group_count=2),
    "grouped": psconv_lattice(12, 24, (3, 3), pattern=(1,), feature_group_count=6),
    "depthwise": psconv_lattice(8, 8, (3, 3), pattern=(1,), feature_group_count=8),
    "poly-scale depthwise": psconv_lattice(8, 8, (3, 3), feature_group_count=8),
    "channel multiplier": psconv_lattice(4, 12, (3, 3), pattern=(1,), feature_group_count=4),
    "pyramid": KernelLattice(
        8,
        8,
        (
            Tile(slice(0, 4), slice(0, 8), (3, 3)),
            Tile(slice(4, 6), slice(0, 4), (5, 5)),
            Tile(slice(6, 8), slice(4, 8), (5, 5)),
        ),
    ),
    "heterogeneous": KernelLattice(
        4,
        4,
        (
            Tile(slice(0, 2), slice(0, 2), (3, 3)),
            Tile(slice(0, 2), slice(2, 4), (1, 1)),
            Tile(slice(2, 4), slice(0, 2), (1, 1)),
            Tile(slice(2, 4), slice(2, 4), (3, 3)),
        ),
        (3, 3),
    ),
    "one dilation pair per filter": KernelLattice(
        4, 6, tuple(Tile(slice(o, o + 1), slice(0, 4), (3, 3), (1 + o % 2, 1 + o % 3)) for o in range(6))
    ),
}


# The quick run covers every kind of step; compiling all lowerings of the others takes a minute.
SLOW = (
    *("psconv", "psconv in groups", "psconv, literal order", "one dilation pair per filter"),
    *("poly-scale depthwise", "pyramid", "channel multiplier"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in STRUCTURED]
)
def test_structured_lattices(name):
    check_lowerings((STRUCTURED[name], (2, 1), 1, (7, 6)), LOWERINGS)


@pytest.mark.parametrize(
    "lowering", [name if name == "auto" else pytest.param(name, marks=pytest.mark.slow) for name in LOWERINGS]
)
def test_second_derivatives(lowering):
    """Compares forward over reverse and reverse over reverse, in both arguments, with the dense expansion."""
    lattice = psconv_lattice(4, 4, (3, 3), pattern=(1, 2))
    x, dx = whole((1, 4, 5, 4), 0), whole((1, 4, 5, 4), 1)
    kernel, dkernel = whole((3, 3, 4, 4), 2), whole((3, 3, 4, 4), 3)

    def second_derivatives(convolution):
        gradient = jax.grad(lambda *arguments: jnp.sum(convolution(*arguments) ** 2), argnums=(0, 1))

        def along(*arguments):
            return sum(jnp.vdot(g, d) for g, d in zip(gradient(*arguments), (dx, dkernel), strict=True))

        run = jax.jit(
            lambda *arguments: (jax.jvp(gradient, arguments, (dx, dkernel))[1], jax.grad(along, (0, 1))(*arguments))
        )
        return jax.tree.leaves(run(x, kernel))

    got = second_derivatives(lambda x, k: lattice_convolve(x, k, lattice, 2, 1, lowering=lowering))
    expected = second_derivatives(lambda x, k: by_expansion(x, k, lattice, (2, 2), ((1, 1), (1, 1))))
    assert all(np.abs(value).max() > 0 for value in expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 2e-2), (jnp.float16, 2.5e-3)])
def test_half_precision(lowering, dtype, tolerance):
    lattice = psconv_lattice(16, 16, (3, 3), feature_group_count=2)
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 16))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 8, 16)) / 9
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    exact = lattice_convolve(x.astype(jnp.float32), kernel.astype(jnp.float32), lattice)

    def loss(x, kernel):
        y = lattice_convolve(x, kernel, lattice, lowering=lowering)
        return jnp.sum(y.astype(jnp.float32) ** 2), y

    gradients, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(x, kernel)
    assert y.dtype == dtype
    assert [g.dtype for g in gradients] == [dtype, dtype]
    assert float(jnp.abs(y.astype(jnp.float32) - exact).max() / jnp.abs(exact).max()) < tolerance
    for gradient in gradients:
        assert bool(jnp.isfinite(gradient).all())


def test_half_precision_input_decides_the_dtype():
    lattice = psconv_lattice(4, 4, (3, 3))
    kernel = jnp.ones((3, 3, 4, 4), jnp.float32)
    for x, expected in (
        (jnp.ones((1, 5, 5, 4), jnp.bfloat16), jnp.bfloat16),
        (jnp.ones((1, 5, 5, 4), jnp.float32), jnp.float32),
        (jnp.ones((1, 5, 5, 4), jnp.int32), jnp.float32),
    ):
        assert lattice_convolve(x, kernel, lattice).dtype == expected
    wide = lattice_convolve(jnp.ones((1, 5, 5, 4), jnp.bfloat16), kernel, lattice, preferred_element_type=jnp.float32)
    assert wide.dtype == jnp.float32


def test_strict_promotion_of_dtypes_and_ranks():
    lattice = STRUCTURED["psconv in groups"]
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for lowering in LOWERINGS:
            y = lattice_convolve(jnp.ones((1, 5, 5, 8)), jnp.ones((3, 3, 4, 8)), lattice, lowering=lowering)
            assert y.shape == (1, 5, 5, 8)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,), (2, 0)])
def test_any_batch_axes(batch):
    lattice = psconv_lattice(4, 8, (3, 3))
    kernel = whole((3, 3, 4, 8), 0)
    x = whole((*batch, 6, 5, 4), 1)
    y = lattice_convolve(x, kernel, lattice)
    assert y.shape == (*batch, 6, 5, 8)
    if y.size:
        one = lattice_convolve(x.reshape(-1, 6, 5, 4)[-1:], kernel, lattice)
        np.testing.assert_array_equal(y.reshape(-1, 6, 5, 8)[-1:], one)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_vmap(lowering):
    lattice = psconv_lattice(4, 4, (3, 3), pattern=(1, 2))
    x, kernels = whole((3, 2, 5, 5, 4), 0), whole((3, 3, 3, 4, 4), 1)
    convolution = functools.partial(lattice_convolve, lattice=lattice, lowering=lowering)
    singly = [np.asarray(convolution(a, k)) for a, k in zip(x, kernels, strict=True)]
    np.testing.assert_array_equal(jax.vmap(convolution)(x, kernels), singly)
    np.testing.assert_array_equal(
        jax.vmap(convolution, in_axes=(0, None))(x, kernels[0]), [convolution(a, kernels[0]) for a in x]
    )


@pytest.mark.parametrize("ndim", [1, 3])
def test_other_numbers_of_spatial_axes(ndim):
    lattice = psconv_lattice(4, 4, (3,) * ndim, pattern=(1, 2))
    x, kernel = whole((2, *(6, 5, 4)[:ndim], 4), 0), whole((*(3,) * ndim, 4, 4), 1)
    spatial = "DHW"[-ndim:]
    expected = lax.conv_general_dilated(
        x,
        lattice.expand(kernel),
        (1,) * ndim,
        [(2, 2)] * ndim,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )
    for lowering in LOWERINGS:
        y = lattice_convolve(x, kernel, lattice, padding=1, lowering=lowering)
        np.testing.assert_array_equal(y, expected, err_msg=lowering)


@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, ((2, 0), (1, 3))])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_convolve_is_the_plain_grouped_convolution(padding, groups):
    x, kernel = whole((2, 9, 8, 8), 0), whole((3, 3, 8 // groups, 16), 1)
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    expected = lax.conv_general_dilated(
        x,
        kernel,
        (2, 1),
        pads,
        rhs_dilation=(1, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    got = convolve(x, kernel, (2, 1), padding, kernel_dilation=(1, 2), feature_group_count=groups)
    np.testing.assert_array_equal(got, expected)


# --- the choice of lowering ---


def site(batch, size):
    return Site(batch, (size, size), (1, 1))


@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("size", [1, 10, 100, 1000])
def test_cpu_never_gets_a_native_grouped_convolution(name, size):
    for step in choose_plan(STRUCTURED[name], "auto", "cpu", site(1, size)):
        assert step.groups == 1 or step.way == "shift"


def test_cpu_choices_follow_the_measured_table():
    depthwise = psconv_lattice(128, 128, (3, 3), pattern=(1,), feature_group_count=128)
    (step,) = choose_plan(depthwise, "auto", "cpu", site(8, 28))
    assert step.way == "shift"
    resnext = psconv_lattice(128, 128, (3, 3), pattern=(1,), feature_group_count=32)
    packs = choose_plan(resnext, "auto", "cpu", site(8, 56))
    assert {len(step.inputs) for step in packs} <= {8, 16, 32}
    wide = choose_plan(psconv_lattice(512, 512, (3, 3)), "auto", "cpu", site(8, 7))
    assert sorted({len(step.inputs) for step in wide}) == [128, 256]  # tiles, without products with zeros


def test_large_kernels_of_few_channels_compute_several_columns_at_a_time():
    lattice = psconv_lattice(64, 16, (9, 9), pattern=(1,), feature_group_count=16)
    assert {step.columns for step in choose_plan(lattice, "auto", "cpu", site(8, 56))} <= {4, 6, 8, 16}
    assert {step.columns for step in choose_plan(lattice, "auto", "gpu", site(8, 56))} == {1}


@pytest.mark.parametrize("strides", [(1, 1), (2, 3), (1, 4)])
@pytest.mark.parametrize("padding", ["VALID", ((3, 0), (0, 5)), "SAME"])
@pytest.mark.parametrize("dilation", [(1, 1), (3, 2)])
def test_columns_at_odd_sizes(strides, padding, dilation):
    x, kernel = whole((2, 13, 11, 6), 0), whole((5, 2, 3, 4), 1)
    settings = {"kernel_dilation": dilation, "feature_group_count": 2}
    expected, got = (convolve(x, kernel, strides, padding, **settings, lowering=w) for w in ("dense", "columns"))
    np.testing.assert_array_equal(got, expected)


def test_a_plain_convolution_is_one_convolution_everywhere():
    for backend in ("cpu", "gpu", "tpu"):
        (step,) = choose_plan(psconv_lattice(64, 64, (3, 3), pattern=(2,)), "auto", backend, site(1, 100))
        assert (step.groups, step.way) == (1, "convolve")


def test_auto_executes_the_plan_of_the_default_backend():
    lattice = psconv_lattice(512, 512, (3, 3), pattern=(1,), feature_group_count=32)
    shapes = jax.ShapeDtypeStruct((4, 28, 28, 512), jnp.float32), jax.ShapeDtypeStruct((3, 3, 16, 512), jnp.float32)
    text = str(jax.make_jaxpr(lambda x, k: lattice_convolve(x, k, lattice))(*shapes))
    plan = choose_plan(lattice, "auto", jax.default_backend(), site(4, 28))
    assert text.count("= conv_general_dilated[") == len(plan)
    assert len({choose_plan(lattice, "auto", backend, site(4, 28)) for backend in ("cpu", "gpu", "tpu")}) > 1


# --- bad arguments ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lowering": "fast"}, "auto, tiles, packs"),
        ({"x": np.zeros((1, 5, 5, 3))}, r"expected \(\*batch, 2 spatial axes, 4 channels\)"),
        ({"x": np.zeros((5, 4))}, "spatial axes"),
        ({"kernels": np.zeros((3, 3, 4, 3))}, "packed"),
        ({"strides": 0}, "strides=0"),
        ({"strides": (1, 1, 1)}, "strides"),
        ({"strides": 1.5}, "strides=1.5"),
        ({"padding": "CAUSAL"}, "jnp.pad"),
        ({"padding": "same-ish"}, "expected 'SAME'"),
        ({"padding": (1, 1, 1)}, "2 spatial axes"),
        ({"padding": ((1, 1, 1), 0)}, "pair of ints"),
        ({"padding": 1.0}, "padding=1.0"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {
        "x": np.zeros((1, 5, 5, 4)),
        "kernels": np.zeros((3, 3, 4, 4)),
        "lattice": psconv_lattice(4, 4, (3, 3)),
    }
    with pytest.raises(ValueError, match=message):
        lattice_convolve(**{**arguments, **changes})


def test_convolve_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match=r"take one of \[1, 2, 4\]"):
        convolve(np.zeros((1, 5, 5, 12)), np.zeros((3, 3, 4, 8)), feature_group_count=3)
