import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.train.helpers import normalised, run_python, start, tiny
from tests.train.small_models import small
from train.config import update_config
from train.data import load_source
from train.engine.loop import means
from train.engine.network import split_model, split_shapes
from train.engine.step import eval_variables
from train.tasks import Classification

pytestmark = pytest.mark.usefixtures("small_models")

TRAIN_TWO_STEPS = """
import json, jax, numpy as np
from tests.train.helpers import register_tiny, start, tiny
register_tiny()
state, train_step, batches, *_ = start(tiny())
losses = []
for batch in batches:
    state, report = train_step(state, batch)
    losses.append(float(report["loss"]))
leaves = jax.tree.leaves((state.params, state.rest))
print(json.dumps({
    "devices": jax.device_count(),
    "shards": len(batches[0]["image"].addressable_shards),
    "losses": losses,
    "leaves": [np.asarray(leaf).ravel().tolist() for leaf in leaves],
}))
"""


@pytest.mark.slow
def test_four_devices_train_like_one():
    results = []
    for devices in ("1", "4"):
        run = run_python("-c", TRAIN_TWO_STEPS, JAX_NUM_CPU_DEVICES=devices)
        assert run.returncode == 0, run.stderr
        results.append(json.loads(run.stdout))
    one, four = results
    assert (one["devices"], one["shards"], four["devices"], four["shards"]) == (1, 1, 4, 4)
    np.testing.assert_allclose(one["losses"], four["losses"], rtol=1e-5)
    assert len(one["leaves"]) == len(four["leaves"]) > 7
    for left, right in zip(one["leaves"], four["leaves"], strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5)


# Without learning, losses differ only by dropout.
DROPPING = {"optimizer.weight_decay": 0.0, "optimizer.learning_rate": 1e-30}


def test_dropout_depends_on_seed_and_step_alone():
    config = small("Dropping", DROPPING)
    state, train_step, (batch, _), *_ = start(config)
    losses = []
    for _ in range(2):
        state, report = train_step(state, batch)
        losses.append(float(report["loss"]))
    assert losses[0] != losses[1]  # the same batch and parameters, another step

    state, train_step, (batch, _), *_ = start(config)
    second = state._replace(step=jax.device_put(jnp.int32(1), state.step.sharding))
    assert float(train_step(second, batch)[1]["loss"]) == losses[1]


def test_batch_statistics_move_by_the_momentum_of_the_layer():
    config = small("Dropping", DROPPING)
    state, train_step, (batch, _), *_ = start(config)
    state, _ = train_step(state, batch)
    mean = np.mean(normalised(batch["image"], load_source(config)))
    np.testing.assert_allclose(state.rest["norm"]["mean"], [0.5 * mean], rtol=1e-3, atol=1e-6)


def test_terms_add_up_over_the_epoch_and_their_means_are_those_over_the_rows():
    state, train_step, batches, _, task = start(small("Dropping", {**DROPPING, "optimizer.accumulation_steps": 2}))
    losses = []
    for batch in batches:
        state, report = train_step(state, batch)
        losses.append(float(report["loss"]))  # the mean of 240 rows, with smoothed targets
    assert {name: float(weight) for name, (_, weight) in state.terms.items()} == {"loss": 480.0, "accuracy": 480.0}
    np.testing.assert_allclose(means(state, task.terms)["loss"], np.mean(losses), rtol=1e-6)
    assert 0 <= means(state, task.terms)["accuracy"] <= 1
    assert int(state.step) == 2


def test_shapes_are_those_of_the_network():
    task = Classification(tiny(), load_source(tiny()))
    _, params, other_state = split_model(task.create())
    _, param_shapes, rest_shapes = split_shapes(task.create)

    def describe(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)

    assert describe((params, other_state)) == describe((param_shapes, rest_shapes))


def first_step(config):
    state, train_step, (batch, _), *_ = start(config)
    before = jax.tree.map(np.array, state)
    after, report = train_step(state, batch)
    return before, after, report, batch


def assert_close(left, right, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), left, right)


# With these settings a step subtracts the gradient of the mean loss from the parameters.
GRADIENT = {
    "optimizer.momentum": 0.0,
    "optimizer.nesterov": False,
    "optimizer.weight_decay": 0.0,
    "optimizer.learning_rate": 1.0,
    "optimizer.schedule": "constant",
}


def taken(before, after):
    return jax.tree.map(lambda a, b: a - np.asarray(b), before.params, after.params)


@pytest.mark.slow
def test_the_reported_norm_is_that_of_the_gradient():
    before, after, report, _ = first_step(small("Plain", GRADIENT))
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(taken(before, after))))
    np.testing.assert_allclose(float(report["gradient_norm"]), norm, rtol=1e-4)


def test_the_loss_is_a_plain_sum_so_parts_add_up():
    """In one part or in two, the gradient is that of the mean over the rows, computed without the engine."""
    config = small("Plain", {**GRADIENT, "task.label_smoothing": 0.0})
    source = load_source(config)
    before, whole, report, batch = first_step(config)
    _, halves, halves_report, _ = first_step(update_config(config, {"optimizer.accumulation_steps": 2}))
    images, labels = normalised(batch["image"], source), np.asarray(batch["label"])
    graph, params = nnx.split(Classification(config, source).create())

    def mean_loss(params, rows):
        log_probabilities = jax.nn.log_softmax(nnx.merge(graph, params)(images[rows]))
        return -log_probabilities[np.arange(len(labels[rows])), labels[rows]].mean()

    loss, gradient = jax.value_and_grad(mean_loss)(params, slice(None))
    gradient = nnx.to_pure_dict(gradient)
    assert_close(taken(before, whole), gradient, rtol=1e-4, atol=1e-6)
    assert_close(taken(before, halves), gradient, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose([report["loss"], halves_report["loss"]], float(loss), rtol=1e-5)


@pytest.mark.parametrize("parts", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_accumulating_parts_equals_one_pass(parts):
    config = small("Plain", {"task.mixup_alpha": 1.0})
    _, whole, whole_report, _ = first_step(config)
    _, in_parts, report, _ = first_step(update_config(config, {"optimizer.accumulation_steps": parts}))
    assert_close(in_parts, whole)
    assert_close(report, whole_report)


def test_accumulation_passes_batch_statistics_from_part_to_part():
    config = small("Normalised", {"optimizer.accumulation_steps": 2})
    before, after, _, batch = first_step(config)
    conv = jax.tree.map(jnp.asarray, before.params["conv"])
    maps = jax.lax.conv_general_dilated(
        normalised(batch["image"], load_source(config)),
        conv["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    maps = np.asarray(maps, np.float64) + np.asarray(conv["bias"], np.float64)
    mean, var = np.zeros(4), np.ones(4)
    for part in (maps[0::2], maps[1::2]):
        mean = 0.5 * mean + 0.5 * part.mean(axis=(0, 1, 2))
        var = 0.5 * var + 0.5 * part.var(axis=(0, 1, 2))
    np.testing.assert_allclose(after.rest["norm"]["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after.rest["norm"]["var"], var, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_computing_activations_again_changes_nothing_and_keeps_only_convolutions():
    config = small("Normalised")
    state, train_step, (batch, _), *_ = start(config)
    again = start(update_config(config, {"compute.remat": True})).train_step
    counts = []
    for function in (train_step, again):
        text = str(function.trace(state, batch).jaxpr)
        counts.append([len(re.findall(rf"= {name}\b", text)) for name in ("conv_general_dilated", "rsqrt", "remat2")])
    (convs, roots, none), (convs_again, roots_again, one) = counts
    assert (convs, none, one) == (convs_again, 0, 1)
    assert convs >= 2
    assert roots_again == roots + 1  # the normalisation is computed twice, the convolution is not
    other = jax.tree.map(jnp.copy, state)
    assert_close(again(other, batch), train_step(state, batch), rtol=1e-5, atol=1e-7)


def test_bfloat16_is_what_is_computed_and_nothing_that_is_kept():
    averaged = {"optimizer.ema_decay": 0.9}
    _, plain, report, _ = first_step(small("Normalised", averaged))
    state, train_step, (batch, _), *_ = start(small("Normalised", {**averaged, "compute.dtype": "bfloat16"}))
    convolutions = re.findall(r"(\w+)\[[\d,]+\] = conv_general_dilated", str(train_step.trace(state, batch).jaxpr))
    assert len(convolutions) >= 2
    assert set(convolutions) == {"bf16"}
    state, rounded_report = train_step(state, batch)
    dtypes = jax.tree.map(lambda leaf: str(leaf.dtype), (state, rounded_report))
    assert dtypes == jax.tree.map(lambda leaf: str(leaf.dtype), (plain, report))
    assert set(jax.tree.leaves(dtypes)) == {"float32", "int32"}
    np.testing.assert_allclose(float(rounded_report["loss"]), float(report["loss"]), rtol=1e-2)
    assert float(rounded_report["loss"]) != float(report["loss"])


def test_averages_of_parameters_and_statistics():
    state, train_step, batches, *_ = start(small("Normalised", {"optimizer.ema_decay": 0.15}))
    average = jax.tree.map(np.array, {"params": state.params, "rest": state.rest})
    for number, batch in enumerate(batches):
        state, _ = train_step(state, batch)
        decay = [1 / 10, 0.15][number]  # min(0.15, (1 + t) / (10 + t))
        new = {"params": state.params, "rest": state.rest}
        average = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * np.asarray(b), average, new)
    assert_close(state.average, average)
    params, other_state = eval_variables(state)
    assert_close(params, average["params"])
    assert_close(other_state, average["rest"])


def test_without_averages_the_state_holds_nothing_more():
    state = start(small("Plain")).state
    assert state.average == {}
    assert eval_variables(state) == (state.params, state.rest)


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_only_the_number_of_the_step(fault):
    state, train_step, batches, *_ = start(small("Normalised", {"optimizer.ema_decay": 0.9}))
    state, _ = train_step(state, batches[0])
    before = jax.tree.map(np.array, state)
    image = batches[1]["image"].astype(jnp.float32).at[3, 2, 2, 0].set(fault)
    after, report = train_step(state, {**batches[1], "image": image})
    assert not np.isfinite(float(report["gradient_norm"]))
    assert int(after.step) == 2
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=before.step), before)


def by_path(tree):
    paths = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.array(leaf) for path, leaf in paths}


@pytest.mark.parametrize(
    "optimizer",
    [
        {},
        {"gradient_clip_norm": 0.1, "weight_decay": 0.3, "decay_all": True, "ema_decay": 0.8},
        pytest.param({"name": "lamb", "nesterov": False, "weight_decay": 0.3}, marks=pytest.mark.slow),
    ],
)
def test_what_is_frozen_stays_bit_by_bit_and_the_rest_changes(optimizer):
    config = tiny({"model.frozen": ["conv", "norm"], "optimizer": {"warmup_epochs": 0.0, **optimizer}})
    state, train_step, batches, *_ = start(config, steps=3)
    before = by_path((state.params, state.rest, state.average))
    for batch in batches:
        state, _ = train_step(state, batch)
    after = by_path((state.params, state.rest, state.average))
    assert before.keys() == after.keys()
    changes = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changes == {name for name in before if ".conv." not in name and ".norm." not in name}
    assert len(changes) >= 2


def test_frozen_parameters_have_no_share_in_the_clipped_norm():
    clipped = {**GRADIENT, "optimizer.gradient_clip_norm": 1e-3, "model.frozen": ["head"]}
    before, after, _, _ = first_step(small("Plain", clipped))
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in jax.tree.leaves(taken(before, after))))
    np.testing.assert_allclose(norm, 1e-3, rtol=1e-2)


def test_a_frozen_batch_norm_normalises_by_its_statistics():
    """With initial statistics, mean 0 and variance 1, a frozen layer only divides by sqrt(1 + epsilon)."""
    config = small("Normalised", {**GRADIENT, "model.frozen": ["norm"], "task.label_smoothing": 0.0})
    source = load_source(config)
    _, _, report, batch = first_step(config)
    network = Classification(config, source).create()
    network.eval()
    log_probabilities = jax.nn.log_softmax(network(normalised(batch["image"], source)))
    loss = -log_probabilities[np.arange(240), np.asarray(batch["label"])].mean()
    np.testing.assert_allclose(float(report["loss"]), float(loss), rtol=1e-5)


ON_FOUR_DEVICES = """
import json, re, jax, numpy as np
from tests.train.helpers import normalised, start
from tests.train.small_models import register_small, small
from train.data import load_source
register_small()
def train(config):
    state, train_step, (batch, _), *_ = start(config)
    kernel, bias = (np.asarray(state.params["conv"][name]) for name in ("kernel", "bias"))
    text = train_step.lower(state, batch).compile().as_text()
    state, report = train_step(state, batch)
    moved = sorted(set(re.findall(r" (all-to-all|all-gather|collective-permute)[(-]", text)))
    leaves = [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves((state, report))]
    return batch, kernel, bias, state, leaves, moved
config = small("Normalised", {"compute.batch_norm": "device"})
batch, kernel, bias, state, _, moved = train(config)
maps = jax.lax.conv_general_dilated(normalised(batch["image"], load_source(config)), kernel, (1, 1), "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias
mixing = {"task.mixup_alpha": 1.0, "task.cutmix_alpha": 1.0, "optimizer.accumulation_steps": 3}
print(json.dumps({
    "devices": jax.device_count(),
    "maps": np.asarray(maps).tolist(),
    "mean": np.asarray(state.rest["norm"]["mean"]).tolist(),
    "var": np.asarray(state.rest["norm"]["var"]).tolist(),
    "plain": [train(small("Plain", {**mixing, "compute.batch_norm": kind}))[4] for kind in ("device", "global")],
    "moved": moved + train(small("Normalised", mixing))[5],
}))
"""


@pytest.mark.slow
def test_four_devices_mix_accumulate_and_normalise_their_own_rows():
    results = []
    for devices in (4, 1):
        run = run_python("-c", ON_FOUR_DEVICES, JAX_NUM_CPU_DEVICES=str(devices))
        assert run.returncode == 0, run.stderr
        results.append(json.loads(run.stdout))
        assert results[-1]["devices"] == devices
        assert results[-1]["moved"] == []  # devices do not exchange rows
        parts = np.split(np.asarray(results[-1]["maps"]), devices)
        averages = [0.5 * part.mean(axis=(0, 1, 2)) for part in parts]
        variances = [0.5 + 0.5 * part.var(axis=(0, 1, 2)) for part in parts]
        np.testing.assert_allclose(results[-1]["mean"], np.mean(averages, axis=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(results[-1]["var"], np.mean(variances, axis=0), rtol=1e-4, atol=1e-6)
    assert np.abs(np.subtract(results[0]["var"], results[1]["var"])).max() > 1e-6  # the statistics do differ
    expected = results[1]["plain"][1]
    for result in (*results[0]["plain"], results[1]["plain"][0]):
        assert len(result) == len(expected) > 10
        for left, right in zip(result, expected, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)
