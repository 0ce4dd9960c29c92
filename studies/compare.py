"""Trains several networks with several seeds and compares their accuracy by the scale of the objects.

    python -m train.compare --config=configs/compare_scaled_digits.py --workdir=runs/compare [--minutes=30]

As many trainings run beside each other as there are cores, one on each (--processes=N for fewer). At the end the folder
holds a table, summary.md, its numbers, summary.json, and a picture, summary.png; each training has a folder of its own
in the form of python -m train. Interrupted in whatever way, the same command goes on. When --minutes are over it stops
with a table of what is done, and the same command goes on too. The data are prepared in the folder if
--config.training.data.dir does not name them.
"""

import itertools
import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import pydantic
from absl import flags
from pydantic import Field

from studies.comparison import draw, read_row, scales_of_test, table
from studies.edo import SearchConfig, Seeds, inception_convs, network_shapes, select_patterns
from studies.side_by_side import Job, cores, run_side_by_side
from studies.step_time import step_times
from train.config import (
    Config,
    Settings,
    changed,
    check_workdir,
    checked,
    merged,
    parse_command_line,
    read_config,
    write_config,
    write_text,
)
from train.data import load_source
from train.data.prepare import prepare_once
from train.data.readers.scaled_digits import ScaledDigits
from train.engine.folder import own
from train.engine.loop import catch_signals, train
from train.engine.results import read_result
from train.errors import UserError, program, suggest
from train.tasks import task_kind

_OTHER_FOLDERS = ("data", "compiled")
_SEARCH = {"d_max": 2, "objective": "sum", "per": "filter", "axes": "both"}


def _named(networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for network in networks:
        if not str(network.get("name", "")).isidentifier() or not isinstance(network.get("search", {}), dict):
            raise ValueError("a network has no name, or a search that is no dictionary")
    return networks


def _rising(edges: list[float]) -> list[float]:
    if len(edges) == 1 or any(a >= b for a, b in itertools.pairwise(edges)):
        raise ValueError("one edge, or edges that do not rise")
    return edges


class CompareConfig(Settings):
    """The settings of a comparison.

    `training` holds the settings that all trainings share. A network of `networks` has a "name" for folders, may have a
    "title" for the table, and has changes of the shared settings, nested as they are: {"model": {"conv": "PSConv"}}.
    An "ICConv" whose dilations are to be found has a "search", a dictionary that may set "d_max", "objective", "per",
    "axes" and "epochs", those of the supernet.
    """

    file: ClassVar[str] = "compare.json"
    changeable: ClassVar[tuple[str, ...]] = SearchConfig.changeable

    seeds: Seeds
    networks: Annotated[list[dict[str, Any]], pydantic.AfterValidator(_named)] = Field(
        min_length=1,
        description='a list of dictionaries, each with a "name" of letters, digits and _, and a "search" a dictionary',
    )
    baseline: str = Field(min_length=1, description="the name of a network of the comparison")
    scale_edges: Annotated[list[float], pydantic.AfterValidator(_rising)] = Field(
        description="a list of rising numbers, the scales between which accuracies are compared, or [] for none"
    )
    timed_steps: int = Field(ge=1, description="a whole number of at least 1: steps that are timed")
    training: Config

    @pydantic.model_validator(mode="after")
    def _check(self) -> "CompareConfig":
        names = self.names
        if len(set(names)) < len(names):
            raise ValueError(
                f"config.networks has names twice, of {', '.join(names)}; a name is a folder's, change one"
            )
        if self.baseline not in names:
            raise ValueError(
                f"config.baseline is {self.baseline!r}, no network of the comparison; {suggest(self.baseline, names)}"
            )
        for name in names:
            if name in _OTHER_FOLDERS:
                raise ValueError(
                    f"config.networks has a network {name!r}, but that folder is for other things; rename it"
                )
            try:
                self._check_network(name)
            except UserError as error:
                raise ValueError(f"config.networks has a network {name!r} that makes no training: {error}") from error
        return self

    def _check_network(self, name: str) -> None:
        training = self.training_of(name, self.seeds[0])
        if training.task.name != "classification":
            raise UserError(
                f"config.task.name is {training.task.name!r} but must be 'classification', because test accuracies are "
                "compared"
            )
        if self.search_of(name, self.seeds[0]) is not None and training.model.conv != "ICConv":
            raise UserError(
                f"it has a search but config.model.conv {training.model.conv!r}; set 'ICConv', or leave one out"
            )

    @property
    def names(self) -> list[str]:
        """The names of the networks."""
        return [network["name"] for network in self.networks]

    def network(self, name: str) -> dict[str, Any]:
        """Gives the entry of a network."""
        return next(network for network in self.networks if network["name"] == name)

    def title(self, name: str) -> str:
        """Gives what the table calls a network."""
        return str(self.network(name).get("title", name))

    def training_of(self, name: str, seed: int) -> Config:
        """Gives the training of a network; of one with a search, without what that will find.

        Raises:
            UserError: if its settings are not those of a training.
        """
        entry = self.network(name)
        changes = {key: value for key, value in entry.items() if key not in ("name", "title", "search")}
        return changed(self.training, {**changes, "seed": seed})

    def search_of(self, name: str, seed: int) -> SearchConfig | None:
        """Gives the search for a network's dilations, or None.

        Raises:
            UserError: if its settings are not those of a search.
        """
        if "search" not in self.network(name):
            return None
        training = self.training_of(name, seed)
        search = {**_SEARCH, "epochs": training.epochs, **self.network(name)["search"]}
        plain = {"epochs": search.pop("epochs"), "model": {"conv": "", "conv_kwargs": {}, "convs": {}}}
        values = {**search, "seeds": [seed], "training": merged(training.model_dump(), plain, Config)}
        return checked(values, SearchConfig)

    def with_data_in(self, workdir: Path) -> "CompareConfig":
        """Gives the same with the data in the folder of the comparison, unless the config says where they are."""
        return changed(self, {"training.data.dir": str(workdir / "data")}) if self.prepares_data else self

    @property
    def prepares_data(self) -> bool:
        """Whether the data are made in the folder of the comparison."""
        return self.training.data.source == ScaledDigits.name and not self.training.data.dir

    def check_networks(self, workdir: Path) -> None:
        """Builds every network, on shapes only, for what it says may be impossible.

        Raises:
            UserError: if it is.
        """
        config = self.with_data_in(workdir)
        for name in self.names:
            search = config.search_of(name, self.seeds[0])
            training = config.training_of(name, self.seeds[0]) if search is None else search.supernet(self.seeds[0])
            try:
                if self.scale_edges:
                    scales_of_test(load_source(training))
                network_shapes(training)
            except UserError as error:
                raise UserError(f"the network {name!r} of config.networks: {error}") from error


def compare(config: CompareConfig, workdir: Path, command: str, *, processes: int, minutes: float = math.inf) -> int:
    """Runs a comparison, from the start or from where an earlier process stopped.

    Args:
        config: a checked config.
        workdir: folder of the comparison.
        command: the command line that goes on with it, for messages.
        processes: how many trainings run beside each other, a core each.
        minutes: after how many to stop.

    Returns:
        The exit status: 0, also when the time was too short; 1 if a training failed; 128 + the number of the signal
        that stopped it.

    Raises:
        UserError: if something does not fit together; the message says what to do.
    """
    until = time.monotonic() + 60 * minutes
    check_workdir(workdir, config)
    write_config(workdir, config)
    if config.prepares_data:
        prepare_once(ScaledDigits.name, str(workdir / "data"))
    config.check_networks(workdir)
    # All networks with one seed before the next seed: a table that is not whole yet compares them all the same.
    runs = [(name, seed) for seed in config.seeds for name in config.names]
    folders = {run: workdir / run[0] / f"seed{run[1]}" for run in runs}
    todo = [run for run in runs if read_result(folders[run] / "run") is None]
    print(f"{len(runs)} trainings, {len(runs) - len(todo)} of them done, {processes} beside each other")
    jobs = [
        Job(f"{name}, seed {seed}", train_one, (config, name, seed, workdir, command), folders[name, seed] / "log.txt")
        for name, seed in todo
    ]
    failed: list[str] = []

    def ended(job: Job, status: int, seconds: float) -> None:
        result = read_result(job.log.parent / "run") if status == 0 else None
        if result is None:
            failed.append(job.name)
            print(f"{job.name}: failed with status {status}; {job.log} says why", flush=True)
        else:
            print(f"{job.name}: test accuracy {result['test_accuracy']:.4f} ({seconds:.0f} s)", flush=True)

    with catch_signals() as stopped_by:
        left = run_side_by_side(jobs, processes, until, stopped_by, ended)
    if stopped_by:
        print(f"stopped with {left} trainings left; go on with\n{command}")
        return 128 + stopped_by[0]

    done = {name: [seed for seed in config.seeds if read_result(folders[name, seed] / "run")] for name in config.names}
    done = {name: seeds for name, seeds in done.items() if seeds}
    if config.baseline in done:
        _write_results(config, workdir, done)
    if left:
        print(f"{left} trainings are left after {minutes:g} minutes; go on with\n{command}")
    if failed:
        print(f"{len(failed)} trainings failed: {'; '.join(failed)}; the same command tries them again")
    return 1 if failed else 0


def train_one(config: CompareConfig, name: str, seed: int, workdir: Path, command: str) -> int:
    """Trains a network with a seed, in a process of its own; before it, where asked for, the supernet of its search."""
    # Seeds of one network are one program, and the folder of a comparison keeps it.
    jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    folder = workdir / name / f"seed{seed}"
    config = config.with_data_in(workdir)
    training, search = config.training_of(name, seed), config.search_of(name, seed)
    if search is not None:
        supernet = search.supernet(seed)
        status = train(supernet, task_kind(supernet), folder / "supernet", command)
        if status:
            return status
        patterns = select_patterns(search, folder)
        training = changed(training, {"model.convs": inception_convs(supernet, patterns)})
    return train(training, task_kind(training), folder / "run", command)


def _write_results(config: CompareConfig, workdir: Path, done: Mapping[str, Sequence[int]]) -> None:
    """Writes summary.md, summary.json and summary.png of what is done."""
    print(f"timing a training step of each network, {config.timed_steps} times in turn ...", flush=True)
    jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    configs = {name: read_config(workdir / name / f"seed{seeds[0]}" / "run") for name, seeds in done.items()}
    seconds = step_times(configs, config.timed_steps)
    rows = [
        read_row(config.title(name), workdir / name, seeds, config.scale_edges, seconds[name])
        for name, seeds in done.items()
    ]
    baseline = list(done).index(config.baseline)
    write_text(workdir / "summary.json", json.dumps([row._asdict() for row in rows], indent=2) + "\n")
    text = table(rows, baseline, config.scale_edges)
    write_text(workdir / "summary.md", text)
    draw(rows, baseline, config.scale_edges, workdir / "summary.png")
    print(f"written to {workdir}: summary.md, summary.json, summary.png\n{text}", end="")


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
    command = f"{program('train.compare')} {shlex.join(argv[1:])}"
    with own(workdir):
        return compare(config, workdir, command, processes=min(flag.processes, len(cores())), minutes=flag.minutes)
