import dataclasses
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import msconv_jax
from msconv_jax.models import registry
from tests.train.helpers import TINY_ENTRY, normalised, run_python, tiny
from train import network as network_module
from train.data import load_source, train_batches
from train.errors import UserError
from train.evaluate import evaluate_split
from train.mesh import create_mesh, replicate, to_devices
from train.mixing import mix_batch
from train.network import create_network, split_model, split_shapes
from train.optim import create_optimiser
from train.step import create_eval_step, create_predict_step, create_state, create_train_step, evaluated

TRAIN_TWO_STEPS = """
import json, jax, numpy as np
from tests.train.helpers import register_tiny, tiny
from tests.train.test_step import start
register_tiny()
config = tiny()
state, train_step, batches, _ = start(config)
losses = []
for batch in batches:
    state, sums = train_step(state, batch)
    losses.append(float(sums["loss"]) / config.batch_size)
leaves = jax.tree.leaves((state.params, state.rest))
print(json.dumps({
    "devices": jax.device_count(),
    "shards": len(batches[0]["image"].addressable_shards),
    "losses": losses,
    "leaves": [np.asarray(leaf).ravel().tolist() for leaf in leaves],
}))
"""


def start(config):
    source = load_source(config)
    model, params, rest = split_model(create_network(config, source), source)
    optimiser, _ = create_optimiser(config, steps_per_epoch=5)
    mesh = create_mesh()
    state = jax.device_put(create_state(params, rest, optimiser, ema_decay=config.ema_decay), replicate(mesh))
    batches = [to_devices(batch, mesh) for batch in train_batches(source, config, 0, 2)]
    train_step = create_train_step(model, optimiser, config, mesh, len(source.classes))
    return state, train_step, batches, model


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


class Dropping(nnx.Module):
    """One dense layer behind BatchNorm and dropout, so that every kind of variable occurs."""

    def __init__(self, *, num_classes, in_channels, rngs):
        self.norm = nnx.BatchNorm(in_channels, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(64 * in_channels, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.head(self.drop(self.norm(images).reshape(len(images), -1)))


@pytest.fixture
def dropping(monkeypatch):
    def create_model(name, **arguments):
        return Dropping(**arguments)

    fake = types.SimpleNamespace(create_model=create_model)
    monkeypatch.setattr(network_module, "msconv_jax", fake)
    return tiny(weight_decay=0.0, learning_rate=1e-30, model_kwargs={})


def test_dropout_depends_on_seed_and_step_alone(dropping):
    state, train_step, (batch, _), _ = start(dropping)
    losses = []
    for _ in range(2):
        state, sums = train_step(state, batch)
        losses.append(float(sums["loss"]))
    assert losses[0] != losses[1]  # the same batch and parameters, another step

    state, train_step, (batch, _), _ = start(dropping)
    second = state._replace(step=jax.device_put(jnp.int32(1), state.step.sharding))
    assert float(train_step(second, batch)[1]["loss"]) == losses[1]


def test_batch_statistics_move_by_the_momentum_of_the_layer(dropping):
    state, train_step, (batch, _), _ = start(dropping)
    state, _ = train_step(state, batch)
    mean = np.mean(normalised(batch["image"], load_source(dropping)))
    np.testing.assert_allclose(state.rest["norm"]["mean"], [0.5 * mean], rtol=1e-3, atol=1e-6)


def test_evaluation_neither_drops_nor_normalises_by_the_batch(dropping):
    state, _, (batch, _), model = start(dropping)
    eval_step = create_eval_step(model, create_mesh())
    weights = jnp.ones(len(batch["label"]))
    answers = eval_step(state.params, state.rest, {**batch, "weight": weights})
    # Fresh statistics have mean 0 and variance 1; BatchNorm's epsilon is 1e-5.
    flat = normalised(batch["image"], load_source(dropping)).reshape(len(weights), -1) / np.sqrt(1 + 1e-5)
    head = jax.tree.map(np.asarray, state.params["head"])
    logits = flat @ head["kernel"] + head["bias"]
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = np.asarray(batch["label"])
    own = log_probabilities[np.arange(len(labels)), labels]
    np.testing.assert_allclose(answers["loss"], -own, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(answers["predicted"], logits.argmax(axis=1))
    np.testing.assert_array_equal(answers["rank"], (log_probabilities > own[:, None]).sum(axis=1))
    np.testing.assert_array_equal(answers["label"], labels)

    probabilities = create_predict_step(model)(state.params, state.rest, batch["image"])
    np.testing.assert_allclose(probabilities, np.exp(log_probabilities), rtol=1e-4, atol=1e-6)


def test_train_step_reports_the_smoothed_loss_and_adds_up_the_epoch(dropping):
    state, train_step, batches, _ = start(dropping)
    total = 0.0
    for batch in batches:
        state, sums = train_step(state, batch)
        total += float(sums["loss"])
        assert float(sums["images"]) == 240
    np.testing.assert_allclose(float(state.sums["loss"]), total, rtol=1e-6)
    assert float(state.sums["images"]) == 480
    assert int(state.step) == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_bytes_are_normalised_in_float32_whatever_the_network_computes_in(dtype):
    """Every value of a byte, in three channels; bfloat16 would be off by up to 1/256 of the value."""
    source = load_source(tiny())._replace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    model, _, _ = split_model(create_network(tiny(), load_source(tiny())), source)
    images = np.arange(256 * 3).reshape(2, 16, 8, 3).astype(np.uint8).astype(dtype)
    found = jax.jit(model.normalised)(images)
    assert found.dtype == jnp.float32
    expected = (images / 255.0 - np.array(source.mean)) / np.array(source.std)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("batch_size", [7, 240, 364])
def test_evaluation_does_not_depend_on_the_batch_size(batch_size):
    config = tiny(batch_size=batch_size)
    source, mesh = load_source(config), create_mesh()
    network = create_network(config, source)
    model, params, rest = split_model(network, source)
    answers = evaluate_split(create_eval_step(model, mesh), params, rest, source, "test", config, mesh)
    network.eval()
    records = source.splits["test"]
    logits = np.asarray(network(normalised(np.stack([r["image"] for r in records]), source)))
    labels = np.array([r["label"] for r in records])
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(364), labels]
    np.testing.assert_array_equal(answers.labels, labels)
    assert answers.accuracy == answers.top(1) == (logits.argmax(axis=1) == labels).mean()
    top_5 = np.argsort(-logits, axis=1)[:, :5]
    assert answers.top(5) == (top_5 == labels[:, None]).any(axis=1).mean()
    assert answers.top(10) == 1.0
    np.testing.assert_allclose(answers.loss, losses.mean(), rtol=1e-5)


def test_what_is_no_number_is_no_hit(dropping):
    state, _, (batch, _), model = start(dropping)
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)
    weights = jnp.ones(len(batch["label"]))
    answers = create_eval_step(model, create_mesh())(params, state.rest, {**batch, "weight": weights})
    assert (answers["rank"] == 10).all()


def test_shapes_are_those_of_the_network():
    config = tiny()
    source = load_source(config)
    _, params, rest = split_model(create_network(config, source), source)
    _, param_shapes, rest_shapes = split_shapes(config, source)

    def describe(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)

    assert describe((params, rest)) == describe((param_shapes, rest_shapes))


def test_the_convolution_can_be_swapped():
    config = tiny(model="resnet8", conv="PSConv", conv_kwargs={"pattern": [1, 2]})
    network = nnx.eval_shape(lambda: create_network(config, load_source(config)))
    kinds = {type(module) for _, module in nnx.iter_modules(network)}
    assert msconv_jax.PSConv in kinds


def test_a_stem_can_be_given_by_its_numbers():
    stem = {"kernel_size": 5, "strides": 2, "max_pool": False}
    config = tiny(model="resnet8", model_kwargs={"stem": stem, "width": 4})
    network = nnx.eval_shape(lambda: create_network(config, load_source(config)))
    assert (network.conv1.kernel.shape, network.conv1.strides) == ((5, 5, 1, 4), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet9"}, "config.model='resnet9' cannot be built.*resnet8"),
        ({"model_kwargs": {"widht": 4}}, "widht"),
        ({"model_kwargs": {"num_classes": 4}}, "num_classes"),
        ({"conv": "PSConf"}, "'PSConf', no such operator; did you mean 'PSConv'"),
        ({"conv": "PSConv", "conv_kwargs": {"patern": [1]}}, "patern"),
        ({"conv_kwargs": {"pattern": [1]}}, "config.conv is ''"),
        (
            {"conv": "PSConv", "conv_kwargs": {"kernel_dilation": 2}},
            "config.conv_kwargs sets kernel_dilation, which the",
        ),
        (
            {"conv": "PSConv", "convs": {"layer1.0.conv1": {"strides": 2}}},
            r"config.convs\['layer1.0.conv1'\] sets strides",
        ),
        ({"model_kwargs": {"stem": {"kernel": 3}}}, "config.model_kwargs.stem is {'kernel': 3} but must be as"),
        ({"model_kwargs": {"stem": {"kernel_size": 4, "strides": 1, "max_pool": False}}}, "stem is .* must be odd"),
    ],
)
def test_models_and_operators_that_do_not_exist(changes, message):
    config = tiny(**{"model": "resnet8", "model_kwargs": {}, **changes})
    with pytest.raises(UserError, match=message):
        create_network(config, load_source(config))


class Plain(nnx.Module):
    """A convolution and a dense layer, without batch statistics and random numbers."""

    def __init__(self, *, num_classes, in_channels, rngs, dtype=None):
        self.conv = nnx.Conv(in_channels, 4, (3, 3), rngs=rngs, dtype=dtype)
        self.head = nnx.Linear(256, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.head(nnx.relu(self.conv(images)).reshape(len(images), -1))


class Normalised(Plain):
    """The same with batch statistics."""

    def __init__(self, *, num_classes, in_channels, rngs, dtype=None):
        super().__init__(num_classes=num_classes, in_channels=in_channels, rngs=rngs, dtype=dtype)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs, dtype=dtype)

    def __call__(self, images):
        return self.head(nnx.relu(self.norm(self.conv(images))).reshape(len(images), -1))


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for builder in (Plain, Normalised):
        entry = dataclasses.replace(TINY_ENTRY, name=builder.__name__, builder=builder)
        monkeypatch.setitem(registry._ENTRIES, entry.name, entry)


def small(model, **changes):
    return tiny(**{"model": model, "model_kwargs": {}, "warmup_epochs": 0.0, **changes})


def first_step(config):
    state, train_step, (batch, _), _ = start(config)
    before = jax.tree.map(np.array, state)
    after, report = train_step(state, batch)
    return before, after, report, batch


def assert_close(left, right, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), left, right)


@pytest.mark.slow
def test_the_reported_norm_is_that_of_the_gradient():
    config = small("Plain", momentum=0.0, nesterov=False, weight_decay=0.0, learning_rate=1.0, schedule="constant")
    before, after, report, _ = first_step(config)
    gradients = jax.tree.leaves(jax.tree.map(lambda a, b: a - np.asarray(b), before.params, after.params))
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    np.testing.assert_allclose(float(report["gradient_norm"]), norm, rtol=1e-4)


@pytest.mark.parametrize("parts", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_accumulating_parts_equals_one_pass(parts):
    config = small("Plain", mixup_alpha=1.0)
    _, whole, whole_report, _ = first_step(config)
    _, in_parts, report, _ = first_step(dataclasses.replace(config, accumulation_steps=parts))
    assert_close(in_parts, whole)
    assert_close(report, whole_report)


def test_accumulation_passes_batch_statistics_from_part_to_part():
    config = small("Normalised", accumulation_steps=2)
    before, after, _, batch = first_step(config)
    conv = jax.tree.map(jnp.asarray, before.params["conv"])
    maps = jax.lax.conv_general_dilated(
        normalised(batch["image"], load_source(config)),
        conv["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    maps = np.asarray(maps + conv["bias"], np.float64)
    mean, var = np.zeros(4), np.ones(4)
    for part in (maps[0::2], maps[1::2]):
        mean = 0.5 * mean + 0.5 * part.mean(axis=(0, 1, 2))
        var = 0.5 * var + 0.5 * part.var(axis=(0, 1, 2))
    np.testing.assert_allclose(after.rest["norm"]["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after.rest["norm"]["var"], var, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_computing_activations_again_changes_nothing_and_keeps_only_convolutions():
    config = small("Normalised")
    state, train_step, (batch, _), _ = start(config)
    _, again, _, _ = start(dataclasses.replace(config, remat=True))
    counts = []
    for step in (train_step, again):
        text = str(step.trace(state, batch).jaxpr)
        counts.append([len(re.findall(rf"= {name}\b", text)) for name in ("conv_general_dilated", "rsqrt", "remat2")])
    (convs, roots, none), (convs_again, roots_again, one) = counts
    assert (convs, none, one) == (convs_again, 0, 1)
    assert convs >= 2
    assert roots_again == roots + 1  # the normalisation is computed twice, the convolution is not
    other = jax.tree.map(jnp.copy, state)
    assert_close(again(other, batch), train_step(state, batch), rtol=1e-5, atol=1e-7)


def test_bfloat16_is_what_is_computed_and_nothing_that_is_kept():
    _, plain, report, _ = first_step(small("Normalised", ema_decay=0.9))
    state, train_step, (batch, _), _ = start(small("Normalised", ema_decay=0.9, compute_dtype="bfloat16"))
    convolutions = re.findall(r"(\w+)\[[\d,]+\] = conv_general_dilated", str(train_step.trace(state, batch).jaxpr))
    assert len(convolutions) >= 2
    assert set(convolutions) == {"bf16"}
    state, rounded_report = train_step(state, batch)
    dtypes = jax.tree.map(lambda leaf: str(leaf.dtype), (state, rounded_report))
    assert dtypes == jax.tree.map(lambda leaf: str(leaf.dtype), (plain, report))
    assert set(jax.tree.leaves(dtypes)) == {"float32", "int32"}
    np.testing.assert_allclose(float(rounded_report["loss"]), float(report["loss"]), rtol=1e-2)
    assert float(rounded_report["loss"]) != float(report["loss"])


def test_a_model_that_takes_no_dtype_is_refused():
    config = tiny(compute_dtype="bfloat16")
    with pytest.raises(UserError, match="'tiny_for_tests' has no argument dtype"):
        create_network(config, load_source(config))
    config = small("Plain", compute_dtype="bfloat16", model_kwargs={"dtype": "float16"})
    with pytest.raises(UserError, match="leave one of them out"):
        create_network(config, load_source(config))


def test_averages_of_parameters_and_statistics():
    config = small("Normalised", ema_decay=0.15)
    state, train_step, batches, _ = start(config)
    average = jax.tree.map(np.array, {"params": state.params, "rest": state.rest})
    for step, batch in enumerate(batches):
        state, _ = train_step(state, batch)
        decay = [1 / 10, 0.15][step]  # min(0.15, (1 + t) / (10 + t))
        new = {"params": state.params, "rest": state.rest}
        average = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * np.asarray(b), average, new)
    assert_close(state.average, average)
    params, rest = evaluated(state)
    assert_close(params, average["params"])
    assert_close(rest, average["rest"])


def test_without_averages_the_state_holds_nothing_more():
    state, *_ = start(small("Plain"))
    assert state.average == {}
    assert evaluated(state) == (state.params, state.rest)


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_only_the_number_of_the_step(fault):
    state, train_step, batches, _ = start(small("Normalised", ema_decay=0.9))
    state, _ = train_step(state, batches[0])
    before = jax.tree.map(np.array, state)
    image = batches[1]["image"].astype(jnp.float32).at[3, 2, 2, 0].set(fault)
    after, report = train_step(state, {**batches[1], "image": image})
    assert not np.isfinite(float(report["gradient_norm"]))
    assert int(after.step) == 2
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=before.step), before)


@pytest.mark.slow
def test_mixed_batches_count_hits_by_their_own_labels():
    config = small("Plain", mixup_alpha=1.0, label_smoothing=0.1)
    _, _, report, batch = first_step(config)
    own = jnp.asarray(normalised(batch["image"], load_source(config)))
    images, targets = mix_batch(own, jax.nn.one_hot(batch["label"], 10), jnp.int32(0), config)
    assert float(jnp.abs(images - own).max()) > 0.1
    targets = np.asarray(0.9 * targets + 0.01, np.float64)
    network = create_network(config, load_source(config))
    logits = np.asarray(network(images), np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(float(report["loss"]), -(targets * log_probabilities).sum(), rtol=1e-5)
    assert float(report["correct"]) == (logits.argmax(axis=1) == np.asarray(batch["label"])).sum()


ON_FOUR_DEVICES = """
import dataclasses, json, re, jax, numpy as np
from msconv_jax.models.registry import register_model
from tests.train.helpers import normalised
from tests.train.test_step import Normalised, Plain, TINY_ENTRY, small, start
from train.data import load_source
for builder in (Plain, Normalised):
    register_model(dataclasses.replace(TINY_ENTRY, name=builder.__name__, builder=builder))
def train(config):
    state, train_step, (batch, _), _ = start(config)
    kernel, bias = (np.asarray(state.params["conv"][name]) for name in ("kernel", "bias"))
    text = train_step.lower(state, batch).compile().as_text()
    state, report = train_step(state, batch)
    moved = sorted(set(re.findall(r" (all-to-all|all-gather|collective-permute)[(-]", text)))
    leaves = [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves((state, report))]
    return batch, kernel, bias, state, leaves, moved
config = small("Normalised", batch_norm="device")
batch, kernel, bias, state, _, moved = train(config)
maps = jax.lax.conv_general_dilated(normalised(batch["image"], load_source(config)), kernel, (1, 1), "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias
mixing = {"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "accumulation_steps": 3}
print(json.dumps({
    "devices": jax.device_count(),
    "maps": np.asarray(maps).tolist(),
    "mean": np.asarray(state.rest["norm"]["mean"]).tolist(),
    "var": np.asarray(state.rest["norm"]["var"]).tolist(),
    "plain": [train(small("Plain", batch_norm=kind, **mixing))[4] for kind in ("device", "global")],
    "moved": moved + train(small("Normalised", **mixing))[5],
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
        assert results[-1]["moved"] == []  # no rows go from device to device
        parts = np.split(np.asarray(results[-1]["maps"]), devices)
        means = [0.5 * part.mean(axis=(0, 1, 2)) for part in parts]
        variances = [0.5 + 0.5 * part.var(axis=(0, 1, 2)) for part in parts]
        np.testing.assert_allclose(results[-1]["mean"], np.mean(means, axis=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(results[-1]["var"], np.mean(variances, axis=0), rtol=1e-4, atol=1e-6)
    assert np.abs(np.subtract(results[0]["var"], results[1]["var"])).max() > 1e-6  # the statistics do differ
    expected = results[1]["plain"][1]
    for result in (*results[0]["plain"], results[1]["plain"][0]):
        assert len(result) == len(expected) > 10
        for left, right in zip(result, expected, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)
