"""The engine trains a task that is defined only in this file."""

import json
import os
import signal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.train.helpers import tiny
from train.engine import loop
from train.engine.checkpoint import intact_checkpoints
from train.engine.loop import train
from train.engine.results import read_arrays
from train.engine.trained import load_best, load_data
from train.task import Metric, Pixels, Section


class Errors:
    """Collects the absolute errors."""

    def __init__(self):
        self._rows = []

    def add(self, rows):
        self._rows.append(rows["error"])

    def result(self):
        return {"error": float(np.concatenate(self._rows).mean(dtype=np.float64))}

    def arrays(self):
        return {"errors": np.concatenate(self._rows)}

    def sections(self):
        yield Section("Largest error", columns=("error",), rows=[(float(self.arrays()["errors"].max()),)])


class OneLayer(nnx.Module):
    """A dense layer on pixels, with one output."""

    def __init__(self, rngs):
        self.head = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, images):
        return self.head(images.reshape(len(images), -1))[:, 0]


class Brightness:
    """A task that predicts the mean of an image; reports the error of every test image."""

    needs = frozenset()
    best = Metric("error", larger_is_better=False)
    terms = ("loss",)

    def __init__(self, config, source):
        self.config, self.source = config, source
        self.names, self.pixels = ("brightness",), Pixels(source.mean, source.std)

    @staticmethod
    def line(result):
        return f"error {result['error']:.4f}"

    def create(self):
        return OneLayer(nnx.Rngs(self.config.seed))

    def transform(self, *, training):
        def row(sample, rng):
            return {"image": sample.decoded(1).pixels, "brightness": np.float32(sample.pixels.mean() / 255)}

        return row

    def evaluator(self, split):
        return Errors()

    def samples(self):
        return {"first": self.source.splits["validation"][0].pixels}

    def targets(self, batch, key):
        weight = jnp.full(len(batch["image"]), 1 / len(batch["image"]))
        return {**batch, "image": self.pixels.normalized(batch["image"]), "weight": weight}

    def loss(self, network, batch, key):
        squares = jnp.square(network(batch["image"]) - batch["brightness"])
        return jnp.sum(squares * batch["weight"]), {"loss": (jnp.sum(squares), jnp.float32(len(squares)))}

    def score(self, network, batch):
        return {"error": jnp.abs(network(self.pixels.normalized(batch["image"])) - batch["brightness"])}

    def predict(self, network, images):
        return {"brightness": network(self.pixels.normalized(images))}

    def scores_images(self, split):
        return split == "test"

    def predict_image(self, predict, image):
        return {"brightness": predict(image[None])["brightness"][0]}

    def score_image(self, sample, prediction):
        return {"error": np.abs(prediction["brightness"] - sample.pixels.mean() / 255)[None]}

    def show(self, image, prediction, limit):
        return f"brightness {prediction['brightness']:.3f}", None


CONFIG = tiny({"data.augment": {}, "optimizer.learning_rate": 0.003, "optimizer.weight_decay": 0.0})


def stopping_at(number, create_train_step):
    """Interrupts the process before step `number`."""

    def create(*arguments):
        train_step, calls = create_train_step(*arguments), []

        def step(state, batch):
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGINT)
            return train_step(state, batch)

        return step

    return create


def test_a_task_of_its_own_trains_goes_on_and_reports(tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(CONFIG, Brightness, whole, command="again") == 0
    with monkeypatch.context() as patch:
        patch.setattr(loop, "create_train_step", stopping_at(7, loop.create_train_step))
        assert train(CONFIG, Brightness, stopped, command="again") == 128 + signal.SIGINT
    assert train(CONFIG, Brightness, stopped, command="again") == 0
    assert "going on from the checkpoint of step 7 of 10" in capsys.readouterr().out
    for name in ("metrics.jsonl", "result.json"):
        assert (stopped / name).read_text() == (whole / name).read_text()

    # The best checkpoint has the smallest error, and no record has a name from another task.
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert set(records[0]) == {"step", "epoch", "learning_rate", "train_loss", "validation_error"}
    assert records[1]["train_loss"] < records[0]["train_loss"]
    first, second = (record["validation_error"] for record in records)
    assert first != second
    best = load_best(whole, lambda _: Brightness, load_data(whole, lambda _: Brightness))
    assert best.step == (5 if first < second else 10)
    ends = [checkpoint.metrics for checkpoint in intact_checkpoints(whole / "checkpoints")[0] if checkpoint.metrics]
    assert {"error": second} in ends

    # The result equals the best checkpoint's predictions, computed here independently.
    result = json.loads((whole / "result.json").read_text())
    assert set(result) == {"test_error", "step"}
    samples = list(best.source.splits["test"])
    images = np.stack([sample.pixels for sample in samples])
    inputs = (images / 255 - best.source.mean) / best.source.std
    outputs = inputs.reshape(len(images), -1) @ best.params["head"]["kernel"][:, 0] + best.params["head"]["bias"]
    errors = np.abs(outputs - images.mean(axis=(1, 2, 3)) / 255)
    np.testing.assert_allclose(read_arrays(whole)["errors"], errors, rtol=1e-3, atol=1e-5)
    assert abs(result["test_error"] - errors.mean()) < 1e-5
    found = best.scorer().predict(best.params, best.other_state, images[:3])
    np.testing.assert_allclose(found["brightness"], outputs[:3], rtol=1e-4, atol=1e-5)

    page = (whole / "report.html").read_text(encoding="utf-8")
    assert f"test error {result['test_error']:.4f}" in page
    assert "<h2>Largest error</h2>" in page
    assert "accuracy" not in page.partition("<h2>Settings</h2>")[0]
    assert [path.name for path in (whole / "samples").iterdir()] == ["first.png"]
