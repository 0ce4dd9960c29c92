"""Multiply-accumulates equal published ones, and the command line prints them."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from msconv_jax import ACGraph, OctConv, PACConv
from msconv_jax import __main__ as program
from msconv_jax.counting import count_parameters, layer_macs
from msconv_jax.models import create_model, list_models, model_entry
from msconv_jax.operators import PACPool
from msconv_jax.segmentation import pyconv_segnet

# For convolutions and linear layers at 224 x 224, recorded from the public networks.
MACS = {
    "ps_resnet50": 4_089_184_256,
    "pyconv_resnet50": 3_820_441_600,
    "res2net50_26w_4s": 4_255_166_464,
    "oct_resnet50": 2_367_143_936,
    "res2net_dla60": 4_199_751_680,
}


def abstract(name):
    class OneKey:
        def params(self):
            return jax.random.key(0)

    return nnx.eval_shape(lambda: create_model(name, rngs=OneKey()))


@pytest.mark.parametrize("name", ["ps_resnet50", *(pytest.param(n, marks=pytest.mark.slow) for n in list(MACS)[1:])])
def test_macs_of_published_networks(name):
    assert sum(layer_macs(abstract(name)).values()) == MACS[name]


def test_the_model_is_left_as_it_is():
    model = abstract("ps_resnet8")
    before = nnx.graphdef(model)
    macs = layer_macs(model, (32, 32, 3))
    assert nnx.graphdef(model) == before
    assert next(iter(macs)) == "conv1"
    assert list(macs)[-1] == "fc"
    assert macs["fc"] == 640
    assert macs["layer2.0.conv1"] == 9 * 16 * 32 * 16 * 16
    assert count_parameters(model.fc) == 650


def test_list(capsys):
    program.main(["list", "ps_resnet*"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[2:]] == list_models("ps_resnet*")
    assert model_entry("ps_resnet50").paper in lines[-1] or any("2007.06191" in line for line in lines)
    assert len({len(line) for line in lines}) == 1


def test_summary(capsys):
    program.main(["summary", "ps_resnet8", "--size", "33"])
    text = capsys.readouterr().out
    assert text.startswith("ps_resnet8 at 33x33: ")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert list(rows) == ["part", "conv1", "bn1", "layer1", "layer2", "layer3", "fc", "all"]
    assert "9x9x64" in rows["layer3"]
    assert "650" in rows["fc"]
    assert f"{count_parameters(abstract('ps_resnet8')):,}" in rows["all"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["summary", "ps_resnet_50"], "did you mean ps_resnet50"),
        (["summary", "ps_resnet8", "--size", "0"], "--size 0: must be at least 1"),
        (["list", "nothing*"], "no registered network matches 'nothing*'"),
        ([], "required"),
    ],
)
def test_bad_arguments_end_the_program(arguments, message, capsys):
    with pytest.raises(SystemExit):
        program.main(arguments)
    assert message in capsys.readouterr().err


# --- layers of every kind, in a network ---

RNGS = nnx.Rngs(0)


class Guided(nnx.Module):
    """A network with two inputs, a signal and its guide."""

    def __init__(self):
        self.first = nnx.Conv(3, 4, (3, 3), rngs=RNGS)
        self.pac = PACConv(4, 5, (3, 3), rngs=RNGS)
        self.pool = PACPool((3, 3), 2)
        self.up = nnx.ConvTranspose(5, 2, (4, 4), strides=2, rngs=RNGS)

    def __call__(self, x, guide):
        y = self.pac(self.first(x), guide=guide)
        return self.up(self.pool(y, guide)), y


def test_a_network_of_two_inputs_with_a_guide():
    macs = layer_macs(Guided(), (8, 8, 3), (8, 8, 2))
    assert macs == {
        "first": 9 * 3 * 4 * 64,
        "pac": 64 * 9 * (4 * 5 + 4 + 2 + 1),
        "pool": 16 * 9 * (5 + 2 + 1),
        "up": 16 * 16 * 5 * 2,
    }
    batch = jax.ShapeDtypeStruct((3, 8, 8, 3), jnp.float32)
    assert layer_macs(Guided(), batch, jnp.ones((3, 8, 8, 2)))["pac"] == 3 * macs["pac"]


def test_a_layer_by_itself_and_a_linear_layer_on_maps_and_regions():
    linear = nnx.Linear(3, 5, rngs=RNGS)
    assert layer_macs(linear, (8, 8, 3)) == {"": 960}
    assert layer_macs(linear, (100, 3)) == {"": 1500}
    assert layer_macs(linear, (3,)) == {"": 15}
    assert layer_macs(OctConv(8, 8, (3, 3), alpha_in=0, alpha_out=1, rngs=RNGS), (8, 8, 8)) == {"": 9216}
    assert layer_macs(ACGraph(2, 3, rngs=RNGS), (5, 2), (5, 5), (5, 5)) == {"": 3 * 5 * 6 + 2 * 25 * 3}
    embedding = nnx.Embed(7, 4, rngs=RNGS)
    assert layer_macs(nnx.Sequential(embedding, linear_of(4)), jax.ShapeDtypeStruct((1, 6), jnp.int32)) == {
        "layers.1": 6 * 16
    }


@pytest.mark.parametrize("size", [5, "8x8", (8, 8.5, 3), None])
def test_bad_sizes(size):
    with pytest.raises(ValueError, match="expected a size such as"):
        layer_macs(nnx.Linear(3, 5, rngs=RNGS), size)


def linear_of(features):
    return nnx.Linear(features, features, rngs=RNGS)


class Calling(nnx.Module):
    """Calls layers by a function; has one layer with two names, and one that the function may skip."""

    def __init__(self, call):
        self.a, self.b = linear_of(4), linear_of(4)
        self.same = self.a
        self.norm = nnx.LayerNorm(4, rngs=RNGS)
        self.position = nnx.Param(jnp.ones((1, 4, 4)))
        self.call = call

    def __call__(self, x):
        return self.call(self, x)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda m, x: m.a(m.norm(x) + m.position), {"a": 1}),  # a layer without calls is missing
        (lambda m, x: m.a(m.a(x)), {"a": 2}),
        (lambda m, x: m.a(m.b(m.same(x))), {"a": 2, "b": 1}),
        (lambda m, x: jax.jit(lambda x: m.a(m.a(x)))(x), {"a": 2}),
        (lambda m, x: jax.lax.scan(lambda x, _: (m.a(x), None), x, None, length=5)[0], {"a": 5}),
        (lambda m, x: jax.vmap(jax.vmap(m.a))(x), {"a": 1}),
        (lambda m, x: nnx.remat(lambda a, x: a(x))(m.a, x), {"a": 1}),
    ],
)
def test_each_call_is_counted(call, expected):
    model = Calling(call)
    found = layer_macs(model, (4, 4))
    assert found == layer_macs(model, (4, 4))
    assert sum(found.values()) == sum(expected.values()) * 4 * 16
    assert {path.replace("same", "a"): count // 64 for path, count in found.items()} == expected


def test_a_network_that_gives_a_pair_in_training():
    model = nnx.eval_shape(lambda: pyconv_segnet("resnet18", zoom=1, num_classes=5, rngs=nnx.Rngs(0)))
    before = nnx.graphdef(model)
    parts = {path.split(".")[0] for path in layer_macs(model, (33, 33, 3))}
    assert parts == {"backbone", "head", "classifier"}  # in evaluation mode the auxiliary head is not called
    assert nnx.graphdef(model) == before


class Multiplying(nnx.Module):
    """A custom layer."""

    def __init__(self):
        self.kernel = nnx.List([nnx.Param(jnp.ones((4, 6)))])
        self.norm = nnx.BatchNorm(6, rngs=RNGS)

    def __call__(self, x):
        return self.norm(x @ self.kernel[0][...])


class Counted(Multiplying):
    def macs(self, input_shapes, output_shapes):
        return input_shapes[0][-1] * math.prod(output_shapes[0])


class Old(Multiplying):
    def macs(self, output_size):
        return 0


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Multiplying, r"layers\.1 cannot be counted: Multiplying has no macs\(input_shapes, output_shapes\)"),
        (Old, r"layers\.1 cannot be counted: Old\.macs\(output_size\) does not take"),
        (lambda: nnx.LoRA(4, 2, 4, rngs=RNGS), r"layers\.1 cannot be counted: LoRA multiplies"),
        (lambda: nnx.LoRA(4, 2, 4, base_module=linear_of(4), rngs=RNGS), r"layers\.1 .* LoRA multiplies"),
        (lambda: nnx.LoRALinear(4, 4, lora_rank=2, rngs=RNGS), r"layers\.1 .* LoRALinear multiplies"),
        (
            lambda: nnx.MultiHeadAttention(2, 4, decode=False, rngs=RNGS),
            r"layers\.1 cannot be counted: MultiHeadAttention multiplies",
        ),
    ],
)
def test_what_cannot_be_counted_is_an_error_that_names_it(layer, message):
    model = nnx.Sequential(linear_of(4), layer())
    before = nnx.graphdef(model)
    with pytest.raises(ValueError, match=message):
        layer_macs(model, (8, 4))
    assert nnx.graphdef(model) == before


def test_a_layer_of_your_own_is_counted_by_its_macs():
    assert layer_macs(nnx.Sequential(linear_of(4), Counted()), (8, 4)) == {"layers.0": 8 * 16, "layers.1": 8 * 24}


def test_recurrent_layers_are_counted_for_each_step():
    macs = layer_macs(nnx.RNN(nnx.SimpleCell(4, 6, rngs=RNGS)), (3, 4))
    assert macs == {"cell.dense_i": 3 * 24, "cell.dense_h": 3 * 36}
