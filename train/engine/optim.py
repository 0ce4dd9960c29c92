"""The optimisers, their learning rates by step, and the weight decay of selected parameters."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.config import Config
from train.config.schema import Optimizer
from train.engine.network import starts_with

Schedule = Callable[[Any], Any]  # from the step to a number, () float32


def create_optimiser(config: Config, steps_per_epoch: int) -> tuple[optax.GradientTransformation, Schedule]:
    """Builds the optimiser of a run; returns it and its learning rate.

    The gradients are first clipped by their global norm. Then:

    * "sgd": the decay is added to the gradient before the momentum, as in PyTorch's SGD;
    * "adamw" (Loshchilov and Hutter 2019): the decay is added to Adam's direction;
    * "lamb" (You et al. 2020): likewise, and the sum is scaled, parameter by parameter, to the parameter's norm.
      Parameters exempt from the decay are exempt from this scaling too, as in the authors' code.

    The result, including the decay, is multiplied by the learning rate and by the multiplier of the parameter's path.
    Frozen parameters have neither gradients nor updates.
    """
    settings = config.optimizer
    rate = learning_rate(settings, config.epochs, steps_per_epoch)
    mask = None if settings.decay_all else decay_mask
    decay = optax.add_decayed_weights(weight_decay(settings, steps_per_epoch), mask)
    adam = _promoting(optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon))
    adaptation = optax.scale_by_trust_ratio()
    parts: list[Any] = {
        "sgd": [decay, optax.trace(settings.momentum, settings.nesterov)],
        "adamw": [adam, decay],
        "lamb": [adam, decay, optax.masked(adaptation, mask) if mask else adaptation],
    }[settings.name]
    if settings.gradient_clip_norm:
        parts.insert(0, optax.clip_by_global_norm(settings.gradient_clip_norm))
    parts += [optax.masked(optax.scale(by), path_mask(path)) for path, by in settings.multipliers.items()]
    if config.model.frozen:
        frozen = optax.masked(optax.set_to_zero(), path_mask(*config.model.frozen))
        parts = [frozen, *parts, frozen]
    return optax.chain(*parts, optax.scale_by_learning_rate(rate)), rate


def _promoting(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Lets JAX promote dtypes in an update, as Optax's Adam needs: it raises floats to the number of steps, an int."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return transformation.update(updates, state, params)

    return optax.GradientTransformation(transformation.init, update)


def learning_rate(settings: Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
    """Returns the learning rate as a function of the step, counted from 0.

    It rises linearly over the warm-up, whose last step has the peak. Then it falls along a cosine to 0 ("cosine"), by a
    factor at given epochs, like PyTorch's MultiStepLR ("steps"), by a power of the remaining steps ("poly"), or stays
    constant ("constant").
    """
    warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
    fall_steps = max(epochs * steps_per_epoch - warmup_steps, 1)
    if settings.schedule == "cosine":
        fall = _stretched(optax.cosine_decay_schedule(1.0, 1), fall_steps)
    elif settings.schedule == "poly":
        fall = optax.polynomial_schedule(1.0, 0.0, settings.schedule_power, fall_steps)
    else:
        falls = Counter(round(epoch * steps_per_epoch) - warmup_steps for epoch in settings.schedule_epochs)
        factors = {step: settings.schedule_factor**count for step, count in falls.items()}
        fall = optax.piecewise_constant_schedule(1.0, factors)
    rise = _stretched(lambda share: share, max(warmup_steps, 1), first=1)
    factor = optax.join_schedules([rise, fall], [warmup_steps])
    # Optax mixes the step with floats, and JAX may be set to promote no dtypes.
    return lambda step: settings.learning_rate * factor(jnp.asarray(step, jnp.float32))


def _stretched(schedule: Schedule, steps: int, first: int = 0) -> Schedule:
    """Stretches a schedule over 0..1 to `steps` steps; step 0 is at `first`."""
    return lambda step: schedule((jnp.asarray(step, jnp.float32) + first) / steps)


def weight_decay(settings: Optimizer, steps_per_epoch: int) -> float | Schedule:
    """Returns the weight decay: a number, or a function of the step if it grows.

    It is multiplied by `decay_growth` after every `decay_growth_epochs`, like ACNet's dataset-aware decay.
    """
    if settings.decay_growth == 1:
        return settings.weight_decay
    interval = max(round(settings.decay_growth_epochs * steps_per_epoch), 1)
    return optax.exponential_decay(settings.weight_decay, interval, settings.decay_growth, staircase=True)


def decay_mask(params: dict) -> dict:
    """Returns a tree of booleans, one for each parameter: weight decay applies to kernels, not to norms and biases.

    Norm scales and biases are vectors; a bias with more dimensions is recognised by its name.
    """

    def is_decayed(path: tuple, parameter: jax.Array) -> bool:
        return parameter.ndim > 1 and path[-1].key not in ("bias", "scale")

    return jax.tree.map_with_path(is_decayed, params)


def path_mask(*prefixes: str) -> Callable[[Any], Any]:
    """Returns a mask of the parameters whose paths begin with one of `prefixes`."""

    def is_within(path: tuple, parameter: jax.Array) -> bool:
        return starts_with([entry.key for entry in path], prefixes)

    return lambda params: jax.tree.map_with_path(is_within, params)
