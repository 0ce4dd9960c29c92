"""Every switch of the training step at once on four devices, with parameters divided over them or not."""

import jax
import numpy as np
import pytest

from tests.train.helpers import run_python
from train.config import validate_config
from train.data.source import Source
from train.engine.mesh import create_mesh, shard_arrays, shard_batch, state_shardings
from train.engine.network import split_model
from train.engine.optim import create_optimiser
from train.engine.step import create_state, create_train_step
from train.tasks import Classification

SETTINGS = {
    "data": {"source": "digits"},
    "model": {"name": "ps_resnet8", "kwargs": {"drop_path_rate": 0.2}},
    "optimizer": {
        "learning_rate": 0.05,
        "weight_decay": 1e-3,
        "gradient_clip_norm": 1.0,
        "ema_decay": 0.9,
        "accumulation_steps": 2,
    },
    "task": {"label_smoothing": 0.1, "mixup_alpha": 0.4, "cutmix_alpha": 1.0},
    "epochs": 1,
    "batch_size": 16,
}


def two_steps(**compute):
    """The state after two steps, and the report of the second, on the host."""
    config = validate_config({**SETTINGS, "compute": {"remat": True, **compute}})
    task = Classification(config, Source({}, ("a", "b", "c"), (8, 8, 3), True, (0.5,) * 3, (0.25,) * 3))
    model, params, other_state = split_model(task.create())
    optimiser, _ = create_optimiser(config, 10)
    mesh = create_mesh(config.compute.shards)

    def create(params, other_state):
        return create_state(params, other_state, optimiser, task.terms, ema_decay=config.optimizer.ema_decay)

    shardings = state_shardings(jax.eval_shape(create, params, other_state), mesh)
    state = jax.jit(create, out_shardings=shardings)(*shard_arrays((params, other_state), mesh))
    step = create_train_step(model, task, optimiser, config, mesh, shardings)
    rng = np.random.default_rng(0)
    for _ in range(2):
        images = rng.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
        labels = rng.integers(0, 3, 16).astype(np.int32)
        state, report = step(state, shard_batch({"image": images, "label": labels}, mesh))
    return jax.device_get(state), jax.device_get(report)


def compare_steps():
    """What the test runs in a process with four devices."""
    assert jax.device_count() == 4
    (whole, _), (divided, _) = two_steps(shards=1), two_steps(shards=4)
    for name in ("params", "rest", "average"):
        jax.tree.map(
            lambda left, right: np.testing.assert_allclose(left, right, rtol=0, atol=1e-4),
            getattr(whole, name),
            getattr(divided, name),
        )
    half, report = two_steps(shards=1, batch_norm="device", dtype="bfloat16")
    leaves = jax.tree.leaves((half.params, half.rest, half.average, report))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert float(half.terms["loss"][1]) == 32  # rows of the two steps


@pytest.mark.slow
def test_parameters_divided_over_devices_change_no_step():
    code = "from tests.cases.test_71_step_combinations import compare_steps; compare_steps(); print('compared')"
    done = run_python("-c", code, limit=900, XLA_FLAGS="--xla_force_host_platform_device_count=4", JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("compared\n")
