"""Res2Net's blocks and the DLA tree: against plain NumPy, and against the published networks' sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax.models import BasicBlock, ConvShortcut, Parts, ResNet
from msconv_jax.models.families.dla import Res2TreeBlock, Root, Tree
from msconv_jax.models.families.res2net import AveragePoolShortcut, Res2Bottleneck
from msconv_jax.operators import GroupedConv, PSConv
from msconv_jax.torch_weights import conversion_of, load_state_dict


def quick_rngs():
    """Keys whose draws compile four times faster than the default ones."""
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


class OneKey:
    """The same key for every parameter: shapes need no more."""

    def __init__(self):
        self._key = jax.random.key(0)

    def params(self):
        return self._key


forward = nnx.jit(lambda module, *inputs: module(*inputs))


def scramble(module):
    """Random parameters and statistics; variances stay positive. In evaluation mode."""
    rng = np.random.default_rng(0)
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    for path, variable in nnx.to_flat_state(state):
        value = rng.normal(size=variable.shape)
        variable[...] = jnp.asarray(np.abs(value) + 0.5 if path[-1] == "var" else value, variable.dtype)
    nnx.update(module, state)
    module.eval()
    return module


def image(*shape):
    return jax.random.normal(jax.random.key(1, impl="rbg"), shape)


def count(module):
    return sum(v.size for v in jax.tree.leaves(nnx.state(module, nnx.Param)))


# --- the reference ---


def conv(x, layer, stride=1, groups=1):
    kernel = np.asarray(layer.kernel[...], np.float64)
    k, per_input, per_output = kernel.shape[0], kernel.shape[2], kernel.shape[3] // groups
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    height, width = ((n - 1) // stride + 1 for n in x.shape[1:3])
    y = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i, j, row, column, group in np.ndindex(height, width, k, k, groups):
        outputs = slice(group * per_output, (group + 1) * per_output)
        inputs = padded[:, i * stride + row, j * stride + column, group * per_input : (group + 1) * per_input]
        y[:, i, j, outputs] += inputs @ kernel[row, column, :, outputs]
    return y


def norm(x, layer):
    scale, bias, mean, var = (np.asarray(getattr(layer, n)[...], np.float64) for n in ("scale", "bias", "mean", "var"))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def relu(x):
    return np.maximum(x, 0)


def average(x, size, stride, pad, count_zeros):
    """Over windows that start inside the image or its padding before; PyTorch's ceil mode without `count_zeros`."""
    x = np.asarray(x, np.float64)
    height, width = (-(-n // stride) for n in x.shape[1:3])
    y = np.zeros((x.shape[0], height, width, x.shape[-1]))
    for i, j in np.ndindex(height, width):
        rows, columns = (slice(max(n * stride - pad, 0), n * stride - pad + size) for n in (i, j))
        window = x[:, rows, columns]
        y[:, i, j] = window.sum((1, 2)) / (size * size if count_zeros else window.shape[1] * window.shape[2])
    return y


def residual_branch(x, block, stride, scale, groups, stage):
    y = relu(norm(conv(x, block.conv1), block.bn1))
    slices = np.split(y, scale, axis=-1)
    outputs = []
    for i in range(max(scale - 1, 1)):
        own = slices[i] if stage or i == 0 else slices[i] + outputs[-1]
        outputs.append(relu(norm(conv(own, block.conv2.convs[i], stride, groups), block.conv2.bns[i])))
    if scale > 1:
        outputs.append(average(slices[-1], 3, stride, 1, True) if stage else slices[-1])
    return norm(conv(np.concatenate(outputs, axis=-1), block.conv3), block.bn3)


# --- the bottleneck ---


@pytest.mark.parametrize("shape", [(2, 5, 7, 8), (1, 4, 6, 8)])
def test_stage_block_with_pooled_shortcut(shape):
    parts = Parts(groups=2, base_width=32, shortcut=AveragePoolShortcut)
    block = scramble(Res2Bottleneck(8, 4, 2, parts=parts, name="b", scale=3, rngs=quick_rngs()))
    assert block.conv2.kind == "stage"
    assert block.conv2.in_features == 3 * 4
    x = image(*shape)
    shortcut = norm(conv(average(x, 2, 2, 0, False), block.downsample.conv), block.downsample.bn)
    expected = relu(residual_branch(x, block, 2, 3, 2, stage=True) + shortcut)
    np.testing.assert_allclose(forward(block, x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("features", "scale"), [(16, 4), (8, 2), (8, 1)])
def test_blocks_of_stride_one(features, scale):
    parts = Parts(base_width=32)
    block = scramble(Res2Bottleneck(features, 4, parts=parts, name="b", scale=scale, rngs=quick_rngs()))
    stage = features != 16
    assert block.conv2.kind == ("stage" if stage else "normal")
    x = image(2, 4, 5, features)
    shortcut = norm(conv(x, block.downsample.conv), block.downsample.bn) if stage else np.asarray(x)
    expected = relu(residual_branch(x, block, 1, scale, 1, stage) + shortcut)
    np.testing.assert_allclose(forward(block, x), expected, rtol=1e-4, atol=1e-3)


def abstract(make):
    return nnx.eval_shape(make)


def test_the_parts_reach_the_slices():
    def norm_factory(features, **options):
        return nnx.BatchNorm(features, momentum=0.5, **options)

    parts = Parts(
        conv=functools.partial(PSConv, pattern=(1, 2)),
        norm=norm_factory,
        act=nnx.silu,
        base_width=32,
        se_reduction=4,
        dtype=jnp.bfloat16,
    )
    block = Res2Bottleneck(8, 8, parts=parts, name="b", rngs=quick_rngs())
    assert {type(conv) for conv in block.conv2.convs} == {PSConv}
    assert {(bn.momentum, bn.dtype) for bn in block.conv2.bns} == {(0.5, jnp.bfloat16)}
    assert (block.act, block.conv2.act) == (nnx.silu, nnx.silu)
    assert all(conv.bias is None for conv in block.conv2.convs)
    assert block.se.fc1.kernel.shape == (32, 8)
    with jax.numpy_dtype_promotion("standard"):  # Flax's BatchNorm needs it in half precision
        y = jax.eval_shape(lambda x: Res2Bottleneck(8, 8, parts=parts, name="b", rngs=OneKey())(x), image(1, 5, 5, 8))
    assert (y.shape, y.dtype) == ((1, 5, 5, 32), jnp.bfloat16)
    kinds = {
        groups: type(
            abstract(
                lambda g=groups: Res2Bottleneck(8, 64, parts=Parts(groups=g), name="b", rngs=OneKey())
            ).conv2.convs[0]
        )
        for groups in (1, 2)
    }
    assert kinds == {1: nnx.Conv, 2: GroupedConv}


def test_own_arguments_go_before_the_parts():
    block = abstract(
        lambda: Res2Bottleneck(
            64, 64, parts=Parts(base_width=64), name="b", base_width=4, groups=8, last_slice="conv", rngs=OneKey()
        )
    )
    assert [conv.kernel.shape for conv in block.conv2.convs] == [(3, 3, 4, 32)] * 4
    dilated = Res2Bottleneck(16, 4, parts=Parts(), name="b", kernel_dilation=2, last_slice="conv", rngs=quick_rngs())
    assert (dilated.conv2.kind, dilated.conv2.padding, dilated.conv2.kernel_dilation) == ("normal", 2, 2)
    assert forward(dilated, image(1, 5, 5, 16)).shape == (1, 5, 5, 16)
    stage = abstract(lambda: Res2Bottleneck(16, 4, parts=Parts(), name="b", kind="stage", rngs=OneKey()))
    assert (stage.conv2.kind, stage.downsample) == ("stage", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, r"^b: scale=0: must be an integer of at least 1; the paper uses 4"),
        ({"base_width": 8}, r"^b: planes=4, base_width=8: floor\(planes \* base_width / 64\) is 0"),
        ({"groups": 0}, r"^b: groups=0"),
        ({"strides": 2, "kind": "normal"}, r"^b\.conv2: strides=2 with kind='normal'.*kind='stage'"),
        ({"kind": "first"}, r"^b\.conv2: kind='first'"),
        ({"parts": Parts(se_reduction=32)}, r"^b\.se: se_reduction=32"),
    ],
    ids=lambda value: None if isinstance(value, str) else ", ".join(value),
)
def test_bottleneck_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        abstract(lambda: Res2Bottleneck(16, 4, **{"parts": Parts(), "name": "b", "rngs": OneKey(), **options}))


def test_pooled_shortcut_keeps_the_type_and_stride_one_does_not_pool():
    shortcut = AveragePoolShortcut(4, 8, 2, parts=Parts(dtype=jnp.bfloat16), name="s", rngs=quick_rngs())
    assert forward(shortcut, jnp.ones((1, 5, 5, 4), jnp.bfloat16)).dtype == jnp.bfloat16
    first = scramble(AveragePoolShortcut(4, 8, 1, parts=Parts(), name="s", rngs=quick_rngs()))
    x = image(1, 3, 3, 4)
    np.testing.assert_allclose(forward(first, x), norm(conv(x, first.conv), first.bn), rtol=1e-4, atol=1e-4)
    basic = BasicBlock(4, 8, 2, parts=Parts(shortcut=AveragePoolShortcut), name="b", rngs=quick_rngs())
    assert forward(basic, jnp.ones((1, 5, 5, 4))).shape == (1, 3, 3, 8)


# --- networks ---


@pytest.mark.parametrize(
    ("scale", "options", "parameters"),
    [
        (4, {"base_width": 26}, 25_699_120),
        (8, {"base_width": 14, "shortcut": AveragePoolShortcut}, 25_059_816),
        (4, {"base_width": 4, "groups": 8}, 24_671_464),
    ],
    ids=["26w_4s", "14w_8s", "res2next50"],
)
def test_resnet_builds_the_published_networks(scale, options, parameters):
    block = functools.partial(Res2Bottleneck, scale=scale)
    model = abstract(lambda: ResNet((3, 4, 6, 3), block=block, rngs=OneKey(), **options))
    assert count(model) == parameters
    kinds = [[b.conv2.kind for b in getattr(model, f"layer{stage}")] for stage in (1, 2, 3, 4)]
    assert kinds == [["stage"] + ["normal"] * (depth - 1) for depth in (3, 4, 6, 3)]
    names = set(conversion_of(model).shapes)
    pooled = "shortcut" in options
    for name in ("conv1.weight", "layer1.0.convs.0.weight", "layer4.2.bns.2.running_var", "layer3.5.conv3.weight"):
        assert name in names
    for name in (f"layer2.0.downsample.{0 + pooled}.weight", f"layer2.0.downsample.{1 + pooled}.running_mean"):
        assert name in names
    assert "layer1.0.bn2.weight" not in names


def test_networks_with_last_slices_convolved_have_the_papers_cifar_size():
    # Res2NeXt-29, 8c x 25w x 4s: three stages of three blocks, 10 classes; the published 33.8 M.
    def build(last_slice, classes):
        parts = Parts(groups=8, base_width=25)
        features, total = 64, 3 * 64 * 9 + 128
        for stage, planes in enumerate((64, 128, 256)):
            for index in range(3):
                block = abstract(
                    lambda f=features, p=planes, s=2 if stage and not index else 1: Res2Bottleneck(
                        f, p, s, parts=parts, name="b", last_slice=last_slice, rngs=OneKey()
                    )
                )
                total, features = total + count(block), 4 * planes
        return total + (features + 1) * classes

    assert round(build("conv", 10) / 1e6, 2) == 33.81
    assert round(build("pool", 100) / 1e6, 2) == 32.96


# --- the tree ---


def test_tree_of_one_level():
    tree = scramble(Tree(1, 6, 16, 2, level_root=True, parts=Parts(), name="t", rngs=quick_rngs()))
    assert (tree.tree1.conv2.kind, tree.tree2.conv2.kind) == ("stage", "normal")
    x = np.asarray(image(2, 4, 6, 6))
    bottom = x.reshape(2, 2, 2, 3, 2, 6).max(axis=(2, 4))
    shortcut = norm(conv(bottom, tree.project.conv), tree.project.bn)
    x1 = relu(residual_branch(x, tree.tree1, 2, 4, 1, stage=True) + shortcut)
    x2 = relu(residual_branch(x1, tree.tree2, 1, 4, 1, stage=False) + x1)
    joined = np.concatenate([x2, x1, bottom], axis=-1)
    expected = relu(norm(conv(joined, tree.root.conv), tree.root.bn))
    np.testing.assert_allclose(forward(tree, x), expected, rtol=1e-4, atol=1e-3)


class NameBlock(nnx.Module):
    """A block whose output is a list with its name."""

    def __init__(self, in_features, out_features, strides, *, parts, name, drop_path_rate, rngs):
        self.name = name

    def __call__(self, x, shortcut=None):
        return [self.name[2:].replace("tree", "")]


def test_deep_trees_pass_the_children_in_the_public_codes_order(monkeypatch):
    monkeypatch.setattr(Root, "__call__", lambda self, *maps: [f"[{'; '.join(m[0] for m in maps)}]"])
    tree = Tree(3, 4, 4, level_root=True, block=NameBlock, parts=Parts(), name="t", rngs=quick_rngs())
    assert tree.tree2.tree2.root.conv.in_features == 20
    # x2, x1, the input, the outer and the inner trees' outputs
    first = "[1.2.2; 1.2.1; [1.1.2; 1.1.1]]"
    second = "[2.1.2; 2.1.1]"
    assert tree(["x"]) == [f"[2.2.2; 2.2.1; x; {first}; {second}]"]


DLA60 = ((2, 1, 32, 128), (3, 2, 128, 256), (4, 3, 256, 512), (5, 1, 512, 1024))


@pytest.mark.parametrize(
    ("options", "parameters"),
    [({}, 21_145_544), ({"base_width": 4, "groups": 8}, 17_330_456)],
    ids=["res2net_dla60", "res2next_dla60"],
)
def test_trees_have_the_published_networks_sizes(options, parameters):
    block = functools.partial(Res2TreeBlock, **options)

    def build(number, levels, inputs, outputs):
        return Tree(
            levels, inputs, outputs, 2, level_root=number > 2, block=block, parts=Parts(), name="t", rngs=OneKey()
        )

    trees = {row[0]: abstract(lambda row=row: build(*row)) for row in DLA60}
    base = (3 * 49 * 16 + 32) + (16 * 9 * 16 + 32) + (16 * 9 * 32 + 64)
    assert base + sum(map(count, trees.values())) + 1024 * 1000 + 1000 == parameters
    assert trees[4].tree2.tree2.root.conv.in_features == 2304
    names = set(conversion_of(trees[4]).shapes)
    assert {
        "project.0.weight",
        "project.1.running_var",
        "tree2.tree2.root.conv.weight",
        "tree1.tree1.root.bn.bias",
    } <= names
    assert "tree1.tree2.tree1.convs.2.weight" in names


class PlainBlock(nnx.Module):
    """A convolution beside the shortcut."""

    def __init__(self, in_features, out_features, strides, *, parts, name, drop_path_rate, rngs):
        self.conv = parts.dense(name, in_features, out_features, 1, strides, rngs)

    def __call__(self, x, shortcut=None):
        return self.conv(x) + (x if shortcut is None else shortcut)


def test_project_of_a_deeper_tree_has_no_gradient_and_records_its_statistics():
    tree = Tree(2, 4, 8, 2, block=PlainBlock, parts=Parts(), name="t", rngs=quick_rngs())
    graphdef, parameters, statistics = nnx.split(tree, nnx.Param, ...)
    x = image(2, 4, 4, 4)

    @jax.jit
    def run(parameters, statistics):
        def loss(parameters):
            tree = nnx.merge(graphdef, parameters, statistics, copy=True)
            return (tree(x) ** 2).sum(), nnx.state(tree, nnx.BatchStat)

        return jax.grad(loss, has_aux=True)(parameters)

    gradient, after = run(parameters, statistics)
    assert float(jnp.abs(after["project"]["bn"]["mean"][...]).max()) > 0
    zero = {path[0] for path, leaf in nnx.to_flat_state(gradient) if not bool(jnp.any(leaf[...] != 0))}
    assert zero == {"project"}


def test_root_with_residual_and_drop_path():
    root = scramble(Root(12, 8, residual=True, parts=Parts(), name="r", rngs=quick_rngs()))
    a, b = image(1, 2, 2, 8), image(1, 2, 2, 4)
    expected = relu(norm(conv(np.concatenate([a, b], axis=-1), root.conv), root.bn) + np.asarray(a))
    np.testing.assert_allclose(forward(root, a, b), expected, rtol=1e-4, atol=1e-4)
    tree = abstract(
        lambda: Tree(
            2, 8, 8, root_residual=True, drop_path_rate=0.1, parts=Parts(se_reduction=2), name="t", rngs=nnx.Rngs(0)
        )
    )
    assert tree.project is None
    assert tree.tree2.root.residual
    assert tree.tree1.tree2.drop_path.rate == 0.1
    assert tree.tree1.tree1.se.fc1.kernel.shape == (8, 4)


def test_tree_refuses():
    for arguments, message in (
        ({"levels": 0}, "^t: levels=0"),
        ({"strides": 0}, "^t: strides=0"),
        ({"block": functools.partial(Res2TreeBlock, base_width=1)}, r"^t\.tree1: planes=8, base_width=1: .* / 128\)"),
    ):
        with pytest.raises(ValueError, match=message):
            abstract(
                lambda a=arguments: Tree(
                    **{"levels": 1, "in_features": 4, "out_features": 8, **a},
                    parts=Parts(),
                    name="t",
                    rngs=OneKey(),
                )
            )
    tree = Tree(1, 8, 8, 2, parts=Parts(), name="t", rngs=quick_rngs())
    assert tree(jnp.ones((1, 5, 4, 8))).shape == (1, 3, 2, 8)  # odd sizes keep the last row
    with pytest.raises(ValueError, match=r"shortcut of shape \(1, 4, 4, 8\) beside a branch of shape \(1, 2, 2, 8\)"):
        tree.tree1(jnp.ones((1, 4, 4, 8)))


def test_two_builds_are_equal():
    makes = (
        lambda: Res2Bottleneck(8, 4, 2, parts=Parts(shortcut=AveragePoolShortcut), name="b", rngs=OneKey()),
        lambda: Tree(2, 4, 8, 2, parts=Parts(), name="t", rngs=OneKey()),
    )
    for make in makes:
        first, second = (nnx.graphdef(abstract(make)) for _ in range(2))
        assert first == second
        assert hash(first) == hash(second)


def test_published_names_are_loaded():
    block = Res2Bottleneck(8, 4, 2, parts=Parts(), name="b", rngs=quick_rngs())
    assert type(block.downsample) is ConvShortcut
    rng = np.random.default_rng(0)
    state = {key: rng.normal(size=shape) for key, shape in conversion_of(block).shapes.items()}
    assert {key.split(".")[0] for key in state} == {"conv1", "bn1", "convs", "bns", "conv3", "bn3", "downsample"}
    load_state_dict(block, state)
    np.testing.assert_allclose(
        block.conv2.convs[1].kernel[...], state["convs.1.weight"].transpose(2, 3, 1, 0), rtol=1e-6
    )
    np.testing.assert_allclose(block.downsample.bn.var[...], state["downsample.1.running_var"], rtol=1e-6)
