"""Multiply-accumulates are the specifications', and the command line prints them."""

import jax
import pytest
from flax import nnx

from msconv_jax import __main__ as program
from msconv_jax.counting import count_parameters, layer_macs
from msconv_jax.models import create_model, list_models, model_entry

# Of convolutions and linear layers at 224 x 224, recorded from the public networks.
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
