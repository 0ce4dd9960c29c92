"""Evaluates the best checkpoint of a run on the test split, or any network with any weights on any data.

    python -m train.evaluate --workdir=runs/digits

computes the last line of training again from the checkpoint.

    python -m train.evaluate --config=configs/pyconv_imagenet.py --weights=pyconvresnet50.pth --config.data.dir=data

evaluates the network of a config, with any --config.model.name and --config.data.source. --weights names a PyTorch or
safetensors file, or the folder of a run, whose best checkpoint is used. The settings of --config.task, such as
eval_size, eval_resize and eval_crops, determine the crops.

Both evaluate another split with --split=validation or --split=train.
"""

from pathlib import Path
from typing import Any, get_args

from absl import flags

from train.config import Config, Split, parse_command_line, read_config
from train.errors import UserError, define_path, parse_flags, required, run_program


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    values = flags.FlagValues()
    flag: Any = values
    define_path(values, "weights", "file of weights, or folder of a run; with --config")
    flags.DEFINE_enum("split", "test", get_args(Split), "the split to evaluate", flag_values=values)
    if any(argument.split("=")[0] in ("--config", "-config") for argument in argv):
        config, _ = parse_command_line(argv, __doc__, values=values, needs_workdir=False)
        if values["workdir"].present:
            raise UserError("--workdir and --config exclude one another; --weights takes the folder of a run too")
        weights = Path(required(values, "weights", "resnet50.pth"))
        if not weights.exists():
            raise UserError(f"--weights={weights}: there is no such file; name a .pth or .safetensors file")
        return _evaluate_weights(config, weights, flag["split"].value)
    define_path(values, "workdir", "folder of the run")
    if arguments := parse_flags(values, argv, __doc__):
        raise UserError(f"unexpected argument {arguments[0]!r}; only --workdir is taken, or --config with --weights")
    if values["weights"].present:
        raise UserError("--weights goes with --config; a run of --workdir has weights, its best checkpoint")
    workdir = Path(required(values, "workdir", "runs/digits"))
    read_config(workdir)
    return _evaluate_run(workdir, flag["split"].value)


# Slow imports are inside functions, so that errors of the command line are reported at once.


def _evaluate_run(workdir: Path, split: Split) -> int:
    import jax

    from train.engine.checks import check_batch_size
    from train.engine.results import make_result, result_line
    from train.engine.trained import load_best, load_data, score
    from train.tasks import task_kind

    trained = load_best(workdir, task_kind, load_data(workdir, task_kind))
    check_batch_size(trained.config, len(trained.source.splits["train"]), jax.device_count())
    print(result_line(make_result(score(trained, split), trained.step), trained.task, split))
    return 0


def _evaluate_weights(config: Config, weights: Path, split: Split) -> int:
    from train.config.network import check_network

    check_network(config)
    import jax

    from train.engine.checks import check_batch_size
    from train.engine.trained import load_weights, score
    from train.tasks import task_kind

    trained = load_weights(config, weights, task_kind)
    check_batch_size(config, config.batch_size, jax.device_count())  # a split may be smaller than a batch
    result, images = score(trained, split).result(), len(trained.source.splits[split])
    loss = f", loss {result['loss']:.4f}" if "loss" in result else ""
    print(f"{config.model.name} on {images} images of {config.data.source} {split}: {trained.task.line(result)}{loss}")
    return 0


if __name__ == "__main__":
    run_program(main)
