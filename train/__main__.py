"""Trains a network.

    python -m train --config=configs/ps_resnet_digits.py --workdir=runs/digits

Any value of the config can be set on the command line: --config.seed=3. Interrupted in whatever way,
the same command goes on where training stopped.

On several hosts the same command runs on each, with a --workdir that all of them share. Slurm and TPU slices say
by themselves which process is which; elsewhere the flags below do.
"""

import shlex

from absl import flags

from train.config import parse_command_line
from train.engine.distributed import connect, define_flags, ending_together, read_place
from train.engine.loop import train
from train.errors import program, run_program
from train.tasks import task_kind


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    values = flags.FlagValues()
    define_flags(values)
    config, workdir = parse_command_line(argv, __doc__, values=values)
    connect(read_place(values))
    with ending_together():
        return train(config, task_kind(config), workdir, command=f"{program('train')} {shlex.join(argv[1:])}")


if __name__ == "__main__":
    run_program(main)
