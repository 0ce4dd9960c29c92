"""The network of a config: a registered model, with its convolutions replaced where the config names an operator."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

import msconv_jax
from msconv_jax import edo
from msconv_jax.models.registry import list_models, model_entry
from msconv_jax.models.resnet import Stem
from train.config import Config
from train.errors import UserError, suggest

# What a network gives each of its convolutions; a config that sets one of these would be without effect.
_SET_BY_NETWORK = {"in_features", "out_features", "kernel_size", "strides", "padding", "kernel_dilation", "rngs"} | {
    *("feature_group_count", "use_bias", "kernel_init", "dtype", "param_dtype")
}


def create_network(config: Config, num_classes: int, in_channels: int) -> nnx.Module:
    """Builds the freshly initialised network of a config.

    With `config.compute.dtype` its parameters and statistics stay float32; only what it computes is of that type.

    Args:
        config: names the network, its operator and its seed.
        num_classes: of the logits.
        in_channels: of the images.

    Raises:
        UserError: for an unknown model or operator, a model of another task, or arguments that it does not take.
    """
    name = config.model.name
    arguments = model_arguments(config.model.kwargs)
    if config.model.conv:
        _check_arguments(config)
        conv = functools.partial(_operator(config.model.conv), **model_arguments(config.model.conv_kwargs))
        by_path = {path: functools.partial(conv, **model_arguments(more)) for path, more in config.model.convs.items()}
        arguments["conv"] = by_path or conv
    elif config.model.conv_kwargs or config.model.convs:
        raise UserError(
            f"config.model.conv_kwargs is {config.model.conv_kwargs} and config.model.convs names "
            f"{len(config.model.convs)} convolutions, but config.model.conv is ''; name the operator that takes these "
            "arguments, for example config.model.conv='PSConv'"
        )
    if name in list_models() and model_entry(name).task != config.task.name:
        raise UserError(
            f"config.model.name is {name!r}, a network for {model_entry(name).task}, but config.task.name is "
            f"{config.task.name!r}; list_models(task={config.task.name!r}) gives the networks for it"
        )
    if config.compute.dtype != "float32":
        _check_takes_dtype(config, arguments)
        arguments["dtype"] = jnp.dtype(config.compute.dtype)
    try:
        return msconv_jax.create_model(
            name, num_classes=num_classes, in_channels=in_channels, rngs=nnx.Rngs(config.seed), **arguments
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model.name={name!r} cannot be built: {error}") from error


def model_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turns JSON values into arguments of a model: lists become tuples, and each "stem" is made of its arguments.

    Raises:
        UserError: if it is no stem.
    """
    return {name: _stem(value) if name == "stem" else _argument(value) for name, value in values.items()}


def _argument(value: Any) -> Any:
    if isinstance(value, Mapping):
        return model_arguments(value)
    return tuple(map(_argument, value)) if isinstance(value, list | tuple) else value  # which modules may keep


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


def _check_arguments(config: Config) -> None:
    """Refuses arguments of the operator that the network sets for each convolution."""
    given = {"config.model.conv_kwargs": config.model.conv_kwargs}
    given |= {f"config.model.convs[{path!r}]": more for path, more in config.model.convs.items()}
    for place, arguments in given.items():
        for name in sorted(_SET_BY_NETWORK & arguments.keys()):
            raise UserError(
                f"{place} sets {name}, which the network sets for each convolution itself; leave it out (dilated "
                "convolutions are config.model.conv='PSConv' with pattern=(2,), grouped ones 'PyConv' with "
                "kernel_sizes=(3,) and groups=(4,))"
            )


def _check_takes_dtype(config: Config, arguments: dict[str, Any]) -> None:
    if "dtype" in arguments:
        raise UserError(
            f"config.model.kwargs sets dtype to {arguments['dtype']!r} but config.compute.dtype is "
            f"{config.compute.dtype!r}; leave one of them out"
        )
    if config.model.name in list_models() and "dtype" not in model_entry(config.model.name).keywords:
        raise UserError(
            f"config.compute.dtype is {config.compute.dtype!r} but the model {config.model.name!r} has no argument "
            "dtype; give its builder one, or set config.compute.dtype='float32'"
        )


def _operator(name: str) -> Callable[..., nnx.Module]:
    operators: dict[str, Callable[..., nnx.Module]] = {"Conv": nnx.Conv, "SupernetConv": edo.SupernetConv}
    for public in msconv_jax.__all__:
        value = getattr(msconv_jax, public)
        if isinstance(value, type) and issubclass(value, nnx.Module):
            operators[public] = value
    if name not in operators:
        raise UserError(f"config.model.conv is {name!r}, no such operator; {suggest(name, operators)}")
    return operators[name]
