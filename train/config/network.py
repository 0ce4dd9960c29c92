"""Checks of the settings of a network, without data or devices, so that errors are found within seconds.

The package does not re-export this module, because it imports the library, which takes time.
"""

import inspect
from collections.abc import Callable, Iterable

from flax import nnx

import msconv_jax
from msconv_jax import edo
from msconv_jax.models.registry import model_entry
from train.config.schema import Config
from train.errors import UserError, suggest

# Arguments that a network sets for each of its convolutions; a config must not set them.
_SET_BY_NETWORK = {"in_features", "out_features", "kernel_size", "strides", "padding", "kernel_dilation", "rngs"} | {
    *("feature_group_count", "use_bias", "kernel_init", "dtype", "param_dtype")
}
_SET_BY_DATA = ("num_classes", "in_channels")


def check_network(config: Config) -> None:
    """Checks that the model, its operator and their arguments exist, and that the model is one for the task.

    Raises:
        UserError: naming the setting that is wrong.
    """
    settings = config.model
    try:
        entry = model_entry(settings.name)
        names = [name for name in settings.kwargs if name not in _SET_BY_DATA]
        entry.check_keywords([*names, "conv"] if settings.conv else names)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model.name={settings.name!r} cannot be built: {error}") from error
    if entry.task != config.task.name:
        raise UserError(
            f"config.model.name is {settings.name!r}, a network for {entry.task}, but config.task.name is "
            f"{config.task.name!r}; list_models(task={config.task.name!r}) gives the networks for it"
        )
    for name in _SET_BY_DATA:
        if name in settings.kwargs:
            raise UserError(f"config.model.kwargs sets {name}, which the data determine; leave it out")
    if "conv" in settings.kwargs:
        raise UserError(
            "config.model.kwargs sets conv, but config.model.conv names the operator, such as config.model.conv="
            "'PSConv'; leave it out"
        )
    _check_dtype(config, entry.keywords)
    _check_operator(config)


def operator(name: str) -> Callable[..., nnx.Module]:
    """Returns the operator that `config.model.conv` names; raises a `UserError` if it does not exist."""
    operators: dict[str, Callable[..., nnx.Module]] = {"Conv": nnx.Conv, "SupernetConv": edo.SupernetConv}
    for public in msconv_jax.__all__:
        value = getattr(msconv_jax, public)
        if isinstance(value, type) and issubclass(value, nnx.Module):
            operators[public] = value
    if name not in operators:
        raise UserError(f"config.model.conv is {name!r}, no such operator; {suggest(name, operators)}")
    return operators[name]


def _check_operator(config: Config) -> None:
    """Refuses arguments that the operator lacks, and those that the network sets for each convolution."""
    settings = config.model
    if not settings.conv:
        if settings.conv_kwargs or settings.convs:
            raise UserError(
                f"config.model.conv_kwargs is {settings.conv_kwargs} and config.model.convs names "
                f"{len(settings.convs)} convolutions, but config.model.conv is ''; name the operator that takes these "
                "arguments, for example config.model.conv='PSConv'"
            )
        return
    known = _argument_names(operator(settings.conv))
    given = {"config.model.conv_kwargs": settings.conv_kwargs}
    given |= {f"config.model.convs[{path!r}]": more for path, more in settings.convs.items()}
    for place, arguments in given.items():
        if not isinstance(arguments, dict):
            raise UserError(f"{place} is {arguments!r} but must be a dictionary of arguments of {settings.conv}")
        for name in sorted(_SET_BY_NETWORK & arguments.keys()):
            raise UserError(
                f"{place} sets {name}, which the network sets for each convolution itself; leave it out (dilated "
                "convolutions are config.model.conv='PSConv' with pattern=(2,), grouped ones 'PyConv' with "
                "kernel_sizes=(3,) and groups=(4,))"
            )
        for name in sorted(arguments.keys() - known):
            raise UserError(
                f"{place} sets {name!r}, but {settings.conv} has no such argument; "
                f"{suggest(name, known - _SET_BY_NETWORK)}"
            )


def _argument_names(factory: Callable[..., nnx.Module]) -> set[str]:
    # Flax's metaclass hides the signature of a class.
    function = factory.__init__ if inspect.isclass(factory) else factory
    return set(inspect.signature(function).parameters) - {"self"}


def _check_dtype(config: Config, keywords: Iterable[str]) -> None:
    if config.compute.dtype == "float32":
        return
    if "dtype" in config.model.kwargs:
        raise UserError(
            f"config.model.kwargs sets dtype to {config.model.kwargs['dtype']!r} but config.compute.dtype is "
            f"{config.compute.dtype!r}; leave one of them out"
        )
    if "dtype" not in keywords:
        raise UserError(
            f"config.compute.dtype is {config.compute.dtype!r} but the model {config.model.name!r} has no argument "
            "dtype; give its builder one, or set config.compute.dtype='float32'"
        )
