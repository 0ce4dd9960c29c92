"""Evaluates the best checkpoint of a run on the test split, or any network with any weights on any data.

    python -m train.evaluate --workdir=runs/digits

prints the line that training printed at its end, computed anew from the checkpoint.

    python -m train.evaluate --config=configs/pyconv_imagenet.py --weights=pyconvresnet50.pth --config.data_dir=data

evaluates the network of a config, whatever --config.model and --config.source say, with the weights of a PyTorch or
safetensors file, or of the best checkpoint of a run whose folder --weights names. --split=validation takes another
split; --config.eval_size, --config.eval_resize and --config.eval_crops say how images are cropped.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

import msconv_jax
from msconv_jax.models.registry import model_entry
from train.checkpoint import agreed_checkpoint, best_of, restore
from train.config import check_batch_size, parse_command_line, read_config
from train.data import Source, Split, evaluation_batches, load_source
from train.errors import UserError, parse_flags, required, run_program
from train.mesh import create_mesh, state_shardings, to_devices, to_mesh
from train.network import SplitModel, create_network, split_model, split_shapes
from train.optim import create_optimiser
from train.settings import Config
from train.step import Batch, create_eval_step, create_state, evaluated

_TOP_5_FROM = 11  # classes, from which on the top-5 accuracy says something


class Trained(NamedTuple):
    """A network with its weights, such as the best checkpoint of a run, with `ema_decay` its averages."""

    config: Config
    source: Source
    mesh: Mesh
    model: SplitModel
    params: dict
    rest: dict
    step: int


def load_best(workdir: Path) -> Trained:
    """Restores the checkpoint of a run that is best by validation accuracy, for any number of devices.

    Its arrays are divided over as many of them as config.shards and their number allow.

    Raises:
        UserError: if the folder holds no config or no such checkpoint.
    """
    config = read_config(workdir)
    best = agreed_checkpoint(workdir / "checkpoints", best_of)
    if best is None:
        raise UserError(
            f"{str(workdir)!r} holds no intact checkpoint of a finished epoch; train first, or "
            "on, with python -m train --config=... --workdir=" + str(workdir)
        )
    source, mesh = load_source(config), create_mesh(math.gcd(config.shards, jax.device_count()))
    model, params, rest = split_shapes(config, source)
    # A checkpoint is restored as a whole; the optimiser gives the names of its part.
    optimiser, _ = create_optimiser(config, steps_per_epoch=1)
    template = jax.eval_shape(lambda p, r: create_state(p, r, optimiser, ema_decay=config.ema_decay), params, rest)
    state = restore(best, template, state_shardings(template, mesh))
    return Trained(config, source, mesh, model, *evaluated(state), best.step)


def load_weights(config: Config, weights: Path) -> Trained:
    """Builds the network of a config with the weights of a file, or of the best checkpoint of another run.

    For those of a file, images are normalised as the network's published weights ask for, unless the config says how.

    Args:
        config: says the network and the data.
        weights: a PyTorch or safetensors file, as `msconv_jax.load_torch_checkpoint` reads it, or the folder of a run.

    Raises:
        UserError: if there is no such file, or its weights are not those of the network.
    """
    source, mesh = load_source(config), create_mesh(math.gcd(config.shards, jax.device_count()))
    if weights.is_dir():
        trained = load_best(weights)
        model, *shapes = split_shapes(config, source)
        differing = jax.tree.structure(shapes) != jax.tree.structure([trained.params, trained.rest])
        if differing or jax.tree.map(lambda leaf: leaf.shape, shapes) != jax.tree.map(
            lambda leaf: leaf.shape, [trained.params, trained.rest]
        ):
            raise UserError(
                f"--weights={weights} is a run of config.model={trained.config.model!r} with "
                f"{len(trained.source.classes)} classes, whose parameters are not those of config.model="
                f"{config.model!r} with {len(source.classes)} classes; give the config of that run"
            )
        return trained._replace(config=config, source=source, model=model)
    network = create_network(config, source)
    try:
        msconv_jax.load_torch_checkpoint(network, weights)
    except FileNotFoundError as error:
        raise UserError(f"--weights={weights}: there is no such file; name a .pth or .safetensors file") from error
    except ValueError as error:
        raise UserError(f"--weights does not fit config.model={config.model!r}: {error}") from error
    model, params, rest = split_model(network, source)
    entry = model_entry(config.model)
    if not config.pixel_mean and not config.pixel_std and len(entry.mean) == len(source.mean):
        model = model._replace(mean=entry.mean, std=entry.std, is_bgr=entry.channel_order == "BGR")
    return Trained(config, source, mesh, model, *to_mesh((params, rest), mesh), step=0)


class Answers(NamedTuple):
    """What a network answers to the images of a split, in their order, (n,) arrays.

    Attributes:
        labels: their classes.
        predicted: the most probable classes.
        losses: cross entropies in nats, without label smoothing.
        ranks: how many classes are more probable than an image's own.
    """

    labels: np.ndarray
    predicted: np.ndarray
    losses: np.ndarray
    ranks: np.ndarray

    @property
    def loss(self) -> float:
        """The mean cross entropy in nats."""
        return float(self.losses.mean(dtype=np.float64))

    @property
    def accuracy(self) -> float:
        """The top-1 accuracy, 0..1."""
        return float((self.labels == self.predicted).mean())

    def top(self, count: int) -> float:
        """How often an image's class is among the `count` most probable, 0..1."""
        return float((self.ranks < count).mean())


def evaluate_split(
    eval_step: Callable[[dict, dict, Batch], Batch],
    params: dict,
    rest: dict,
    source: Source,
    split: Split,
    config: Config,
    mesh: Mesh,
) -> Answers:
    """Evaluates on every image of a split, each counted once; every process gets all answers."""
    batches = evaluation_batches(
        source,
        split,
        config,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    every: list[Any] = []
    for batch in batches:
        every.append(eval_step(params, rest, to_devices(batch, mesh)))
        if len(every) > 1:  # one batch ahead of the device and no more: batches take memory
            every[-2] = jax.device_get(every[-2])
    every = jax.device_get(every)
    names = ("label", "predicted", "loss", "rank")
    columns = [np.concatenate([np.asarray(answers[name]) for answers in every]) for name in names]
    counts = np.concatenate([np.asarray(answers["weight"]) for answers in every]) > 0
    return Answers(*(column[counts] for column in columns))


def evaluate(trained: Trained, split: Split) -> Answers:
    """Evaluates a network on a split of its source."""
    eval_step = create_eval_step(trained.model, trained.mesh)
    return evaluate_split(eval_step, trained.params, trained.rest, trained.source, split, trained.config, trained.mesh)


def test_result(trained: Trained, answers: Answers) -> dict[str, float]:
    """Sums up what the best checkpoint of a run answered to the test split.

    Returns:
        "test_accuracy" (0..1), "test_loss" (nats) and the "step" of the checkpoint; of more than ten classes
        "test_top5_accuracy" as well.
    """
    result = {"test_accuracy": answers.accuracy, "test_loss": answers.loss, "step": trained.step}
    if len(trained.source.classes) >= _TOP_5_FROM:
        result["test_top5_accuracy"] = answers.top(5)
    return result


def result_line(result: dict[str, float]) -> str:
    """Writes a test result as the line that training and evaluation print last."""
    top_5 = f", top-5 {result['test_top5_accuracy']:.4f}" if "test_top5_accuracy" in result else ""
    return f"test accuracy {result['test_accuracy']:.4f}{top_5} (step {result['step']:.0f}, best of validation)"


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    values = flags.FlagValues()
    flags.DEFINE_string("weights", None, "file of weights, or folder of a run; with --config", flag_values=values)
    flags.DEFINE_string("split", "test", "with --config: train, validation or test", flag_values=values)
    if any(argument.split("=")[0] in ("--config", "-config") for argument in argv):
        config, _ = parse_command_line(argv, __doc__, values=values, needs_workdir=False)
        return _evaluate_weights(config, Path(required(values, "weights", "resnet50.pth")), str(values["split"].value))
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    arguments = parse_flags(values, argv, __doc__)
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}; only --workdir is taken, or --config with --weights")
    trained = load_best(Path(required(values, "workdir", "runs/digits")))
    train_images = len(trained.source.splits["train"])
    check_batch_size(trained.config, train_images, jax.device_count())
    print(result_line(test_result(trained, evaluate(trained, "test"))))
    return 0


def _evaluate_weights(config: Config, weights: Path, split: str) -> int:
    if split not in get_args(Split):
        raise UserError(f"--split={split} is not a split; take one of {', '.join(get_args(Split))}")
    trained = load_weights(config, weights)
    check_batch_size(config, config.batch_size, jax.device_count())  # a split may be smaller than a batch
    answers = evaluate(trained, split)  # type: ignore[arg-type]
    top_5 = f", top-5 {answers.top(5):.4f}" if len(trained.source.classes) >= _TOP_5_FROM else ""
    print(
        f"{config.model} on {len(answers.labels)} images of {config.source} {split}: accuracy {answers.accuracy:.4f}"
        f"{top_5}, loss {answers.loss:.4f}"
    )
    return 0


if __name__ == "__main__":
    run_program(main)
