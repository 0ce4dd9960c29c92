"""The network of a config: a registered model, with its convolutions replaced where the config names an operator."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

import msconv_jax
from msconv_jax.models.resnet import Stem
from train.config import Config
from train.config.network import check_network, operator
from train.errors import UserError


def create_network(config: Config, num_classes: int, in_channels: int) -> nnx.Module:
    """Builds the freshly initialised network of a config.

    Parameters and batch statistics are float32; `config.compute.dtype` is the type of the computation.

    Args:
        config: names the network, its operator and its seed.
        num_classes: of the logits.
        in_channels: of the images.

    Raises:
        UserError: for an unknown model or operator, a model of another task, or arguments that it does not take.
    """
    check_network(config)
    name = config.model.name
    arguments = model_arguments(config.model.kwargs)
    if config.model.conv:
        conv = functools.partial(operator(config.model.conv), **model_arguments(config.model.conv_kwargs))
        by_path = {path: functools.partial(conv, **model_arguments(more)) for path, more in config.model.convs.items()}
        arguments["conv"] = by_path or conv
    if config.compute.dtype != "float32":
        arguments["dtype"] = jnp.dtype(config.compute.dtype)
    try:
        return msconv_jax.create_model(
            name, num_classes=num_classes, in_channels=in_channels, rngs=nnx.Rngs(config.seed), **arguments
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model.name={name!r} cannot be built: {error}") from error


def model_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts JSON values to arguments of a model: lists become tuples, and a "stem" becomes a `Stem`.

    Raises:
        UserError: if a stem is invalid.
    """
    return {name: _stem(value) if name == "stem" else _argument(value) for name, value in values.items()}


def _argument(value: Any) -> Any:
    if isinstance(value, Mapping):
        return model_arguments(value)
    return tuple(map(_argument, value)) if isinstance(value, list | tuple) else value  # modules may store tuples


def _stem(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    try:
        return Stem(**model_arguments(value))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.model.kwargs has the stem {dict(value)} but a stem must be as {{'kernel_size': 3, 'strides': 2, "
            f"'max_pool': False}}: {error}"
        ) from error
