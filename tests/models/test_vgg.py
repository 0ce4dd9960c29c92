"""VGG against plain NumPy, its sizes against the HetConv specification, its names against torchvision's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import msconv_jax
from msconv_jax.counting import count_parameters, layer_macs
from msconv_jax.models import VGG, create_model
from msconv_jax.models.families.vgg import VGGClassifier
from msconv_jax.operators import HetConv, PSConv
from msconv_jax.torch_weights import conversion_of
from tests.reference import naive_convolve

HET = partial(HetConv, parts=2)
forward = nnx.jit(lambda model, x: model(x))


def small(**options):
    arguments = {
        "layers": (1, 2),
        "width": 4,
        "num_classes": 5,
        "bins": 3,
        "hidden_features": (6, 7),
        "dropout_rate": 0.0,
        **options,
    }
    return VGG(rngs=nnx.Rngs(jax.random.key(0, impl="rbg")), **arguments)


def cifar(**options):
    """A small network with the head of the networks for CIFAR."""
    return small(bins=1, hidden_features=(6,), hidden_norm=True, use_bias=False, **options)


def filled(build):
    """A model with random parameters and statistics, in evaluation mode."""
    model = nnx.eval_shape(build)
    state, rng = nnx.state(model), np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(state):
        value = rng.normal(size=variable.shape).astype(np.float32)
        variable.set_value(jnp.asarray(np.abs(value) + 0.5 if path[-1] == "var" else value))
    nnx.update(model, state)
    model.eval()
    return model


def image(height, width, number=2):
    return np.random.default_rng(1).normal(size=(number, height, width, 3)).astype(np.float32)


def shape_of(model, *size):
    """Shapes of the outputs for images of a size, without computing them."""
    return nnx.eval_shape(lambda model, x: model(x), model, image(*size)).shape


def value(variable):
    return np.asarray(variable[...], np.float64)


def affine(x, norm):
    return (x - value(norm.mean)) / np.sqrt(value(norm.var) + 1e-5) * value(norm.scale) + value(norm.bias)


def linear(x, layer):
    return x @ value(layer.kernel) + value(layer.bias)


def pooled(x):
    """2x2 maxima, without pixels beyond the map."""
    height, width = (-(-n // 2) for n in x.shape[1:3])
    return np.stack(
        [
            np.stack([x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2)) for j in range(width)], 1)
            for i in range(height)
        ],
        1,
    )


def windows(x, bins):
    """The means of PyTorch's adaptive pooling, flattened channel by channel."""
    bounds = [[(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)] for n in x.shape[1:3]]
    means = [[x[:, a:b, c:d].mean((1, 2)) for c, d in bounds[1]] for a, b in bounds[0]]
    return np.transpose(np.array(means), (2, 3, 0, 1)).reshape(len(x), -1)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("build", "size"), [(small, (8, 8)), (small, (5, 17)), (cifar, (7, 4))], ids=["even", "odd", "cifar"]
)
def test_against_numpy(build, size):
    model = filled(build)
    x = image(*size)
    maps, y = [], x
    for stage in (model.layer1, model.layer2):
        for conv, norm in zip(stage.convs, stage.bns, strict=True):
            y = naive_convolve(y, value(conv.kernel), 1, (1, 1))
            y = np.maximum(affine(y if conv.bias is None else y + value(conv.bias), norm), 0)
        maps.append(y)
        y = pooled(y)
    maps.append(y)
    for expected, got in zip(maps, model.feature_maps(x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)
    z = windows(y, model.fc.bins)
    for number, layer in enumerate(model.fc.hidden):
        z = linear(z, layer)
        z = np.maximum(z if model.fc.bns is None else affine(z, model.fc.bns[number]), 0)
    np.testing.assert_allclose(forward(model, x), linear(z, model.fc.last), rtol=1e-4, atol=1e-3)


# --- sizes ---

# P: parameters and millions of multiply-accumulates of the network for CIFAR-10 (specification, section g).
SIZES = {
    1: (14_987_786, 313.46),
    2: (8_450_570, 175.05),
    4: (5_181_962, 105.85),
    8: (3_547_658, 71.24),
    16: (2_730_506, 53.94),
    32: (2_321_930, 45.29),
    64: (2_117_642, 40.97),
}


@pytest.mark.parametrize("parts", [1, 4, *(pytest.param(p, marks=pytest.mark.slow) for p in SIZES if p not in (1, 4))])
def test_sizes_of_the_cifar_network(parts, build_abstract):
    model = build_abstract("het_vgg16_cifar", conv=partial(HetConv, parts=parts))
    macs = sum(layer_macs(model, (32, 32, 3)).values())
    assert (count_parameters(model), round(macs / 1e6, 2)) == SIZES[parts]


@pytest.mark.parametrize(("parts", "parameters", "macs"), [(2, 20_527_144, 3.267), (8, 16_754_728, 2.651)])
def test_sizes_of_resnet50(parts, parameters, macs, build_abstract):
    model = build_abstract("het_resnet50", conv=partial(HetConv, parts=parts))
    assert count_parameters(model) == parameters
    assert round(sum(layer_macs(model).values()) / 1e9, 3) == macs


def test_four_parts_save_two_thirds(abstract_model):
    plain, het = (sum(layer_macs(abstract_model(name)).values()) for name in ("vgg16_bn", "het_vgg16"))
    assert round(100 * (1 - het / plain), 2) == 65.76
    assert sum(layer_macs(abstract_model("het_resnet50")).values()) == pytest.approx(2.856e9, rel=2e-4)


def test_which_convolutions_are_heterogeneous_and_which_have_a_bias(abstract_model):
    def layers(name):
        stages = [getattr(abstract_model(name), f"layer{number}") for number in range(1, 6)]
        return [conv for stage in stages for conv in stage.convs]

    for name in ("het_vgg16", "het_vgg16_cifar"):
        first, *others = layers(name)
        assert (type(first), first.use_bias) == (nnx.Conv, True)
        assert {(type(conv), conv.parts, conv.use_bias) for conv in others} == {(HetConv, 4, False)}
        assert len(others) == 12
    assert [conv.use_bias for conv in layers("vgg16_bn")] == [True] * 13
    assert [conv.use_bias for conv in layers("vgg16_cifar")] == [True] + [False] * 12
    blocks = [block for stage in range(1, 5) for block in getattr(abstract_model("het_resnet50"), f"layer{stage}")]
    assert [(type(block.conv2), block.conv2.parts) for block in blocks] == [(HetConv, 4)] * 16


# --- head and backbone ---


def test_without_a_classifier_come_means_or_the_map():
    model = nnx.eval_shape(small)
    last = image(3, 2, 4) @ np.ones((3, model.num_features), np.float32)
    np.testing.assert_allclose(model.forward_head(last, pre_logits=True), last.mean((1, 2)), rtol=1e-5)
    bare = nnx.eval_shape(lambda: small(num_classes=0))
    assert shape_of(bare, 9, 6) == (2, bare.num_features)
    assert not [path for path, _ in nnx.to_flat_state(nnx.state(bare)) if path[0] == "fc"]
    assert shape_of(nnx.eval_shape(lambda: small(num_classes=0, global_pool="")), 9, 6) == (2, 3, 2, bare.num_features)


def test_resetting_keeps_all_but_the_last_layer():
    def build():
        model = small()
        hidden = list(model.fc.hidden)
        model.reset_classifier(3, rngs=nnx.Rngs(1))
        assert all(layer is before for layer, before in zip(model.fc.hidden, hidden, strict=True))
        model.reset_classifier(0, rngs=nnx.Rngs(1))
        assert model.fc is None
        model.reset_classifier(2, rngs=nnx.Rngs(2))
        assert model.fc.hidden[0] is not hidden[0]
        return model

    model = nnx.eval_shape(build)
    assert model.num_classes == 2
    assert shape_of(model, 4, 4) == (2, 2)


def test_backbones_have_the_maps_before_the_poolings(build_abstract):
    backbone = nnx.eval_shape(
        lambda: create_model("het_vgg16", features_only=True, out_indices=(0, 3, 5), rngs=nnx.Rngs(0))
    )
    assert [(f["module"], f["num_chs"], f["reduction"]) for f in backbone.feature_info] == [
        ("layer1", 64, 1),
        ("layer4", 512, 8),
        ("pool5", 512, 32),
    ]
    shapes = nnx.eval_shape(lambda model, x: model(x), backbone, jnp.ones((1, 65, 97, 3)))
    assert [m.shape for m in shapes] == [(1, 65, 97, 64), (1, 9, 13, 512), (1, 3, 4, 512)]
    assert not [path for path, _ in nnx.to_flat_state(nnx.state(backbone)) if "fc" in path]


def test_dropout_works_in_training_only():
    classifier = VGGClassifier(4, 5, bins=1, hidden_features=(64,), dropout_rate=0.5, rngs=nnx.Rngs(0))
    maps = jnp.ones((1, 2, 2, 4))
    assert (classifier(maps) != classifier(maps)).any()
    classifier.eval()
    np.testing.assert_array_equal(classifier(maps), classifier(maps))
    model = nnx.eval_shape(lambda: small(dropout_rate=0.5))
    assert model.fc.dropout.rate == 0.5
    assert nnx.eval_shape(small).fc.dropout.rngs is None


@pytest.mark.slow
def test_training_reaches_every_parameter_with_a_finite_gradient():
    model = cifar(conv=HET)
    graphdef, params, other_state = nnx.split(model, nnx.Param, ...)

    def loss(params):
        logits = nnx.merge(graphdef, params, other_state, copy=True)(image(9, 6, 4))
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    for path, leaf in nnx.to_flat_state(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(leaf[...]).all(), path
        # A normalisation takes away what a bias before it adds.
        assert np.asarray(leaf[...]).any() or path[-1] == "bias", path


def test_bfloat16():
    def run(x):
        model = small(dtype=jnp.bfloat16, conv=HET)
        model.eval()
        return model.feature_maps(x), model(x)

    maps, logits = jax.eval_shape(run, image(9, 6))
    assert {m.dtype for m in maps} == {jnp.dtype(jnp.bfloat16)}
    assert logits.dtype == jnp.float32


def test_convolutions_by_stage_or_by_path():
    of_stages = nnx.eval_shape(lambda: small(conv=(nnx.Conv, HET)))
    assert [type(conv) for conv in of_stages.layer2.convs] == [HetConv, HetConv]
    by_path = nnx.eval_shape(lambda: small(conv={"layer2.convs.0": HET, "layer2.convs.1": PSConv}))
    assert [type(conv) for conv in by_path.layer2.convs] == [HetConv, PSConv]
    with pytest.raises(ValueError, match=r"conv has no factory for layer2\.convs\.1"):
        nnx.eval_shape(lambda: small(conv={"layer2.convs.0": HET}))
    with pytest.raises(ValueError, match=r"factories for layer3\.convs\.0: VGG has no such convolution"):
        nnx.eval_shape(lambda: small(conv={"layer2.convs.0": HET, "layer2.convs.1": HET, "layer3.convs.0": HET}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (1, 0)}, "layers=0.*at least one block"),
        ({"width": 0}, "width=0"),
        ({"bins": 0}, "bins=0: .*give 7"),
        ({"hidden_features": (6, 0)}, r"hidden_features=0: .*\(\) leaves the layers out"),
        ({"dropout_rate": 1.0}, r"^dropout_rate=1\.0: must be in \[0, 1\)"),
        ({"global_pool": "max"}, "global_pool='max'"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"conv": partial(HetConv, parts=3)}, r"^layer2\.convs\.0: parts=3 does not divide"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: small(**options))


# --- published weights ---


def torchvisions_names():
    """Names and shapes of vgg16_bn's weights in the order of its layers, without the normalisations' counters."""
    names, place, channels = {}, 0, 3
    for depth, features in zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            names[f"features.{place}.weight"] = (features, channels, 3, 3)
            names[f"features.{place}.bias"] = (features,)
            for value in ("weight", "bias", "running_mean", "running_var"):
                names[f"features.{place + 1}.{value}"] = (features,)
            place, channels = place + 3, features
        place += 1
    for number, shape in ((0, (4096, 25088)), (3, (4096, 4096)), (6, (1000, 4096))):
        names |= {f"classifier.{number}.weight": shape, f"classifier.{number}.bias": shape[:1]}
    return names


def test_names_of_published_weights(abstract_model):
    assert conversion_of(abstract_model("vgg16_bn")).shapes == torchvisions_names()
    shapes = conversion_of(abstract_model("het_vgg16_cifar")).shapes
    places = [int(name.split(".")[1]) for name in shapes if name.endswith("gwc.weight")]
    assert places == [3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]
    assert shapes["features.14.gwc.weight"] == (256, 32, 3, 3)
    assert shapes["features.14.pwc.weight"] == (256, 128, 1, 1)
    assert {name for name in shapes if name.startswith(("features.0.", "classifier."))} == {
        "features.0.weight",
        "features.0.bias",
        *(f"classifier.{number}.{name}" for number in (0, 1, 3) for name in ("weight", "bias")),
        *(f"classifier.1.running_{name}" for name in ("mean", "var")),
    }
    assert shapes["classifier.1.weight"] == (512,)


def weights_of(model):
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in conversion_of(model).shapes.items():
        weights[name] = rng.normal(size=shape).astype(np.float32)
        if name.endswith("pwc.weight"):  # no small kernels beside large ones
            half = [n // 2 for n in shape[:2]]
            weights[name][: half[0], : half[1]] = weights[name][half[0] :, half[1] :] = 0
    return weights


def test_weights_are_loaded():
    model = filled(lambda: cifar(conv=HET))
    weights = weights_of(model)
    msconv_jax.load_state_dict(model, weights)
    np.testing.assert_array_equal(
        model.layer2.convs[1].kernel[...], weights["features.7.gwc.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        model.layer2.convs[1].pointwise_kernel[0, 0, :, 0], weights["features.7.pwc.weight"][0, 4:, 0, 0]
    )
    np.testing.assert_array_equal(model.layer2.bns[0].var[...], weights["features.5.running_var"])
    np.testing.assert_array_equal(model.fc.last.kernel[...], weights["classifier.3.weight"].T)


def test_other_classes_keep_the_last_layer_only():
    weights = weights_of(nnx.eval_shape(lambda: small(num_classes=9)))
    model = filled(lambda: small(num_classes=4))
    before = np.asarray(model.fc.last.kernel[...])
    with pytest.raises(ValueError, match=r"wrong shape: classifier\.6\.weight is \(9, 7\), expected \(4, 7\)"):
        msconv_jax.load_state_dict(model, weights)
    msconv_jax.load_state_dict(model, weights, strict=False)
    np.testing.assert_array_equal(model.fc.last.kernel[...], before)
    np.testing.assert_array_equal(model.fc.hidden[1].kernel[...], weights["classifier.3.weight"].T)
    bare = filled(lambda: small(num_classes=0))
    msconv_jax.load_state_dict(bare, weights, strict=False)
    np.testing.assert_array_equal(bare.layer1.convs[0].bias[...], weights["features.0.bias"])
