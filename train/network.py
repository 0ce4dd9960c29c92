"""The network of a config: built, and split into what training changes and what it does not."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import msconv_jax
from msconv_jax import edo
from msconv_jax.models.registry import list_models, model_entry
from msconv_jax.models.resnet import Stem
from train.data import Source
from train.errors import UserError, suggest
from train.settings import Config


class SplitModel(NamedTuple):
    """What training does not change of a model: its structure, its random keys and how its input is normalised.

    Attributes:
        graphdef: the structure.
        rng: the random keys.
        mean: of each channel, images scaled to 0..1; the source's.
        std: standard deviation of each channel likewise.
        is_bgr: whether the network, its mean and its deviation take blue, green, red; images are red, green, blue.
    """

    graphdef: Any
    rng: dict
    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_bgr: bool = False

    def normalised(self, images: jax.Array) -> jax.Array:
        """Maps (..., channels) values of 0..255 to the network's input, float32 whatever it computes in.

        Here and not in the data pipeline, because the host has little time and bytes are quicker to move.
        """
        scaled = (images[..., ::-1] if self.is_bgr else images).astype(jnp.float32) / 255
        return (scaled - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)

    def merge(self, params: dict, rest: dict, step: jax.Array) -> nnx.Module:
        """Puts the model together; its random numbers depend on the seed and the step alone."""

        def at_step(leaf: jax.Array) -> jax.Array:
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            return jax.random.fold_in(leaf, step) if is_key else leaf

        rng = jax.tree.map(at_step, self.rng)
        # Without the copy, BatchNorm would write statistics into arrays of an outer trace.
        return nnx.merge(self.graphdef, params, rng, rest, copy=True)


def create_network(config: Config, source: Source) -> nnx.Module:
    """Builds the freshly initialised network of a config for the images of a source.

    With `compute_dtype` its parameters and statistics stay float32; only what it computes is of that type.

    Raises:
        UserError: for an unknown model or operator, or arguments that it does not take.
    """
    arguments = model_arguments(config.model_kwargs)
    if config.conv:
        _check_own_arguments(config)
        conv = functools.partial(_operator(config.conv), **_tuples(config.conv_kwargs))
        by_path = {path: functools.partial(conv, **_tuples(own)) for path, own in config.convs.items()}
        arguments["conv"] = by_path or conv
    elif config.conv_kwargs or config.convs:
        raise UserError(
            f"config.conv_kwargs is {config.conv_kwargs} and config.convs names {len(config.convs)} convolutions, but "
            "config.conv is ''; name the operator that takes these arguments, for example config.conv='PSConv'"
        )
    if config.compute_dtype != "float32":
        _check_takes_dtype(config, arguments)
        arguments["dtype"] = jnp.dtype(config.compute_dtype)
    try:
        return msconv_jax.create_model(
            config.model,
            num_classes=len(source.classes),
            in_channels=source.image_shape[-1],
            rngs=nnx.Rngs(config.seed),
            **arguments,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model={config.model!r} cannot be built: {error}") from error


def model_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model, of JSON values: lists become tuples, and a "stem" is made of its own arguments.

    Raises:
        UserError: if it is no stem.
    """
    arguments = _tuples(dict(values))
    stem = arguments.get("stem")
    if isinstance(stem, dict):
        try:
            arguments["stem"] = Stem(**stem)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"config.model_kwargs.stem is {stem} but must be as {{'kernel_size': 3, 'strides': 2, 'max_pool': "
                f"False}}: {error}"
            ) from error
    return arguments


def _check_own_arguments(config: Config) -> None:
    """Refuses arguments of the operator that a network gives it itself: they would be without effect."""
    theirs = {"in_features", "out_features", "kernel_size", "strides", "padding", "kernel_dilation", "rngs"}
    theirs |= {"feature_group_count", "use_bias", "kernel_init", "dtype", "param_dtype"}
    given = {"config.conv_kwargs": config.conv_kwargs}
    given |= {f"config.convs[{path!r}]": own for path, own in config.convs.items()}
    for place, own in given.items():
        for name in sorted(theirs & own.keys()):
            raise UserError(
                f"{place} sets {name}, which the network sets for each convolution itself; leave it out (dilated "
                "convolutions are config.conv='PSConv' with pattern=(2,), grouped ones 'PyConv' with kernel_sizes=(3,) "
                "and groups=(4,))"
            )


def _check_takes_dtype(config: Config, arguments: dict[str, Any]) -> None:
    if "dtype" in arguments:
        raise UserError(
            f"config.model_kwargs sets dtype to {arguments['dtype']!r} but config.compute_dtype is "
            f"{config.compute_dtype!r}; leave one of them out"
        )
    if config.model in list_models() and "dtype" not in model_entry(config.model).keywords:
        raise UserError(
            f"config.compute_dtype is {config.compute_dtype!r} but the model {config.model!r} has no argument dtype; "
            "give its builder one, or set config.compute_dtype='float32'"
        )


def _operator(name: str) -> Callable[..., nnx.Module]:
    operators: dict[str, Callable[..., nnx.Module]] = {"Conv": nnx.Conv, "SupernetConv": edo.SupernetConv}
    for public in msconv_jax.__all__:
        value = getattr(msconv_jax, public)
        if isinstance(value, type) and issubclass(value, nnx.Module):
            operators[public] = value
    if name not in operators:
        raise UserError(f"config.conv is {name!r}, no such operator; {suggest(name, operators)}")
    return operators[name]


def _tuples(value: Any) -> Any:
    """Turns the lists of JSON values into tuples, which modules may keep."""
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def split_model(model: nnx.Module, source: Source) -> tuple[SplitModel, dict, dict]:
    """Splits a model for the images of a source, once.

    Returns:
        What stays, the parameters, and the rest of the variables.
    """
    graphdef, params, rng, rest = nnx.split(model, nnx.Param, nnx.RngState, ...)
    plain_params, plain_rng, plain_rest = map(nnx.to_pure_dict, (params, rng, rest))
    return SplitModel(graphdef, plain_rng, source.mean, source.std), plain_params, plain_rest


def split_shapes(config: Config, source: Source) -> tuple[SplitModel, dict, dict]:
    """Splits the network of a config without the work of its initialisation, for evaluation.

    Returns:
        As `split_model`, with shapes and dtypes in the place of arrays. The random keys are all
        alike; evaluation draws no random numbers.
    """
    model, params, rest = split_model(nnx.eval_shape(lambda: create_network(config, source)), source)

    def constant(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = jax.random.key(0) if is_key else jnp.zeros((), leaf.dtype)
        return jnp.broadcast_to(array, leaf.shape)

    return model._replace(rng=jax.tree.map(constant, model.rng)), params, rest
