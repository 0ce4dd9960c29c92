"""The ResNet as a whole: shapes, modes, gradients, types, initialisation, drop path, arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax.models import (
    CIFAR_STEM,
    BasicBlock,
    Bottleneck,
    Parts,
    ResidualBlock,
    ResNet,
    Stem,
    create_model,
)
from msconv_jax.operators import GroupedConv, PSConv

RESNEXT = {"groups": 2, "base_width": 32, "se_reduction": 4}


def quick_rngs():
    """Keys whose draws compile four times faster than the default ones."""
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


def small(**overrides):
    arguments = {"layers": (1, 1), "width": 8, "num_classes": 5, "stem": CIFAR_STEM, **overrides}
    return ResNet(rngs=quick_rngs(), **arguments)


def images(n=4, side=12, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, side, side, 3))


# One compilation for the whole network is quicker than one for each of its operations.
forward = nnx.jit(lambda model, x: model(x))
maps_of = nnx.jit(lambda model, x: model.feature_maps(x))


def leaves(model, kind):
    return {
        ".".join(map(str, path)): np.asarray(leaf.get_value())
        for path, leaf in nnx.to_flat_state(nnx.state(model, kind))
    }


def last_norms(model):
    """Path -> the last normalisation of every block."""
    blocks = {path: m for path, m in nnx.iter_modules(model) if isinstance(m, ResidualBlock)}
    return {
        (*path, name): getattr(block, name)
        for path, block in blocks.items()
        for name in ["bn3" if isinstance(block, Bottleneck) else "bn2"]
    }


@pytest.mark.parametrize("name", ["resnet50", "ps_resnet50", "resnext50_32x4d", "resnet18"])
def test_maps_at_224(name, abstract_shapes):
    maps, logits = abstract_shapes(name, 224, 224)
    assert [shape[1:3] for shape in maps] == [(112, 112), (56, 56), (28, 28), (14, 14), (7, 7)]
    expansion = 1 if name == "resnet18" else 4
    assert [shape[3] for shape in maps] == [64] + [64 * 2**s * expansion for s in range(4)]
    assert logits == (2, 1000)


def test_maps_of_the_cifar_networks(abstract_shapes):
    maps, logits = abstract_shapes("ps_resnext29_8x64d", 32, 32)
    assert [shape[1:] for shape in maps] == [(32, 32, 64), (32, 32, 256), (16, 16, 512), (8, 8, 1024)]
    assert logits == (2, 100)


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        lambda: create_model("resnet20", width=8, zero_init_last=False, rngs=quick_rngs()),
        lambda: create_model("ps_resnet8", width=8, zero_init_last=False, rngs=quick_rngs()),
        lambda: small(zero_init_last=False, **RESNEXT),
        lambda: small(zero_init_last=False, stem=Stem(7, 2, max_pool=True), layers=(1,)),
    ],
    ids=["resnet20", "ps_resnet8", "se_resnext", "imagenet_stem"],
)
def test_gradient_is_finite_and_reaches_every_parameter(build):
    graphdef, params, other_state = nnx.split(build(), nnx.Param, ...)

    @jax.jit
    def gradient(params, x):
        def loss(params):
            logits = nnx.merge(graphdef, params, other_state, copy=True)(x)
            return -jax.nn.log_softmax(logits)[:, 0].mean()

        return jax.value_and_grad(loss)(params)

    loss, gradients = gradient(params, images())
    assert np.isfinite(loss)
    for path, leaf in nnx.to_flat_state(gradients):
        value = np.asarray(leaf.get_value())
        assert np.isfinite(value).all(), path
        assert np.abs(value).max() > 0, path


def test_training_updates_the_statistics_and_evaluation_uses_them():
    model = small()
    before = leaves(model, nnx.BatchStat)
    forward(model, images())
    trained = leaves(model, nnx.BatchStat)
    assert all((before[path] != trained[path]).any() for path in before)
    model.eval()
    logits = forward(model, images())
    assert all((trained[path] == leaves(model, nnx.BatchStat)[path]).all() for path in trained)
    # In evaluation a sample's logits do not depend on its batch.
    np.testing.assert_allclose(forward(model, images()[:1]), logits[:1], rtol=1e-4, atol=1e-5)
    model.train()
    assert np.abs(np.asarray(forward(model, images()) - logits)).max() > 1e-3


def test_methods_compose():
    model = small()
    model.eval()
    x = images()
    maps = maps_of(model, x)
    logits = forward(model, x)
    features = nnx.jit(lambda model, x: model.forward_features(x))(model, x)
    np.testing.assert_allclose(features, maps[-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.forward_head(maps[-1]), logits, rtol=1e-4, atol=1e-5)
    pooled = np.asarray(maps[-1]).mean(axis=(1, 2))
    expected = pooled @ np.asarray(model.fc.kernel[...]) + np.asarray(model.fc.bias[...])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_zero_init_last(block):
    model = small(block=block, layers=(2, 1))
    last = last_norms(model)
    assert len(last) == 3
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            assert (np.asarray(module.scale[...]) == (0 if path in last else 1)).all(), path
    # A block that starts as its shortcut passes a positive map on unchanged.
    x = jnp.abs(jax.random.normal(jax.random.key(0), (2, 5, 5, 8 * block.expansion)))
    np.testing.assert_array_equal(model.layer1[1](x), x)
    ones = last_norms(small(block=block, layers=(2, 1), zero_init_last=False))
    assert all((np.asarray(module.scale[...]) == 1).all() for module in ones.values())


def test_initialisation():
    model = ResNet((1,), num_classes=200, rngs=quick_rngs())
    conv = model.layer1[0].conv2
    assert np.isclose(np.asarray(conv.kernel[...]).std(), (2 / (9 * 64)) ** 0.5, rtol=0.02)
    assert np.abs(np.asarray(conv.kernel[...])).max() > 3.5 * (2 / (9 * 64)) ** 0.5  # not truncated
    assert conv.bias is None
    bound = 256**-0.5
    for value in (model.fc.kernel[...], model.fc.bias[...]):
        assert np.abs(np.asarray(value)).max() <= bound
        assert np.isclose(np.asarray(value).std(), bound / 3**0.5, rtol=0.1)
    assert (model.bn1.epsilon, model.bn1.momentum) == (1e-5, 0.9)


class TestDropPath:
    def test_keeps_or_drops_whole_samples(self):
        block = BasicBlock(2, 2, parts=Parts(), name="b", drop_path_rate=0.25, rngs=quick_rngs())
        x, residual = jnp.ones((4000, 2, 2, 2)), jnp.ones((4000, 2, 2, 2))
        out = np.asarray(block.join(x, residual)).reshape(4000, -1)
        assert (out == out[:, :1]).all()
        assert set(np.round(np.unique(out), 4)) == {1.0, np.float32(np.round(1 + 1 / 0.75, 4))}
        dropped = (out[:, 0] == 1).mean()
        assert abs(dropped - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5

    def test_is_the_identity_in_evaluation(self):
        model, plain = small(drop_path_rate=0.9, layers=(1, 2)), small(layers=(1, 2))
        model.eval()
        plain.eval()
        nnx.update(model, nnx.state(plain, nnx.Param))
        np.testing.assert_allclose(forward(model, images()), forward(plain, images()), rtol=1e-5)

    def test_draws_anew_at_every_call(self):
        model = small(drop_path_rate=0.5, layers=(1, 3), zero_init_last=False)
        first, second = np.asarray(forward(model, images())), np.asarray(forward(model, images()))
        assert (first != second).any()

    def test_rate_grows_linearly_with_depth(self):
        model = small(layers=(2, 3), drop_path_rate=0.2)
        rates = [block.drop_path.rate for stage in (model.layer1, model.layer2) for block in stage]
        np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.15, 0.2])
        assert small(layers=(1,), drop_path_rate=0.2).layer1[0].drop_path.rate == 0

    def test_without_it_the_model_holds_no_random_state(self):
        assert not leaves(small(), nnx.RngState)
        assert jax.tree.leaves(nnx.state(small(drop_path_rate=0.1), nnx.RngState))


class TestTypes:
    def test_bfloat16_compute_with_float32_parameters(self):
        model, reference = (small(dtype=dtype, **RESNEXT) for dtype in (jnp.bfloat16, None))
        maps = maps_of(model, images())
        assert all(m.dtype == jnp.bfloat16 for m in maps)
        logits = forward(model, images())
        assert logits.dtype == jnp.float32
        kinds = nnx.state(model, nnx.Param, nnx.BatchStat)
        assert {str(leaf.dtype) for state in kinds for leaf in jax.tree.leaves(state)} == {"float32"}
        np.testing.assert_allclose(logits, forward(reference, images()), atol=0.05)

    def test_bfloat16_parameters(self):
        arguments = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, **RESNEXT}
        model = nnx.eval_shape(lambda: small(**arguments))
        for kind, dtype in ((nnx.Param, jnp.bfloat16), (nnx.BatchStat, jnp.float32)):
            assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, kind))} == {jnp.dtype(dtype)}

    def test_psconv_in_bfloat16(self):
        def run(x):
            model = create_model("ps_resnet8", width=8, dtype=jnp.bfloat16, rngs=quick_rngs())
            return model.forward_features(x)

        assert jax.eval_shape(run, images()).dtype == jnp.bfloat16


class TestArguments:
    def test_conv_of_each_stage(self):
        convs = (nnx.Conv, GroupedConv, PSConv)
        model = nnx.eval_shape(lambda: small(layers=(1, 1, 1), conv=convs))
        kinds = [type(stage[0].conv2) for stage in (model.layer1, model.layer2, model.layer3)]
        assert kinds == [nnx.Conv, GroupedConv, PSConv]

    def test_default_convolutions(self):
        assert type(small().layer1[0].conv2) is nnx.Conv
        model = small(**RESNEXT)
        assert type(model.layer1[0].conv2) is GroupedConv
        assert type(model.layer1[0].conv1) is nnx.Conv
        assert type(model.conv1) is nnx.Conv

    def test_strides_keep_a_stage_at_its_resolution(self):
        def run(x):
            return small(layers=(1, 1, 1), strides=(1, 2, 1)).feature_maps(x)

        assert [m.shape[1] for m in jax.eval_shape(run, images())] == [12, 12, 6, 6]
        model = nnx.eval_shape(lambda: small(layers=(1, 1, 1), strides=(1, 2, 1)))
        assert [f["reduction"] for f in model.feature_info] == [1, 1, 2, 2]

    def test_norm_and_activation(self):
        model = small(norm=nnx.LayerNorm, act=nnx.silu)
        assert isinstance(model.layer1[0].bn1, nnx.LayerNorm)
        assert (np.asarray(model.layer1[0].bn3.scale[...]) == 0).all()
        assert float(maps_of(model, images())[0].min()) < 0

    def test_layer_that_refuses_its_channels_is_named(self):
        with pytest.raises(ValueError, match=r"^layer1\.0\.conv1: .*"):
            create_model("ps_resnet8", width=6, rngs=quick_rngs())
        with pytest.raises(ValueError, match=r"^layer1\.0\.se: se_reduction=40"):
            small(se_reduction=40, block=BasicBlock)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_classes": -1}, r"num_classes=-1: must be an integer of at least 1; 0 leaves the classifier out"),
            ({"num_classes": 2.5}, r"num_classes=2\.5"),
            ({"width": -1}, r"width=-1: must be an integer"),
            ({"in_channels": 0}, r"in_channels=0"),
            ({"groups": 0}, r"groups=0"),
            ({"base_width": True}, r"base_width=True"),
            ({"layers": ()}, r"layers=\(\): .* as \(3, 4, 6, 3\)"),
            ({"layers": 3}, r"layers=3: .* as \(3, 4, 6, 3\)"),
            ({"layers": (1, 0)}, r"layers=0: .* at least one block"),
            ({"strides": (1,)}, r"strides=\(1,\): .* each of the 2 stages"),
            ({"strides": (1, 0)}, r"strides=0"),
            ({"drop_path_rate": 1.0}, r"drop_path_rate=1\.0: must be in \[0, 1\)"),
            ({"drop_path_rate": -0.1}, r"drop_path_rate=-0\.1"),
            ({"conv": (nnx.Conv,)}, r"conv=.*one for each of the 2 stages"),
            ({"conv": 3}, r"conv=3"),
        ],
    )
    def test_out_of_range(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            small(**arguments)

    @pytest.mark.parametrize("shape", [(2, 3, 12, 12), (12, 12, 3), (2, 12, 12, 1)])
    def test_images_of_another_shape(self, shape):
        with pytest.raises(ValueError, match=r"images of shape .*must be \(N, H, W, 3\).*NCHW"):
            small()(jnp.ones(shape))

    def test_stem_refuses_an_even_kernel(self):
        with pytest.raises(ValueError, match=r"kernel_size=4: must be odd"):
            Stem(4, 2, max_pool=False)
