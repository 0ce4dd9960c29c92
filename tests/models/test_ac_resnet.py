"""AC-ResNet: against the released networks' arithmetic in plain NumPy, from arrays under their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import load_state_dict
from msconv_jax.counting import layer_macs
from msconv_jax.folding import Folded, fold_batch_norm
from msconv_jax.models import ACResNet, create_model
from msconv_jax.torch_weights import conversion_of
from tests.models.conftest import OneKey

STATISTICS = ("gamma", "beta", "mean/EMA", "variance/EMA")
SIZE = (18, 20)  # 9 x 10 behind the stem, 5 x 5 behind the pooling, 3 x 3 in the second stage


def small(kind="dataset", **options):
    mix = {"dataset": "position", "pixel": "scalar"}[kind]
    arguments = {"kind": kind, "mix": mix, "input_size": SIZE, "width": 4, "num_classes": 3, **options}
    return nnx.eval_shape(lambda: ACResNet((2, 1), rngs=OneKey(), **arguments))


def published(model):
    """Random arrays under the published names."""
    random = np.random.default_rng(0)
    state = {}
    for name, shape in conversion_of(model).shapes.items():
        value = random.normal(0, 0.5, shape)
        state[name] = (np.abs(value) + 0.5 if "variance" in name else value).astype(np.float32)
    return state


def loaded(model, state):
    nnx.update(model, jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), nnx.state(model)))
    load_state_dict(model, state)
    model.eval()
    return model


# --- the released networks in NumPy ---


def same(x, size, stride, value=0.0):
    """TensorFlow's SAME: what is missing for ceil(n / stride) windows, the smaller half before."""
    pads = []
    for n in x.shape[1:3]:
        total = max((-(-n // stride) - 1) * stride + size - n, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=value)


def windows(x, size, stride):
    views = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    return views[:, ::stride, ::stride]


def conv(x, kernel, stride=1):
    return np.einsum("nijcab,abcd->nijd", windows(same(x, kernel.shape[0], stride), kernel.shape[0], stride), kernel)


def norm(x, state, name):
    gamma, beta, mean, variance = (state[f"{name}/bn/{part}"].astype(np.float64) for part in STATISTICS)
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def relu(x):
    return np.maximum(x, 0)


def dense(x, state, name):
    return x @ state[f"{name}/W"] + state[f"{name}/b"]


def dataset_aware(x, state, name, stride):
    logits = state[f"{name}/conv2/PPP"][:, 0, :, :, None]
    mix = np.exp(logits) / np.exp(logits).sum(0)
    hidden = relu(dense(x.mean((1, 2)), state, f"{name}/conv2/fc1"))
    whole = dense(hidden, state, f"{name}/conv2/fc3")[:, None, None]
    local, point = (conv(x, state[f"{name}/conv2/{part}/W"], stride) for part in ("z3", "z1"))
    return relu(norm(mix[0] * local + mix[1] * point + mix[2] * whole, state, f"{name}/conv2/sum"))


def pixel_aware(x, state, name, stride):
    local = conv(x, state[f"{name}/conv2/W"], stride)
    hidden = relu(dense(x.mean((1, 2)), state, f"{name}/fc1"))
    whole = np.broadcast_to(dense(hidden, state, f"{name}/fc2")[:, None, None], local.shape)
    gate = relu(conv(np.concatenate([local, whole], axis=-1), state[f"{name}/conv_c1/W"]))
    gate = 1 / (1 + np.exp(-conv(gate, state[f"{name}/conv_c2/W"])))
    return relu(norm(local + whole * gate, state, f"{name}/conv2"))


def network(x, state, kind):
    x = relu(norm(conv(x.astype(np.float64), state["conv0/W"], 2), state, "conv0"))
    x = windows(same(x, 3, 2, -np.inf), 3, 2).max((-1, -2))
    for name, stride in (("group0/block0", 1), ("group0/block1", 1), ("group1/block0", 2)):
        y = relu(norm(conv(x, state[f"{name}/conv1/W"]), state, f"{name}/conv1"))
        y = {"dataset": dataset_aware, "pixel": pixel_aware}[kind](y, state, name, stride)
        y = norm(conv(y, state[f"{name}/conv3/W"]), state, f"{name}/conv3")
        if f"{name}/convshortcut/W" in state:
            x = norm(conv(x, state[f"{name}/convshortcut/W"], stride), state, f"{name}/convshortcut")
        x = relu(x + y)
    return dense(x.mean((1, 2)), state, "linear")


@pytest.mark.optimised
@pytest.mark.parametrize("kind", ["dataset", pytest.param("pixel", marks=pytest.mark.slow)])
def test_published_arrays_give_the_released_networks_logits(kind):
    model = small(kind)
    state = published(model)
    loaded(model, state)
    x = np.random.default_rng(1).normal(size=(2, *SIZE, 3)).astype(np.float32)
    expected = network(x, state, kind)
    run = nnx.jit(lambda model, x: model(x))
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * np.abs(expected).max()}
    np.testing.assert_allclose(run(model, x), expected, **tolerance)
    folded = fold_batch_norm(model)
    np.testing.assert_allclose(run(folded, x), expected, **tolerance)
    left = [path for path, module in nnx.iter_modules(folded) if isinstance(module, nnx.BatchNorm)]
    second = [("layer1", 0, "bn2"), ("layer1", 1, "bn2"), ("layer2", 0, "bn2")]
    assert sorted(left) == (second if kind == "pixel" else [])
    assert type(folded.layer1[0].bn1) is Folded


# --- names ---


@pytest.mark.parametrize("kind", ["dataset", "pixel"])
def test_names_are_those_of_the_released_files(kind, abstract_model):
    shapes = dict(conversion_of(abstract_model({"dataset": "ac_resnet50", "pixel": "ac_pixel_resnet50"}[kind])).shapes)
    layers = {
        "dataset": ("conv2/z3/W", "conv2/z1/W", *(f"conv2/{fc}/{part}" for fc in ("fc1", "fc3") for part in "Wb")),
        "pixel": ("conv2/W", "conv_c1/W", "conv_c2/W", *(f"{fc}/{part}" for fc in ("fc1", "fc2") for part in "Wb")),
    }[kind]
    expected = {"conv0/W", "linear/W", "linear/b"} | {f"conv0/bn/{part}" for part in STATISTICS}
    for group, depth in enumerate((3, 4, 6, 3)):
        for number in range(depth):
            block = f"group{group}/block{number}"
            convs = ["conv1", "conv3"] + ["convshortcut"] * (number == 0)
            expected |= {f"{block}/{name}" for name in (*layers, *(f"{part}/W" for part in convs))}
            norms = [*convs, "conv2/sum" if kind == "dataset" else "conv2"]
            expected |= {f"{block}/{part}/bn/{value}" for part in norms for value in STATISTICS}
            if kind == "dataset":
                side = 56 // 2**group
                assert shapes[f"{block}/conv2/PPP"] == (3, 1, side, side)
                expected.add(f"{block}/conv2/PPP")
    assert set(shapes) == expected
    assert shapes["conv0/W"] == (7, 7, 3, 64)
    assert shapes["group3/block0/convshortcut/W"] == (1, 1, 1024, 2048)
    assert shapes["linear/W"] == (2048, 1000)


def test_every_array_is_loaded_and_all_mismatches_are_told():
    model = small()
    state = published(model)
    loaded(model, state)
    values = conversion_of(model).convert(state)
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        np.testing.assert_array_equal(variable[...], values.pop(".".join(map(str, path))))
    assert not values
    logits = np.asarray(model.layer2[0].conv2.mix_logits[...])
    np.testing.assert_array_equal(logits[..., 0], state["group1/block0/conv2/PPP"][:, 0])

    wrong = {**state, "group0/block1/conv2/PPP": np.ones((3, 1, 7, 7)), "global_step": np.array(5)}
    del wrong["conv0/bn/mean/EMA"]
    with pytest.raises(ValueError, match="the weights do not fit ACResNet") as caught:
        load_state_dict(model, wrong)
    for problem in (
        "3 problems",
        "missing: conv0/bn/mean/EMA (4,)",
        "unexpected: global_step ()",
        "wrong shape: group0/block1/conv2/PPP is (3, 1, 7, 7), expected (3, 1, 5, 5)",
    ):
        assert problem in str(caught.value)

    state |= {"global_step": np.array(5), "linear/W": np.zeros((32, 9)), "linear/b": np.zeros(9)}
    before = np.asarray(model.fc.bias[...])
    load_state_dict(model, state, strict=False)  # a classifier of other classes is kept
    np.testing.assert_array_equal(model.fc.bias[...], before)


@pytest.mark.parametrize(("mix", "shape"), [("scalar", (3, 1, 1, 1)), ("channel", (3, 4, 1, 1))])
def test_other_mixes_have_logits_too(mix, shape):
    model = small(mix=mix)
    conversion = conversion_of(model)
    assert conversion.shapes["group0/block0/conv2/PPP"] == shape
    values = conversion.convert(published(model))
    assert values["layer1.0.conv2.mix_logits"].shape == model.layer1[0].conv2.mix_logits.shape


# --- sizes ---


def test_macs_are_the_specifications(abstract_model):
    plain = 4_089_184_256  # ResNet-50's
    sides = [(64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3)]
    for name, per_pixel in (("ac_resnet50", 1), ("ac_pixel_resnet50", 3)):
        more = sum(depth * (per_pixel * c * c * side * side + 2 * c * c) for c, side, depth in sides)
        assert sum(layer_macs(abstract_model(name)).values()) == plain + more


def test_images_of_another_size_are_refused_where_weights_are_by_position():
    def run(size, **options):
        model = small(**options)
        return nnx.eval_shape(lambda model, x: model(x), model, jnp.zeros((1, *size, 3))).shape

    assert run(SIZE) == (1, 3)
    assert run((17, 19)) == (1, 3)  # gives maps of the same sizes
    message = (
        r"images of shape \(1, 24, 20, 3\): .* maps of 18 x 20 images; build it with input_size=\(24, 20\), "
        "or with mix='scalar'"
    )
    with pytest.raises(ValueError, match=message):
        run((24, 20))
    assert run((24, 20), input_size=(24, 20)) == run((24, 20), mix="scalar") == (1, 3)
    other = nnx.eval_shape(lambda: create_model("ac_resnet50", layers=(1,), input_size=(65, 97), rngs=OneKey()))
    assert other.layer1[0].conv2.spatial_shape == (17, 25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 224}, r"input_size=224: must be the images' height and width, such as \(224, 224\)"),
        ({"input_size": (224, 0)}, "input_size=0: .*height and width"),
        ({"input_size": (224, 224, 3)}, r"input_size=\(224, 224, 3\)"),
        ({"kind": "global"}, r"^layer1\.0\.conv2: kind='global'"),
        ({"kind": "pixel"}, r"^layer1\.0\.conv2: mix='position'.* with kind='pixel'"),
        ({"padding": "SAME"}, "padding='SAME': must be 'torch' .* or 'tf'"),
        ({"drop_path_rate": 2}, "drop_path_rate=2"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: ACResNet((1,), width=4, rngs=OneKey(), **options))


# --- TensorFlow's padding in other networks ---


@pytest.mark.parametrize("name", ["resnet18", "res2net50_v1b", pytest.param("pyconv_resnet50", marks=pytest.mark.slow)])
def test_both_paddings_give_maps_of_the_same_sizes(name):
    def maps(padding, size):
        model = nnx.eval_shape(
            lambda: create_model(name, layers=(1,) * (4 if "py" in name else 2), padding=padding, rngs=OneKey())
        )
        return [m.shape for m in nnx.eval_shape(lambda m, x: m.feature_maps(x), model, jnp.zeros((1, *size, 3)))]

    for size in ((64, 64), (65, 97)):
        assert maps("torch", size) == maps("tf", size)
