"""The optimisers, their learning rates by step, and the weight decay of selected parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.settings import Config

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def create_optimiser(config: Config, steps_per_epoch: int) -> tuple[optax.GradientTransformation, Schedule]:
    """Builds the optimiser of a run, and gives its learning rate besides.

    The gradients are first clipped by their global norm. Then:

    * "sgd": the decay is added to the gradient before the momentum, as in PyTorch's SGD;
    * "adamw" (Loshchilov and Hutter 2019): the decay is added to Adam's direction;
    * "lamb" (You et al. 2020): likewise, and the sum is scaled, parameter by parameter, to the parameter's norm.
      Parameters exempt from the decay are exempt from this scaling too, as in the authors' code.

    At last the learning rate multiplies the result, the decay in it included.
    """
    rate = learning_rate(config, steps_per_epoch)
    mask = None if config.decay_all else decay_mask
    decay = optax.add_decayed_weights(weight_decay(config, steps_per_epoch), mask)
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    parts: list[Any] = {
        "sgd": lambda: [decay, optax.trace(config.momentum, config.nesterov)],
        "adamw": lambda: [adam, decay],
        "lamb": lambda: [adam, decay, _layer_adaptation(mask)],
    }[config.optimizer]()
    if config.gradient_clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.gradient_clip_norm))
    return optax.chain(*parts, optax.scale_by_learning_rate(rate)), rate


def _layer_adaptation(mask: Callable[[Any], Any] | None) -> optax.GradientTransformation:
    scale = optax.scale_by_trust_ratio()
    return scale if mask is None else optax.masked(scale, mask)


def learning_rate(config: Config, steps_per_epoch: int) -> Schedule:
    """The learning rate of a config, as a function of the step, counted from 0."""
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    total_steps = config.epochs * steps_per_epoch
    if config.schedule == "cosine":
        return cosine_schedule(config.learning_rate, warmup_steps, total_steps)
    boundaries = [round(epoch * steps_per_epoch) for epoch in config.schedule_epochs]
    return steps_schedule(config.learning_rate, warmup_steps, boundaries, config.schedule_factor)


def cosine_schedule(peak: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Learning rate that rises linearly for `warmup_steps` and then falls along a cosine.

    Args:
        peak: the largest learning rate.
        warmup_steps: steps of the rise; the last of them has the peak.
        total_steps: steps of the whole run; the rate reaches 0 just after them.

    Returns:
        Maps the number of a step, counted from 0, to its learning rate.
    """

    def fall(step: jax.Array) -> jax.Array:
        done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))

    return _warmed_up(peak, warmup_steps, fall)


def steps_schedule(peak: float, warmup_steps: int, boundaries: list[int], factor: float) -> Schedule:
    """Learning rate that rises linearly for `warmup_steps` and is then lowered at some steps.

    Args:
        peak: the largest learning rate.
        warmup_steps: steps of the rise; the last of them has the peak.
        boundaries: steps from which on, that step included, the rate is lowered once more; PyTorch's MultiStepLR.
            With none the rate stays.
        factor: what lowering multiplies by.

    Returns:
        Maps the number of a step, counted from 0, to its learning rate.
    """

    def fall(step: jax.Array) -> jax.Array:
        lowered = sum((step >= boundary).astype(jnp.float32) for boundary in boundaries)
        return jnp.float32(factor) ** lowered

    return _warmed_up(peak, warmup_steps, fall)


def _warmed_up(peak: float, warmup_steps: int, fall: Callable[[jax.Array], jax.Array]) -> Schedule:
    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = (step + 1) / max(warmup_steps, 1)
        return peak * jnp.where(step < warmup_steps, rise, fall(step))

    return rate


def weight_decay(config: Config, steps_per_epoch: int) -> float | Schedule:
    """The weight decay of a config: a number, or a function of the step where it grows.

    It is multiplied by `decay_growth` after every `decay_growth_epochs`, as ACNet's dataset-aware decay.
    """
    if config.decay_growth == 1:
        return config.weight_decay
    interval = max(round(config.decay_growth_epochs * steps_per_epoch), 1)

    def decay(step: jax.typing.ArrayLike) -> jax.Array:
        times = (jnp.asarray(step, jnp.int32) // interval).astype(jnp.float32)
        return config.weight_decay * jnp.float32(config.decay_growth) ** times

    return decay


def is_decayed(path: tuple, parameter: jax.Array) -> bool:
    """Says whether weight decay applies to a parameter: to kernels, not to norms and biases.

    Norm scales and biases are vectors; a bias of more dimensions is known by its name.
    """
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return parameter.ndim > 1 and name not in ("bias", "scale")


def decay_mask(params: dict) -> dict:
    """Gives a tree of booleans, one a parameter, with `is_decayed` of each."""
    return jax.tree.map_with_path(is_decayed, params)
