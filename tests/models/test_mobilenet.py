"""The mobile networks: against plain NumPy and published sizes, and their errors."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import GroupedConv, ICConv, PSConv, load_state_dict
from msconv_jax.counting import count_parameters, layer_macs
from msconv_jax.folding import fold_batch_norm
from msconv_jax.models import MobileNetV1, MobileNetV2, OctMobileNetV1, OctMobileNetV2, Parts, create_model
from msconv_jax.models.families.mobilenet import InvertedResidual, SeparableConv
from msconv_jax.models.families.octave.mobilenet import OctInvertedResidual
from msconv_jax.operators.octave.octconv import OctConv
from msconv_jax.torch_weights import conversion_of
from tests.models.conftest import OneKey
from tests.reference import naive_convolve


def abstract(name, **options):
    return nnx.eval_shape(lambda: create_model(name, rngs=OneKey(), **options))


def scrambled(make):
    """Builds a module with random parameters and statistics, in evaluation mode."""
    module = nnx.eval_shape(make)  # drawing the initial values would take longer than the tests
    random = np.random.default_rng(0)

    def draw(path, variable):
        value = random.normal(size=variable.shape)
        value *= max(math.prod(variable.shape[:-1]), 1) ** -0.5  # maps keep their magnitude
        positive = path[-1].key in ("var", "scale")
        return jnp.asarray(np.abs(value) + 0.5 if positive else value, variable.dtype)

    state = nnx.to_pure_dict(nnx.state(module))
    nnx.update(module, jax.tree_util.tree_map_with_path(draw, state))
    module.eval()
    return module


# --- blocks ---


def depthwise(x, layer, stride):
    kernel = np.asarray(layer.kernel[...])
    channels = [naive_convolve(x[..., c : c + 1], kernel[..., c : c + 1], stride, (1, 1)) for c in range(x.shape[-1])]
    return np.concatenate(channels, axis=-1)


def pointwise(x, layer):
    return x @ np.asarray(layer.kernel[0, 0], np.float64)


def normalised(x, bn):
    mean, var = np.asarray(bn.mean[...], np.float64), np.asarray(bn.var[...], np.float64)
    return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(bn.scale[...]) + np.asarray(bn.bias[...])


def test_a_separable_convolution():
    unit = scrambled(lambda: SeparableConv(3, 5, 2, parts=Parts(), name="u", rngs=OneKey()))
    x = np.random.default_rng(1).normal(size=(2, 5, 6, 3)).astype(np.float32)
    y = np.maximum(normalised(depthwise(x, unit.conv1, 2), unit.bn1), 0)
    expected = np.maximum(normalised(pointwise(y, unit.conv2), unit.bn2), 0)
    np.testing.assert_allclose(nnx.jit(unit)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("outputs", "strides", "expansion"), [(3, 1, 2), (4, 1, 1), (3, 2, 2)])
def test_an_inverted_residual(outputs, strides, expansion):
    block = scrambled(
        lambda: InvertedResidual(3, outputs, strides, expansion, parts=Parts(act=nnx.relu6), name="b", rngs=OneKey())
    )
    x = np.random.default_rng(1).normal(0, 3, (2, 5, 6, 3)).astype(np.float32)
    y = x
    if expansion != 1:
        y = np.clip(normalised(pointwise(x, block.conv1), block.bn1), 0, 6)
    y = np.clip(normalised(depthwise(y, block.conv2, strides), block.bn2), 0, 6)
    y = normalised(pointwise(y, block.conv3), block.bn3)
    expected = x + y if (outputs, strides) == (3, 1) else y
    np.testing.assert_allclose(nnx.jit(block)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_without_low_channels_an_octave_block_is_the_plain_one():
    octave = scrambled(lambda: OctInvertedResidual(3, 3, 1, 2, alpha=0, name="b", rngs=OneKey()))
    plain = scrambled(lambda: InvertedResidual(3, 3, 1, 2, parts=Parts(act=nnx.relu6), name="b", rngs=OneKey()))
    for number in (1, 2, 3):
        unit, norm = getattr(octave, f"conv{number}"), getattr(plain, f"bn{number}")
        getattr(plain, f"conv{number}").kernel[...] = unit.conv.h2h.kernel[...]
        for name in ("scale", "bias", "mean", "var"):
            getattr(norm, name)[...] = getattr(unit.norm.bn_h, name)[...]
    x = jax.random.normal(jax.random.key(1), (2, 5, 7, 3))
    np.testing.assert_allclose(nnx.jit(octave)(x), nnx.jit(plain)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MobileNetV2, OctMobileNetV2])
def test_drop_path_is_for_blocks_with_a_shortcut(kind):
    model = nnx.eval_shape(lambda: kind(width_mult=0.25, drop_path_rate=0.16, rngs=nnx.Rngs(0)))
    assert model.features[3].drop_path.rate == pytest.approx(0.02)
    assert model.features[17].drop_path.rate == 0  # its channels change
    assert model.features[2].drop_path.rate == 0  # it has a stride


def test_zero_init_last_is_for_blocks_with_a_shortcut():
    @jax.jit
    def scales():
        blocks = [
            kind(8, outputs, 1, 2, name="b", rngs=OneKey(), **options)
            for kind, options in (
                (InvertedResidual, {"parts": Parts(zero_init_last=True)}),
                (OctInvertedResidual, {"alpha": 0.5, "zero_init_last": True}),
            )
            for outputs in (8, 4)
        ]
        last = [block.bn3 if isinstance(block, InvertedResidual) else block.conv3.norm.bn_h for block in blocks]
        return [bn.scale[...] for bn in last]

    assert [float(scale.max()) for scale in scales()] == [0, 1, 0, 1]


# --- networks ---

THIN = {"width_mult": 0.75, "alpha": 0.375}


@pytest.mark.parametrize(
    ("name", "options", "parameters", "macs"),
    [
        # MobileNets paper, table 4: 4.2 M and 569 M; MobileNetV2's: 3.4 M and 300 M
        pytest.param("mobilenetv1", {}, 4_231_976, 568_740_352, marks=pytest.mark.slow),
        pytest.param("mobilenetv2", {}, 3_504_872, 300_774_272, marks=pytest.mark.slow),
        # OctConv paper, table 5: 4.2 M and 321 M, the port counts 318.2 M; 2.6 M and 213 M; 3.5 M and 256 M
        ("oct_mobilenetv1", {}, 4_231_976, 318_167_680),
        pytest.param("oct_mobilenetv1", THIN, 2_585_560, 211_379_016, marks=pytest.mark.slow),
        pytest.param("oct_mobilenetv2", {"alpha": 0.375}, 3_505_960, 254_031_408, marks=pytest.mark.slow),
    ],
)
def test_sizes(name, options, parameters, macs):
    model = abstract(name, **options)
    assert count_parameters(model) == parameters
    assert sum(layer_macs(model).values()) == macs


@pytest.mark.slow
def test_the_wide_octave_network_has_the_published_size():
    model = abstract("oct_mobilenetv2", width_mult=1.125, alpha=0.5)
    assert round(count_parameters(model) / 1e6, 1) == 4.2
    assert sum(layer_macs(model).values()) == 292_764_600  # 295 M in the paper


def test_where_the_frequencies_are():
    first = abstract("oct_mobilenetv1", alpha=0.25)
    splits = [[(u.conv.in_split[1], u.conv.out_split[1]) for u in (f.conv1, f.conv2)] for f in list(first.features)[1:]]
    assert splits[0] == [(0, 0), (0, 16)]
    assert splits[1] == [(16, 16), (16, 32)]
    assert splits[9:11] == [[(128, 128), (128, 128)], [(128, 128), (128, 0)]]
    assert splits[11:] == [[(0, 0), (0, 0)]] * 2
    second = abstract("oct_mobilenetv2", alpha=0.25)
    blocks = list(second.features)[1:-1]
    assert [b.conv2.conv.in_split[1] > 0 for b in blocks] == [True] * 13 + [False] * 4
    assert {(b.conv1.conv.in_split[1], b.conv3.conv.out_split[1]) for b in blocks} == {(0, 0)}
    exchanged = [m for _, m in nnx.iter_modules(first) if isinstance(m, OctConv) and m.feature_group_count > 1]
    assert len(exchanged) == 13
    assert all(m.h2l is None and m.l2h is None for m in exchanged)


def test_numbers_of_channels_are_rounded_as_published():
    model = abstract("mobilenetv2", width_mult=1.4)
    assert [model.features[n].conv2.out_features for n in (1, 2)] == [48, 144]
    assert model.num_features == 1792
    thin = abstract("mobilenetv2", width_mult=0.35)
    assert [f["num_chs"] for f in thin.feature_info] == [8, 8, 16, 32, 1280]
    assert [f["num_chs"] for f in abstract("mobilenetv1", width_mult=0.75).feature_info] == [48, 96, 192, 384, 768]


def test_depthwise_convolutions_have_the_fast_lowering():
    for name, paths in (("mobilenetv1", "conv1"), ("mobilenetv2", "conv2")):
        model = abstract(name)
        kinds = {type(getattr(layer, paths)) for layer in model.features if hasattr(layer, paths)}
        assert kinds == {GroupedConv}


def test_depthwise_convolutions_are_interchangeable():
    patterned = partial(PSConv, pattern=(1, 2))
    model = nnx.eval_shape(lambda: MobileNetV1(width_mult=0.25, conv=patterned, rngs=OneKey()))
    assert {type(layer.conv1) for layer in list(model.features)[1:]} == {PSConv}
    convs = {f"features.{n}.conv2": GroupedConv for n in range(1, 18)}
    convs["features.7.conv2"] = patterned
    model = nnx.eval_shape(lambda: MobileNetV2(width_mult=0.25, conv=convs, rngs=OneKey()))
    kinds = [type(layer.conv2) for layer in model.features if isinstance(layer, InvertedResidual)]
    assert [n for n, kind in enumerate(kinds, start=1) if kind is PSConv] == [7]
    del convs["features.9.conv2"]
    with pytest.raises(ValueError, match=r"conv has no factory for features\.9\.conv2"):
        nnx.eval_shape(lambda: MobileNetV2(width_mult=0.25, conv=convs, rngs=OneKey()))


# --- IC-MobileNetV2 ---


def test_ic_mobilenetv2_takes_patterns_for_all_its_convolutions():
    def build(**options):
        return nnx.eval_shape(lambda: create_model("ic_mobilenetv2", width_mult=0.25, rngs=OneKey(), **options))

    even = build()
    widths = {f"features.{n}.conv2": even.features[n].conv2.out_features for n in range(1, 18)}
    patterns = {path: ((1, 1, width - width // 4), (1, 2, width // 4)) for path, width in widths.items()}
    model = build(patterns=patterns)
    for path, pattern in patterns.items():
        searched, other = (m.features[int(path.split(".")[1])].conv2 for m in (model, even))
        assert type(searched) is type(other) is ICConv
        assert searched.feature_group_count == searched.out_features == sum(count for *_, count in pattern)
        assert len(set(other.pattern)) == min(searched.out_features, 16)
    assert (
        count_parameters(model) == count_parameters(even) == count_parameters(abstract("mobilenetv2", width_mult=0.25))
    )
    misspelt = {path.replace(".9.", ".19."): pattern for path, pattern in patterns.items()}
    with pytest.raises(ValueError, match=r"conv has no factory for features\.9\.conv2"):
        build(patterns=misspelt)
    with pytest.raises(ValueError, match=r"conv has factories for features\.19\.conv2"):
        build(patterns=patterns | misspelt)
    with pytest.raises(ValueError, match=r"^features\.4\.conv2: pattern=\(\(1, 1, 3\),\) is for 3 filters"):
        build(patterns={**patterns, "features.4.conv2": ((1, 1, 3),)})


@pytest.mark.slow
def test_dilations_of_one_make_ic_mobilenetv2_the_plain_network():
    plain = scrambled(lambda: MobileNetV2(width_mult=0.25, num_classes=5, rngs=OneKey()))
    widths = {f"features.{n}.conv2": plain.features[n].conv2.out_features for n in range(1, 18)}
    patterns = {path: ((1, 1, width),) for path, width in widths.items()}
    model = abstract("ic_mobilenetv2", width_mult=0.25, num_classes=5, patterns=patterns)
    nnx.update(model, nnx.state(plain))
    model.eval()
    x = jax.random.normal(jax.random.key(1), (1, 33, 49, 3))
    np.testing.assert_allclose(nnx.jit(model)(x), nnx.jit(plain)(x), rtol=1e-4, atol=1e-4)


# --- weights, folding, arguments ---

BLOCK = ("weight", "bias", "running_mean", "running_var")


def norm_names(prefix):
    return {f"{prefix}.{name}" for name in BLOCK}


def test_mobilenetv2_has_torchvisions_names():
    model = abstract("mobilenetv2")
    names = conversion_of(model).shapes
    expected = {"features.0.0.weight", "features.18.0.weight", "classifier.1.weight", "classifier.1.bias"}
    expected |= norm_names("features.0.1") | norm_names("features.18.1")
    expected |= {"features.1.conv.0.0.weight", "features.1.conv.1.weight"}
    expected |= norm_names("features.1.conv.0.1") | norm_names("features.1.conv.2")
    for n in range(2, 18):
        expected |= {f"features.{n}.conv.{place}.weight" for place in ("0.0", "1.0", "2")}
        expected |= norm_names(f"features.{n}.conv.0.1") | norm_names(f"features.{n}.conv.1.1")
        expected |= norm_names(f"features.{n}.conv.3")
    assert set(names) == expected
    assert names["features.2.conv.1.0.weight"] == (96, 1, 3, 3)
    assert names["features.17.conv.2.weight"] == (320, 960, 1, 1)
    assert names["classifier.1.weight"] == (1000, 1280)


def test_oct_mobilenetv1_has_the_ports_names():
    names = conversion_of(abstract("oct_mobilenetv1")).shapes
    expected = {"features.0.0.weight", "fc.weight", "fc.bias"} | norm_names("features.0.1")
    for n in range(1, 14):
        of_input = "h" if n in (1, 12, 13) else "hl"
        of_output = "hl" if n <= 10 else "h"
        expected |= {f"features.{n}.0.conv.conv_{f}2{f}.weight" for f in of_input}
        expected |= {f"features.{n}.1.conv.conv_{a}2{b}.weight" for a in of_input for b in of_output}
        for f in of_input:
            expected |= norm_names(f"features.{n}.0.bn_{f}")
        for f in of_output:
            expected |= norm_names(f"features.{n}.1.bn_{f}")
    assert set(names) == expected
    assert names["features.1.1.conv.conv_h2l.weight"] == (32, 32, 1, 1)
    assert names["features.7.0.conv.conv_l2l.weight"] == (256, 1, 3, 3)


def test_weights_are_loaded_and_a_classifier_of_other_classes_is_kept():
    model = scrambled(lambda: MobileNetV2(width_mult=0.1, num_classes=3, rngs=OneKey()))
    random = np.random.default_rng(0)
    shapes = conversion_of(model).shapes
    state = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    load_state_dict(model, state)
    for ours, theirs in (("features.3.conv3", "features.3.conv.2"), ("features.1.conv2", "features.1.conv.0.0")):
        _, number, name = ours.split(".")
        kernel = getattr(model.features[int(number)], name).kernel
        np.testing.assert_array_equal(kernel[...], state[f"{theirs}.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(model.features[5].bn3.var[...], state["features.5.conv.3.running_var"])
    np.testing.assert_array_equal(model.fc.kernel[...], state["classifier.1.weight"].T)
    other = {**state, "classifier.1.weight": np.zeros((7, 1280)), "classifier.1.bias": np.zeros(7)}
    load_state_dict(model, other, strict=False)
    np.testing.assert_array_equal(model.fc.bias[...], state["classifier.1.bias"])
    with pytest.raises(ValueError, match=r"wrong shape: classifier\.1\.bias is \(7,\), expected \(3,\)"):
        load_state_dict(model, other)


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("kind", [MobileNetV1, MobileNetV2, OctMobileNetV1, OctMobileNetV2])
def test_folded_networks_of_odd_sizes_give_the_networks_logits(kind):
    model = scrambled(lambda: kind(width_mult=0.25, num_classes=5, rngs=OneKey()))
    folded = fold_batch_norm(model)
    assert not [path for path, module in nnx.iter_modules(folded) if isinstance(module, nnx.BatchNorm)]
    x = jax.random.normal(jax.random.key(1), (1, 33, 49, 3))
    expected, got = (np.asarray(nnx.jit(lambda model, x: model(x))(m, x)) for m in (model, folded))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_folded_block():
    block = scrambled(lambda: InvertedResidual(4, 4, 1, 1, parts=Parts(), name="b", rngs=OneKey()))
    folded = fold_batch_norm(block)
    assert not [path for path, module in nnx.iter_modules(folded) if isinstance(module, nnx.BatchNorm)]
    x = jax.random.normal(jax.random.key(1), (1, 5, 7, 4))
    np.testing.assert_allclose(nnx.jit(folded)(x), nnx.jit(block)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(MobileNetV1, width_mult=0), "width_mult=0: must be a positive number"),
        (partial(MobileNetV1, width_mult=0.01), r"width_mult=0\.01: .* at least one channel in each layer"),
        (partial(MobileNetV2, width_mult="1"), "width_mult='1'"),
        (partial(MobileNetV2, in_channels=0), "in_channels=0"),
        (partial(MobileNetV2, drop_path_rate=1.0), r"drop_path_rate=1\.0"),
        (partial(MobileNetV2, global_pool="max"), "global_pool='max'"),
        (partial(OctMobileNetV1, alpha=1), r"alpha=1: must be a share of low channels in \[0, 1\)"),
        (partial(OctMobileNetV2, alpha=-0.5), r"alpha=-0\.5"),
        (partial(OctMobileNetV2, drop_path_rate=-1), "drop_path_rate=-1"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: build(rngs=OneKey()))
