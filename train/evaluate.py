"""Evaluates the best checkpoint of a run on the test split.

    python -m train.evaluate --workdir=runs/digits

prints the line that training printed at its end, computed anew from the checkpoint.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from absl import flags
from jax.sharding import Mesh

from train.checkpoint import agreed_checkpoint, best_of, restore
from train.config import check_batch_size, read_config
from train.data import Source, Split, evaluation_batches, load_source
from train.errors import UserError, parse_flags, required, run_program
from train.mesh import create_mesh, state_shardings, to_devices
from train.network import SplitModel, split_shapes
from train.optim import create_optimiser
from train.settings import Config
from train.step import Sums, create_eval_step, create_state, evaluated


class Trained(NamedTuple):
    """The best checkpoint of a run, with what is needed to use it; with `ema_decay` its averages."""

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


def evaluate_split(
    eval_step: Callable[[dict, dict, dict[str, jax.Array]], Sums],
    params: dict,
    rest: dict,
    source: Source,
    split: Split,
    config: Config,
    mesh: Mesh,
) -> tuple[float, float]:
    """Evaluates on every image of a split, each counted once.

    Returns:
        The mean cross entropy in nats, without label smoothing, and the top-1 accuracy, 0..1.
    """
    batches = evaluation_batches(
        source,
        split,
        config,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    every = [eval_step(params, rest, to_devices(batch, mesh)) for batch in batches]
    total = {name: sum(float(sums[name]) for sums in every) for name in every[0]}
    return total["loss"] / total["images"], total["correct"] / total["images"]


def test_result(trained: Trained) -> dict[str, float]:
    """Evaluates on the test split.

    Returns:
        "test_accuracy" (0..1), "test_loss" (nats) and the "step" of the checkpoint.
    """
    eval_step = create_eval_step(trained.model, trained.mesh)
    loss, accuracy = evaluate_split(
        eval_step,
        trained.params,
        trained.rest,
        trained.source,
        "test",
        trained.config,
        trained.mesh,
    )
    return {"test_accuracy": accuracy, "test_loss": loss, "step": trained.step}


def result_line(result: dict[str, float]) -> str:
    """Writes a test result as the line that training and evaluation print last."""
    return f"test accuracy {result['test_accuracy']:.4f} (step {result['step']:.0f}, best of validation)"


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    arguments = parse_flags(values, argv, __doc__)
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}; only --workdir is taken")
    workdir = Path(required(values, "workdir", "runs/digits"))
    trained = load_best(workdir)
    train_images = len(trained.source.splits["train"])
    check_batch_size(trained.config, train_images, jax.device_count())
    print(result_line(test_result(trained)))
    return 0


if __name__ == "__main__":
    run_program(main)
