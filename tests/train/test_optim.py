import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.helpers import tiny
from train.data import load_source
from train.network import split_shapes
from train.optim import cosine_schedule, create_optimiser, decay_mask


@pytest.mark.parametrize("model", ["resnet8", "ps_resnet8"])
def test_decay_is_for_the_kernels_of_a_network_alone(model):
    config = tiny(model=model, model_kwargs={"width": 8})
    _, params, _ = split_shapes(config, load_source(config))
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
    rate = cosine_schedule(0.4, warmup_steps=4, total_steps=14)
    values = [float(rate(step)) for step in range(15)]
    np.testing.assert_allclose(values[:5], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(values[9], 0.2, rtol=1e-6)  # halfway down
    assert all(a > b for a, b in itertools.pairwise(values[4:]))
    assert values[13] > 0
    assert abs(values[14]) < 1e-7


def test_schedule_without_warm_up_starts_at_the_peak():
    assert float(cosine_schedule(0.4, 0, 10)(0)) == pytest.approx(0.4)


@pytest.mark.parametrize("nesterov", [True, False])
def test_updates_are_those_of_pytorchs_sgd(nesterov):
    config = tiny(nesterov=nesterov, weight_decay=0.01, momentum=0.8, learning_rate=0.5)
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
