"""One step of training and one of evaluation: pure functions over plain trees of arrays.

The model is split once into its structure and its arrays. Both steps put it together again while
they are traced, so a step costs no Python work on the model itself. Parameters are copied to all
devices and a batch is divided among them; XLA adds the sums over devices, in BatchNorm as well. Images are values of
0..255, which each step normalises.

The gradient of a batch is computed in three nested layers, each of which can be absent: over each device's own rows
(`_per_device`), in parts (`_accumulated`), and of one loss (`_gradient_function`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.mesh import BATCH_AXES, collected, replicate
from train.mixing import mix_batch
from train.network import SplitModel
from train.settings import Config

Sums = dict[str, jax.Array]  # "loss", "correct" and "images": sums over images, () float32
Report = dict[str, jax.Array]  # sums, and "gradient_norm": of the mean loss over all parameters, () float32
Batch = dict[str, jax.Array]

# (parameters, rest, draw, batch) -> (gradients of the mean loss, the next rest, sums over the batch). Random numbers
# depend on the seed and `draw`, () int32, alone.
GradientFunction = Callable[[dict, dict, jax.Array, Batch], tuple[dict, dict, Sums]]


class TrainState(NamedTuple):
    """Everything that training changes, hence everything that a checkpoint holds.

    Attributes:
        step: () int32, steps done.
        params: the trainable parameters, nested dictionaries of arrays.
        rest: the other variables of the model, such as the statistics of BatchNorm.
        opt_state: the optimiser's state.
        sums: over the images trained on since the current epoch began.
        average: the moving averages of "params" and "rest" if `ema_decay` is set, else empty.
    """

    step: jax.Array
    params: dict
    rest: dict
    opt_state: optax.OptState
    sums: Sums
    average: dict[str, dict]


def zero_sums() -> Sums:
    """Gives the sums over no images."""
    return {name: jnp.zeros((), jnp.float32) for name in ("loss", "correct", "images")}


def create_state(
    params: dict, rest: dict, optimiser: optax.GradientTransformation, *, ema_decay: float = 0.0
) -> TrainState:
    """Gives the state before the first step; with an `ema_decay` above 0 it holds averages."""
    step = jnp.zeros((), jnp.int32)
    # Copies, because a step uses up every array of its state, and none twice.
    average = jax.tree.map(jnp.copy, {"params": params, "rest": rest}) if ema_decay else {}
    return TrainState(step, params, rest, optimiser.init(params), zero_sums(), average)


def evaluated(state: TrainState) -> tuple[dict, dict]:
    """Gives the parameters and the rest that are evaluated and used: the averages, if there are any."""
    return (state.average["params"], state.average["rest"]) if state.average else (state.params, state.rest)


def create_train_step(
    model: SplitModel,
    optimiser: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
    classes: int,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Report]]:
    """Compiles the training step; `shardings` says how the state lies, where it is not copied to all devices.

    A hit is counted where the network's answer is the label of the row's own image, whatever has been mixed into it. A
    step whose loss or gradient is not finite changes nothing but the number of the step.

    Returns:
        Maps a state, which is used up, and a batch to the next state and the report of the batch.
    """
    gradient_function = _gradient_function(model, config.remat)
    if config.accumulation_steps > 1:
        sharding = None if config.batch_norm == "device" else NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
        gradient_function = _accumulated(gradient_function, config.accumulation_steps, sharding)
    if config.batch_norm == "device":
        gradient_function = _per_device(gradient_function, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Report]:
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], classes), config.label_smoothing)
        images, targets = mix_batch(model.normalised(batch["image"]), targets, state.step, config)
        mixed = {"image": images, "label": batch["label"], "target": targets}
        params, rest = collected((state.params, state.rest), mesh)
        gradients, rest, sums = collected(gradient_function(params, rest, state.step, mixed), mesh)
        updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
        new_params: Any = optax.apply_updates(state.params, updates)
        average = _averaged(state, new_params, rest, config.ema_decay)
        norm = optax.tree.norm(gradients)
        new = TrainState(state.step, new_params, rest, opt_state, jax.tree.map(jnp.add, state.sums, sums), average)
        is_finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(norm)
        kept: TrainState = jax.tree.map(lambda after, before: jnp.where(is_finite, after, before), new, state)
        return kept._replace(step=state.step + 1), {**sums, "gradient_norm": norm}

    copies = replicate(mesh)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings or copies, copies))


def _gradient_function(model: SplitModel, remat: bool) -> GradientFunction:
    def forward(params: dict, rest: dict, draw: jax.Array, images: jax.Array) -> tuple[jax.Array, dict]:
        network = model.merge(params, rest, draw)
        network.train()
        logits = _logits(network, images)
        _, _, _, new_rest = nnx.split(network, nnx.Param, nnx.RngState, ...)
        return logits, nnx.to_pure_dict(new_rest)

    if remat:
        forward = jax.checkpoint(forward, policy=_is_convolution)

    def loss_and_rest(params: dict, rest: dict, draw: jax.Array, batch: Batch) -> Any:
        logits, rest = forward(params, rest, draw, batch["image"])
        losses = optax.softmax_cross_entropy(logits, batch["target"])
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        return losses.mean(), (rest, _sums(losses, correct, jnp.ones_like(losses)))

    def gradient_function(params: dict, rest: dict, draw: jax.Array, batch: Batch) -> tuple[dict, dict, Sums]:
        gradients, (rest, sums) = jax.grad(loss_and_rest, has_aux=True)(params, rest, draw, batch)
        return gradients, rest, sums

    return gradient_function


def _is_convolution(primitive: Any, *_: Any, **__: Any) -> bool:
    """Says which results are kept for the gradient: those of convolutions; the cheap rest is computed again."""
    return primitive.name in ("conv_general_dilated", "dot_general")


def _accumulated(inner: GradientFunction, parts: int, sharding: NamedSharding | None) -> GradientFunction:
    """Computes a batch in parts, one after another, in the memory of one.

    Part j has the rows j, j + parts, j + 2 * parts, ..., so that every device has its share of each part already.
    The gradient is the mean over the parts; the rest goes from part to part.
    """

    def cut(rows: jax.Array) -> jax.Array:
        interleaved = rows.reshape(len(rows) // parts, parts, *rows.shape[1:])
        by_part = jnp.moveaxis(interleaved, 1, 0)
        return by_part if sharding is None else jax.lax.with_sharding_constraint(by_part, sharding)

    def gradient_function(params: dict, rest: dict, draw: jax.Array, batch: Batch) -> tuple[dict, dict, Sums]:
        def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            gradients, rest, sums = total
            more_gradients, rest, more_sums = inner(params, rest, draw * parts + part[1], part[0])
            return (
                jax.tree.map(jnp.add, gradients, more_gradients),
                rest,
                jax.tree.map(jnp.add, sums, more_sums),
            ), None

        start = jax.tree.map(jnp.zeros_like, params), rest, zero_sums()
        (gradients, rest, sums), _ = jax.lax.scan(add, start, (jax.tree.map(cut, batch), jnp.arange(parts)))
        return jax.tree.map(lambda total: total / parts, gradients), rest, sums

    return gradient_function


def _per_device(inner: GradientFunction, mesh: Mesh) -> GradientFunction:
    """Computes every device's own rows by themselves: BatchNorm sees those alone, and its statistics are averaged."""
    everywhere, divided = PartitionSpec(), PartitionSpec("data")

    def gradient_function(params: dict, rest: dict, draw: jax.Array, batch: Batch) -> tuple[dict, dict, Sums]:
        own_draw = draw * jax.lax.axis_size("data") + jax.lax.axis_index("data")
        gradients, rest, sums = inner(params, rest, own_draw, batch)
        gradients = jax.lax.pmean(gradients, "data")
        # What is no statistic, such as a counter, is the same everywhere.
        rest = jax.tree.map(lambda leaf: jax.lax.pmean(leaf, "data") if _is_floating(leaf) else leaf, rest)
        return gradients, rest, jax.lax.psum(sums, "data")

    # check_vma=False: gradients are averaged above, and by nobody else.
    return jax.shard_map(
        gradient_function,
        mesh=mesh,
        in_specs=(everywhere, everywhere, everywhere, divided),
        out_specs=everywhere,
        check_vma=False,
    )


def _averaged(state: TrainState, params: dict, rest: dict, ema_decay: float) -> dict[str, dict]:
    """Moves the averages of a state towards new parameters and a new rest.

    As in timm and torchvision, statistics of BatchNorm are averaged like parameters; what is no floating-point number
    is taken over. The decay rises with the steps, so that the start is soon forgotten.
    """
    if not state.average:
        return {}
    steps = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + steps) / (10 + steps))

    def move(average: jax.Array, new: jax.Array) -> jax.Array:
        return (decay * average + (1 - decay) * new).astype(new.dtype) if _is_floating(new) else new

    return jax.tree.map(move, state.average, {"params": params, "rest": rest})


def _is_floating(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def create_eval_step(model: SplitModel, mesh: Mesh) -> Callable[[dict, dict, Batch], Batch]:
    """Compiles the evaluation step.

    Returns:
        Maps parameters, the rest and a batch to what is known of each image, (n,) arrays on every device: "loss", its
        cross entropy in nats without label smoothing; "predicted", its most probable class; "rank", how many classes
        are more probable than its own; and the batch's "label" and "weight". Where an image has several crops, their
        probabilities are averaged first.
    """

    def eval_step(params: dict, rest: dict, batch: Batch) -> Batch:
        params, rest = collected((params, rest), mesh)
        logits = _crops_logits(_evaluating(model, params, rest), model.normalised(batch["image"]))
        label = batch["label"]
        own = jnp.take_along_axis(logits, label[:, None], axis=-1)
        return {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, label),
            "predicted": jnp.argmax(logits, axis=-1).astype(jnp.int32),
            "rank": jnp.sum(~(logits <= own), axis=-1, dtype=jnp.int32),  # what is no number ranks last
            "label": label,
            "weight": batch["weight"],
        }

    return jax.jit(eval_step, out_shardings=replicate(mesh))


def create_predict_step(model: SplitModel) -> Callable[[dict, dict, jax.typing.ArrayLike], jax.Array]:
    """Compiles the map from images to the probabilities of the classes, (n, classes) float32.

    Images are values of 0..255, (n, height, width, channels), or (n, crops, height, width, channels): then
    probabilities are means over the crops.
    """

    def predict_step(params: dict, rest: dict, images: jax.typing.ArrayLike) -> jax.Array:
        return jax.nn.softmax(_crops_logits(_evaluating(model, params, rest), model.normalised(jnp.asarray(images))))

    return jax.jit(predict_step)


def _evaluating(model: SplitModel, params: dict, rest: dict) -> nnx.Module:
    network = model.merge(params, rest, jnp.zeros((), jnp.int32))
    network.eval()
    return network


def _logits(network: Any, images: jax.Array) -> jax.Array:
    return network(images).astype(jnp.float32)


def _crops_logits(network: Any, images: jax.Array) -> jax.Array:
    """Gives the logits of (n, height, width, channels) images.

    Of (n, crops, height, width, channels) it gives the logarithms of the probabilities' means over the crops.
    """
    if images.ndim == 4:
        return _logits(network, images)
    logits = _logits(network, images.reshape(-1, *images.shape[2:]))
    by_crop = jax.nn.log_softmax(logits).reshape(*images.shape[:2], -1)
    return jax.nn.logsumexp(by_crop, axis=1) - jnp.log(images.shape[1])


def _sums(losses: jax.Array, correct: jax.Array, weights: jax.Array) -> Sums:
    return {
        "loss": jnp.sum(losses * weights),
        "correct": jnp.sum(correct * weights),
        "images": jnp.sum(weights),
    }
