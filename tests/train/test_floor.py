"""The first steps of every recipe equal those of commit d8e5421: see tests/train/record_floor.py.

Batches are equal byte by byte; learning rates, losses and gradients agree up to rounding.
"""

import itertools
import json
import types

import numpy as np
import pytest

from tests.train.helpers import ROOT
from tests.train.record_floor import STEPS, digest, steps_of_rates
from train.config import parse_command_line
from train.data import evaluation_batches, load_source, train_batches
from train.data.prepare import prepare_once
from train.engine.mesh import create_mesh, shard_arrays, shard_batch
from train.engine.network import split_model
from train.engine.optim import create_optimiser, weight_decay
from train.engine.step import create_score_step, create_state, create_train_step, eval_variables, zero_terms
from train.tasks import task_kind

FLOOR = json.loads((ROOT / "tests" / "data" / "floor.json").read_text(encoding="utf-8"))
RUNS, SCHEDULES = FLOOR["runs"], FLOOR["schedules"]
QUICK = ("ps_resnet_digits.py", "hetconv_cifar10.py:smoke")
by_run = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in RUNS]
)


def read(name, *flags):
    return parse_command_line(["train", f"--config={ROOT / 'configs' / name}", *flags], None, needs_workdir=False)[0]


def schedules(config, steps_per_epoch):
    """The learning rate and the weight decay of the recorded steps; a constant decay is a number."""
    _, learning_rate = create_optimiser(config, steps_per_epoch)
    decay = weight_decay(config.optimizer, steps_per_epoch)
    steps = steps_of_rates(config.epochs * steps_per_epoch)
    return {
        "learning_rate": [learning_rate(step) for step in steps],
        "weight_decay": [decay(step) for step in steps] if callable(decay) else decay,
    }


def start(config):
    """Runs the first steps of a training, set up as in a run."""
    kind = task_kind(config)
    source = load_source(config, kind.needs)
    task = kind(config, source)
    steps_per_epoch = round(len(source.splits["train"]) / config.batch_size)
    model, params, other_state = split_model(task.create(), config.model.frozen)
    optimiser, _ = create_optimiser(config, steps_per_epoch)
    mesh = create_mesh()
    fresh = create_state(params, other_state, optimiser, task.terms, ema_decay=config.optimizer.ema_decay)
    state = shard_arrays(fresh, mesh)
    train_step = create_train_step(model, task, optimiser, config, mesh)
    batches, losses, accuracies, norms = [], [], [], []
    for batch in train_batches(source, config, task.transform(training=True), 0, STEPS):
        batches.append(digest(batch["image"], batch["label"]))
        state, report = train_step(state, shard_batch(batch, mesh))
        total, weight = state.terms["accuracy"]
        state = state._replace(terms=shard_arrays(zero_terms(task.terms), mesh))
        losses.append(report["loss"])
        accuracies.append(total / weight)
        norms.append(report["gradient_norm"])
    batches_of_split = evaluation_batches(source, "validation", config, task.transform(training=False))
    (validation,) = itertools.islice(batches_of_split, 1)
    scores = create_score_step(model, task, mesh)(*eval_variables(state), shard_batch(validation, mesh))
    return types.SimpleNamespace(
        steps_per_epoch=steps_per_epoch,
        train_batches=batches,
        validation_batch=digest(validation["image"], validation["label"]),
        losses=losses,
        accuracies=accuracies,
        gradient_norms=norms,
        validation_losses=scores["loss"],
    )


@pytest.fixture(scope="module")
def scaled_digits(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    prepare_once("scaled_digits", folder)
    return folder


def assert_same_schedules(found, recorded):
    for name in ("learning_rate", "weight_decay"):
        wanted = np.asarray(recorded[name])
        # The end of a cosine is a difference of nearly equal numbers.
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-6 * wanted.max(), err_msg=name)


@by_run
def test_a_training_starts_as_it_did(name, request):
    if name in QUICK:  # the other recipes differ without LLVM's optimisations
        request.getfixturevalue("quick_compilation")
    recorded = RUNS[name]
    flags = [f"--config.data.dir={request.getfixturevalue('scaled_digits')}"] if name == "scaled_digits.py" else []
    config = read(name, *flags)
    found = start(config)
    assert found.steps_per_epoch == recorded["steps_per_epoch"]
    assert found.train_batches == recorded["train_batches"]
    assert found.validation_batch == recorded["validation_batch"]
    assert_same_schedules(schedules(config, found.steps_per_epoch), recorded)
    np.testing.assert_allclose(found.losses, recorded["losses"], rtol=1e-5)
    np.testing.assert_array_equal(found.accuracies, recorded["accuracies"])
    np.testing.assert_allclose(found.gradient_norms, recorded["gradient_norms"], rtol=1e-4)
    first = len(recorded["validation_losses"])
    np.testing.assert_allclose(found.validation_losses[:first], recorded["validation_losses"], rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "steps_per_epoch"])
def test_schedules_of_whole_recipes(name):
    assert_same_schedules(schedules(read(name), SCHEDULES["steps_per_epoch"]), SCHEDULES[name])
