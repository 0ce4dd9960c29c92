from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import msconv_jax
from msconv_jax.surgery import Where, convolutions, replace_convs
from tests.foreign_resnet import ForeignResNet, filled

SPATIAL = [
    "stages.0.blocks.0.body.layers.0",
    "stages.0.blocks.0.body.layers.3",
    "stages.1.blocks.0.body.layers.0",
    "stages.1.blocks.0.body.layers.3",
    "stages.1.blocks.1.body.layers.0",
    "stages.1.blocks.1.body.layers.3",
]


def in_two_dilations(in_features, out_features, **arguments):
    half = out_features // 2
    return msconv_jax.ICConv(in_features, out_features, pattern=((1, 2, half), (2, 1, half)), **arguments)


FACTORIES = {
    "PSConv": msconv_jax.PSConv,
    "PyConv": partial(msconv_jax.PyConv, kernel_sizes=(3, 5), groups=(1, 4)),
    "ICConv": in_two_dilations,
    "HetConv": partial(msconv_jax.HetConv, parts=4),
}


@pytest.fixture(scope="module")
def foreign():
    return filled(lambda: ForeignResNet(rngs=nnx.Rngs(0)))


def arrays(model):
    state = nnx.state(model, nnx.Not(nnx.RngState))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def conv(*, features=(4, 4), size=(3, 3), **arguments):
    return nnx.Conv(*features, size, rngs=nnx.Rngs(0), **arguments)


@pytest.mark.parametrize(
    "name", ["PSConv", *(pytest.param(name, marks=pytest.mark.slow) for name in ("PyConv", "ICConv", "HetConv"))]
)
def test_a_foreign_network_is_turned_trained_saved_and_restored(name, foreign, tmp_path):
    before = arrays(foreign)
    model, report = replace_convs(foreign, FACTORIES[name])
    stem = ["stem"]  # 3 inputs and 5x5 taps
    assert sorted(entry.path for entry in report.replaced) == sorted((stem if name == "ICConv" else []) + SPATIAL)
    assert [entry.path for entry in report.kept] == ["stages.1.blocks.0.shortcut"]
    assert [entry.path for entry in report.skipped] == ([] if name == "ICConv" else stem)
    assert type(model.stages[1].blocks[1].body.layers[3]).__name__ == name
    assert model.stages[0].blocks[0].body.layers[2] is nnx.relu
    for path, value in arrays(foreign).items():
        np.testing.assert_array_equal(value, before[path])

    optimiser = nnx.Optimizer(model, optax.sgd(0.05, momentum=0.9), wrt=nnx.Param)
    images = jax.random.normal(jax.random.key(1), (8, 9, 9, 3))
    labels = jnp.arange(8) % 4

    @nnx.jit
    def step(model, optimiser):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimiser.update(model, gradients)
        return value

    losses = [float(step(model, optimiser)) for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]

    path = tmp_path.absolute() / "checkpoint"
    state = nnx.state(model, nnx.Not(nnx.RngState))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, nnx.to_pure_dict(state))
    shapes = nnx.eval_shape(lambda: replace_convs(ForeignResNet(rngs=nnx.Rngs(1)), FACTORIES[name])[0])
    abstract = nnx.to_pure_dict(nnx.state(shapes, nnx.Not(nnx.RngState)))
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(path, abstract)
    other = replace_convs(filled(lambda: ForeignResNet(rngs=nnx.Rngs(1)), seed=1), FACTORIES[name])[0]
    nnx.update(other, nnx.State(restored))
    model.eval()
    other.eval()
    np.testing.assert_array_equal(model(images), other(images))


def test_trained_kernels_are_carried_over(foreign):
    model, report = replace_convs(foreign, partial(msconv_jax.PSConv, pattern=(1, 1, 1, 1)))
    assert report.replaced[0].reason == "PSConv, kernel carried over"
    images = jax.random.normal(jax.random.key(0), (2, 9, 9, 3))
    foreign.eval()
    model.eval()
    # With all dilations 1 the operator equals the plain convolution.
    np.testing.assert_allclose(model(images), foreign(images), atol=1e-5)
    assert arrays(model).keys() == arrays(foreign).keys()


def test_kernels_are_initialised_where_asked_or_needed(foreign):
    fresh, report = replace_convs(foreign, msconv_jax.PSConv, carry_kernels=False, rngs=nnx.Rngs(3))
    assert report.replaced[0].reason == "PSConv, newly initialised"
    again, _ = replace_convs(foreign, msconv_jax.PSConv, carry_kernels=False, rngs=nnx.Rngs(3))
    path = f"{SPATIAL[0]}.kernel"
    assert not np.array_equal(arrays(fresh)[path], arrays(foreign)[path])
    np.testing.assert_array_equal(arrays(fresh)[path], arrays(again)[path])
    np.testing.assert_array_equal(arrays(fresh)["stem.kernel"], arrays(foreign)["stem.kernel"])
    with_bias, report = replace_convs(conv(features=(8, 8)), FACTORIES["PyConv"])
    assert report.replaced[0].reason == "PyConv, bias carried over, the rest newly initialised"
    assert len(with_bias.kernels) == 2


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Where(kernel_size=3), SPATIAL),
        (Where(kernel_size=(3, 3), path=("*blocks.1*",)), SPATIAL[4:]),
        (Where(kernel_size=5), ["stem"]),
        (Where(kernel_size=1), ["stages.1.blocks.0.shortcut"]),
        (Where(feature_group_count=1, path="stages.0.*"), SPATIAL[:2]),
        ("stages.1.*.layers.3", [SPATIAL[3], SPATIAL[5]]),
        (lambda path, module: module.strides == 2 and module.kernel_size == (3, 3), [SPATIAL[2]]),
        (Where(kernel_size=3, predicate=lambda path, module: module.out_features == 8), SPATIAL[:2]),
    ],
)
def test_where_selects(where, expected, foreign):
    shapes = nnx.eval_shape(lambda: ForeignResNet(rngs=nnx.Rngs(0)))
    model, report = replace_convs(shapes, msconv_jax.GroupedConv, where)
    assert sorted(entry.path for entry in report.replaced) == sorted(expected)
    assert len(report.kept) == 8 - len(expected)
    assert {entry.reason for entry in report.kept} == {"not selected"}
    replaced = [path for path, module in convolutions(model).items() if type(module) is msconv_jax.GroupedConv]
    assert sorted(replaced) == sorted(expected)


def test_groups_select_and_pass_on():
    model = nnx.Sequential(*(conv(features=(8, 8), feature_group_count=groups) for groups in (1, 2, 8)))
    new, report = replace_convs(model, msconv_jax.GroupedConv, Where(feature_group_count="depthwise"))
    assert [entry.path for entry in report.replaced] == ["layers.2"]
    assert (new.layers[2].feature_group_count, new.layers[2].kernel.shape) == (8, (3, 3, 1, 8))
    assert [e.path for e in replace_convs(model, msconv_jax.PSConv, Where(feature_group_count=2))[1].replaced] == [
        "layers.1"
    ]
    single = nnx.Sequential(conv(features=(1, 4)))
    with pytest.raises(ValueError, match="selects none of the model's 1 plain convolutions"):
        replace_convs(single, msconv_jax.PSConv, Where(feature_group_count="depthwise"))


@pytest.mark.parametrize(
    ("module", "factory", "reason"),
    [
        (conv(input_dilation=2), msconv_jax.PSConv, "input_dilation=2"),
        (conv(mask=jnp.ones((3, 3, 4, 4))), msconv_jax.PSConv, "mask"),
        (conv(features=(3, 4)), msconv_jax.PSConv, "in_features=3"),
        (conv(features=(6, 6)), partial(msconv_jax.HetConv, parts=4), "parts=4"),
        (conv(size=(4, 4)), msconv_jax.PSConv, "kernel_size"),
        (conv(features=(8, 8), size=(7, 7)), FACTORIES["PyConv"], "kernel_size=(7, 7)"),
        (conv(features=(8, 8), feature_group_count=4), msconv_jax.PSConv, "feature_group_count=4"),
        (conv(padding=0), partial(msconv_jax.PSConv, padding="SAME"), "gives outputs of shape"),
        (conv(), partial(msconv_jax.OctConv, alpha_in=0, alpha_out=0.5), "gives outputs of shape"),
        (conv(features=(4, 8)), msconv_jax.Res2Conv, "out_features"),
    ],
)
def test_what_an_operator_cannot_honour_stays_and_is_listed(module, factory, reason):
    model = nnx.Sequential(module, nnx.relu)
    new, report = replace_convs(model, factory)
    assert (report.replaced, report.kept) == ((), ())
    (entry,) = report.skipped
    assert entry.path == "layers.0"
    assert reason in entry.reason
    assert type(new.layers[0]) is nnx.Conv
    assert new.layers[0].padding == module.padding
    with pytest.raises(ValueError, match=r"cannot be replaced: layers\.0"):
        replace_convs(model, factory, strict=True)


def test_a_callable_need_not_know_what_the_model_has_not():
    def plain_only(
        in_features,
        out_features,
        kernel_size,
        *,
        strides,
        padding,
        kernel_dilation,
        feature_group_count,
        use_bias,
        dtype,
        param_dtype,
        precision,
        rngs,
    ):
        return msconv_jax.PSConv(
            in_features, out_features, kernel_size, strides, padding=padding, use_bias=use_bias, rngs=rngs
        )

    masked = conv(mask=jnp.ones((3, 3, 4, 4)))
    _, report = replace_convs(nnx.Sequential(conv(), masked), plain_only)
    assert [entry.path for entry in report.replaced] == ["layers.0"]
    assert report.skipped[0].reason == "the factory takes no 'mask', which this convolution has"


def test_a_partial_keeps_what_it_binds():
    factory = partial(partial(msconv_jax.PSConv, dtype=jnp.bfloat16), use_bias=False)
    new, report = replace_convs(conv(), factory)
    assert (new.dtype, new.bias) == (jnp.bfloat16, None)
    assert report.replaced[0].reason.endswith("without the bias")
    new, _ = replace_convs(conv(), partial(msconv_jax.PSConv, param_dtype=jnp.float16))
    assert new.kernel.dtype == new.bias.dtype == jnp.float16


@pytest.mark.parametrize(
    "arguments",
    [
        {"strides": 2},
        {"strides": (2, 1), "padding": "VALID"},
        {"padding": ((0, 3), (2, 1)), "kernel_dilation": 2},
        {"kernel_dilation": (1, 2), "use_bias": False},
        {"feature_group_count": 2, "padding": 2},
        {"dtype": jnp.bfloat16, "precision": "highest"},
        {"param_dtype": jnp.bfloat16},
    ],
)
def test_arguments_are_passed_on(arguments):
    old = conv(features=(8, 8), **arguments)
    promotion = "standard" if "param_dtype" in arguments else "strict"  # an nnx.Conv without a dtype needs it
    with jax.numpy_dtype_promotion(promotion):
        new, _ = replace_convs(old, partial(msconv_jax.PSConv, pattern=(1, 1)), strict=True)
    assert type(new) is msconv_jax.PSConv
    for name in ("strides", "padding", "kernel_dilation", "feature_group_count", "dtype", "param_dtype", "precision"):
        assert getattr(new, name) == getattr(old, name)
    x = jax.random.normal(jax.random.key(0), (2, 11, 12, 8))
    with jax.numpy_dtype_promotion(promotion):
        expected = old(x)
    np.testing.assert_allclose(new(x), expected, rtol=2e-2, atol=1e-2 if "dtype" in str(arguments) else 1e-5)


class Tangle(nnx.Module):
    """Containers of every kind, shared modules and parameters, and a cycle."""

    def __init__(self, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, 4, 4, (3, 3), rngs=rngs)
        self.zeroth = conv(kernel_metadata={"note": "kept", "axes": ("a", "b")})
        self.again = self.zeroth
        self.several = nnx.List([conv() for _ in range(12)])
        self.named = nnx.Dict(inner=conv())
        self.pair = nnx.data((conv(), {"deep": [conv()]}))
        self.tied = conv()
        self.tied.kernel = self.zeroth.kernel
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.child = nnx.Sequential(nnx.relu)
        self.child.parent = self


def test_sharing_containers_cycles_and_metadata_stay_intact():
    model = Tangle(nnx.Rngs(0))
    model.norm.mean[...] = jnp.arange(4.0)
    for carry in (True, False):
        new, report = replace_convs(model, msconv_jax.PSConv, carry_kernels=carry, rngs=nnx.Rngs(1))
        assert [entry.path for entry in report.replaced] == [
            "again",
            *(f"several.{n}" for n in range(12)),
            "named.inner",
            "pair.0",
            "pair.1.deep.0",
            "tied",
        ]
        assert {type(module) for module in convolutions(new).values()} == {msconv_jax.PSConv}
        assert new.again is new.zeroth
        assert new.tied.kernel is new.zeroth.kernel
        assert new.tied.bias is not new.zeroth.bias
        assert new.child.parent is new
        assert isinstance(new.pair, tuple)
        assert new.zeroth.kernel.get_metadata()["note"] == "kept"
        assert new.zeroth.kernel.get_metadata()["axes"] == ("a", "b")
        assert new.norm.mean[...].tolist() == [0, 1, 2, 3]
        assert np.array_equal(new.zeroth.kernel[...], model.zeroth.kernel[...]) == carry
    assert {type(module) for module in convolutions(model).values()} == {nnx.Conv}


def test_a_shared_convolution_is_found_by_any_of_its_names():
    model = Tangle(nnx.Rngs(0))
    for where in ("again", "zeroth"):
        new, report = replace_convs(model, msconv_jax.PSConv, where)
        assert [entry.path for entry in report.replaced] == ["again"]
        assert type(new.again) is msconv_jax.PSConv


class SharedBlock(nnx.Module):
    """A block under two names, in reverse alphabetical order."""

    def __init__(self):
        self.second = nnx.Sequential(conv(), nnx.relu)
        self.first = self.second


def test_a_shared_block_stays_shared():
    for where in (None, "first.*", "second.*"):
        new, report = replace_convs(SharedBlock(), msconv_jax.PSConv, where)
        assert [entry.path for entry in report.replaced] == ["first.layers.0"]
        assert new.first is new.second
        assert type(new.second.layers[0]) is msconv_jax.PSConv
    again, report = replace_convs(new, {"second.layers.0": msconv_jax.GroupedConv}, types=(msconv_jax.PSConv,))
    assert type(again.first.layers[0]) is msconv_jax.GroupedConv


def test_nothing_is_allocated_for_shapes():
    shapes = nnx.eval_shape(lambda: ForeignResNet(width=64, rngs=nnx.Rngs(0)))
    for factory in FACTORIES.values():
        new, report = replace_convs(shapes, factory)
        assert len(report.replaced) >= 6
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(new, nnx.Param)))
    inside = nnx.eval_shape(lambda: replace_convs(ForeignResNet(rngs=nnx.Rngs(0)), msconv_jax.PSConv)[0])
    assert isinstance(inside.stages[0].blocks[0].body.layers[0], msconv_jax.PSConv)


def test_stacked_kernels_stay():
    @nnx.vmap
    def stack(key):
        return nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(key))

    model = nnx.Sequential(stack(jax.random.split(jax.random.key(0), 3)))
    assert model.layers[0].kernel.shape == (3, 3, 3, 4, 4)
    new, report = replace_convs(model, msconv_jax.PSConv)
    assert "as nnx.vmap and nnx.scan stack it" in report.skipped[0].reason
    assert type(new.layers[0]) is nnx.Conv


def test_a_mapping_has_a_factory_for_each_path(foreign):
    factories = {SPATIAL[0]: msconv_jax.PSConv, SPATIAL[5]: FACTORIES["HetConv"]}
    model, report = replace_convs(foreign, factories)
    assert [entry.path for entry in report.replaced] == [SPATIAL[0], SPATIAL[5]]
    assert isinstance(model.stages[1].blocks[1].body.layers[3], msconv_jax.HetConv)
    with pytest.raises(ValueError, match=r"the path 'stages.9', where the model has no plain convolution"):
        replace_convs(foreign, {"stages.9": msconv_jax.PSConv})


class Standardised(nnx.Conv):
    """A custom convolution."""


def test_other_classes_are_kept_unless_named(foreign):
    model = nnx.Sequential(Standardised(4, 4, (3, 3), rngs=nnx.Rngs(0)), conv())
    new, report = replace_convs(model, msconv_jax.PSConv)
    assert report.kept[0].reason == "a Standardised, not a plain convolution"
    assert type(new.layers[0]) is Standardised
    new, _ = replace_convs(model, msconv_jax.PSConv, types=(Standardised,))
    assert [type(layer) for layer in new.layers] == [msconv_jax.PSConv, nnx.Conv]
    again, report = replace_convs(new, msconv_jax.PSConv)
    assert [entry.path for entry in report.replaced] == ["layers.1"]
    assert again.layers[0].kernel[...].shape == (3, 3, 4, 4)


def test_the_models_of_the_library_are_patients_too():
    shapes = nnx.eval_shape(lambda: msconv_jax.create_model("resnext50_32x4d", rngs=nnx.Rngs(0)))
    _, report = replace_convs(shapes, partial(msconv_jax.PSConv, layout="lattice"), Where(feature_group_count=32))
    assert len(report.replaced) == 16
    assert report.replaced[0].path == "layer1.0.conv2"


@pytest.mark.parametrize(
    ("factory", "where", "error", "message"),
    [
        (msconv_jax.PSConv, "layer*", ValueError, r"where='layer\*' selects none of the model's 8 plain convolutions"),
        (msconv_jax.PSConv, 3, ValueError, "where=3: expected a surgery.Where"),
        (msconv_jax.PyConv, None, TypeError, "factory cannot be called like nnx.Conv.*functools.partial"),
        (lambda i, o, **kw: jnp.ones(3), None, TypeError, "expected a Flax NNX module"),
    ],
)
def test_bad_arguments_are_refused(factory, where, error, message, foreign):
    with pytest.raises(error, match=message):
        replace_convs(foreign, factory, where)
