"""Trains a network.

    python -m train --config=configs/ps_resnet_digits.py --workdir=runs/digits

Any value of the config can be set on the command line: --config.seed=3. Interrupted in whatever way,
the same command goes on where training stopped.
"""

import shlex

from train.config import parse_command_line
from train.errors import run_program
from train.loop import train


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    config, workdir = parse_command_line(argv, __doc__)
    return train(config, workdir, command=shlex.join(["python", "-m", "train", *argv[1:]]))


if __name__ == "__main__":
    run_program(main)
