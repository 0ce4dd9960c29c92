"""Searches the dilations of a network (EDO), and trains the network it finds and its rivals.

    python -m train.edo --config=configs/edo_digits.py --workdir=runs/edo_digits

For each seed it trains the supernet, selects the dilations, trains the network of inception convolutions that have
them, and two plain networks: one as long as that network, one as long as it and the supernet together. At the end the
folder holds a table of all, summary.md, and a picture of the dilations by layer, dilations.png; each training has a
folder of its own in the form of python -m train. Interrupted in whatever way, the same command goes on.
"""

import dataclasses
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from msconv_jax import analysis, edo
from msconv_jax.counting import count_parameters, layer_macs
from msconv_jax.edo.selection import Axes, Per
from train.config import check_workdir, parse_command_line, write_config, write_text
from train.data import load_source
from train.distributed import connect, define_flags, read_place
from train.errors import UserError, run_program
from train.evaluate import load_best
from train.loop import train
from train.network import create_network
from train.results import read_result
from train.settings import SEEDS, Config, Rule, Schema, checked, one_of

Patterns = Mapping[str, Sequence[Sequence[int]]]


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The settings of a search; `training` holds those of every training in it, for the plain network.

    Raises:
        UserError: if the settings of `training` are not those of a plain network's training.
    """

    seeds: list[int]
    d_max: int
    objective: str
    per: str
    axes: str
    training: dict[str, Any]

    def __post_init__(self) -> None:
        try:
            plain = checked(self.training)
        except UserError as error:
            raise UserError(f"config.training is not a config of python -m train: {error}") from error
        if plain.conv or plain.conv_kwargs or plain.convs:
            raise UserError(
                f"config.training.conv is {plain.conv!r} but must be '': the search puts its own convolutions in the "
                "place of the network's"
            )

    def plain(self, seed: int) -> Config:
        """The training of the plain network."""
        return dataclasses.replace(checked(self.training), seed=seed)

    def supernet(self, seed: int) -> Config:
        """The training of the supernet."""
        return dataclasses.replace(self.plain(seed), conv="SupernetConv", conv_kwargs={"d_max": self.d_max})


SEARCH = Schema(
    SearchConfig,
    {
        "seeds": SEEDS,
        "d_max": Rule(lambda value: value >= 2, "the largest dilation, a whole number of at least 2"),
        "objective": one_of(*get_args(edo.Objective)),
        "per": one_of(*get_args(Per)),
        "axes": one_of(*get_args(Axes)),
        "training": Rule(lambda value: True, "a dictionary with the settings of python -m train"),
    },
    "search.json",
)

# The trainings of one seed: folder, name in the table.
ROWS = {
    "plain": "plain",
    "plain_longer": "plain, as long as supernet and IC network",
    "supernet": "supernet",
    "ic": "IC network found",
}


def search(config: SearchConfig, workdir: Path, command: str) -> int:
    """Runs a search, from the start or from where an earlier process stopped.

    Args:
        config: a checked config.
        workdir: folder of the search.
        command: the command line that goes on with it, for messages.

    Returns:
        The exit status: 0, or 128 + the number of the signal that stopped a training.

    Raises:
        UserError: if something does not fit together; the message says what to do.
    """
    check_workdir(workdir, config, SEARCH)
    supernet = config.supernet(config.seeds[0])
    nnx.eval_shape(lambda: create_network(supernet, load_source(supernet)))  # or it says why it cannot be
    write_config(workdir, config, SEARCH)
    found: dict[int, Patterns] = {}
    for seed in config.seeds:
        folder = workdir / f"seed{seed}"
        plain = config.plain(seed)
        longer = dataclasses.replace(plain, epochs=2 * plain.epochs)
        large = config.supernet(seed)
        for name, training in (("supernet", large), ("plain", plain), ("plain_longer", longer)):
            print(f"--- seed {seed}: {ROWS[name]}")
            status = train(training, folder / name, command)
            if status:
                return status
        patterns = found[seed] = select_patterns(config, folder)
        dilated = dataclasses.replace(plain, conv="ICConv", convs=inception_convs(large, patterns))
        print(f"--- seed {seed}: {ROWS['ic']}")
        status = train(dilated, folder / "ic", command)
        if status:
            return status
    rows = results(config, workdir)
    write_text(workdir / "summary.json", json.dumps(rows, indent=2) + "\n")
    table = summary(rows, config)
    write_text(workdir / "summary.md", table)
    shares = analysis.dilation_shares(list(found.values()), config.d_max)
    title = f"dilations found, percent of each layer's filters, {len(found)} seed(s)"
    analysis.plot_dilation_shares(shares, title=title).savefig(workdir / "dilations.png", dpi=120)
    print(f"--- written to {workdir}: summary.md, summary.json, dilations.png\n{table}", end="")
    return 0


def select_patterns(config: SearchConfig, folder: Path) -> Patterns:
    """Selects the dilations of a seed from its supernet, or reads what was selected; ``patterns.json``.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / "patterns.json"
    if not path.exists():
        trained = load_best(folder / "supernet")
        supernet = trained.model.merge(trained.params, trained.rest, jnp.zeros((), jnp.int32))
        shape = trained.source.image_shape if config.objective == "same" else None
        patterns = edo.select(
            supernet,
            config.objective,  # type: ignore[arg-type]
            config.per,  # type: ignore[arg-type]
            config.axes,  # type: ignore[arg-type]
            input_shape=shape,
        )
        write_text(path, json.dumps(patterns) + "\n")
    try:
        patterns = json.loads(path.read_text(encoding="utf-8"))
        return {name: [[int(d) for d in dilations] for dilations in pattern] for name, pattern in patterns.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged; remove it, and the dilations are selected anew") from error


def inception_convs(supernet: Config, patterns: Patterns) -> dict[str, Any]:
    """The arguments of each inception convolution, as counts where its filters have been put together."""
    shapes = nnx.eval_shape(lambda: create_network(supernet, load_source(supernet)))
    groups = {path: conv.feature_group_count for path, conv in edo.supernet_convs(shapes).items()}
    convs = {}
    for path, pattern in patterns.items():
        ordered = [tuple(pattern[number]) for number in edo.rearranged(pattern, groups[path])]
        convs[path] = {"pattern": [[*own, sum(1 for _ in run)] for own, run in itertools.groupby(ordered)]}
    return convs


def results(config: SearchConfig, workdir: Path) -> list[dict[str, Any]]:
    """For each row of the table its size and the test accuracy of each seed."""
    rows = []
    for name, title in ROWS.items():
        accuracies = []
        for seed in config.seeds:
            result = read_result(workdir / f"seed{seed}" / name)
            if result is None:
                raise UserError(f"{workdir / f'seed{seed}' / name} is not a finished run; give the same command again")
            accuracies.append(result["test_accuracy"])
        trained = load_best(workdir / f"seed{config.seeds[0]}" / name)
        network = trained.model.merge(trained.params, trained.rest, jnp.zeros((), jnp.int32))
        rows.append(
            {
                "name": name,
                "title": title,
                "epochs": trained.config.epochs,
                "parameters": count_parameters(network),
                "macs": sum(layer_macs(network, trained.source.image_shape).values()),
                "test_accuracy": accuracies,
            }
        )
    return rows


def summary(rows: Sequence[Mapping[str, Any]], config: SearchConfig) -> str:
    """The table of a search in Markdown."""
    seeds = ", ".join(map(str, config.seeds))
    lines = [
        f"| network | epochs | parameters | MACs | test accuracy, seeds {seeds} | mean | standard deviation |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own = row["test_accuracy"]
        spread = f"{stdev(own):.4f}" if len(own) > 1 else "-"
        each = ", ".join(f"{accuracy:.4f}" for accuracy in own)
        lines.append(
            f"| {row['title']} | {row['epochs']} | {row['parameters']:,} | {row['macs']:,} | {each} | {mean(own):.4f} "
            f"| {spread} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    values = flags.FlagValues()
    define_flags(values)
    config, workdir = parse_command_line(argv, __doc__, SEARCH, values)
    connect(read_place(values))  # or each of several would take itself for the only one
    if jax.process_count() > 1:
        raise UserError(
            f"the search runs in one process, but {jax.process_count()} were started together; start one, without "
            "srun, mpirun and the flags of several processes"
        )
    return search(config, workdir, command=shlex.join(["python", "-m", "train.edo", *argv[1:]]))


if __name__ == "__main__":
    run_program(main)
