import json
import re

import numpy as np
import pytest
from flax import nnx

import msconv_jax
from msconv_jax.models.registry import model_entry
from tests.train.helpers import ROOT, TINY_CONFIG, normalised, tiny
from train import evaluate
from train.config import update_config
from train.data import load_source
from train.engine.trained import load_weights, score
from train.errors import UserError
from train.tasks import task_kind
from train.tasks.network import create_network

CONFIG = f"--config={ROOT / 'configs/ps_resnet_digits.py'}"
SMALL = (
    CONFIG,
    "--config.model.name=resnet8",
    "--config.model.conv=",
    "--config.model.conv_kwargs={}",
    "--config.model.kwargs.width=4",
)


def torch_tensors(network):
    """The weights with PyTorch's names and layouts; the ResNet's attributes already have these names."""
    endings = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(network)):
        values = np.asarray(variable[...])
        if path[-1] == "kernel":
            values = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T
        places = [{"conv": "0", "bn": "1"}.get(part, str(part)) for part in path[:-1]]  # names inside a downsample
        tensors[".".join([*places, endings[path[-1]]])] = values
    return tensors


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    config = tiny({"model.name": "resnet8", "model.kwargs": {"width": 4}}, seed=5)
    path = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
    network = create_network(config, 10, 1)
    msconv_jax.write_safetensors(path, torch_tensors(network))
    return path, network


def line_of(capsys, *arguments):
    assert evaluate.main(["evaluate", *arguments]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_weights_of_a_file_are_evaluated_on_any_split(weights, capsys):
    path, network = weights
    line = line_of(capsys, *SMALL, f"--weights={path}", "--split=validation")
    source = load_source(tiny())
    network.eval()
    samples = list(source.splits["validation"])
    images = normalised(np.stack([sample.pixels for sample in samples]), source)
    logits = np.asarray(network(images))
    accuracy = (logits.argmax(axis=1) == [sample.label for sample in samples]).mean()
    assert line.startswith(f"resnet8 on 270 images of digits validation: accuracy {accuracy:.4f}, loss ")
    assert "on 364 images of digits test" in line_of(capsys, *SMALL, f"--weights={path}")


def test_weights_of_a_run_are_evaluated_with_its_config(finished_run, capsys):
    whole = line_of(capsys, f"--workdir={finished_run}")
    line = line_of(capsys, f"--config={TINY_CONFIG}", f"--weights={finished_run}")
    (accuracy,) = re.findall(r"test accuracy (\S+)", whole)
    assert f": accuracy {accuracy}," in line


def test_a_run_is_evaluated_on_any_split(finished_run, capsys):
    line = line_of(capsys, f"--workdir={finished_run}", "--split=validation")
    best = max(map(json.loads, (finished_run / "metrics.jsonl").read_text().splitlines()), key=accuracy_and_step)
    assert line.startswith(f"validation accuracy {best['validation_accuracy']:.4f}")
    assert line.endswith(f"(step {best['step']}, best of validation)")


def accuracy_and_step(record):
    return record["validation_accuracy"], record["step"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--workdir is missing"),
        ((CONFIG,), "--weights is missing"),
        ((CONFIG, "--weights=nowhere.pth"), "nowhere.pth: there is no such file"),
        ((CONFIG, f"--weights={ROOT / 'README.md'}"), "does not fit config.model.name='ps_resnet8'"),
        ((*SMALL, "--weights=FILE", "--split=tset"), "--split=tset: value should be one of <train|validation|test>"),
        ((*SMALL, "--config.model.kwargs.width=8", "--weights=FILE"), r"config.model.name='resnet8': (.|\n)*conv1"),
        (
            (*SMALL, "--weights=RUN"),
            r"is a run of config.model.name='tiny_for_tests' on 'digits', .* not those of config.model.name='resnet8'",
        ),
        (("--workdir=RUN", "more"), "unexpected argument 'more'"),
        (("--workdir=RUN", "--split=tset"), "--split=tset: value should be one of <train|validation|test>"),
        (("--workdir=RUN", "--weights=FILE"), "--weights goes with --config"),
        ((*SMALL, "--weights=FILE", "--workdir=RUN"), "--workdir and --config exclude one another"),
    ],
)
def test_what_cannot_be_evaluated(arguments, message, weights, finished_run):
    places = {"FILE": str(weights[0]), "RUN": str(finished_run)}
    arguments = [re.sub("FILE$|RUN$", lambda found: places[found[0]], argument) for argument in arguments]
    with pytest.raises(UserError, match=message):
        evaluate.main(["evaluate", *arguments])


def test_images_are_normalised_as_published_weights_ask_for(tmp_path):
    config = tiny(
        {"data": {"source": "miniature32", "augment": {}}, "model": {"name": "resnet8", "kwargs": {"width": 4}}},
        batch_size=20,
    )
    source = load_source(config)
    network = create_network(config, len(source.classes), 3)
    path = tmp_path / "resnet8.safetensors"
    msconv_jax.write_safetensors(path, torch_tensors(network))
    entry = model_entry("resnet8")
    assert entry.mean != source.mean
    network.eval()
    images = np.stack([sample.decoded(3).pixels for sample in source.splits["test"]])
    for changes, mean, std in (
        ({}, entry.mean, entry.std),
        ({"data.pixel_mean": [0.5] * 3, "data.pixel_std": [0.25] * 3}, (0.5,) * 3, (0.25,) * 3),
    ):
        trained = load_weights(update_config(config, changes), path, task_kind)
        logits = np.asarray(network(normalised(images, source._replace(mean=mean, std=std))))
        found = score(trained, "test").arrays()
        np.testing.assert_array_equal(found["predicted"], logits.argmax(axis=1))
