import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import PSConv, lattice_convolve
from msconv_jax.operators.psconv import psconv_lattice
from tests.operators.rows import SPATIAL, Row
from tests.reference import naive_psconv, whole

ROWS = [
    Row(
        PSConv,
        {**SPATIAL, "strides": 2, "padding": 1},
        settings=[
            {},
            {"layout": "lattice"},
            {"vary": "in", "pattern": (1, 3)},
            {"vary": "out"},
            {"vary": "none"},
            {"feature_group_count": 2},
            {"feature_group_count": 8},
        ],
        plain={"pattern": (1,)},
    )
]


def psconv(x, kernel, strides=1, padding="SAME", **options):
    inputs = kernel.shape[-2] * options.get("feature_group_count", 1)
    lattice = psconv_lattice(inputs, kernel.shape[-1], kernel.shape[:-2], **options)
    return lattice_convolve(x, kernel, lattice, strides, padding)


# --- the paper's Eq. (3) ---


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("features", "pattern", "phase"),
    [((8, 8), (1, 2, 1, 4), 1), ((5, 7), (1, 2, 1, 4), 0), ((3, 2), (1, 3, 2), 2), ((4, 6), (2,), 0)],
)
@pytest.mark.parametrize("vary", ["both", "in", "out", "none"])
def test_lattice_layout_is_the_papers_equation(features, pattern, phase, vary, stride):
    t = len(pattern)
    matrix = {
        "both": lambda c, k: pattern[(k - c + phase) % t],
        "in": lambda c, k: pattern[(k + phase) % t],
        "out": lambda c, k: pattern[(c + phase) % t],
        "none": lambda c, k: pattern[phase % t],
    }[vary]
    x, kernel = whole((7, 6, features[0]), 0), whole((3, 3, *features), 1)
    y = psconv(x, kernel, stride, 1, pattern=pattern, phase=phase, vary=vary, layout="lattice")
    np.testing.assert_array_equal(y, naive_psconv(x, kernel, matrix, stride))


def test_lattice_layout_in_groups_is_the_equation_in_each_group():
    x, kernel = whole((6, 7, 10), 0), whole((3, 3, 5, 8), 1)
    y = psconv(x, kernel, 1, 1, layout="lattice", feature_group_count=2)
    for group in range(2):
        part = naive_psconv(
            x[..., 5 * group :][..., :5],
            kernel[..., 4 * group :][..., :4],
            lambda c, k: (1, 2, 1, 4)[(k - c + 1) % 4],
            1,
        )
        np.testing.assert_array_equal(y[..., 4 * group :][..., :4], part)


def by_residue(features, t, groups=1):
    """Channels of each group sorted by (residue mod t, quotient): the lattice order in block order."""
    width = features // groups
    order = sorted(range(width), key=lambda channel: (channel % t, channel // t))
    return np.concatenate([np.array(order) + group * width for group in range(groups)])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("vary", ["both", "in", "out"])
@pytest.mark.parametrize("pattern", [(1, 2, 1, 4), (1, 3)])
def test_layouts_are_equal_up_to_a_permutation(pattern, vary, groups):
    t = len(pattern)
    x, kernel = whole((2, 7, 6, 16), 0), whole((3, 3, 16 // groups, 8), 1)
    common = {"pattern": pattern, "vary": vary, "feature_group_count": groups}
    literal = np.asarray(psconv(x, kernel, layout="lattice", **common))
    of_group = by_residue(16 // groups, t) if vary in ("both", "in") else np.arange(16 // groups)
    inputs = np.concatenate([of_group + group * (16 // groups) for group in range(groups)])
    outputs = by_residue(8, t, groups) if vary in ("both", "out") else np.arange(8)
    block = psconv(x[..., inputs], kernel[:, :, of_group][..., outputs], layout="block", **common)
    np.testing.assert_array_equal(block, literal[..., outputs])
    if vary == "both":
        plain_order = psconv(x, kernel, layout="block", **common)
        assert not np.array_equal(plain_order, literal)


@pytest.mark.parametrize("layout", ["block", "lattice"])
def test_depthwise_gives_each_channel_its_dilation(layout):
    x, kernel = whole((7, 6, 6), 0), whole((3, 3, 1, 6), 1)
    y = psconv(x, kernel, 1, 1, feature_group_count=6, layout=layout)
    for channel in range(6):
        dilation = (1, 2, 1, 4)[(channel + 1) % 4]
        own = slice(channel, channel + 1)
        expected = naive_psconv(x[..., own], kernel[..., own], lambda c, k, d=dilation: d, 1)
        np.testing.assert_array_equal(y[..., own], expected)


# --- the dilation matrix of the public code ---


def test_default_block_matrix_is_the_published_one():
    table = psconv_lattice(64, 32, (3, 3)).dilations
    assert table[::8, ::16, 0].tolist() == [[2, 1, 4, 1], [1, 2, 1, 4], [4, 1, 2, 1], [1, 4, 1, 2]]
    assert (table[..., 0] == table[..., 1]).all()
    assert (np.repeat(np.repeat(table[::8, ::16], 8, 0), 16, 1) == table).all()


def test_an_impulse_comes_out_on_the_grid_of_its_dilation():
    """On a 21 x 21 map, input channel k reaches output c at multiples of D[c, k] and nowhere else."""
    x = np.zeros((8, 21, 21, 8), np.float32)
    x[range(8), 10, 10, range(8)] = 1  # image k holds an impulse on channel k
    y = np.asarray(psconv(x, np.ones((3, 3, 8, 8), np.float32)))
    found = np.zeros((8, 8), int)
    for k in range(8):
        for c in range(8):
            rows, columns = np.nonzero(y[k, :, :, c])
            d = found[c, k] = (rows - 10).max()
            assert {(r - 10, s - 10) for r, s in zip(rows, columns, strict=True)} == {
                (i * d, j * d) for i in (-1, 0, 1) for j in (-1, 0, 1)
            }
    assert found[::2, ::2].tolist() == [[2, 1, 4, 1], [1, 2, 1, 4], [4, 1, 2, 1], [1, 4, 1, 2]]
    assert (found == psconv_lattice(8, 8, (3, 3)).dilations[..., 0]).all()


@pytest.mark.parametrize("size", [7, 8, 15])
def test_every_dilation_gives_one_output_size(size):
    x = np.zeros((1, size, size, 4), np.float32)
    for pattern in ((1,), (2,), (4,), (1, 2, 1, 4)):
        y = psconv(x, np.zeros((3, 3, 4, 4), np.float32), 2, 1, pattern=pattern)
        assert y.shape == (1, (size - 1) // 2 + 1, (size - 1) // 2 + 1, 4)


@pytest.mark.optimised
def test_a_pattern_of_one_dilation_is_the_dilated_convolution():
    x, kernel = whole((2, 9, 8, 4), 0), whole((3, 3, 4, 6), 1)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), [(3, 3), (3, 3)], rhs_dilation=(3, 3), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_array_equal(psconv(x, kernel, 2, 1, pattern=(3,)), expected)
    np.testing.assert_array_equal(psconv(x, kernel, 2, 1, pattern=(3, 3), layout="lattice"), expected)


def test_kernel_dilation_multiplies_the_pattern():
    plain, dilated = (psconv_lattice(4, 4, (3, 3), kernel_dilation=d).dilations for d in (1, (1, 3)))
    assert (dilated == plain * [1, 3]).all()


def test_the_module_convolves_with_its_lattice():
    module = PSConv(8, 12, (3, 3), 2, padding=1, phase=3, vary="in", rngs=nnx.Rngs(0))
    x = whole((1, 9, 9, 8), 0)
    expected = psconv(x, module.kernel[...], 2, 1, phase=3, vary="in") + module.bias[...][None, None, None]
    np.testing.assert_allclose(module(x), expected, rtol=1e-6)


def test_costs_what_the_plain_convolution_costs():
    module = PSConv(64, 64, (3, 3), rngs=nnx.Rngs(0))
    assert module.lattice.num_parameters == 9 * 64 * 64 == module.kernel[...].size
    assert module.lattice.macs((56, 56)) == 56 * 56 * 9 * 64 * 64


# --- bad arguments ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": (6, 8)}, "in_features=6 .*layout='lattice'"),
        ({"features": (8, 6)}, "out_features=6"),
        ({"feature_group_count": 4}, "leaves 2 channels per group"),
        ({"pattern": ()}, "pattern"),
        ({"pattern": (1, 0)}, "pattern"),
        ({"pattern": (1, 1.5)}, "pattern"),
        ({"pattern": 2}, "pattern=2"),
        ({"phase": 4}, "phase=4"),
        ({"phase": -1}, "phase=-1"),
        ({"phase": 2, "pattern": (1,)}, "phase=2"),
        ({"vary": "all"}, "both, in, out, none"),
        ({"layout": "blocks"}, "block, lattice"),
        ({"kernel_size": (4, 4)}, "odd"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    options = {"features": (8, 8), "kernel_size": (3, 3), **options}
    features, kernel_size = options.pop("features"), options.pop("kernel_size")
    with pytest.raises(ValueError, match=message):
        PSConv(*features, kernel_size, rngs=nnx.Rngs(0), **options)


def test_lattice_layout_needs_no_divisibility():
    module = PSConv(5, 3, (3, 3), layout="lattice", rngs=nnx.Rngs(0))
    assert module(jnp.ones((1, 6, 6, 5))).shape == (1, 6, 6, 3)


def test_only_the_axes_that_vary_need_divisible_channels():
    assert psconv_lattice(6, 8, (3, 3), vary="out").dilations.shape == (8, 6, 2)
    assert psconv_lattice(8, 6, (3, 3), vary="in").dilations.shape == (6, 8, 2)


def test_equal_arguments_share_one_lattice():
    """Lattices are compared at every dispatch of a jitted step: identity makes that free."""
    make = functools.partial(PSConv, 64, 64, (3, 3))
    assert make(rngs=nnx.Rngs(0)).lattice is make(rngs=nnx.Rngs(1)).lattice
