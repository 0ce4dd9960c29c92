"""The optimiser: SGD with momentum, a warmed-up cosine schedule, selective weight decay."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from train.settings import Config

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def cosine_schedule(peak: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Learning rate that rises linearly for `warmup_steps` and then falls along a cosine.

    Args:
        peak: the largest learning rate.
        warmup_steps: steps of the rise; the last of them has the peak.
        total_steps: steps of the whole run; the rate reaches 0 just after them.

    Returns:
        Maps the number of a step, counted from 0, to its learning rate.
    """

    def learning_rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = (step + 1) / max(warmup_steps, 1)
        done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        fall = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        return peak * jnp.where(step < warmup_steps, rise, fall)

    return learning_rate


def is_decayed(path: tuple, parameter: jax.Array) -> bool:
    """Says whether weight decay applies to a parameter: to kernels, not to norms and biases.

    Norm scales and biases are vectors; a bias of more dimensions is known by its name.
    """
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return parameter.ndim > 1 and name not in ("bias", "scale")


def decay_mask(params: dict) -> dict:
    """Gives a tree of booleans, one a parameter, with `is_decayed` of each."""
    return jax.tree.map_with_path(is_decayed, params)


def create_optimiser(config: Config, steps_per_epoch: int) -> tuple[optax.GradientTransformation, Schedule]:
    """Builds the optimiser of a run, and gives its learning rate besides.

    The decay is added to the gradient before the momentum, as in PyTorch's SGD, and the learning
    rate multiplies the result.
    """
    schedule = cosine_schedule(
        config.learning_rate,
        round(config.warmup_epochs * steps_per_epoch),
        config.epochs * steps_per_epoch,
    )
    optimiser = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
    )
    return optimiser, schedule
