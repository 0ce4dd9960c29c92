"""What every network promises beside logits: its head, its maps as a backbone, its convolutions by path."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import PSConv
from msconv_jax.models import (
    DLA,
    OctResNet,
    ResNet,
    create_model,
    list_ic_patterns,
    list_models,
    model_entry,
    published_ic_convs,
)
from msconv_jax.operators import ICConv

SMALL = {
    "ResNet": lambda **options: ResNet((1, 1), width=8, rngs=rngs(), **options),
    "OctResNet": lambda **options: OctResNet((1, 1), width=8, rngs=rngs(), **options),
    "DLA": lambda **options: DLA((1, 2), (4, 8, 16, 32), rngs=rngs(), **options),
}


def rngs():
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


def images(height=33, width=47):
    return jax.random.normal(jax.random.key(1), (2, height, width, 3))


@pytest.fixture(
    scope="module",
    params=["ResNet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("OctResNet", "DLA"))],
)
def build(request):
    return SMALL[request.param]


def test_without_a_classifier_come_pooled_features_or_the_map(build):
    model = build(num_classes=5)
    model.eval()
    x = images()
    last = model.forward_features(x)
    pooled = model.forward_head(last, pre_logits=True)
    np.testing.assert_allclose(pooled, last.mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert model(x).shape == (2, 5)
    assert model.num_features == last.shape[-1]

    bare = build(num_classes=0)
    bare.eval()
    assert bare(x).shape == (2, model.num_features)
    assert build(num_classes=0, global_pool="")(x).shape == last.shape
    assert not [path for path, _ in nnx.to_flat_state(nnx.state(bare)) if path[0] == "fc"]


def test_the_classifier_is_replaced(build):
    model = build(num_classes=5)
    x = images()
    model.eval()
    features = model.forward_features(x)
    model.reset_classifier(3, rngs=rngs())
    assert model(x).shape == (2, 3)
    np.testing.assert_array_equal(model.forward_features(x), features)
    model.reset_classifier(0, rngs=rngs())
    assert model(x).shape == (2, model.num_features)
    assert model.num_classes == 0


def test_bad_heads_are_refused(build):
    for options, message in (
        ({"num_classes": -1}, "num_classes=-1.*0 leaves the classifier out"),
        ({"num_classes": 1.5}, r"num_classes=1\.5"),
        ({"global_pool": "max"}, "global_pool='max': must be 'avg'"),
        ({"num_classes": 5, "global_pool": ""}, "needs pooled features; use num_classes=0"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**options)
    with pytest.raises(ValueError, match=r"images of shape \(2, 33, 47, 1\): must be \(N, H, W, 3\)"):
        build()(images()[..., :1])
    with pytest.raises(ValueError, match=r"drop_path_rate=1\.5"):
        build(drop_path_rate=1.5)


def test_training_reaches_every_parameter_with_a_finite_gradient(build):
    model = build(num_classes=5, zero_init_last=False, drop_path_rate=0.1)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        logits = nnx.merge(graphdef, params, rest, copy=True)(images())
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    gradients = nnx.to_flat_state(jax.jit(jax.grad(loss))(params))
    for path, leaf in gradients:
        value = np.asarray(leaf[...])
        assert np.isfinite(value).all(), path
        # Published weights have a projection whose map nothing reads: see Tree.
        assert value.any() or ("project" in path and isinstance(model, DLA)), path


def test_bfloat16(build):
    model = build(num_classes=5, dtype=jnp.bfloat16)
    model.eval()
    maps, logits = nnx.jit(lambda model, x: (model.feature_maps(x), model(x)))(model, images())
    assert {m.dtype for m in maps} == {jnp.dtype(jnp.bfloat16)}
    assert logits.dtype == jnp.float32
    assert bool(jnp.isfinite(logits).all())


@pytest.mark.parametrize("name", ["ps_resnet8", "oct_resnet26", pytest.param("res2net_dla60", marks=pytest.mark.slow)])
def test_backbones_give_the_maps_that_they_tell(name):
    def build(**options):
        return create_model(name, features_only=True, rngs=rngs(), **options)

    backbone = nnx.eval_shape(lambda: build(out_indices=(1, -1)))
    maps = nnx.eval_shape(lambda model, x: model(x), backbone, images(65, 97))
    told = [(2, -(-65 // f["reduction"]), -(-97 // f["reduction"]), f["num_chs"]) for f in backbone.feature_info]
    assert [m.shape for m in maps] == told
    assert backbone.model.fc is None
    everything = nnx.eval_shape(build)
    assert everything.out_indices == tuple(range(len(everything.model.feature_info)))
    assert everything.feature_info[1] == backbone.feature_info[0]


def test_bad_indices_are_refused():
    for wrong in ((4,), (-5,), (), (1.0,), 3, "12"):
        with pytest.raises(ValueError, match="must be indices of the 4 maps, integers from -4 to 3"):
            create_model("resnet8", features_only=True, out_indices=wrong, rngs=rngs())
    with pytest.raises(ValueError, match="without features_only=True"):
        create_model("resnet8", out_indices=(1,), rngs=rngs())


def test_bad_layouts_are_refused():
    for build, message in (
        (lambda: OctResNet(3, rngs=rngs()), "layers=3: must be the numbers of blocks of the stages"),
        (lambda: OctResNet((1, 0), rngs=rngs()), "layers=0: .* at least one block"),
        (lambda: OctResNet((1,), base_width=0, rngs=rngs()), "base_width=0"),
        (lambda: OctResNet((1, 1), alpha=1.5, rngs=rngs()), r"^layer1\.0\.conv1: alpha_out=1\.5: expected a share"),
        (lambda: DLA((1,), (4, 0, 8), rngs=rngs()), "channels=0"),
        (lambda: DLA((1,), (4,), rngs=rngs()), r"channels=\(4,\): must name 3, two more than levels has"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_octave_maps_are_the_feature_maps_apart():
    model = SMALL["OctResNet"](num_classes=5)
    model.eval()
    x = images()
    (high, low), last = model.octave_maps(x)
    joined = model.feature_maps(x)[1]
    np.testing.assert_array_equal(joined[..., : high.shape[-1]], high)
    np.testing.assert_array_equal(joined[:, ::2, ::2, high.shape[-1] :], low)
    np.testing.assert_array_equal(model.feature_maps(x)[2], last)


@pytest.mark.slow
def test_drop_path_drops_both_frequencies_of_a_sample():
    model = OctResNet((2, 1), width=8, num_classes=5, drop_path_rate=0.99, rngs=nnx.Rngs(0))
    block = model.layer1[1]
    x = jax.random.uniform(jax.random.key(0), (8, 8, 8, 16)), jax.random.uniform(jax.random.key(1), (8, 4, 4, 16))
    high, low = block(x)  # most samples lose their branch, and the positive input stays
    kept_high, kept_low = (
        np.asarray((after != before).any((1, 2, 3))) for after, before in zip((high, low), x, strict=True)
    )
    np.testing.assert_array_equal(kept_high, kept_low)
    assert 0 < kept_high.sum() < 8


def test_a_convolution_for_each_path():
    convs = {"layer1.0.conv1": nnx.Conv, "layer1.0.conv2": partial(PSConv, pattern=(1, 2))}
    options = {"width": 8, "layers": (1,), "rngs": rngs()}
    model = create_model("resnet8", conv=convs, **options)
    assert [type(model.layer1[0].conv1), type(model.layer1[0].conv2)] == [nnx.Conv, PSConv]
    with pytest.raises(ValueError, match=r"conv has no factory for layer1\.0\.conv2: it has layer1\.0\.conv1$"):
        create_model("resnet8", conv={"layer1.0.conv1": nnx.Conv}, **options)


def test_published_patterns_are_of_their_networks():
    assert len(list_ic_patterns()) == 6
    for name in list_ic_patterns():
        convs = published_ic_convs(name)
        layers = model_entry(name[: name.index("_k")]).config["layers"]
        paths = [f"layer{s + 1}.{n}.conv2" for s, depth in enumerate(layers) for n in range(depth)]
        assert list(convs) == paths
        for path, conv in convs.items():
            assert conv.func is ICConv
            filters = sum(count for *_, count in conv.keywords["pattern"])
            assert filters == 64 * 2 ** (int(path[5]) - 1)
    with pytest.raises(ValueError, match="no published pattern 'ic_resnet50': the names are ic_resnet101_k13_pose"):
        published_ic_convs("ic_resnet50")


def test_every_model_has_a_paper_and_its_data_sets_size():
    for name in list_models(task="classification"):
        entry = model_entry(name)
        assert "arXiv" in entry.paper or "JUSTC" in entry.paper
        assert entry.input_size in ((224, 224, 3), (32, 32, 3))
        wanted = {"num_classes", "in_channels", "dtype", "param_dtype", "global_pool"}
        assert wanted <= set(entry.keywords)
        residual = "vgg" not in name and "mobilenetv1" not in name
        assert ("drop_path_rate" in entry.keywords) == residual
