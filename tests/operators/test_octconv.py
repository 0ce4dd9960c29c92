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

from msconv_jax.models.families.octave.blocks import OctBatchNorm, OctConvNormAct
from msconv_jax.operators.octave.maps import oct_channels, oct_map, oct_pool, oct_upsample
from msconv_jax.operators.octave.octconv import OctConv
from msconv_jax.torch_weights import conversion_of, load_state_dict
from tests.families.family import CannotBuildError
from tests.families.octconv import arguments
from tests.operators.rows import IMAGE, LOW, SPATIAL, Row

ROWS = [Row(OctConv, {**SPATIAL, "alpha_in": 0.5, "alpha_out": 0.5}, ((IMAGE[..., :4], LOW),))]


def filled(make, seed=0):
    """The module with NumPy's random parameters, for which nothing is compiled."""
    module = nnx.eval_shape(make)
    rng = np.random.default_rng(seed)
    state = nnx.state(module)

    def value(x):
        return jnp.asarray(0.2 * rng.standard_normal(x.shape) + (x.ndim == 1), x.dtype)

    nnx.update(module, jax.tree.map(value, state))
    return module


def build(features=(8, 12), kernel_size=(3, 3), strides=1, *, alpha_in=0.5, alpha_out=0.5, **options):
    return filled(
        lambda: OctConv(
            *features, kernel_size, strides, alpha_in=alpha_in, alpha_out=alpha_out, rngs=nnx.Rngs(0), **options
        )
    )


def unit(features=(8, 8), kernel_size=(1, 1), *, alpha_in=0.5, alpha_out=0.5, **options):
    return filled(
        lambda: OctConvNormAct(
            *features, kernel_size, alpha_in=alpha_in, alpha_out=alpha_out, rngs=nnx.Rngs(0), **options
        )
    )


def run(*calls):
    """Results of modules for their inputs, all compiled into one program."""
    graphdefs, states = zip(*(nnx.split(module) for module, _ in calls), strict=True)

    @jax.jit
    def together(states, inputs):
        return [nnx.merge(*both)(x) for *both, x in zip(graphdefs, states, inputs, strict=True)]

    return together(states, [maps for _, maps in calls])


def half(n, odd="ceil"):
    return n // 2 if odd == "floor" else (n + 1) // 2


def octave(size, features=8, alpha=0.5, batch=(2,), odd="ceil", dtype=np.float32, seed=0):
    """Random maps (high, low) of a high size; None for a part without channels."""
    rng = np.random.default_rng(seed)
    high, low = oct_channels(features, alpha)
    small = tuple(half(n, odd) for n in size)
    return (
        rng.standard_normal((*batch, *size, high)).astype(dtype) if high else None,
        rng.standard_normal((*batch, *small, low)).astype(dtype) if low else None,
    )


def as_pair(maps):
    return maps if isinstance(maps, tuple) else (maps, None)


def shapes(maps):
    return tuple(None if part is None else part.shape for part in as_pair(maps))


# --- the equations once more, in loops ---


def naive_conv(x, kernel, pads, stride=1, dilation=(1, 1)):
    groups = x.shape[-1] // kernel.shape[-2]
    x = np.pad(x.astype(np.float64), ((0, 0), *pads, (0, 0)))
    reach = [(k - 1) * d for k, d in zip(kernel.shape, dilation, strict=False)]
    rows, columns = ((n - r - 1) // stride + 1 for n, r in zip(x.shape[1:3], reach, strict=True))
    y = np.zeros((x.shape[0], rows, columns, kernel.shape[-1]))
    fan_in, fan_out = kernel.shape[-2], kernel.shape[-1] // groups
    for g in range(groups):
        inputs, outputs = slice(g * fan_in, (g + 1) * fan_in), slice(g * fan_out, (g + 1) * fan_out)
        for i in range(rows):
            for j in range(columns):
                for a, b in np.ndindex(*kernel.shape[:2]):
                    pixel = x[:, i * stride + a * dilation[0], j * stride + b * dilation[1], inputs]
                    y[:, i, j, outputs] += pixel @ kernel[a, b][:, outputs]
    return y


def naive_pool(x, odd="ceil"):
    y = np.zeros((x.shape[0], half(x.shape[1], odd), half(x.shape[2], odd), x.shape[3]))
    for i, j in np.ndindex(*y.shape[1:3]):
        y[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].astype(np.float64).mean((1, 2))
    return y


def naive_upsample(x, size):
    y = np.zeros((x.shape[0], *size, x.shape[-1]))
    for i, j in np.ndindex(*size):
        y[:, i, j] = x[:, i // 2, j // 2]
    return y


def naive_octconv(maps, kernels, stride, pads=((1, 1), (1, 1)), dilation=(1, 1), odd="ceil", down="avg"):
    high, low = maps
    conv = functools.partial(naive_conv, pads=pads, dilation=dilation)
    pool = functools.partial(naive_pool, odd=odd)
    to_high, to_low = [], []
    if down == "stride":
        if "h2h" in kernels:
            to_high.append(conv(high, kernels["h2h"], stride=stride))
        if "h2l" in kernels:
            to_low.append(conv(high, kernels["h2l"], stride=2 * stride))
        if "l2l" in kernels:
            to_low.append(conv(low, kernels["l2l"], stride=stride))
    else:
        own = high if stride == 1 or high is None else pool(high)
        if "h2h" in kernels:
            to_high.append(conv(own, kernels["h2h"]))
        if "h2l" in kernels:
            to_low.append(conv(pool(own), kernels["h2l"]))
        if "l2l" in kernels:
            to_low.append(conv(low if stride == 1 else pool(low), kernels["l2l"]))
    if "l2h" in kernels:
        y = conv(low, kernels["l2h"])
        size = [2 * n for n in y.shape[1:3]] if high is None else high.shape[1:3]
        to_high.append(y if stride == 2 else naive_upsample(y, size))
    return sum(to_high) if to_high else None, sum(to_low) if to_low else None


def kernels_of(module):
    paths = {path: getattr(module, path) for path in ("h2h", "h2l", "l2h", "l2l")}
    return {path: np.asarray(conv.kernel[...]) for path, conv in paths.items() if conv is not None}


def check_against_loops(cases):
    """Cases are (module, maps, arguments of the loops)."""
    results = run(*(case[:2] for case in cases))
    for result, (module, maps, options) in zip(results, cases, strict=True):
        expected = naive_octconv(maps, kernels_of(module), **options)
        for got, want, bias in zip(as_pair(result), expected, (module.high_bias, module.low_bias), strict=True):
            if want is None:
                assert got is None
                assert bias is None
                continue
            want = want if bias is None else want + np.asarray(bias[...])
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


ALPHAS = [(0.25, 0.5), (0, 0.5), (0.5, 0), (0, 0), (1, 0.5), (0.5, 1), (1, 1), (0, 1), (1, 0)]


@pytest.mark.parametrize("strides", [1, 2])
def test_first_middle_and_last_at_odd_sizes_are_the_equations(strides):
    cases = []
    for number, (alpha_in, alpha_out) in enumerate(ALPHAS):
        module = build((4, 8), strides=strides, alpha_in=alpha_in, alpha_out=alpha_out)
        size = (7, 15) if number < 3 else (5, 6)
        cases.append((module, octave(size, 4, alpha_in), {"stride": strides}))
    check_against_loops(cases)


def test_other_forms_are_the_equations():
    cases = []
    for strides in (1, 2):
        make = functools.partial(build, (4, 8), strides=strides)
        maps = octave((7, 6), 4)
        cases += [
            (make(down="stride"), maps, {"stride": strides, "down": "stride"}),
            (make(kernel_size=(1, 5), padding=[0, 2]), maps, {"stride": strides, "pads": ((0, 0), (2, 2))}),
            (
                make(kernel_dilation=(1, 2)),
                maps,
                {"stride": strides, "pads": ((1, 1), (2, 2)), "dilation": (1, 2)},
            ),
            (make(feature_group_count=2), maps, {"stride": strides}),
            (make(kernel_size=(2, 2)), maps, {"stride": strides, "pads": ((0, 1), (0, 1))}),
            (make(exchange=("l2h",)), maps, {"stride": strides}),
            (make(exchange=["h2l"]), maps, {"stride": strides}),
            (make(exchange=()), maps, {"stride": strides}),
        ]
    cases.append(
        (build((8, 8), alpha_in=0.25, alpha_out=0.25, feature_group_count=8), octave((5, 6), 8, 0.25), {"stride": 1})
    )
    # Rounded down: even sizes at stride 1, any at stride 2.
    floor = functools.partial(octave, features=4, odd="floor")
    cases.append((build((4, 8), odd="floor"), floor((4, 6)), {"stride": 1, "odd": "floor"}))
    cases.append((build((4, 8), strides=2, odd="floor"), floor((15, 14)), {"stride": 2, "odd": "floor"}))
    cases.append((build((4, 8), alpha_in=0, odd="floor"), octave((5, 7), 4, 0), {"stride": 1, "odd": "floor"}))
    check_against_loops(cases)


def test_odd_sizes_flow_from_the_first_to_the_last_layer():
    layers = [
        build((3, 8), alpha_in=0, alpha_out=0.25),
        build((8, 8), alpha_in=0.25, strides=(2, 2)),
        build((8, 8), feature_group_count=8),
        build((8, 8), alpha_out=1),
        build((8, 8), alpha_in=1, strides=2),
        build((8, 5), alpha_out=0),
    ]

    def through(x):
        found = []
        for layer in layers:
            x = layer(x)
            found.append(x)
        return found

    found = jax.eval_shape(through, jnp.zeros((2, 15, 29, 3)))
    assert [shapes(maps) for maps in found] == [
        ((2, 15, 29, 6), (2, 8, 15, 2)),
        ((2, 8, 15, 4), (2, 4, 8, 4)),
        ((2, 8, 15, 4), (2, 4, 8, 4)),
        (None, (2, 4, 8, 8)),
        ((2, 4, 8, 4), (2, 2, 4, 4)),
        ((2, 4, 8, 5), None),
    ]
    assert not isinstance(found[-1], tuple)


def test_pooling_and_upsampling():
    x, even = octave((7, 10))[0], octave((8, 12))[0]

    @jax.jit
    def both(x, even):
        return oct_pool(x, 2), oct_pool(x, 2, "floor"), oct_upsample(x, (13, 20)), oct_pool(oct_pool(even, 2), 2)

    up, down, large, twice = both(x, even)
    np.testing.assert_allclose(up, naive_pool(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(down, naive_pool(x, "floor"), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(large, naive_upsample(x, (13, 20)))
    # Where it divides by 4, pooling twice is one mean over 4x4 pixels, as the gluon code has it.
    np.testing.assert_allclose(twice, even.reshape(2, 2, 4, 3, 4, 4).mean((2, 4)), rtol=1e-5, atol=1e-6)
    assert jax.eval_shape(lambda: oct_pool(jnp.ones((3, 1, 5, 7, 2), jnp.bfloat16), 3)).shape == (3, 1, 3, 4, 2)
    assert oct_pool(jnp.arange(4)[:, None], 1).ravel().tolist() == [0.5, 2.5]


def test_any_number_of_spatial_and_batch_axes():
    module = build()
    many = octave((5, 6), batch=(2, 3))
    (high, low), one, *others = run(
        (module, many),
        (module, (many[0][1, 2], many[1][1, 2])),
        (build(kernel_size=(3,)), octave((5,), batch=())),
        (build(kernel_size=(1, 3, 1)), octave((5, 5, 3), batch=())),
    )
    assert (high.shape, low.shape) == ((2, 3, 5, 6, 6), (2, 3, 3, 3, 6))
    np.testing.assert_allclose(one[0], high[1, 2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one[1], low[1, 2], rtol=1e-5, atol=1e-5)
    assert [shapes(maps) for maps in others] == [((5, 6), (3, 6)), ((5, 5, 3, 6), (3, 3, 2, 6))]


def test_one_input_frequency_comes_alone_or_in_a_pair():
    high, low = build(alpha_in=0, kernel_size=(1, 1)), build(alpha_in=1, alpha_out=0, kernel_size=(1, 1))
    x = octave((5, 6), 8, 0)[0]
    bare, pair, bare_low, pair_low = run((high, x), (high, [x, None]), (low, x), (low, (None, x)))
    for first, second in zip((*bare, bare_low), (*pair, pair_low), strict=True):
        np.testing.assert_array_equal(first, second)
    assert bare_low.shape == (2, 10, 12, 12)


# --- modules ---


def test_channels_are_truncated_and_parts_are_there_by_count():
    assert oct_channels(24, 0.375) == (15, 9)
    assert oct_channels(7, 0.5) == (4, 3)
    module = build((4, 8), alpha_in=0.2, alpha_out=0.5)  # no whole low input channel
    assert module.in_split == (4, 0)
    assert (module.l2h, module.l2l) == (None, None)
    assert module.h2h.kernel.shape == (3, 3, 4, 4)
    assert shapes(jax.eval_shape(module, np.ones((6, 6, 4), np.float32))) == ((6, 6, 4), (3, 3, 4))
    assert (build(alpha_out=0).low_bias, build(alpha_out=1).high_bias) == (None, None)
    assert (build().high_bias.shape, build(alpha_out=0.25).low_bias.shape) == ((6,), (3,))
    assert build(use_bias=False).high_bias is None
    assert build().bias is None


@pytest.mark.parametrize(
    ("alpha", "ratio"), [(0.125, 0.82), (0.25, 0.67), (0.5, 0.44), (0.75, 0.30), (0.875, 0.26), (1, 0.25), (0, 1)]
)
def test_costs_are_those_of_the_papers_table(alpha, ratio):
    module = nnx.eval_shape(lambda: build((64, 64), alpha_in=alpha, alpha_out=alpha))
    assert module.num_parameters == 9 * 64 * 64
    found = module.macs((56, 56)) / (56 * 56 * 9 * 64 * 64)
    assert found == 1 - 0.75 * alpha * (2 - alpha)
    assert round(found, 2) == ratio or abs(found - ratio) < 0.0051


def test_costs_of_other_forms():
    first, last = build((3, 8), alpha_in=0, alpha_out=0.25), build((8, 3), strides=2, alpha_in=0.25, alpha_out=0)
    assert first.macs(15) == 9 * 3 * (6 * 15 * 15 + 2 * 8 * 8)
    assert last.macs((6, 6)) == 9 * 3 * (6 + 2) * 36  # at stride 2 the low input has the high output's size
    assert build((8, 8), odd="floor", exchange=()).macs(15) == 9 * 16 * (15 * 15 + 7 * 7)
    depthwise = build((8, 8), feature_group_count=8)
    assert (depthwise.num_parameters, depthwise.macs(4)) == (72, 9 * 4 * (16 + 4))
    assert build((8, 8), feature_group_count=2).num_parameters == 9 * 8 * 8 // 2


def test_depthwise_keeps_the_frequencies_apart():
    module = build((8, 16), alpha_in=0.25, alpha_out=0.25, feature_group_count=8)
    assert (module.h2l, module.l2h) == (None, None)
    assert (module.h2h.kernel.shape, module.l2l.kernel.shape) == ((3, 3, 1, 12), (3, 3, 1, 4))


def test_half_precision_in_gives_half_precision_out():
    maps = octave((7, 6))
    halves = {dtype: oct_map(lambda x, d=dtype: jnp.asarray(x, d), maps) for dtype in (jnp.bfloat16, jnp.float16)}
    calls = [(build(), halves[dtype]) for dtype in halves] + [(build(dtype=dtype), maps) for dtype in halves]
    exact, *results = run((build(), maps), *calls)
    for dtype, result in zip((*halves, *halves), results, strict=True):
        for got, want in zip(result, exact, strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(np.float32(got), want, rtol=3e-2, atol=1e-1)
    normalised = unit()
    normalised.eval()
    for dtype, inputs in halves.items():
        assert {y.dtype for y in jax.eval_shape(normalised, inputs)} == {jnp.dtype(dtype)}


def test_gradients_reach_every_parameter():
    modules = [build(**options) for options in ({}, {"strides": 2}, {"down": "stride"}, {"feature_group_count": 2})]
    graphdefs, states = zip(*map(nnx.split, modules), strict=True)

    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(states, inputs):
        outputs = [nnx.merge(*both)(x) for *both, x in zip(graphdefs, states, inputs, strict=True)]
        return sum(jnp.mean(y**2) for y in jax.tree.leaves(outputs))

    leaves = jax.tree.leaves(jax.jit(gradient)(states, [octave((5, 6))] * len(modules)))
    assert len(leaves) == len(modules) * (6 + 2)
    for leaf in leaves:
        assert np.isfinite(leaf).all()
        assert (np.asarray(leaf) != 0).all()


@pytest.mark.parametrize("kind", [OctConv, OctConvNormAct])
@pytest.mark.parametrize("alphas", [(0.5, 0.5), (0, 1)])
def test_two_builds_have_equal_graph_definitions(kind, alphas):
    alpha_in, alpha_out = alphas

    def make(seed):
        own = {"alpha_in": alpha_in, "alpha_out": np.float64(alpha_out), "exchange": ["h2l", "l2h"]}
        return kind(8, 8, (1, 1), 2, **own, rngs=nnx.Rngs(seed))

    first, second = (nnx.split(make(seed))[0] for seed in (0, 1))
    assert first == second
    assert hash(first) == hash(second)
    assert nnx.split(nnx.eval_shape(lambda: make(0)))[0] == first


# --- normalisation and activation ---


def test_each_frequency_is_normalised_by_itself():
    def make(alpha, **options):
        return nnx.eval_shape(lambda: OctBatchNorm(8, alpha=alpha, rngs=nnx.Rngs(0), **options))

    assert (make(0).bn_h.momentum, make(1).bn_l.epsilon) == (0.9, 1e-5)
    assert (make(0).bn_l, make(1).bn_h) == (None, None)
    with pytest.raises(TypeError, match="momentun"):
        make(0.5, momentun=0.5)
    norm = OctBatchNorm(8, alpha=0.25, momentum=0.5, rngs=nnx.Rngs(0))
    high, low = octave((6, 6), alpha=0.25)
    with pytest.raises(
        ValueError, match=r"low input is missing: OctBatchNorm expects \(\*batch, \*spatial, 2 channels\)"
    ):
        norm((high, None))
    result = nnx.jit(lambda norm, maps: norm(maps))(norm, (high, low))
    for part, x, bn in zip(result, (high, low), (norm.bn_h, norm.bn_l), strict=True):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        np.testing.assert_allclose(part, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(bn.mean[...], 0.5 * mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(bn.var[...], 0.5 + 0.5 * var, rtol=1e-4)


def test_the_unit_is_its_parts_in_order():
    maps = octave((6, 6))
    norm = functools.partial(OctBatchNorm, momentum=0.92, epsilon=1e-4)
    active, plain = unit(norm=norm, activation=jnp.tanh), unit(norm=norm, activation=None)
    biased, last = unit(use_bias=True), unit(alpha_out=0)
    assert active.conv.high_bias is None
    assert biased.conv.high_bias is not None
    assert active.norm.bn_l.epsilon == 1e-4
    first, second, high = run((active, maps), (plain, maps), (last, maps))
    for part, y in zip(first, second, strict=True):
        np.testing.assert_allclose(part, np.tanh(y), rtol=1e-4, atol=1e-5)
    assert high.shape == (2, 6, 6, 8)
    assert float(high.min()) == 0
    with pytest.raises(TypeError, match="paddding"):
        unit(paddding=1)


def test_map_keeps_the_form():
    assert oct_map(abs, -1) == 1
    assert oct_map(abs, (None, -1)) == (None, 1)
    assert oct_map(abs, (-2, -1)) == (2, 1)


# --- PyTorch's weights ---


def test_the_ports_names_load():
    module = unit(alpha_out=0.25, use_bias=True)
    rng = np.random.default_rng(0)
    state = {name: rng.standard_normal(shape) for name, shape in conversion_of(module).shapes.items()}
    bns = {f"bn_{f}.{name}" for f in "hl" for name in ("weight", "bias", "running_mean", "running_var")}
    convs = {f"conv.conv_{path}.{name}" for path in ("h2h", "h2l", "l2h", "l2l") for name in ("weight", "bias")}
    assert set(state) == bns | convs
    load_state_dict(module, state)
    summed = state["conv.conv_h2l.bias"] + state["conv.conv_l2l.bias"]
    np.testing.assert_allclose(module.conv.low_bias[...], summed, rtol=1e-6)
    np.testing.assert_allclose(
        module.conv.l2h.kernel[...][0, 0], state["conv.conv_l2h.weight"][:, :, 0, 0].T, rtol=1e-6
    )
    assert set(conversion_of(build(alpha_out=0, use_bias=False)).shapes) == {"conv_h2h.weight", "conv_l2h.weight"}


def test_what_the_port_cannot_share_with_us_is_refused():
    common = {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 1}
    with pytest.raises(CannotBuildError, match="padding"):
        arguments({**common, "padding": 0})
    assert arguments({**common, "groups": 2})["group_rule"] == "pytorch"


# --- bad arguments ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_in": -0.1}, r"alpha_in=-0.1.*\[0, 1\]"),
        ({"alpha_out": 1.5}, r"alpha_out=1.5"),
        ({"alpha_out": float("nan")}, "alpha_out=nan"),
        ({"alpha_in": "half"}, "alpha_in='half'"),
        ({"alpha_in": True}, "alpha_in=True"),
        ({"strides": 3}, "strides=3.*pool"),
        ({"strides": (1, 2)}, r"strides=\(1, 2\)"),
        ({"padding": "VALID"}, r"padding='VALID'.*\(\(1, 1\), \(1, 1\)\)"),
        ({"padding": 1, "kernel_dilation": 2}, r"padding=1 .*\(\(2, 2\), \(2, 2\)\)"),
        ({"padding": ((1, 0), (1, 1))}, "padding"),
        ({"exchange": "l2h"}, r"exchange='l2h'.*\('l2h',\)"),
        ({"exchange": ("h2h",)}, "exchange"),
        ({"exchange": None}, "exchange=None"),
        ({"exchange": (), "alpha_in": 0}, "leaves the low output without input.*'h2l'"),
        ({"exchange": ("h2l",), "alpha_in": 1}, "leaves the high output without input.*'l2h'"),
        ({"down": "max"}, "avg, stride"),
        ({"odd": "round"}, "ceil, floor"),
        ({"group_rule": "mxnet"}, "gluon, symbol, pytorch"),
        ({"odd": "floor", "down": "stride"}, "odd='ceil'"),
        ({"feature_group_count": 4, "alpha_out": 0.25}, "feature_group_count=4 makes 4 groups.*9 outputs of path h2h"),
        ({"feature_group_count": 4, "features": (8, 8), "alpha_in": 0.25, "exchange": ()}, "6 inputs .*path h2h"),
        ({"feature_group_count": 2, "features": (16, 8), "alpha_out": 0.125}, "path h2h"),
        ({"feature_group_count": 8, "features": (8, 8), "alpha_out": 0.25}, "depthwise.*alphas equal"),
        ({"feature_group_count": 3}, "feature_group_count=3"),
        ({"kernel_size": 3}, r"kernel_size=\(3, 3\)"),
        ({"input_dilation": 2}, "input_dilation=2"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("gluon", {"h2h": 4, "h2l": 4, "l2h": 4, "l2l": 4}),
        ("symbol", {"h2h": 2, "h2l": 2, "l2h": 2, "l2l": 2}),
        ("pytorch", {"h2h": 3, "h2l": 4, "l2h": 4, "l2l": 1}),
    ],
)
def test_groups_of_the_paths_follow_the_public_code_that_is_named(rule, expected):
    features, alpha_out = ((16, 4), 0.5) if rule == "symbol" else ((16, 16), 0.25)
    module = build(features=features, alpha_in=0.25, alpha_out=alpha_out, feature_group_count=4, group_rule=rule)
    assert {path: getattr(module, path).feature_group_count for path in expected} == expected


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="paddding"):
        build(paddding=1)


def test_bad_inputs_are_refused():
    module, (high, low) = build(), octave((15, 8))
    refused = [
        (module, high, "one array .*expects a pair"),
        (module, (high, None), "the low input is missing"),
        (module, (high, low, low), "not a tuple of 3"),
        (module, (low, high), r"shape \(2, 8, 4, 4\) .*size \(4, 2\)"),
        (module, (high, high), r"size \(15, 8\) .*size \(8, 4\) are expected"),
        (module, (high, low[:1]), "equal batch axes"),
        (module, (high[..., :3], low), "4 channels"),
        (module, (high[0, 0], low), "2 spatial axes"),
        (build(alpha_in=0), (np.ones((8, 8, 8)), low), "the low input .*has no channels"),
        (build(odd="floor"), (high, low), r"size \(7, 4\) are expected \(odd='floor'\)"),
        (build(odd="floor"), (high, low[:, :7]), r"\(14, 8\) after upsampling.*\(15, 8\).*odd='ceil'"),
        (build(alpha_in=0, odd="floor"), np.ones((1, 5, 8)), "no pooled pixel"),
    ]
    for operator, maps, message in refused:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(operator, maps)
    with pytest.raises(ValueError, match="out_sharding"):
        module((high, low), out_sharding="data")
    with pytest.raises(ValueError, match="not a tuple of 1"):
        oct_map(abs, (1,))


# --- several devices ---

DEVICES_PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.operators.test_octconv import octave, unit

largest = []
for options in ({}, {"strides": 2, "down": "stride"}):
    graphdef, state = nnx.split(unit(kernel_size=(3, 3), alpha_out=0.25, **options))
    maps = octave((9, 10), batch=(8,))

    @jax.jit
    def run(state, maps):
        def loss(state, maps):
            module = nnx.merge(graphdef, state)
            y = module(maps)
            return sum(jnp.mean(part ** 2) for part in y), (y, nnx.state(module, nnx.BatchStat))
        (_, kept), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(state, maps)
        return kept, gradients

    results = []
    for devices in (1, 4):
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
                             devices=jax.devices()[:devices])
        placed = jax.device_put(state, NamedSharding(mesh, P())), jax.device_put(maps, NamedSharding(mesh, P("data")))
        results.append(jax.tree.leaves(run(*placed)))
        assert len(results[-1][0].sharding.device_set) == devices
    largest += [float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(*results, strict=True)]
print(json.dumps(max(largest)))
"""


@pytest.mark.slow  # with batch statistics, which test_jax_modes.py has not
def test_one_and_four_devices_agree():
    done = subprocess.run(
        [sys.executable, "-c", DEVICES_PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) < 1e-5
