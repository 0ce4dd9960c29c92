"""Evaluates the best checkpoint of a run on the test split, or any network with any weights on any data.

    python -m train.evaluate --workdir=runs/digits

prints the line that training printed at its end, computed anew from the checkpoint.

    python -m train.evaluate --config=configs/pyconv_imagenet.py --weights=pyconvresnet50.pth --config.data.dir=data

evaluates the network of a config, whatever --config.model.name and --config.data.source are, with the weights of a
PyTorch or safetensors file, or of the best checkpoint of a run whose folder --weights names. --split=validation takes
another split; the settings of --config.task, such as eval_size, eval_resize and eval_crops, change how images are
cropped.
"""

from pathlib import Path
from typing import Any, get_args

import jax
from absl import flags

from train.config import Config, parse_command_line
from train.data.source import Split
from train.engine.checks import check_batch_size
from train.engine.results import result_line, result_of
from train.engine.trained import load_best, load_data, load_weights, score
from train.errors import UserError, parse_flags, required, run_program
from train.tasks import task_kind


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    values = flags.FlagValues()
    flags.DEFINE_string("weights", None, "file of weights, or folder of a run; with --config", flag_values=values)
    flags.DEFINE_string("split", "test", "with --config: train, validation or test", flag_values=values)
    if any(argument.split("=")[0] in ("--config", "-config") for argument in argv):
        config, _ = parse_command_line(argv, __doc__, values=values, needs_workdir=False)
        return _evaluate_weights(config, Path(required(values, "weights", "resnet50.pth")), values["split"].value)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    if arguments := parse_flags(values, argv, __doc__):
        raise UserError(f"unexpected argument {arguments[0]!r}; only --workdir is taken, or --config with --weights")
    workdir = Path(required(values, "workdir", "runs/digits"))
    trained = load_best(workdir, task_kind, load_data(workdir, task_kind))
    check_batch_size(trained.config, len(trained.source.splits["train"]), jax.device_count())
    print(result_line(result_of(score(trained, "test"), trained.step), trained.task))
    return 0


def _evaluate_weights(config: Config, weights: Path, split: Any) -> int:
    if split not in get_args(Split):
        raise UserError(f"--split={split} is not a split; take one of {', '.join(get_args(Split))}")
    trained = load_weights(config, weights, task_kind)
    check_batch_size(config, config.batch_size, jax.device_count())  # a split may be smaller than a batch
    result, images = score(trained, split).result(), len(trained.source.splits[split])
    loss = f", loss {result['loss']:.4f}" if "loss" in result else ""
    print(f"{config.model.name} on {images} images of {config.data.source} {split}: {trained.task.line(result)}{loss}")
    return 0


if __name__ == "__main__":
    run_program(main)
