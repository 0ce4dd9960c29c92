"""One step of training and one of evaluation: pure functions over plain trees of arrays.

The model is split once into its structure and its arrays. Both steps put it together again while
they are traced, so a step costs no Python work on the model itself. Parameters are copied to all
devices and a batch is divided among them; XLA adds the sums over devices, in BatchNorm as well.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import msconv_jax
from msconv_jax import edo
from train.config import Config
from train.data import Batch, Source
from train.errors import UserError, suggest

Sums = dict[str, jax.Array]  # "loss", "correct" and "images": sums over images, () float32


class TrainState(NamedTuple):
    """Everything that training changes, hence everything that a checkpoint holds.

    Attributes:
        step: () int32, steps done.
        params: the trainable parameters, nested dictionaries of arrays.
        rest: the other variables of the model, such as the statistics of BatchNorm.
        opt_state: the optimiser's state.
        sums: over the images trained on since the current epoch began.
    """

    step: jax.Array
    params: dict
    rest: dict
    opt_state: optax.OptState
    sums: Sums


class SplitModel(NamedTuple):
    """What training does not change of a model: its structure and its random keys."""

    graphdef: Any
    rng: dict

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

    Raises:
        UserError: for an unknown model or operator, or arguments that it does not take.
    """
    arguments = _tuples(config.model_kwargs)
    if config.conv:
        conv = functools.partial(_operator(config.conv), **_tuples(config.conv_kwargs))
        by_path = {path: functools.partial(conv, **_tuples(own)) for path, own in config.convs.items()}
        arguments["conv"] = by_path or conv
    elif config.conv_kwargs or config.convs:
        raise UserError(
            f"config.conv_kwargs is {config.conv_kwargs} and config.convs names {len(config.convs)} convolutions, but "
            "config.conv is ''; name the operator that takes these arguments, for example config.conv='PSConv'"
        )
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


def split_model(model: nnx.Module) -> tuple[SplitModel, dict, dict]:
    """Splits a model, once.

    Returns:
        What stays, the parameters, and the rest of the variables.
    """
    graphdef, params, rng, rest = nnx.split(model, nnx.Param, nnx.RngState, ...)
    plain_params, plain_rng, plain_rest = map(nnx.to_pure_dict, (params, rng, rest))
    return SplitModel(graphdef, plain_rng), plain_params, plain_rest


def split_shapes(config: Config, source: Source) -> tuple[SplitModel, dict, dict]:
    """Splits the network of a config without the work of its initialisation, for evaluation.

    Returns:
        As `split_model`, with shapes and dtypes in the place of arrays. The random keys are all
        alike; evaluation draws no random numbers.
    """
    model, params, rest = split_model(nnx.eval_shape(lambda: create_network(config, source)))

    def constant(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = jax.random.key(0) if is_key else jnp.zeros((), leaf.dtype)
        return jnp.broadcast_to(array, leaf.shape)

    return model._replace(rng=jax.tree.map(constant, model.rng)), params, rest


def zero_sums() -> Sums:
    """Gives the sums over no images."""
    return {name: jnp.zeros((), jnp.float32) for name in ("loss", "correct", "images")}


def create_state(params: dict, rest: dict, optimiser: optax.GradientTransformation) -> TrainState:
    """Gives the state before the first step."""
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, rest, optimiser.init(params), zero_sums())


def create_mesh() -> Mesh:
    """Gives the mesh with the one axis "data" over all devices of all processes."""
    axis_types = (jax.sharding.AxisType.Auto,)  # explicit axes break gradients of convolutions
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=axis_types)


def replicate(mesh: Mesh) -> NamedSharding:
    """Gives the sharding that keeps a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def to_devices(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Divides this process's part of a batch among its devices."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(values)) for name, values in batch.items()
    }


def create_train_step(
    model: SplitModel,
    optimiser: optax.GradientTransformation,
    label_smoothing: float,
    mesh: Mesh,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Sums]]:
    """Compiles the training step.

    Returns:
        Maps a state, which is used up, and a batch to the next state and the sums over the batch.
    """

    def loss_and_rest(params: dict, state: TrainState, batch: dict[str, jax.Array]) -> Any:
        network = model.merge(params, state.rest, state.step)
        network.train()
        logits = _logits(network, batch["image"])
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], logits.shape[-1]), label_smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
        _, _, _, rest = nnx.split(network, nnx.Param, nnx.RngState, ...)
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        sums = _sums(losses, correct, jnp.ones_like(losses))
        return losses.mean(), (nnx.to_pure_dict(rest), sums)

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Sums]:
        gradients, (rest, sums) = jax.grad(loss_and_rest, has_aux=True)(state.params, state, batch)
        updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        epoch_sums = jax.tree.map(jnp.add, state.sums, sums)
        return TrainState(state.step + 1, params, rest, opt_state, epoch_sums), sums

    return jax.jit(train_step, donate_argnums=0, out_shardings=replicate(mesh))


def create_eval_step(model: SplitModel, mesh: Mesh) -> Callable[[dict, dict, dict[str, jax.Array]], Sums]:
    """Compiles the evaluation step.

    Returns:
        Maps parameters, the rest and a batch to the sums of loss and hits over the images, each
        times its weight.
    """

    def eval_step(params: dict, rest: dict, batch: dict[str, jax.Array]) -> Sums:
        logits = _logits(_evaluating(model, params, rest), batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        return _sums(losses, correct, batch["weight"])

    return jax.jit(eval_step, out_shardings=replicate(mesh))


def create_predict_step(model: SplitModel) -> Callable[[dict, dict, jax.typing.ArrayLike], jax.Array]:
    """Compiles the map from images to the probabilities of the classes, (n, classes) float32."""

    def predict_step(params: dict, rest: dict, images: jax.typing.ArrayLike) -> jax.Array:
        return jax.nn.softmax(_logits(_evaluating(model, params, rest), jnp.asarray(images)))

    return jax.jit(predict_step)


def _evaluating(model: SplitModel, params: dict, rest: dict) -> nnx.Module:
    network = model.merge(params, rest, jnp.zeros((), jnp.int32))
    network.eval()
    return network


def _logits(network: Any, images: jax.Array) -> jax.Array:
    return network(images).astype(jnp.float32)


def _sums(losses: jax.Array, correct: jax.Array, weights: jax.Array) -> Sums:
    return {
        "loss": jnp.sum(losses * weights),
        "correct": jnp.sum(correct * weights),
        "images": jnp.sum(weights),
    }
