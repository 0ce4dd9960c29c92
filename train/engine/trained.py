"""A trained network, for evaluation and prediction."""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

import msconv_jax
from msconv_jax.models.registry import model_entry
from train.config import Config, read_config
from train.data import evaluation_batches, load_source
from train.data.record import check_data, check_same_names, read_record
from train.data.source import Source, Split
from train.engine.checkpoint import best_checkpoint, choose_checkpoint, restore
from train.engine.mesh import create_mesh, shard_arrays, shard_batch, state_shardings
from train.engine.network import SplitModel, split_model, split_shapes
from train.engine.optim import create_optimiser
from train.engine.step import create_predict_step, create_score_step, create_state, eval_variables
from train.errors import UserError, program
from train.task import Evaluator, Pixels, Predictions, Rows, Task


class Trained(NamedTuple):
    """A network with its weights, such as the best checkpoint of a run; with `ema_decay` the moving averages."""

    config: Config
    source: Source
    task: Task
    mesh: Mesh
    model: SplitModel
    params: dict
    other_state: dict  # the other variables of the network
    step: int  # training steps done

    def network(self) -> Any:
        """Returns the network in evaluation mode."""
        return self.model.merge(self.params, self.other_state, 0, training=False)

    def scorer(self) -> "Scorer":
        """Returns a scorer of networks of this structure."""
        return Scorer(self.config, self.source, self.task, self.mesh, self.model)


def load_data(workdir: Path, kind: Callable[[Config], type[Task]]) -> Source:
    """Loads the data of the run in a folder; raises a `UserError` if they have changed since training."""
    config = read_config(workdir)
    source = load_source(config, kind(config).needs)
    check_data(workdir, source)
    return source


def load_best(workdir: Path, kind: Callable[[Config], type[Task]], source: Source | None = None) -> Trained:
    """Restores the best checkpoint of the run in a folder, for any number of devices.

    Its arrays are sharded over as many devices as config.compute.shards and their number allow. `kind` returns the task
    of a config. Without a source the network can only predict: the folder holds the facts of the data, not the samples.
    Raises a `UserError` if the folder holds no config or no such checkpoint.
    """
    config = read_config(workdir)
    metric = kind(config).best
    best = choose_checkpoint(workdir / "checkpoints", lambda checkpoints: best_checkpoint(checkpoints, metric))
    if best is None:
        raise UserError(
            f"{str(workdir)!r} holds no intact checkpoint of a finished epoch; train first, or "
            f"on, with {program('train')} --config=... --workdir={workdir}"
        )
    source = source or read_record(workdir).source()
    task, mesh = _prepare(config, source, kind)
    model, params, other_state = split_shapes(task.create, config.model.frozen)
    # A checkpoint is restored as a whole, including the optimiser's state.
    optimiser, _ = create_optimiser(config, steps_per_epoch=1)
    create = partial(create_state, optimiser=optimiser, terms=task.terms, ema_decay=config.optimizer.ema_decay)
    template = jax.eval_shape(create, params, other_state)
    state = restore(best, template, state_shardings(template, mesh))
    return Trained(config, source, task, mesh, model, *eval_variables(state), best.step)


def load_weights(config: Config, weights: Path, kind: Callable[[Config], type[Task]]) -> Trained:
    """Builds the network of a config with the weights of a file, or of the best checkpoint of the run in a folder.

    `msconv_jax.load_torch_checkpoint` reads PyTorch and safetensors files. Their images are normalized like those of
    the network's published weights, unless the config sets mean or deviation. `kind` returns the task of a config.
    Raises a `UserError` if there is no such file, or its weights do not fit the network.
    """
    source = load_source(config, kind(config).needs)
    task, mesh = _prepare(config, source, kind)
    if weights.is_dir():
        run = load_best(weights, kind)
        model, *shapes = split_shapes(task.create)
        if jax.tree.map(np.shape, shapes) != jax.tree.map(np.shape, [run.params, run.other_state]):
            raise UserError(
                f"--weights={weights} is a run of config.model.name={run.config.model.name!r} on "
                f"{run.config.data.source!r}, whose parameters are not those of config.model.name="
                f"{config.model.name!r} on {config.data.source!r}; give the config of that run"
            )
        check_same_names(weights, run.task.names, task.names)
        if not config.data.pixel_mean and not config.data.pixel_std:
            task.pixels = run.task.pixels
        return run._replace(config=config, source=source, task=task, model=model)
    network = task.create()
    try:
        msconv_jax.load_torch_checkpoint(network, weights)
    except FileNotFoundError as error:
        raise UserError(f"--weights={weights}: there is no such file; name a .pth or .safetensors file") from error
    except ValueError as error:
        raise UserError(f"--weights does not fit config.model.name={config.model.name!r}: {error}") from error
    model, params, other_state = split_model(network)
    entry = model_entry(config.model.name)
    if not config.data.pixel_mean and not config.data.pixel_std and len(entry.mean) == len(source.mean):
        task.pixels = Pixels(entry.mean, entry.std, is_bgr=entry.channel_order == "BGR")
    return Trained(config, source, task, mesh, model, *shard_arrays((params, other_state), mesh), step=0)


def _prepare(config: Config, source: Source, kind: Callable[[Config], type[Task]]) -> tuple[Task, Mesh]:
    return kind(config)(config, source), create_mesh(math.gcd(config.compute.shards, jax.device_count()))


class Scorer:
    """Scores networks of one structure on splits of a source, each sample once."""

    def __init__(self, config: Config, source: Source, task: Task, mesh: Mesh, model: SplitModel):
        self._config, self._source, self._task, self._mesh = config, source, task, mesh
        self._score_step = create_score_step(model, task, mesh)
        self._predict_step = create_predict_step(model, task, mesh)

    def score(self, params: dict, other_state: dict, split: Split) -> Evaluator:
        """Scores a network on a split; every process gets all results."""
        evaluator = self._task.evaluator(split)
        rows = self._image_rows if self._task.scores_images(split) else self._batch_rows
        for samples in rows(params, other_state, split):
            evaluator.add(samples)
        return evaluator

    def predict(self, params: dict, other_state: dict, images: np.ndarray) -> Predictions:
        """Predicts for any number of prepared images; all processes call this together, with the same images."""
        size = self._config.batch_size
        parts = [images[first : first + size] for first in range(0, len(images), size)]
        predictions = [self._predict_part(params, other_state, part) for part in parts]
        return jax.tree.map(lambda *values: np.concatenate(values), *predictions)

    def _predict_part(self, params: dict, other_state: dict, images: np.ndarray) -> Predictions:
        """Predicts for at most a batch of images, padded to one of few sizes to limit compilations."""
        power_of_2 = 1 << (len(images) - 1).bit_length()
        size = math.ceil(power_of_2 / jax.device_count()) * jax.device_count()
        padded = np.concatenate([images, np.repeat(images[:1], size - len(images), axis=0)])
        here = np.split(padded, jax.process_count())[jax.process_index()]
        on_devices = shard_batch({"image": here}, self._mesh)["image"]
        predictions = jax.device_get(self._predict_step(params, other_state, on_devices))
        return jax.tree.map(lambda values: values[: len(images)], predictions)

    def _batch_rows(self, params: dict, other_state: dict, split: Split) -> Iterator[Rows]:
        transform = self._task.transform(training=False)
        index, count = jax.process_index(), jax.process_count()
        batches = evaluation_batches(
            self._source, split, self._config, transform, process_index=index, process_count=count
        )
        on_devices = (self._score_step(params, other_state, shard_batch(batch, self._mesh)) for batch in batches)
        # Pairs keep only one batch ahead of the device, to limit memory.
        for scores, _ in itertools.pairwise(itertools.chain(on_devices, [None])):
            rows = jax.device_get(scores)
            is_sample = rows.pop("weight") > 0  # other rows are padding
            yield {name: np.asarray(values)[is_sample] for name, values in rows.items()}

    def _image_rows(self, params: dict, other_state: dict, split: Split) -> Iterator[Rows]:
        predict = partial(self.predict, params, other_state)
        samples, channels = self._source.splits[split], self._source.image_shape[-1]
        for position in range(len(samples)):
            sample = samples[position].decoded(channels)
            yield self._task.score_image(sample, self._task.predict_image(predict, sample.pixels))


def score(trained: Trained, split: Split) -> Evaluator:
    """Scores a network on a split of its source."""
    return trained.scorer().score(trained.params, trained.other_state, split)
