import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.helpers import tiny
from train.engine.network import split_shapes
from train.engine.optim import create_optimiser, decay_mask, learning_rate, path_mask, weight_decay
from train.errors import UserError
from train.tasks.network import create_network


def settings(**changes):
    """The tiny config with changed settings of the optimiser and `epochs`."""
    more = {"epochs": changes.pop("epochs")} if "epochs" in changes else {}
    return tiny(optimizer=changes, **more)


def rates(steps, steps_per_epoch, epochs=2, **changes):
    """The learning rate at some steps."""
    config = settings(epochs=epochs, **changes)
    rate = learning_rate(config.optimizer, config.epochs, steps_per_epoch)
    return [float(rate(step)) for step in steps]


@pytest.mark.parametrize("model", ["resnet8", "ps_resnet8"])
def test_decay_is_for_the_kernels_of_a_network_alone(model):
    config = tiny({"model.name": model, "model.kwargs": {"width": 8}})
    _, params, _ = split_shapes(lambda: create_network(config, 10, 1))
    decayed = {True: set(), False: set()}
    for path, is_decayed in jax.tree.leaves_with_path(decay_mask(params)):
        decayed[is_decayed].add(jax.tree_util.keystr(path[-1:], simple=True))
    assert decayed == {True: {"kernel"}, False: {"bias", "scale"}}


def test_decay_mask_goes_by_name_and_dimensions():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones((1, 1, 1, 2)), "gate": jnp.ones(2)},
    }
    assert decay_mask(params) == {
        "conv": {"kernel": True, "bias": False},
        "norm": {"scale": False, "gate": False},
    }


def test_schedule_rises_to_the_peak_and_falls_to_zero():
    values = rates(range(15), 7, learning_rate=0.4, warmup_epochs=4 / 7)
    np.testing.assert_allclose(values[:5], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(values[9], 0.2, rtol=1e-6)  # halfway down
    assert all(a > b for a, b in itertools.pairwise(values[4:]))
    assert values[13] > 0
    assert abs(values[14]) < 1e-7


def test_schedule_without_warm_up_starts_at_the_peak():
    assert rates([0], 5, learning_rate=0.4, warmup_epochs=0.0) == [pytest.approx(0.4)]


def test_poly_schedule_is_a_power_of_what_is_left():
    """As in the public segmentation recipes: the rate of step i is (1 - i / total)^0.9 times the full rate."""
    found = rates(range(21), 10, learning_rate=0.01, warmup_epochs=0.0, schedule="poly")
    np.testing.assert_allclose(found, 0.01 * (1 - np.arange(21) / 20) ** 0.9, rtol=1e-5, atol=1e-9)
    assert found[0] == pytest.approx(0.01, rel=1e-7)
    squared = rates([5], 5, learning_rate=1.0, warmup_epochs=0.0, schedule="poly", schedule_power=2.0)
    assert squared == [pytest.approx(0.25)]
    warm = rates([0, 1, 2, 3, 4], 3, learning_rate=1.0, warmup_epochs=2 / 3, schedule="poly")
    np.testing.assert_allclose(warm, [0.5, 1.0, 1.0, 0.75**0.9, 0.5**0.9], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
def test_updates_are_those_of_pytorchs_sgd(nesterov):
    config = settings(nesterov=nesterov, weight_decay=0.01, momentum=0.8, learning_rate=0.5)
    optimiser, learning_rate = create_optimiser(config, steps_per_epoch=5)
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
    state = optimiser.init(params)
    expected = {name: np.asarray(value, np.float64) for name, value in params.items()}
    velocity = {name: np.zeros_like(value) for name, value in expected.items()}
    rng = np.random.default_rng(0)
    for step in range(6):
        gradients = {name: rng.normal(size=value.shape) for name, value in expected.items()}
        updates, state = optimiser.update(jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradients), state, params)
        params = optax.apply_updates(params, updates)
        for name, gradient in gradients.items():
            if name == "kernel":
                gradient = gradient + 0.01 * expected[name]
            velocity[name] = 0.8 * velocity[name] + gradient
            direction = gradient + 0.8 * velocity[name] if nesterov else velocity[name]
            expected[name] = expected[name] - float(learning_rate(step)) * direction
    for name in expected:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5)


def take_steps(config, params, gradients):
    """The parameters after each step of a config's optimiser."""
    optimiser, _ = create_optimiser(config, steps_per_epoch=2)
    params = jax.tree.map(jnp.asarray, params)
    state, taken = optimiser.init(params), []

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, state, gradient)
        taken.append(params)
    return taken


RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(3, 2)).astype(np.float32), "bias": RNG.normal(size=2).astype(np.float32)}
GRADIENTS = [{name: RNG.normal(size=p.shape).astype(np.float32) for name, p in PARAMS.items()} for _ in range(6)]


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_updates_are_those_of_adamw_and_lamb(optimizer, decay_all):
    config = settings(
        name=optimizer,
        nesterov=False,
        schedule="constant",
        warmup_epochs=0.0,
        epochs=3,
        learning_rate=0.05,
        weight_decay=0.1,
        beta1=0.8,
        beta2=0.95,
        epsilon=1e-4,
        decay_all=decay_all,
    )
    expected = {name: value.astype(np.float64) for name, value in PARAMS.items()}
    first = dict.fromkeys(PARAMS, 0.0)
    second = dict.fromkeys(PARAMS, 0.0)
    for number, (gradient, params) in enumerate(zip(GRADIENTS, take_steps(config, PARAMS, GRADIENTS), strict=True), 1):
        for name, g in gradient.items():
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            corrected = first[name] / (1 - 0.8**number), second[name] / (1 - 0.95**number)
            direction = corrected[0] / (np.sqrt(corrected[1]) + 1e-4)
            if decay_all or name == "kernel":
                direction = direction + 0.1 * expected[name]
                if optimizer == "lamb":
                    direction = direction * np.linalg.norm(expected[name]) / np.linalg.norm(direction)
            expected[name] = expected[name] - 0.05 * direction
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-4, atol=1e-6)


def test_decay_of_all_parameters_and_its_growth():
    config = settings(
        learning_rate=0.5, momentum=0.0, nesterov=False, schedule="constant", warmup_epochs=0.0, epochs=3,
        weight_decay=0.01, decay_all=True, decay_growth=3.0, decay_growth_epochs=1.0,
    )  # fmt: skip
    zeros = [jax.tree.map(np.zeros_like, PARAMS)] * 6
    factor = 1.0
    # Two steps an epoch; the decay triples every epoch.
    for decay, params in zip([0.01, 0.01, 0.03, 0.03, 0.09, 0.09], take_steps(config, PARAMS, zeros), strict=True):
        factor *= 1 - 0.5 * decay
        for name in PARAMS:
            np.testing.assert_allclose(params[name], factor * PARAMS[name], rtol=1e-5)


def test_decay_of_acnet_grows_by_a_fifth_every_30_epochs():
    decay = weight_decay(settings(weight_decay=1e-4, decay_growth=1.2, decay_growth_epochs=30.0).optimizer, 5000)
    steps = [0, 149_999, 150_000, 299_999, 300_000, 599_999]
    np.testing.assert_allclose([decay(step) for step in steps], 1e-4 * 1.2 ** np.array([0, 0, 1, 1, 2, 3]), rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm_before_anything_else():
    config = settings(
        learning_rate=1.0, momentum=0.0, nesterov=False, schedule="constant", warmup_epochs=0.0, weight_decay=0.5,
        gradient_clip_norm=2.0,
    )  # fmt: skip
    small = jax.tree.map(lambda g: 0.1 * g / np.linalg.norm(g), GRADIENTS[0])
    for gradients in (GRADIENTS[0], small):
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values()))
        factor = min(1.0, 2.0 / norm)
        (params,) = take_steps(config, PARAMS, [gradients])
        kernel = PARAMS["kernel"] - factor * gradients["kernel"] - 0.5 * PARAMS["kernel"]
        np.testing.assert_allclose(params["kernel"], kernel, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(params["bias"], PARAMS["bias"] - factor * gradients["bias"], rtol=1e-5, atol=1e-6)


def test_schedule_of_steps_falls_from_the_epoch_on():
    steps = [0, 3, 4, 11, 12, 17, 18, 35]
    falls = {"schedule": "steps", "schedule_epochs": [3, 4.5], "schedule_factor": 0.2}
    found = rates(steps, 4, epochs=9, learning_rate=0.4, warmup_epochs=1.0, **falls)
    np.testing.assert_allclose(found, [0.1, 0.4, 0.4, 0.4, 0.08, 0.08, 0.016, 0.016], rtol=1e-5)


def test_constant_schedule_is_constant_after_its_warm_up():
    found = rates((0, 1, 2, 3, 17), 2, epochs=9, learning_rate=0.3, warmup_epochs=1.5, schedule="constant")
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.3, 0.3], rtol=1e-6)


TREE = {"head": PARAMS, "layer1": {0: PARAMS, 1: PARAMS}, "layer10": {0: PARAMS}}
TREE_GRADIENTS = {"head": GRADIENTS[0], "layer1": {0: GRADIENTS[1], 1: GRADIENTS[2]}, "layer10": {0: GRADIENTS[3]}}
SGD = {"learning_rate": 0.1, "schedule": "constant", "warmup_epochs": 0.0, "weight_decay": 0.1}


def test_paths_choose_whole_names():
    chosen = path_mask("layer1.0", "head.bias")(TREE)
    leaf = {"kernel": False, "bias": False}
    assert chosen == {
        "head": {"kernel": False, "bias": True},
        "layer1": {0: {"kernel": True, "bias": True}, 1: leaf},
        "layer10": {0: leaf},
    }


@pytest.mark.parametrize("more", [{}, {"gradient_clip_norm": 0.5}, {"name": "adamw", "nesterov": False}])
def test_a_multiplier_scales_the_updates_of_its_path_and_of_no_other(more):
    first = []
    for multipliers in ({}, {"layer1.0": 10.0, "head.kernel": 0.5}):
        (params,) = take_steps(settings(**SGD, **more, multipliers=multipliers), TREE, [TREE_GRADIENTS])
        first.append(jax.tree.map(lambda after, before: np.asarray(after - before), params, TREE))
    plain, scaled = first
    expected = jax.tree.map(np.copy, plain)
    expected["layer1"][0] = jax.tree.map(lambda update: 10 * update, plain["layer1"][0])
    expected["head"]["kernel"] = 0.5 * plain["head"]["kernel"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), scaled, expected)


def test_multipliers_go_on_with_the_momentum():
    """The multiplier scales the rate, not the momentum: every step equals one at ten times the rate."""
    gradients = GRADIENTS[:3]
    tenfold = take_steps(settings(**SGD, multipliers={"kernel": 10.0}), PARAMS, gradients)
    expected = take_steps(settings(**{**SGD, "learning_rate": 1.0}), PARAMS, gradients)
    for found, wanted in zip(tenfold, expected, strict=True):
        np.testing.assert_allclose(found["kernel"], wanted["kernel"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.schedule": "steps"}, r"schedule_epochs is \[\]"),
        ({"optimizer.schedule_epochs": [1.0]}, "schedule is 'cosine' and"),
        (
            {"optimizer.schedule": "constant", "optimizer.schedule_epochs": [1.0]},
            "schedule is 'constant' and",
        ),
        ({"optimizer.schedule": "steps", "optimizer.schedule_epochs": [1.0, 2.0]}, "to below config.epochs, 2"),
        ({"optimizer.schedule": "steps", "optimizer.schedule_epochs": [1.5, 1.0]}, "must rise"),
        ({"optimizer.schedule": "steps", "optimizer.schedule_epochs": [1.0, 1.0]}, "must rise"),
        (
            {"optimizer.schedule": "steps", "optimizer.schedule_epochs": [0.4]},
            "from config.optimizer.warmup_epochs, 0.5",
        ),
        ({"optimizer.decay_growth": 1.2}, "set all three"),
        ({"optimizer.decay_growth_epochs": 1.0}, "set all three"),
        (
            {"optimizer.decay_growth": 1.2, "optimizer.decay_growth_epochs": 1.0, "optimizer.weight_decay": 0.0},
            "weight_decay is 0.0",
        ),
        ({"optimizer.name": "adamw"}, "nesterov is True but config.optimizer.name is 'adamw'"),
        ({"optimizer.momentum": 0.0}, "set config.optimizer.nesterov=False"),
        ({"compute": {"batch_norm": "device", "shards": 2}}, "config.compute.shards is 2"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        tiny(changes)
