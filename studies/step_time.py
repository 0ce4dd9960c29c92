"""The time of a training step, for several networks in turn."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax

from train.config import Config
from train.data import load_source, train_batches
from train.engine.mesh import create_mesh, replicate, shard_batch
from train.engine.network import split_model
from train.engine.optim import create_optimiser
from train.engine.step import create_state, create_train_step
from train.tasks import task_kind


def step_times(configs: Mapping[str, Config], rounds: int) -> dict[str, float]:
    """Measures a training step of each config on all cores, without the time for data.

    The networks take turns, so that other load on the machine affects all of them.

    Args:
        configs: checked configs, by any name.
        rounds: measured steps, after one that compiles.

    Returns:
        The median time of each name, in seconds.

    Raises:
        UserError: if a network cannot be built, or its data are missing.
    """
    steps = {name: _Step(config) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step.run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}


class _Step:
    """The training step of a config; the first one, which compiles, runs at once."""

    def __init__(self, config: Config):
        kind, mesh = task_kind(config), create_mesh()
        source = load_source(config, kind.needs)
        task = kind(config, source)
        model, params, other_state = split_model(task.create(), config.model.frozen)
        optimiser, _ = create_optimiser(config, steps_per_epoch=1)
        state = create_state(params, other_state, optimiser, task.terms, ema_decay=config.optimizer.ema_decay)
        self._state: Any = jax.device_put(state, replicate(mesh))
        self._step = create_train_step(model, task, optimiser, config, mesh)
        batches = train_batches(source, config, task.transform(training=True), 0, 1)
        self._batch = shard_batch(next(iter(batches)), mesh)
        self.run()

    def run(self) -> None:
        self._state, report = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, report))
