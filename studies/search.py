"""The search of `studies.edo`: its trainings, the selection of dilations between them, and its table."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from flax import nnx

from msconv_jax import analysis, edo
from msconv_jax.counting import count_parameters, layer_macs
from studies.edo_config import SearchConfig
from train.config import Config, check_workdir, update_config, write_config, write_text
from train.data import load_source
from train.engine.loop import train
from train.engine.results import read_result
from train.engine.trained import load_best
from train.errors import UserError
from train.tasks import task_kind
from train.tasks.network import create_network
from train.untrusted import load_json

Patterns = Mapping[str, Sequence[Sequence[int]]]

# The trainings of one seed: folder, name in the table.
ROWS = {
    "plain": "plain",
    "plain_longer": "plain, as long as supernet and IC network",
    "supernet": "supernet",
    "ic": "IC network found",
}


def search(config: SearchConfig, workdir: Path, command: str) -> int:
    """Runs a search, or resumes it.

    Args:
        config: a checked config.
        workdir: folder of the search.
        command: the command line that resumes it, for messages.

    Returns:
        The exit status: 0, or 128 + the number of the signal that stopped a training.

    Raises:
        UserError: if config, data and folder do not match; the message says what to do.
    """
    check_workdir(workdir, config)
    network_shapes(config.supernet(config.seeds[0]))  # refuses impossible settings early
    write_config(workdir, config)
    found: dict[int, Patterns] = {}
    for seed in config.seeds:
        folder = workdir / f"seed{seed}"
        plain = config.plain(seed)
        longer = update_config(plain, {"epochs": 2 * plain.epochs})
        large = config.supernet(seed)
        for name, training in (("supernet", large), ("plain", plain), ("plain_longer", longer)):
            print(f"--- seed {seed}: {ROWS[name]}")
            status = train(training, task_kind(training), folder / name, command)
            if status:
                return status
        patterns = found[seed] = select_patterns(config, folder)
        dilated = update_config(plain, {"model": {"conv": "ICConv", "convs": inception_convs(large, patterns)}})
        print(f"--- seed {seed}: {ROWS['ic']}")
        status = train(dilated, task_kind(dilated), folder / "ic", command)
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
    """Selects the dilations of a seed from its supernet, or reads them from ``patterns.json``.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / "patterns.json"
    if not path.exists():
        trained = load_best(folder / "supernet", task_kind)
        shape = trained.source.image_shape if config.objective == "same" else None
        patterns = edo.select(trained.network(), config.objective, config.per, config.axes, input_shape=shape)
        write_text(path, json.dumps(patterns) + "\n")
    try:
        patterns = load_json(path.read_bytes())
        return {name: [[int(d) for d in dilations] for dilations in pattern] for name, pattern in patterns.items()}
    except (ValueError, OverflowError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged; remove it to select the dilations again") from error


def inception_convs(supernet: Config, patterns: Patterns) -> dict[str, Any]:
    """Returns the arguments of each inception convolution: its dilations in order, with their numbers of filters."""
    convs = edo.supernet_convs(network_shapes(supernet))
    groups = {path: conv.feature_group_count for path, conv in convs.items()}
    arguments = {}
    for path, pattern in patterns.items():
        ordered = [tuple(pattern[number]) for number in edo.rearranged(pattern, groups[path])]
        counted = [[*dilations, sum(1 for _ in run)] for dilations, run in itertools.groupby(ordered)]
        arguments[path] = {"pattern": counted}
    return arguments


def network_shapes(config: Config) -> nnx.Module:
    """Builds the network of a training with shapes in place of arrays.

    Raises:
        UserError: if it cannot be built, or its data are missing.
    """
    source = load_source(config)
    return nnx.eval_shape(lambda: create_network(config, len(source.classes), source.image_shape[-1]))


def results(config: SearchConfig, workdir: Path) -> list[dict[str, Any]]:
    """Returns the size and the test accuracy of each seed, for each row of the table."""
    rows = []
    for name, title in ROWS.items():
        accuracies = []
        for seed in config.seeds:
            result = read_result(workdir / f"seed{seed}" / name)
            if result is None:
                raise UserError(f"{workdir / f'seed{seed}' / name} is not a finished run; give the same command again")
            accuracies.append(result["test_accuracy"])
        trained = load_best(workdir / f"seed{config.seeds[0]}" / name, task_kind)
        network = trained.network()
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
    """Formats the table of a search in Markdown."""
    seeds = ", ".join(map(str, config.seeds))
    lines = [
        f"| network | epochs | parameters | MACs | test accuracy, seeds {seeds} | mean | standard deviation |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracies = row["test_accuracy"]
        spread = f"{stdev(accuracies):.4f}" if len(accuracies) > 1 else "-"
        each = ", ".join(f"{accuracy:.4f}" for accuracy in accuracies)
        lines.append(
            f"| {row['title']} | {row['epochs']} | {row['parameters']:,} | {row['macs']:,} | {each} | "
            f"{mean(accuracies):.4f} | {spread} |"
        )
    return "\n".join(lines) + "\n"
