"""How long a training step takes, for several networks one after the other in turn."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax

from train.data import load_source, train_batches
from train.mesh import create_mesh, replicate, to_devices
from train.network import create_network, split_model
from train.optim import create_optimiser
from train.settings import Config
from train.step import create_state, create_train_step


def step_times(configs: Mapping[str, Config], rounds: int) -> dict[str, float]:
    """Measures a training step of each config, on all cores, its batch being ready.

    Whatever else happens on the machine for a while hits all of them, because they take turns.

    Args:
        configs: checked configs, by any name.
        rounds: steps that count, after one that compiles.

    Returns:
        For each name the median, in seconds.
    """
    steps = {name: _Step(config) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step.take()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(own) for name, own in seconds.items()}


class _Step:
    """The step of a config; the first one, which compiles, is taken at once."""

    def __init__(self, config: Config):
        source, mesh = load_source(config), create_mesh()
        model, params, rest = split_model(create_network(config, source), source)
        optimiser, _ = create_optimiser(config, steps_per_epoch=1)
        self._state: Any = jax.device_put(create_state(params, rest, optimiser), replicate(mesh))
        self._step = create_train_step(model, optimiser, config, mesh, len(source.classes))
        self._batch = to_devices(next(iter(train_batches(source, config, 0, 1))), mesh)
        self.take()

    def take(self) -> None:
        self._state, report = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, report))
