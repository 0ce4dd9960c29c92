import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import msconv_jax
from msconv_jax.models.registry import model_entry
from tests.train.helpers import ROOT, TINY_CONFIG, normalised, tiny
from train import evaluate
from train.data import load_source
from train.errors import UserError
from train.evaluate import Answers, result_line
from train.network import SplitModel, create_network

CONFIG = f"--config={ROOT / 'configs/ps_resnet_digits.py'}"
SMALL = (CONFIG, "--config.model=resnet8", "--config.conv=", "--config.conv_kwargs={}", "--config.model_kwargs.width=4")


def torch_tensors(network):
    """The weights under PyTorch's names and in its layouts; the ResNet's attributes have its names already."""
    endings = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(network)):
        values = np.asarray(variable[...])
        if path[-1] == "kernel":
            values = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T
        places = [{"conv": "0", "bn": "1"}.get(part, str(part)) for part in path[:-1]]  # of a downsample
        tensors[".".join([*places, endings[path[-1]]])] = values
    return tensors


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    config = tiny(model="resnet8", model_kwargs={"width": 4}, seed=5)
    path = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
    network = create_network(config, load_source(config))
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
    records = source.splits["validation"]
    images = normalised(np.stack([record["image"] for record in records]), source)
    logits = np.asarray(network(images))
    accuracy = (logits.argmax(axis=1) == [record["label"] for record in records]).mean()
    assert line.startswith(f"resnet8 on 270 images of digits validation: accuracy {accuracy:.4f}, loss ")
    assert "on 364 images of digits test" in line_of(capsys, *SMALL, f"--weights={path}")


def test_weights_of_a_run_are_evaluated_with_its_config(finished_run, capsys):
    whole = line_of(capsys, f"--workdir={finished_run}")
    line = line_of(capsys, f"--config={TINY_CONFIG}", f"--weights={finished_run}")
    (accuracy,) = re.findall(r"test accuracy (\S+)", whole)
    assert f": accuracy {accuracy}," in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--workdir is missing"),
        ((CONFIG,), "--weights is missing"),
        ((CONFIG, "--weights=nowhere.pth"), "nowhere.pth: there is no such file"),
        ((CONFIG, f"--weights={ROOT / 'README.md'}"), "does not fit config.model='ps_resnet8'"),
        ((*SMALL, "--weights=FILE", "--split=tset"), "--split=tset is not a split"),
        ((*SMALL, "--config.model_kwargs.width=8", "--weights=FILE"), r"config.model='resnet8': (.|\n)*conv1"),
        ((*SMALL, "--weights=RUN"), "is a run of config.model='tiny_for_tests' with 10 classes"),
        (("--workdir=RUN", "more"), "unexpected argument 'more'"),
    ],
)
def test_what_cannot_be_evaluated(arguments, message, weights, finished_run):
    places = {"FILE": str(weights[0]), "RUN": str(finished_run)}
    arguments = [re.sub("FILE$|RUN$", lambda found: places[found[0]], argument) for argument in arguments]
    with pytest.raises(UserError, match=message):
        evaluate.main(["evaluate", *arguments])


def test_answers_are_summed_up():
    answers = Answers(
        labels=np.array([0, 1, 2, 2]),
        predicted=np.array([0, 1, 0, 1]),
        losses=np.array([0.5, 0.5, 2.0, 3.0], np.float32),
        ranks=np.array([0, 0, 1, 2]),
    )
    assert (answers.accuracy, answers.top(2), answers.top(3), answers.loss) == (0.5, 0.75, 1.0, 1.5)


def test_top_5_is_told_where_it_says_something():
    result = {"test_accuracy": 0.5, "test_loss": 1.0, "step": 7}
    assert result_line(result) == "test accuracy 0.5000 (step 7, best of validation)"
    assert result_line({**result, "test_top5_accuracy": 0.875}) == (
        "test accuracy 0.5000, top-5 0.8750 (step 7, best of validation)"
    )


def test_images_are_normalised_as_published_weights_ask_for(tmp_path):
    config = tiny(source="miniature32", model="resnet8", model_kwargs={"width": 4}, augment={}, batch_size=20)
    source = load_source(config)
    network = create_network(config, source)
    path = tmp_path / "resnet8.safetensors"
    msconv_jax.write_safetensors(path, torch_tensors(network))
    entry = model_entry("resnet8")
    assert entry.mean != source.mean
    network.eval()
    images = np.stack([record["image"] for record in source.splits["test"]])
    for changes, mean, std in (
        ({}, entry.mean, entry.std),
        ({"pixel_mean": [0.5] * 3, "pixel_std": [0.25] * 3}, (0.5,) * 3, (0.25,) * 3),
    ):
        trained = evaluate.load_weights(dataclasses.replace(config, **changes), path)
        logits = np.asarray(network(normalised(images, source._replace(mean=mean, std=std))))
        answers = evaluate.evaluate(trained, "test")
        np.testing.assert_array_equal(answers.predicted, logits.argmax(axis=1))


def test_networks_of_blue_green_red_get_it():
    model = SplitModel(None, {}, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), is_bgr=True)
    image = np.array([[[255, 0, 51]]], np.uint8)
    np.testing.assert_allclose(model.normalised(jnp.asarray(image)), [[[0.2 - 0.1, 0 - 0.2, 1 - 0.3]]], atol=1e-6)
