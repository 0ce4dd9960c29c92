"""Stops a run whose numbers are no numbers any more, before a checkpoint holds them."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from train.errors import UserError
from train.settings import Config
from train.step import Report, TrainState


def check_step(step: int, report: Report, config: Config) -> None:
    """Checks what a training step reports; waits for the step.

    Args:
        step: its number, counted from 1.
        report: what the step gave.
        config: of the run.

    Raises:
        UserError: if its loss or gradient is not finite; it has then changed neither parameters nor statistics.
    """
    loss, images, norm = map(float, jax.device_get((report["loss"], report["images"], report["gradient_norm"])))
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise UserError(
            f"the training loss is {loss / images:g} and the norm of its gradient {norm:g} at step {step}, so training "
            f"cannot go on; {_advice(config)}"
        )


def check_state(step: int, state: TrainState, config: Config) -> None:
    """Checks what is about to be evaluated and saved; waits for it.

    Args:
        step: steps done.
        state: after them.
        config: of the run.

    Raises:
        UserError: if a number in it is not finite.
    """
    if not _all_finite(state):
        raise UserError(f"the parameters are not finite after step {step}, so it is not saved; {_advice(config)}")


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _advice(config: Config) -> str:
    return (
        f"lower config.learning_rate (it is {config.learning_rate:g}), raise config.warmup_epochs "
        f"({config.warmup_epochs:g}), limit config.gradient_clip_norm ({config.gradient_clip_norm:g}), or look for "
        "images that are damaged, in a new --workdir; earlier checkpoints are kept"
    )
