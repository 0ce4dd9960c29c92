"""Stops a run whose numbers are not finite, before they are saved."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from train.config import Config
from train.engine.step import Report, TrainState
from train.errors import UserError


def check_step(step: int, report: Report, config: Config) -> None:
    """Waits for a step, counted from 1, and raises a `UserError` if its loss or gradient is not finite."""
    loss, norm = map(float, jax.device_get((report["loss"], report["gradient_norm"])))
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise UserError(
            f"the training loss is {loss:g} and the norm of its gradient {norm:g} at step {step}, so training "
            f"cannot continue; {_advice(config)}"
        )


def check_state(step: int, state: TrainState, config: Config) -> None:
    """Waits for the state after a step and raises a `UserError` if a number in it is not finite."""
    if not _all_finite(state):
        raise UserError(f"the parameters are not finite after step {step}, so it is not saved; {_advice(config)}")


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _advice(config: Config) -> str:
    optimizer = config.optimizer
    return (
        f"lower config.optimizer.learning_rate (it is {optimizer.learning_rate:g}), raise "
        f"config.optimizer.warmup_epochs ({optimizer.warmup_epochs:g}), limit config.optimizer.gradient_clip_norm "
        f"({optimizer.gradient_clip_norm:g}), or look for images that are damaged, in a new --workdir; earlier "
        "checkpoints are kept"
    )
