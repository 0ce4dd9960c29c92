import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import msconv_jax
from tests.train.helpers import run_python, tiny
from train import network as network_module
from train.data import load_source, train_batches
from train.errors import UserError
from train.evaluate import evaluate_split
from train.mesh import create_mesh, replicate, to_devices
from train.network import create_network, split_model, split_shapes
from train.optim import create_optimiser
from train.step import create_eval_step, create_predict_step, create_state, create_train_step

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
    model, params, rest = split_model(create_network(config, source))
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
    mean = np.mean(np.asarray(batch["image"]))
    np.testing.assert_allclose(state.rest["norm"]["mean"], [0.5 * mean], rtol=1e-3, atol=1e-6)


def test_evaluation_neither_drops_nor_normalises_by_the_batch(dropping):
    state, _, (batch, _), model = start(dropping)
    eval_step = create_eval_step(model, create_mesh())
    weights = jnp.ones(len(batch["label"]))
    sums = eval_step(state.params, state.rest, {**batch, "weight": weights})
    # Fresh statistics have mean 0 and variance 1; BatchNorm's epsilon is 1e-5.
    flat = np.asarray(batch["image"]).reshape(len(weights), -1) / np.sqrt(1 + 1e-5)
    head = jax.tree.map(np.asarray, state.params["head"])
    logits = flat @ head["kernel"] + head["bias"]
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = np.asarray(batch["label"])
    expected = -log_probabilities[np.arange(len(labels)), labels].sum()
    np.testing.assert_allclose(float(sums["loss"]), expected, rtol=1e-5)
    assert float(sums["correct"]) == (logits.argmax(axis=1) == labels).sum()

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


@pytest.mark.parametrize("batch_size", [7, 240, 364])
def test_evaluation_does_not_depend_on_the_batch_size(batch_size):
    config = tiny(batch_size=batch_size)
    source, mesh = load_source(config), create_mesh()
    network = create_network(config, source)
    model, params, rest = split_model(network)
    loss, accuracy = evaluate_split(create_eval_step(model, mesh), params, rest, source, "test", config, mesh)
    network.eval()
    records = source.splits["test"]
    logits = np.asarray(network(source.normalise(np.stack([r["image"] for r in records]))))
    labels = np.array([r["label"] for r in records])
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(364), labels]
    assert accuracy == (logits.argmax(axis=1) == labels).mean()
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)


def test_shapes_are_those_of_the_network():
    config = tiny()
    source = load_source(config)
    _, params, rest = split_model(create_network(config, source))
    _, param_shapes, rest_shapes = split_shapes(config, source)

    def describe(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)

    assert describe((params, rest)) == describe((param_shapes, rest_shapes))


def test_the_convolution_can_be_swapped():
    config = tiny(model="resnet8", conv="PSConv", conv_kwargs={"pattern": [1, 2]})
    network = nnx.eval_shape(lambda: create_network(config, load_source(config)))
    kinds = {type(module) for _, module in nnx.iter_modules(network)}
    assert msconv_jax.PSConv in kinds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet9"}, "config.model='resnet9' cannot be built.*resnet8"),
        ({"model_kwargs": {"widht": 4}}, "widht"),
        ({"model_kwargs": {"num_classes": 4}}, "num_classes"),
        ({"conv": "PSConf"}, "'PSConf', no such operator; did you mean 'PSConv'"),
        ({"conv": "PSConv", "conv_kwargs": {"patern": [1]}}, "patern"),
        ({"conv_kwargs": {"pattern": [1]}}, "config.conv is ''"),
    ],
)
def test_models_and_operators_that_do_not_exist(changes, message):
    config = tiny(**{"model": "resnet8", "model_kwargs": {}, **changes})
    with pytest.raises(UserError, match=message):
        create_network(config, load_source(config))
