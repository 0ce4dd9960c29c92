"""One step of training and one of evaluation: pure functions over plain trees of arrays.

The model is split once into its structure and its arrays. Both steps put it together again while
they are traced, so a step costs no Python work on the model itself. Parameters are copied to all
devices and a batch is divided among them; XLA adds the sums over devices, in BatchNorm as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from train.mesh import replicate
from train.network import SplitModel

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


def zero_sums() -> Sums:
    """Gives the sums over no images."""
    return {name: jnp.zeros((), jnp.float32) for name in ("loss", "correct", "images")}


def create_state(params: dict, rest: dict, optimiser: optax.GradientTransformation) -> TrainState:
    """Gives the state before the first step."""
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, rest, optimiser.init(params), zero_sums())


def create_train_step(
    model: SplitModel,
    optimiser: optax.GradientTransformation,
    label_smoothing: float,
    mesh: Mesh,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Sums]]:
    """Compiles the training step; `shardings` says how the state lies, where it is not copied to all devices.

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

    copies = replicate(mesh)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings or copies, copies))


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
