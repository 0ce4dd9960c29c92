"""The compiled steps of training, scoring and prediction: pure functions over plain trees of arrays.

The network is split once into its structure and its arrays, and merged while a step is traced, so a step costs no
Python work. A batch is sharded over the devices; XLA adds the sums over them, also in BatchNorm.

The gradient of a batch is computed by up to three nested functions: for the rows of each device (`_per_device`), in
parts (`_accumulated`), and for one loss (`_gradient_function`). The loss is a sum over rows, whose weights the task has
divided by the normaliser of the global batch, so the gradients of rows, parts and devices add up.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.config import Config
from train.engine.mesh import BATCH_AXES, gather, replicate
from train.engine.network import SplitModel
from train.task import Batch, Task, Terms

Report = dict[str, jax.Array]  # "loss" and "gradient_norm" of the batch, () float32

# (parameters, other_state, draw, rows of targets) -> (gradients, (the next other_state, loss, terms)). Random numbers
# depend only on the seed and `draw`, () int32.
GradientFunction = Callable[[dict, dict, jax.Array, Batch], tuple[dict, tuple[dict, jax.Array, Terms]]]

_TARGETS, _LOSS = 0x6D6978, 0x6C6F73  # streams of random keys, which are not those of the network


class TrainState(NamedTuple):
    """Everything that training changes, hence everything that a checkpoint holds."""

    step: jax.Array  # () int32, steps done
    params: dict  # the trainable parameters, nested dictionaries of arrays
    rest: dict  # the network's other variables, such as batch statistics; the name in checkpoints
    opt_state: optax.OptState
    terms: Terms  # totals and weights of the loss's terms over the current epoch so far
    average: dict[str, dict]  # moving averages of "params" and "rest" if `ema_decay` is set, else empty


def zero_terms(names: Sequence[str]) -> Terms:
    """Returns the terms of no rows."""
    return {name: (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)) for name in names}


def create_state(
    params: dict,
    other_state: dict,
    optimiser: optax.GradientTransformation,
    terms: Sequence[str],
    *,
    ema_decay: float = 0.0,
) -> TrainState:
    """Gives the state before the first step; with an `ema_decay` above 0 it holds averages."""
    step = jnp.zeros((), jnp.int32)
    # Copies, because a step donates every array of its state.
    average = jax.tree.map(jnp.copy, {"params": params, "rest": other_state}) if ema_decay else {}
    return TrainState(step, params, other_state, optimiser.init(params), zero_terms(terms), average)


def eval_variables(state: TrainState) -> tuple[dict, dict]:
    """Returns the parameters and other variables to evaluate: the moving averages, if there are any."""
    return (state.average["params"], state.average["rest"]) if state.average else (state.params, state.rest)


def create_train_step(
    model: SplitModel,
    task: Task,
    optimiser: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Report]]:
    """Compiles the training step; `shardings` are those of the state, which is replicated by default.

    The step maps a state, which is donated, and a batch to the next state and the report of the batch. If the loss or
    the gradient is not finite, only the step number changes.
    """
    is_per_device = config.compute.batch_norm == "device"
    gradient_function = _gradient_function(model, task, config)
    if config.optimizer.accumulation_steps > 1:
        sharding = None if is_per_device else NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
        gradient_function = _accumulated(gradient_function, config.optimizer.accumulation_steps, task.terms, sharding)
    if is_per_device:
        gradient_function = _per_device(gradient_function, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Report]:
        targets = task.targets(batch, _key(config, _TARGETS, state.step))
        params, other_state = gather((state.params, state.rest), mesh)
        gradients, (other_state, loss, terms) = gather(
            gradient_function(params, other_state, state.step, targets), mesh
        )
        updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
        new_params: Any = optax.apply_updates(state.params, updates)
        average = _averaged(state, new_params, other_state, config.optimizer.ema_decay)
        norm = optax.tree.norm(gradients)
        new = TrainState(
            state.step, new_params, other_state, opt_state, jax.tree.map(jnp.add, state.terms, terms), average
        )
        is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        kept: TrainState = jax.tree.map(lambda after, before: jnp.where(is_finite, after, before), new, state)
        return kept._replace(step=state.step + 1), {"loss": loss, "gradient_norm": norm}

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings or replicate(mesh), replicate(mesh)))


def _key(config: Config, stream: int, number: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), stream), number)


def _gradient_function(model: SplitModel, task: Task, config: Config) -> GradientFunction:
    def loss_and_state(params: dict, other_state: dict, draw: jax.Array, rows: Batch) -> Any:
        network = model.merge(params, other_state, draw, training=True)
        loss, terms = task.loss(network, rows, _key(config, _LOSS, draw))
        _, _, _, new_other_state = nnx.split(network, nnx.Param, nnx.RngState, ...)
        return loss, (nnx.to_pure_dict(new_other_state), loss, terms)

    if config.compute.remat:
        loss_and_state = jax.checkpoint(loss_and_state, policy=_is_convolution)
    return jax.grad(loss_and_state, has_aux=True)


def _is_convolution(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a result is kept for the gradient; results other than those of convolutions are recomputed."""
    return primitive.name in ("conv_general_dilated", "dot_general")


def _accumulated(
    inner: GradientFunction, parts: int, terms: Sequence[str], sharding: NamedSharding | None
) -> GradientFunction:
    """Computes a batch in parts, one after another, which takes the memory of one part.

    Part j has the rows j, j + parts, j + 2 * parts, ..., so every device already holds its rows of each part.
    Gradients, loss and terms are sums over the parts; batch statistics are passed from part to part.
    """

    def split(rows: jax.Array) -> jax.Array:
        by_part = jnp.moveaxis(rows.reshape(len(rows) // parts, parts, *rows.shape[1:]), 1, 0)
        return by_part if sharding is None else jax.lax.with_sharding_constraint(by_part, sharding)

    def gradient_function(params: dict, other_state: dict, draw: jax.Array, rows: Batch) -> Any:
        def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            sums, other_state = total
            rows, number = part
            gradients, (other_state, loss, terms) = inner(params, other_state, draw * parts + number, rows)
            return (jax.tree.map(jnp.add, sums, (gradients, loss, terms)), other_state), None

        zeros = jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32), zero_terms(terms)
        total, _ = jax.lax.scan(add, (zeros, other_state), (jax.tree.map(split, rows), jnp.arange(parts)))
        (gradients, loss, sums), other_state = total
        return gradients, (other_state, loss, sums)

    return gradient_function


def _per_device(inner: GradientFunction, mesh: Mesh) -> GradientFunction:
    """Computes gradients per device: BatchNorm sees only the device's rows, and its statistics are averaged."""

    def gradient_function(params: dict, other_state: dict, draw: jax.Array, rows: Batch) -> Any:
        draw = draw * jax.lax.axis_size("data") + jax.lax.axis_index("data")
        gradients, (other_state, loss, terms) = inner(params, other_state, draw, rows)
        # What is no statistic, such as a counter, is the same everywhere.
        other_state = jax.tree.map(
            lambda leaf: jax.lax.pmean(leaf, "data") if _is_floating(leaf) else leaf, other_state
        )
        return jax.lax.psum(gradients, "data"), (other_state, *jax.lax.psum((loss, terms), "data"))

    in_specs = (*[PartitionSpec()] * 3, PartitionSpec("data"))  # only the rows are sharded
    # check_vma=False: JAX would sum the gradients once more.
    return jax.shard_map(gradient_function, mesh=mesh, in_specs=in_specs, out_specs=PartitionSpec(), check_vma=False)


def _averaged(state: TrainState, params: dict, other_state: dict, ema_decay: float) -> dict[str, dict]:
    """Moves the averages of a state towards new parameters and other variables.

    Batch statistics are averaged like parameters, as in timm and torchvision; integers are copied. The decay rises with
    the steps, so that the initial values soon lose their weight.
    """
    if not state.average:
        return {}
    steps = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + steps) / (10 + steps))

    def move(average: jax.Array, new: jax.Array) -> jax.Array:
        moved = (decay * average + (1 - decay) * new).astype(new.dtype) if _is_floating(new) else new
        return jnp.where(new == average, average, moved)  # otherwise frozen parameters would drift by rounding

    return jax.tree.map(move, state.average, {"params": params, "rest": other_state})


def _is_floating(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def create_score_step(model: SplitModel, task: Task, mesh: Mesh) -> Callable[[dict, dict, Batch], Batch]:
    """Compiles the step of evaluation.

    It maps parameters, other variables and a batch to the rows of `Task.score` and their "weight", on every device.
    """

    def score_step(params: dict, other_state: dict, batch: Batch) -> Batch:
        network = model.merge(*gather((params, other_state), mesh), 0, training=False)
        return {**task.score(network, batch), "weight": batch["weight"]}

    return jax.jit(score_step, out_shardings=replicate(mesh))


def create_predict_step(model: SplitModel, task: Task, mesh: Mesh) -> Callable[[dict, dict, jax.Array], Any]:
    """Compiles the map from prepared images to the predictions of `Task.predict`, on every device."""

    def predict_step(params: dict, other_state: dict, images: jax.Array) -> Any:
        network = model.merge(*gather((params, other_state), mesh), 0, training=False)
        return task.predict(network, images)

    return jax.jit(predict_step, out_shardings=replicate(mesh))
