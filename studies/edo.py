"""Searches the dilations of a network (EDO), and trains the found network and its baselines.

    python -m train.edo --config=configs/edo_digits.py --workdir=runs/edo_digits

For each seed it trains the supernet, selects the dilations, trains the network of inception convolutions with these
dilations, and two plain networks: one as long as that network, one as long as it and the supernet together. At the end
the folder holds a table, summary.md, and a picture of the dilations by layer, dilations.png; each training has a
subfolder in the form of python -m train. The same command resumes after an interruption.
"""

import shlex

import jax
from absl import flags

from studies.edo_config import SearchConfig
from train.config import check_workdir, parse_command_line
from train.config.network import check_network
from train.engine.distributed import connect, define_flags, read_process_info
from train.engine.folder import lock_folder
from train.errors import UserError, program


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    values = flags.FlagValues()
    define_flags(values)
    config, workdir = parse_command_line(argv, __doc__, SearchConfig, values)
    place = read_process_info(values)
    check_workdir(workdir, config)
    check_network(config.supernet(config.seeds[0]))
    connect(place)  # to detect several processes
    if jax.process_count() > 1:
        raise UserError(
            f"the search runs in one process, but {jax.process_count()} were started together; start one, without "
            "srun, mpirun and the flags of several processes"
        )
    from studies.search import search  # a slow import, after the checks

    with lock_folder(workdir):
        return search(config, workdir, command=f"{program('train.edo')} {shlex.join(argv[1:])}")
