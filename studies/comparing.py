"""The comparison of `studies.compare`: parallel trainings, a table and a picture."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from studies.compare_config import CompareConfig
from studies.comparison import draw, read_row, scales_of_test, table
from studies.search import inception_convs, network_shapes, select_patterns
from studies.side_by_side import Job, run_side_by_side
from studies.step_time import step_times
from train.config import check_workdir, read_config, update_config, write_config, write_text
from train.data import load_source
from train.data.prepare import prepare_once
from train.engine.loop import catch_signals, train
from train.engine.results import read_result
from train.errors import UserError
from train.tasks import task_kind


def compare(config: CompareConfig, workdir: Path, command: str, *, processes: int, minutes: float = math.inf) -> int:
    """Runs a comparison, or resumes it.

    Args:
        config: a checked config.
        workdir: folder of the comparison.
        command: the command line that resumes it, for messages.
        processes: the number of parallel trainings, one on each core.
        minutes: the time limit.

    Returns:
        The exit status: 0, also when the time was too short; 1 if a training failed; 128 + the number of the signal
        that stopped it.

    Raises:
        UserError: if config, data and folder do not match; the message says what to do.
    """
    until = time.monotonic() + 60 * minutes
    check_workdir(workdir, config)
    write_config(workdir, config)
    if config.prepares_data:
        prepare_once(config.training.data.source, str(workdir / "data"))
    check_networks(config, workdir)
    # All networks with one seed before the next seed, so that an incomplete table compares all networks.
    runs = [(name, seed) for seed in config.seeds for name in config.names]
    folders = {run: workdir / run[0] / f"seed{run[1]}" for run in runs}
    todo = [run for run in runs if read_result(folders[run] / "run") is None]
    print(f"{len(runs)} trainings, {len(runs) - len(todo)} of them done, {processes} beside each other")
    jobs = [
        Job(f"{name}, seed {seed}", train_one, (config, name, seed, workdir, command), folders[name, seed] / "log.txt")
        for name, seed in todo
    ]
    failed: list[str] = []

    def on_end(job: Job, status: int, seconds: float) -> None:
        result = read_result(job.log.parent / "run") if status == 0 else None
        if result is None:
            failed.append(job.name)
            print(f"{job.name}: failed with status {status}; {job.log} says why", flush=True)
        else:
            print(f"{job.name}: test accuracy {result['test_accuracy']:.4f} ({seconds:.0f} s)", flush=True)

    with catch_signals() as stopped_by:
        left = run_side_by_side(jobs, processes, until, stopped_by, on_end)
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


def check_networks(config: CompareConfig, workdir: Path) -> None:
    """Builds every network by shapes, so that impossible settings are refused early.

    Raises:
        UserError: if a network cannot be built.
    """
    config = config.with_data_in(workdir)
    for name in config.names:
        training = config.first_training(name)
        try:
            if config.scale_edges:
                scales_of_test(load_source(training))
            network_shapes(training)
        except UserError as error:
            raise UserError(f"the network {name!r} of config.networks: {error}") from error


def train_one(config: CompareConfig, name: str, seed: int, workdir: Path, command: str) -> int:
    """Trains a network with a seed, in a separate process; before that, the supernet of its search, if there is one."""
    # All seeds of a network compile the same program, which is cached in the folder of the comparison.
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
        training = update_config(training, {"model.convs": inception_convs(supernet, patterns)})
    return train(training, task_kind(training), folder / "run", command)


def _write_results(config: CompareConfig, workdir: Path, done: Mapping[str, Sequence[int]]) -> None:
    """Writes summary.md, summary.json and summary.png of the finished trainings."""
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
