"""Trains several networks with several seeds and compares their accuracy by the scale of the objects.

    python -m train.compare --config=configs/compare_scaled_digits.py --workdir=runs/compare [--minutes=30]

Trainings run in parallel, one on each core (--processes=N for fewer). At the end the folder holds a table, summary.md,
its numbers, summary.json, and a picture, summary.png; each training has a subfolder in the form of python -m train. The
same command resumes after an interruption. After --minutes it stops with a table of the finished trainings, and the
same command resumes too. The data are prepared in the folder if --config.training.data.dir is not set.
"""

import math
import shlex
from typing import Any

from absl import flags

from studies.compare_config import CompareConfig
from studies.side_by_side import cores
from train.config import check_workdir, parse_command_line
from train.config.network import check_network
from train.engine.folder import lock_folder
from train.errors import UserError, program


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags besides config and folder."""
    flags.DEFINE_float("minutes", math.inf, "when to stop", lower_bound=0.0, flag_values=values)
    flags.DEFINE_integer("processes", len(cores()), "trainings at a time", lower_bound=1, flag_values=values)


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    values = flags.FlagValues()
    define_flags(values)
    config, workdir = parse_command_line(argv, __doc__, CompareConfig, values)
    flag: Any = values
    if math.isnan(flag.minutes):
        raise UserError("--minutes=nan is not a time; give a number of minutes, or leave it out")
    check_workdir(workdir, config)
    for name in config.names:
        try:
            check_network(config.first_training(name))
        except UserError as error:
            raise UserError(f"the network {name!r} of config.networks: {error}") from error
    from studies.comparing import compare  # a slow import, after the checks

    command = f"{program('train.compare')} {shlex.join(argv[1:])}"
    with lock_folder(workdir):
        return compare(config, workdir, command, processes=min(flag.processes, len(cores())), minutes=flag.minutes)
