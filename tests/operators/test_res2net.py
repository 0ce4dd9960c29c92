"""Res2Conv against its formula in plain NumPy, and its promises as a drop-in operator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax.operators import PSConv
from msconv_jax.operators.res2net import Res2Conv, res2conv
from tests.operators.rows import SPATIAL, Row

ROWS = [
    Row(
        Res2Conv,
        {**SPATIAL, "kind": "stage"},
        settings=[{"kind": "stage", "norm": None}, {"kind": "stage", "scale": 2, "feature_group_count": 2}],
        plain={"scale": 1, "norm": None, "act": None},
    )
]


def build(features=8, kernel_size=(3, 3), strides=1, *, seed=0, out_features=None, **options):
    rngs = nnx.Rngs(jax.random.key(seed, impl="rbg"))  # its draws compile faster
    return Res2Conv(features, out_features or features, kernel_size, strides, rngs=rngs, **options)


forward = nnx.jit(lambda module, x: module(x))


def image(shape=(2, 7, 6, 8), dtype=jnp.float32, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def scramble(module):
    """Random parameters and statistics; variances stay positive."""
    rng = np.random.default_rng(0)
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    for path, variable in nnx.to_flat_state(state):
        value = rng.normal(size=variable.shape)
        variable[...] = jnp.asarray(np.abs(value) + 0.5 if path[-1] == "var" else value, variable.dtype)
    nnx.update(module, state)
    return module


# --- the reference ---


def naive_windows(x, size, strides, pads, dilation):
    """For each output position the taps of its window, zero outside the image: (N, H', W', *size, C)."""
    room = 4  # negative pads crop
    padded = np.pad(x, ((0, 0), (room, room), (room, room), (0, 0)))
    rows, columns = (slice(room - low, n + room + high) for n, (low, high) in zip(x.shape[1:3], pads, strict=True))
    padded = padded[:, rows, columns]
    reach = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    outputs = [(n - r) // s + 1 for n, r, s in zip(padded.shape[1:3], reach, strides, strict=True)]
    y = np.zeros((x.shape[0], *outputs, *size, x.shape[-1]))
    for row, column, i, j in np.ndindex(*outputs, *size):
        y[:, row, column, i, j] = padded[:, row * strides[0] + i * dilation[0], column * strides[1] + j * dilation[1]]
    return y


def naive_branch(x, conv, bn, strides, pads, dilation, groups, training):
    """Convolution, normalisation, ReLU."""
    kernel = np.asarray(conv.kernel[...], np.float64)
    windows = naive_windows(x, kernel.shape[:2], strides, pads, dilation)
    per_input, per_output = kernel.shape[2], kernel.shape[3] // groups
    y = np.concatenate(
        [
            np.einsum(
                "nhwijc,ijco->nhwo",
                windows[..., g * per_input : (g + 1) * per_input],
                kernel[..., g * per_output : (g + 1) * per_output],
            )
            for g in range(groups)
        ],
        axis=-1,
    )
    if conv.bias is not None:
        y = y + np.asarray(conv.bias[...])
    if bn is not None:
        mean, var = np.asarray(bn.mean[...]), np.asarray(bn.var[...])
        if training:
            mean, var = y.mean(axis=(0, 1, 2)), y.var(axis=(0, 1, 2))
        y = (y - mean) / np.sqrt(var + 1e-5) * np.asarray(bn.scale[...]) + np.asarray(bn.bias[...])
    return np.maximum(y, 0)


def naive(module, x, pads, strides=(1, 1), dilation=(1, 1), training=False):
    """The specification's formulas, one slice after the other."""
    x = np.asarray(x, np.float64)
    groups = module.feature_group_count
    K = [
        lambda x, n=n: naive_branch(
            x,
            module.convs[n],
            module.bns[n] if len(module.bns) else None,
            strides,
            pads,
            dilation,
            groups,
            training,
        )
        for n in range(len(module.convs))
    ]
    width = x.shape[-1] // module.scale
    slices = [x[..., n * width : (n + 1) * width] for n in range(module.scale)]
    if module.scale == 1:
        return K[0](x)
    y = [K[0](slices[0])]
    for n in range(1, module.scale - 1):
        y.append(K[n](slices[n] + y[-1]) if module.kind == "normal" else K[n](slices[n]))
    if module.kind == "normal":
        y.append(slices[-1])
    elif module.last_slice == "conv":
        y.append(K[-1](slices[-1]))
    else:
        size = module.kernel_size
        spare = [(k - 1) * (d - 1) for k, d in zip(size, dilation, strict=True)]
        inner = [(low - n // 2, high - (n - n // 2)) for (low, high), n in zip(pads, spare, strict=True)]
        y.append(naive_windows(slices[-1], size, strides, inner, (1, 1)).mean(axis=(3, 4)))
    return np.concatenate(y, axis=-1)


STAGE = {"kind": "stage"}
CASES = {
    "the paper's": ({"padding": 1}, {"pads": ((1, 1), (1, 1))}),
    "two slices, 3x5": ({"scale": 2, "kernel_size": (3, 5)}, {"pads": ((1, 1), (2, 2))}),
    "eight slices": ({"scale": 8, "features": 16, "kernel_size": (1, 1)}, {"pads": ((0, 0), (0, 0))}),
    "groups, dilation": (
        {"features": 16, "feature_group_count": 2, "kernel_dilation": (2, 1)},
        {"pads": ((2, 2), (1, 1)), "dilation": (2, 1)},
    ),
    "even kernel, bias": ({"kernel_size": (2, 3), "use_bias": True}, {"pads": ((0, 1), (1, 1))}),
    "without normalisation": ({"scale": 3, "features": 9, "norm": None}, {"pads": ((1, 1), (1, 1))}),
    "one slice": (
        {"scale": 1, "strides": (2, 1), "padding": 1, "out_features": 4},
        {"pads": ((1, 1), (1, 1)), "strides": (2, 1)},
    ),
    "stage": ({**STAGE, "padding": 1}, {"pads": ((1, 1), (1, 1))}),
    "stage, stride 2": ({**STAGE, "padding": 1, "strides": 2}, {"pads": ((1, 1), (1, 1)), "strides": (2, 2)}),
    "stage, uneven padding": (
        {**STAGE, "padding": ((0, 2), 1), "strides": (1, 3), "kernel_size": (2, 3)},
        {"pads": ((0, 2), (1, 1)), "strides": (1, 3)},
    ),
    "stage, dilated": (
        {**STAGE, "padding": 2, "strides": 2, "kernel_dilation": 2},
        {"pads": ((2, 2), (2, 2)), "strides": (2, 2), "dilation": (2, 2)},
    ),
    "stage, dilated, no padding": (
        {**STAGE, "padding": "VALID", "kernel_dilation": 2},
        {"pads": ((0, 0), (0, 0)), "dilation": (2, 2)},
    ),
    "stage, last convolved": (
        {**STAGE, "last_slice": "conv", "padding": 1, "strides": 2},
        {"pads": ((1, 1), (1, 1)), "strides": (2, 2)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_formula(name):
    options, geometry = CASES[name]
    module = scramble(build(**options))
    x = image((2, 7, 6, module.in_features))
    module.eval()
    graphdef, state = nnx.split(module)
    trained = nnx.merge(graphdef, state)
    trained.train()

    @jax.jit
    def both(state, x):
        evaluated, in_training = nnx.merge(graphdef, state), nnx.merge(nnx.graphdef(trained), state)
        return evaluated(x), in_training(x)

    got = both(state, x)
    for y, training in zip(got, (False, True), strict=True):
        expected = naive(module, x, training=training, **geometry)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_training_records_each_slices_statistics():
    module = build(padding=1)
    x = image()
    module(x)
    bn = module.bns[0]
    first = module.convs[0](x[..., :2])
    np.testing.assert_allclose(bn.mean[...], 0.1 * first.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bn.var[...], 0.9 + 0.1 * first.var((0, 1, 2)), rtol=1e-4)
    before = [np.asarray(bn.mean[...]) for bn in module.bns]
    module.eval()
    module(x)
    for bn, mean in zip(module.bns, before, strict=True):
        np.testing.assert_array_equal(bn.mean[...], mean)
    assert [(bn.momentum, bn.epsilon) for bn in module.bns] == [(0.9, 1e-5)] * 3


def test_stage_averages_count_the_zeros_of_the_padding():
    y = build(features=4, strides=2, padding=1, **STAGE)(jnp.ones((1, 5, 5, 4)))[0, ..., 3]
    np.testing.assert_allclose(y * 9, [[4, 6, 4], [6, 9, 6], [4, 6, 4]], rtol=1e-6)


def test_the_pure_function():
    x = jnp.array([1.0, 2.0, 3.0, 4.0])
    ten = [lambda x: 10 * x] * 4
    np.testing.assert_array_equal(res2conv(x, ten[:3]), [10, 120, 1230, 4])
    np.testing.assert_array_equal(res2conv(x, ten), [10, 120, 1230, 12340])
    np.testing.assert_array_equal(res2conv(x, ten[:3], kind="stage", last=lambda x: -x), [10, 20, 30, -4])
    np.testing.assert_array_equal(res2conv(x, ten[:1], scale=1), 10 * x)
    for arguments, message in (
        ({"branches": ten[:2]}, "2 branches with scale=4: expected 3 or 4"),
        ({"branches": ten[:2], "scale": 3}, r"shape \(4,\).*scale=3"),
        ({"branches": ten, "kind": "both"}, "kind='both'"),
        ({"branches": ten, "scale": 0}, "scale=0"),
    ):
        with pytest.raises(ValueError, match=message):
            res2conv(x, **arguments)


# --- a drop-in for nnx.Conv ---


@pytest.mark.parametrize("kernel_size", [(1, 1), (4, 3)])
def test_stage_has_the_output_shapes_of_nnx_conv(kernel_size):
    grid = [
        (strides, padding, dilation)
        for strides in (1, 2, (3, 1))
        for padding in ("SAME", "VALID", 0, 1, ((0, 2), 1))
        for dilation in (1, 2)
    ]
    sizes = ((9, 10), (1, 20))

    def shapes(make):
        def run(*images):
            modules = [make(8, 8, kernel_size, s, padding=p, kernel_dilation=d, rngs=nnx.Rngs(0)) for s, p, d in grid]
            return [module(x) for module in modules for x in images]

        images = [jax.ShapeDtypeStruct((2, *size, 8), jnp.float32) for size in sizes]
        return [y.shape for y in jax.eval_shape(run, *images)]

    ours = functools.partial(Res2Conv, kind="stage", scale=2, norm=None)
    assert shapes(ours) == shapes(nnx.Conv)


def test_one_and_three_dimensions():
    for size in ((3,), (1, 3, 2)):
        for shape, options in (((2, *(5,) * len(size), 8), {}), ((*(5,) * len(size), 8), {"strides": 2, **STAGE})):
            expected = (2, *shape[1:]) if not options else ((3,) * len(size) + (8,))
            y = jax.eval_shape(
                lambda x, size=size, options=options: build(kernel_size=size, **options)(x),
                jax.ShapeDtypeStruct(shape, jnp.float32),
            )
            assert y.shape == expected


@pytest.mark.parametrize("kind", ["normal", "stage"])
def test_unbatched_and_several_batch_axes(kind):
    module = build(kind=kind)
    module.eval()
    x = image((2, 3, 5, 6, 8))
    np.testing.assert_allclose(forward(module, x[1, 2]), forward(module, x)[1, 2], rtol=1e-5, atol=1e-5)
    assert forward(module, x[:0]).shape == (0, 3, 5, 6, 8)


@pytest.mark.parametrize("options", [{}, {"kind": "stage", "strides": 2, "last_slice": "conv"}, {"norm": None}])
def test_gradients_reach_every_parameter(options):
    graphdef, parameters, statistics = nnx.split(build(padding=1, **options), nnx.Param, ...)
    x = image((2, 9, 9, 8))

    @jax.jit
    def gradient(parameters, x):
        def loss(parameters, x):
            y = nnx.merge(graphdef, parameters, statistics, copy=True)(x)
            return (y * jnp.arange(1.0, y.size + 1).reshape(y.shape) ** 0.5).sum()

        return jax.grad(loss, argnums=(0, 1))(parameters, x)

    leaves = jax.tree.leaves(gradient(parameters, x))
    assert len(leaves) == len(jax.tree.leaves(parameters)) + 1
    for leaf in leaves:
        assert bool(jnp.isfinite(leaf).all())
        assert bool((leaf != 0).all())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_in_gives_half_precision_out(dtype):
    x = image()
    for kind in ("normal", "stage"):
        exact = build(kind=kind)(x)
        assert exact.dtype == jnp.float32
        for options in ({}, {"dtype": dtype}):
            y = build(kind=kind, **options)(x.astype(dtype))
            assert y.dtype == dtype
            assert float(jnp.abs(y.astype(jnp.float32) - exact).max()) < 1e-1
    assert build(dtype=dtype)(x).dtype == dtype
    assert build(dtype=dtype, preferred_element_type=jnp.float32)(x).dtype == jnp.float32
    module = build(dtype=dtype, param_dtype=dtype)
    assert {module.convs[0].kernel[...].dtype, module.bns[0].scale[...].dtype} == {jnp.dtype(dtype)}
    assert module(x).dtype == dtype


def test_arguments_become_nnx_convs_attributes():
    module = build(strides=2, padding=1, feature_group_count=2, precision="high", **STAGE)
    theirs = nnx.Conv(
        8,
        8,
        (3, 3),
        2,
        padding=1,
        feature_group_count=2,
        precision="high",
        use_bias=False,
        rngs=nnx.Rngs(jax.random.key(0, impl="rbg")),
    )
    for name in ("in_features", "out_features", "kernel_size", "strides", "padding", "feature_group_count", "use_bias"):
        assert getattr(module, name) == getattr(theirs, name)
    for conv in module.convs:
        assert conv.kernel.shape == (3, 3, 1, 2)
        assert (conv.precision, conv.padding, conv.strides) == ("high", 1, 2)
    assert module.bias is None


def test_biases_are_the_slices_own():
    assert all(conv.bias is None for conv in build().convs)
    for options in ({"use_bias": True}, {"norm": None}):
        module = build(**options)
        assert module.bias is None
        assert [conv.bias.shape for conv in module.convs] == [(2,)] * 3
    assert all(conv.bias is None for conv in build(norm=None, use_bias=False).convs)


def count(module):
    return sum(v.size for v in jax.tree.leaves(nnx.state(module, nnx.Param)))


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5, 6, 7, 8, 12])
def test_parameters_and_macs_follow_the_formula(scale):
    w, c = 6, 3
    for last, convs in (("pool", max(scale - 1, 1)), ("conv", scale)):
        module = nnx.eval_shape(
            lambda last=last: build(w * scale, scale=scale, last_slice=last, feature_group_count=c, **STAGE)
        )
        weights = 9 * w * w * convs // c
        assert count(module) == weights + 2 * w * convs
        assert module.macs((14, 10)) == weights * 14 * 10
        plain = nnx.eval_shape(
            lambda last=last: build(w * scale, scale=scale, last_slice=last, conv=nnx.Conv, norm=None, **STAGE)
        )
        assert plain.macs((5, 4)) == 9 * w * w * convs * 20
    assert count(nnx.eval_shape(lambda: build(w * scale, scale=scale, norm=None, use_bias=False))) == (
        9 * w * w * max(scale - 1, 1)
    )


def test_parts_are_arguments():
    poly = functools.partial(PSConv, pattern=(1, 2))
    group_norm = lambda features, **options: nnx.GroupNorm(features, num_groups=2, **options)  # noqa: E731
    module = build(16, conv=poly, norm=group_norm, act=nnx.silu, padding=1)
    assert [type(conv) for conv in module.convs] == [PSConv] * 3
    assert [type(bn) for bn in module.bns] == [nnx.GroupNorm] * 3
    assert module.macs((7, 6)) == 3 * 9 * 16 * 42
    x = image((1, 7, 6, 16))
    y = module(x)
    first = nnx.silu(module.bns[0](module.convs[0](x[..., :4])))
    np.testing.assert_allclose(y[..., :4], first, rtol=1e-5, atol=1e-5)
    second = nnx.silu(module.bns[1](module.convs[1](x[..., 4:8] + first)))
    np.testing.assert_allclose(y[..., 4:8], second, rtol=1e-5, atol=1e-5)
    linear = build(conv=nnx.Conv, norm=None, act=None, use_bias=False)
    np.testing.assert_allclose(linear(-x[..., :8]), -linear(x[..., :8]), rtol=1e-5, atol=1e-5)
    assert len(linear.bns) == 0

    class Opaque(nnx.Module):
        def __init__(self, *_, **__):
            self.scale = 1

    with pytest.raises(TypeError, match=r"Opaque has no macs\(input_shapes, output_shapes\)"):
        build(conv=Opaque, norm=None).macs((3, 3))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "stage", "strides": 2},
        {"norm": None, "act": None},
        {"conv": functools.partial(PSConv, pattern=(1,))},
    ],
    ids=str,
)
def test_builds_are_equal_and_abstract_ones_merge(options):
    first, second = build(**options), build(seed=1, **options)
    assert nnx.graphdef(first) == nnx.graphdef(second)
    assert hash(nnx.graphdef(first)) == hash(nnx.graphdef(second))
    abstract = nnx.eval_shape(lambda: build(**options))
    merged = nnx.merge(nnx.graphdef(abstract), nnx.state(first))
    np.testing.assert_array_equal(merged(image()), first(image()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_features": 16}, "in_features=8 and out_features=16 with scale=4: .*1x1 convolution"),
        ({"scale": 3}, r"in_features=8 is not divisible by scale=3: take one of \[1, 2, 4, 8\]"),
        ({"scale": 0}, "scale=0: expected an int of at least 1"),
        ({"scale": True}, "scale=True"),
        ({"scale": 2.0}, r"scale=2\.0"),
        ({"feature_group_count": 4}, r"feature_group_count=4 does not divide the 2 channels of a slice .*\[1, 2\]"),
        ({"kind": "first"}, "kind='first': expected one of normal, stage"),
        ({"last_slice": "max"}, "last_slice='max': expected one of pool, conv"),
        ({"last_slice": "conv"}, "last_slice='conv' with kind='normal'.*kind='stage'"),
        ({"strides": 2}, "strides=2 with kind='normal'.*kind='stage'"),
        ({"strides": (1, 2)}, r"strides=\(1, 2\) with kind='normal'"),
        ({"padding": "VALID"}, "padding='VALID' with kind='normal'.*'SAME'"),
        ({"padding": 2}, "padding=2 with kind='normal'"),
        ({"padding": 1, "kernel_dilation": 2}, "padding=1 with kind='normal'"),
        ({"padding": "CAUSAL"}, "CAUSAL"),
        ({"kernel_size": 3}, r"kernel_size=\(3, 3\)"),
        ({"input_dilation": 2}, "input_dilation=2"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_unknown_arguments_and_bad_input_are_refused():
    with pytest.raises(TypeError, match="paddding"):
        build(paddding=1)
    with pytest.raises(ValueError, match="8 channels"):
        build()(jnp.ones((1, 5, 5, 4)))


@pytest.mark.parametrize(("strides", "kind"), [(1, "normal"), (2, "stage"), ((1, 2), "stage"), ((1, 1), "normal")])
def test_the_kind_can_follow_from_the_strides(strides, kind):
    conv = Res2Conv(8, 8, (3, 3), strides, scale=4, padding=1, kind="auto", rngs=nnx.Rngs(0))
    assert conv.kind == kind
    assert (
        conv(jnp.ones((1, 7, 7, 8))).shape
        == Res2Conv(8, 8, (3, 3), strides, scale=4, padding=1, kind=kind, rngs=nnx.Rngs(0))(
            jnp.ones((1, 7, 7, 8))
        ).shape
    )
