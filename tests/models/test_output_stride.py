"""Networks that dilate in place of striding: their maps' sizes, and that they see what the strided ones see."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import ACConv, DynamicPSConv, HetConv, ICConv, PSConv, PyConv, SISConv
from msconv_jax.models import BasicBlock, Bottleneck, ConvShortcut, Parts, ResNet, Stem, create_model
from msconv_jax.models.families.pyconv import MaxPoolShortcut
from msconv_jax.models.families.res2net import AveragePoolShortcut, Res2Bottleneck
from msconv_jax.models.stages import stage_grids


def rngs():
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


class OneKey:
    """The same key for every parameter: shapes need no more."""

    def __init__(self):
        self._key = jax.random.key(0)

    def params(self):
        return self._key


def shapes(model):
    return [(path, leaf.shape) for path, leaf in nnx.to_flat_state(nnx.state(model))]


SHALLOW = {"layers": (1, 1, 2, 1)}
FAMILIES = {
    "resnet18": {},
    "se_resnet50": SHALLOW,
    "ps_resnext50_32x4d": SHALLOW,
    "pyconv_resnet18": {},
    "pyconvhg_resnet50": SHALLOW,
    "ic_resnet50": {**SHALLOW, "patterns": "even"},  # the published ones are for all blocks
    "res2net50_v1b": SHALLOW,
    "res2next50": SHALLOW,
    "oct_resnet26": {},
}
QUICK = ("resnet18", "pyconv_resnet18", "pyconvhg_resnet50")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_maps_and_what_is_told_of_them(name):
    def build(**options):
        return create_model(name, features_only=True, rngs=OneKey(), **FAMILIES[name], **options)

    usual = shapes(nnx.eval_shape(build))
    images = jax.ShapeDtypeStruct((1, 97, 115, 3), jnp.float32)
    for output_stride, reductions in ((8, [2, 4, 8, 8, 8]), (16, [2, 4, 8, 16, 16])):
        model = nnx.eval_shape(lambda stride=output_stride: build(output_stride=stride))
        assert shapes(model) == usual  # one network's weights are the other's
        assert [f["reduction"] for f in model.feature_info] == reductions
        maps = nnx.eval_shape(lambda model, x: model(x), model, images)
        told = [(1, -(-97 // f["reduction"]), -(-115 // f["reduction"]), f["num_chs"]) for f in model.feature_info]
        assert [m.shape for m in maps] == told


def dilations(stage):
    return [conv.kernel_dilation for block in stage for conv in (getattr(block, "conv1", None), block.conv2) if conv]


def test_every_block_of_a_stage_is_dilated_by_what_the_stages_before_did_not_stride():
    def build(name, **options):
        return nnx.eval_shape(lambda: create_model(name, layers=(1, 2, 2, 2), rngs=OneKey(), **options))

    model = build("resnet18", output_stride=8)
    assert [dilations(stage) for stage in (model.layer2, model.layer3, model.layer4)] == [[1] * 4, [2] * 4, [4] * 4]
    pyconv = build("pyconv_resnet50", output_stride=8).layer3[0].conv2
    assert [tile.dilation for tile in pyconv.lattice.tiles] == [(2, 2)] * 5
    model = build("ps_resnet50", output_stride=16)
    assert set(model.layer4[0].conv2.lattice.dilations.ravel().tolist()) == {2, 4, 8}
    model = build("oct_resnet26", output_stride=8)
    assert [stage[1].conv2.conv.kernel_dilation for stage in (model.layer2, model.layer3, model.layer4)] == [1, 2, 4]
    model = build("resnet50", output_stride=32)
    assert model.layer4[0].conv2.kernel_dilation == 1


@pytest.mark.parametrize(
    ("rule", "output_stride", "third", "fourth"),
    [
        ("torchvision", 8, [1, 2, 2, 2, 2, 2], [2, 4, 4]),
        ("torchvision", 16, [1] * 6, [1, 2, 2]),
        ("torchvision", 32, [1] * 6, [1] * 3),
        ("all", 8, [2] * 6, [4] * 3),
        ("all", 16, [1] * 6, [2] * 3),
    ],
)
def test_the_rule_of_a_dilated_stages_first_block(rule, output_stride, third, fourth):
    model = nnx.eval_shape(
        lambda: create_model("resnet50", output_stride=output_stride, dilation_rule=rule, rngs=OneKey())
    )
    assert [block.conv2.kernel_dilation for block in model.layer3] == third
    assert [block.conv2.kernel_dilation for block in model.layer4] == fourth
    assert [block.conv2.padding for block in model.layer4] == fourth


def test_an_unknown_dilation_rule_is_refused():
    with pytest.raises(ValueError, match="dilation_rule='first': must be 'all'"):
        create_model("resnet50", dilation_rule="first", rngs=OneKey())


def test_networks_within_the_output_stride_are_not_changed():
    for name in ("resnet8", "resnet50"):
        usual, asked = (
            nnx.eval_shape(lambda name=name, o=options: create_model(name, rngs=OneKey(), **o))
            for options in ({}, {"output_stride": 8 if name == "resnet8" else 32})
        )
        assert nnx.graphdef(usual) == nnx.graphdef(asked)


CONVS = {
    "plain": None,
    "PSConv": PSConv,
    "HetConv": partial(HetConv, parts=2),
    "PyConv": partial(PyConv, kernel_sizes=(3, 5), groups=(1, 2)),
    "ICConv": tuple(partial(ICConv, pattern=((1, 2, 3), (2, 1, 4 * 2**stage - 3))) for stage in range(4)),
}


@pytest.mark.parametrize("conv", [c if c == "PyConv" else pytest.param(c, marks=pytest.mark.slow) for c in CONVS])
def test_a_dilated_stage_is_the_stage_on_every_second_pixel(conv):
    """Of the dilated maps every second or fourth pixel is what the same blocks, not dilated, make of such pixels."""
    common = {"layers": (1, 1, 2, 1), "width": 4, "num_classes": 0, "conv": CONVS[conv], "zero_init_last": False}
    dilated, plain = (
        nnx.eval_shape(lambda options=options: ResNet(**common, **options, rngs=OneKey()))
        for options in ({"output_stride": 8}, {"strides": (1, 2, 1, 1)})
    )
    random = np.random.default_rng(0)
    values = jax.tree.map(
        lambda leaf: (
            jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
            if len(leaf.shape) == 1
            else jnp.asarray(random.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape), leaf.dtype)
        ),
        nnx.state(dilated),
    )
    nnx.update(dilated, values)
    nnx.update(plain, values)
    dilated.eval()
    plain.eval()

    @nnx.jit
    def run(dilated, plain, x):
        maps = dilated.feature_maps(x)
        expected = []
        y = maps[2]
        for stage in (plain.layer3, plain.layer4):
            y = y[:, ::2, ::2]
            for block in stage:
                y = block(y)
            expected.append(y)
        return maps, expected

    maps, (third, fourth) = run(dilated, plain, jax.random.normal(jax.random.key(1), (1, 69, 90, 3)))
    assert [m.shape[1:3] for m in maps] == [(35, 45), (18, 23), (9, 12), (9, 12), (9, 12)]
    assert third.shape[1:3] == (5, 6)
    np.testing.assert_allclose(maps[3][:, ::2, ::2], third, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(maps[4][:, ::4, ::4], fourth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shortcut", [ConvShortcut, MaxPoolShortcut, AveragePoolShortcut])
def test_shortcuts_keep_their_windows(shortcut):
    strided, whole = (shortcut(3, 5, 2, parts=Parts(strided=taken), name="s", rngs=rngs()) for taken in (True, False))
    x = jax.random.normal(jax.random.key(1), (1, 9, 6, 3))
    strided.eval()
    whole.eval()
    y = whole(x)
    assert y.shape == (1, 9, 6, 5)
    np.testing.assert_allclose(y[:, ::2, ::2], strided(x), rtol=1e-5, atol=1e-6)


def test_what_a_stride_decides_stays():
    """A projection between equal channels, and Res2Net's first block."""
    kept = Parts(strided=False, dilation=2)
    block = nnx.eval_shape(lambda: BasicBlock(4, 4, 2, parts=kept, name="b", rngs=OneKey()))
    assert block.downsample is not None
    block = nnx.eval_shape(lambda: Res2Bottleneck(16, 4, 2, parts=kept, name="b", rngs=OneKey()))
    assert block.conv2.kind == "stage"
    assert {(conv.strides, conv.kernel_dilation, conv.padding) for conv in block.conv2.convs} == {(1, 2, 2)}
    x = jax.ShapeDtypeStruct((1, 9, 12, 16), jnp.float32)
    assert nnx.eval_shape(lambda block, x: block(x), block, x).shape == x.shape


@pytest.mark.parametrize(
    "conv",
    [
        ACConv,
        SISConv,
        DynamicPSConv,
        partial(HetConv, parts=2),
        partial(PSConv, official_compat=True),
        partial(ICConv, pattern=((1, 2, 3), (2, 1, 5))),
    ],
)
def test_every_operator_keeps_the_size(conv):
    parts = Parts(conv=conv, dilation=4, strided=False)
    block = nnx.eval_shape(lambda: Bottleneck(8, 8, 2, parts=parts, name="b", rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((1, 9, 12, 8), jnp.float32)
    assert nnx.eval_shape(lambda block, x: block(x), block, x).shape == (1, 9, 12, 32)


def test_strides_that_are_no_powers_of_two():
    assert [grid[:2] for grid in stage_grids((1, 3, 2), 4, 8)] == [(4, 1), (4, 3), (8, 3)]


def test_bad_output_strides_are_refused():
    for wrong in (4, 0, "8", None, 12):
        with pytest.raises(ValueError, match=r"output_stride=.*must be 8, 16 or 32"):
            create_model("resnet8", output_stride=wrong, rngs=OneKey())
    with pytest.raises(ValueError, match=r"output_stride=8: the stem alone has an output stride of 16; use a larger"):
        ResNet((1,), stem=Stem(7, 8, max_pool=True), output_stride=8, rngs=OneKey())
    with pytest.raises(TypeError, match="'res2net_dla60' has no argument 'output_stride'"):
        create_model("res2net_dla60", output_stride=8, rngs=OneKey())
