"""Trains a network.

    python -m train --config=configs/ps_resnet_digits.py --workdir=runs/digits

Any value of the config can be set on the command line: --config.seed=3. After an interruption, the same command
resumes training.

On several hosts the same command runs on each, with a --workdir that all of them share. Slurm and TPU slices number
their processes; elsewhere the flags below do.
"""

import shlex

from absl import flags

from train.config import check_workdir, parse_command_line
from train.engine.distributed import abort_all_on_error, connect, define_flags, in_cluster, read_process_info
from train.errors import program, run_program


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    values = flags.FlagValues()
    define_flags(values)
    config, workdir = parse_command_line(argv, __doc__, values=values)
    process = read_process_info(values)
    if process is None and not in_cluster():  # of several processes, process 0 checks later
        check_workdir(workdir, config)
    # Slow imports come after the checks of the command line.
    from train.config.network import check_network

    check_network(config)
    from train.engine.loop import train
    from train.tasks import task_kind

    connect(process)
    with abort_all_on_error():
        return train(config, task_kind(config), workdir, command=f"{program('train')} {shlex.join(argv[1:])}")


if __name__ == "__main__":
    run_program(main)
