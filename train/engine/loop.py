"""A training run, from the config to the result on the test split."""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from train.config import Config, check_workdir, extends_run, write_config, write_text
from train.data import load_source, train_batches
from train.data.record import check_data, write_record
from train.engine.checkpoint import CheckpointWriter, choose_checkpoint, latest_checkpoint, restore
from train.engine.checks import check_accumulation, check_batch_size, check_same_data
from train.engine.distributed import broadcast_from_main
from train.engine.folder import RunFolder, lock_folder
from train.engine.guard import check_state, check_step
from train.engine.log import MetricsLog, ProgressReport, SpeedMeter
from train.engine.mesh import create_mesh, shard_arrays, shard_batch, state_shardings
from train.engine.network import check_paths, split_model
from train.engine.optim import create_optimiser
from train.engine.profiling import StepProfiler
from train.engine.results import make_result, missing_report, read_result, result_line, write_results
from train.engine.step import Report, TrainState, create_state, create_train_step, eval_variables, zero_terms
from train.engine.trained import Scorer, load_best
from train.errors import program
from train.task import Task


def train(config: Config, kind: type[Task], workdir: Path, command: str) -> int:
    """Trains the network of a config for a kind of task, from the start or from the latest checkpoint.

    Messages name `command`, which resumes the run. Returns the exit status: 0, or 128 + the number of the signal that
    stopped the training. Raises a `UserError` if config, data and folder do not match.
    """
    if _is_finished(config, kind, workdir):
        return 0
    with lock_folder(workdir) if jax.process_index() == 0 else contextlib.nullcontext() as folder:
        if _is_finished(config, kind, workdir):  # another process has just finished it
            return 0
        return _train(config, kind, workdir, command, folder)


def _is_finished(config: Config, kind: type[Task], workdir: Path) -> bool:
    """Checks on process 0 that the folder is new or of this run, and returns whether the run is finished."""
    result = None
    if jax.process_index() == 0:
        check_workdir(workdir, config)
        result = read_result(workdir, kind)
        if result and not extends_run(workdir, config):
            print(f"this run is finished; its files are in {workdir}\n{result_line(result, kind)}")
            if note := missing_report(workdir):
                print(note)
        else:
            result = None
    return broadcast_from_main(result is not None) == 1


def _train(config: Config, kind: type[Task], workdir: Path, command: str, folder: RunFolder | None) -> int:
    is_main = folder is not None  # process 0 alone writes and logs
    log = print if is_main else lambda *_: None

    # Data and task.
    source = load_source(config, kind.needs)
    task = kind(config, source)
    if source.note:
        log(source.note)
    train_images = len(source.splits["train"])
    check_batch_size(config, train_images, jax.device_count())
    check_accumulation(config, jax.device_count())
    # Batches continue over the end of an epoch, so none is short; an epoch is the nearest whole number of batches.
    steps_per_epoch = round(train_images / config.batch_size)
    total_steps = config.epochs * steps_per_epoch

    # Network, optimiser and train state.
    model, params, other_state = split_model(task.create(), config.model.frozen)
    check_paths("config.model.frozen", config.model.frozen, params)
    check_paths("config.optimizer.multipliers", tuple(config.optimizer.multipliers), params)
    optimiser, learning_rate = create_optimiser(config, steps_per_epoch)
    mesh = create_mesh(config.compute.shards)
    parameter_count = sum(leaf.size for leaf in jax.tree.leaves(params))
    create = partial(create_state, optimiser=optimiser, terms=task.terms, ema_decay=config.optimizer.ema_decay)
    shardings = state_shardings(jax.eval_shape(create, params, other_state), mesh)
    state = jax.jit(create, out_shardings=shardings)(*shard_arrays((params, other_state), mesh))
    del params, other_state  # the devices keep only the state

    # Resume from the latest checkpoint, if there is one. From here on the folder belongs to this run.
    check_same_data(source)
    latest = choose_checkpoint(workdir / "checkpoints", latest_checkpoint, repair=True)
    if is_main:
        if latest:
            check_data(workdir, source)
            if extends_run(workdir, config):
                log(f"the run becomes longer; from here on the learning rate is that of {config.epochs} epochs")
        (workdir / "result.json").unlink(missing_ok=True)  # of the shorter run
        write_config(workdir, config)  # first, because it marks the folder of a run
        if not latest:
            write_record(workdir, source)
        if source.report:
            write_text(workdir / "images.txt", source.report)
            log(f"{source.report.partition(chr(10))[0]}; see {workdir / 'images.txt'}")
    if latest:
        state = restore(latest, state, shardings)
        log(f"going on from the checkpoint of step {latest.step} of {total_steps}")
    index, count = jax.process_index(), jax.process_count()
    log(
        f"{config.data.source}: {train_images} images to train on; {config.model.name}: {parameter_count:,} "
        f"parameters; {jax.device_count()} {jax.default_backend()} device(s)"
        f"{f' of {count} processes' * (count > 1)}; {total_steps} steps"
    )

    # Train.
    step = first_step = int(state.step)
    train_step = create_train_step(model, task, optimiser, config, mesh, shardings)
    scorer = Scorer(config, source, task, mesh, model)
    transform = task.transform(training=True)
    batches = train_batches(source, config, transform, step, total_steps, process_index=index, process_count=count)
    speed = SpeedMeter(config.batch_size)
    report: Report | None = None
    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(MetricsLog(workdir, first_step, task.best, enabled=is_main))
        writer = stack.enter_context(
            CheckpointWriter(workdir / "checkpoints", task.best, command, proven=latest is not None)
        )
        progress = stack.enter_context(ProgressReport(total_steps, first_step, enabled=is_main))
        stopped_by = stack.enter_context(catch_signals())
        profiler = StepProfiler(workdir / "profile", total_steps - first_step, enabled=config.profile and is_main)
        stack.callback(profiler.close)
        if first_step < total_steps:
            log("compiling the first step ...")

        for batch in speed.watch(batches):
            on_devices, previous = shard_batch(batch, mesh), report
            step += 1
            profiler.before(step - first_step, state)
            state, report = train_step(state, on_devices)
            profiler.after(step - first_step, state)
            # Stay only one step ahead of the device, so that a signal stops the run soon.
            if previous is not None:
                check_step(step - 1, previous, config)
            if step == first_step + 1:
                jax.block_until_ready(report)
                speed.restart()  # without the compilation
            if progress.is_due():
                progress.step(step, means(state, task.terms), speed.measured()["images_per_second"])
            if multihost_utils.reached_preemption_sync_point(step):  # soon after SIGTERM to one of several processes
                stopped_by.append(signal.SIGTERM)

            ends_epoch = step % steps_per_epoch == 0
            is_due = config.checkpoint_every and step % config.checkpoint_every == 0
            if ends_epoch or is_due or stopped_by:
                check_step(step, report, config)
                check_state(step, state, config)
                if folder:
                    folder.check()
                scores = None
                if ends_epoch:
                    epoch = step // steps_per_epoch
                    measured = speed.measured()
                    scores = scorer.score(*eval_variables(state), "validation").result()
                    record = {
                        "step": step,
                        "epoch": epoch,
                        "learning_rate": float(learning_rate(step - 1)),
                        **{f"train_{name}": value for name, value in means(state, task.terms).items()},
                        **{f"validation_{name}": value for name, value in scores.items()},
                    }
                    metrics.write(record)
                    if step > first_step + 1:  # the first step includes the compilation
                        metrics.write_speed({"step": step, "epoch": epoch, **measured})
                    progress.epoch(record, config.epochs, measured["images_per_second"])
                    state = state._replace(terms=shard_arrays(zero_terms(task.terms), mesh))
                writer.save(step, state, scores)
                if ends_epoch:
                    speed.restart()
                if stopped_by:
                    break
        writer.wait()

    if stopped_by:
        name = signal.Signals(stopped_by[0]).name
        where = f", on each of the {count} processes with its own id," * (count > 1)
        log(f"stopped by {name} after step {step} of {total_steps}; go on with{where}\n{command}")
        return 128 + stopped_by[0]

    # Evaluate the best checkpoint on the test split, once.
    trained = load_best(workdir, lambda _: kind, source)
    evaluator = scorer.score(trained.params, trained.other_state, "test")
    result = make_result(evaluator, trained.step)
    samples = write_results(workdir, trained, evaluator, result) if is_main else {}
    log(
        f"written to {workdir}: report.html, config.json, data.json, metrics.jsonl, speeds.jsonl, curves.png, "
        "tensorboard, checkpoints, samples, test_answers.npz, result.json"
    )
    if samples:
        example = f"--workdir={shlex.quote(str(workdir))} {shlex.quote(str(samples[max(samples)]))}"
        log(f"predict for an image with: {program('train.predict')} {example}")
    log(result_line(result, kind))
    return 0


def means(state: TrainState, names: Sequence[str]) -> dict[str, float]:
    """Returns the means of the named terms of the loss over the epoch so far."""
    terms = jax.device_get(state.terms)  # their weights are 0 if no step was finite
    return {name: float(terms[name][0]) / max(float(terms[name][1]), 1.0) for name in names}


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Appends SIGINT and SIGTERM to the yielded list; a second signal acts as usual.

    Several processes must stop after the same step. JAX synchronises them on SIGTERM, see
    `multihost_utils.reached_preemption_sync_point`; so SIGINT becomes SIGTERM.
    """
    caught: list[int] = []
    numbers = (signal.SIGINT,) if jax.distributed.is_initialized() else (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}

    def restore_handlers() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        restore_handlers()
        if jax.distributed.is_initialized():
            signal.raise_signal(signal.SIGTERM)
        else:
            caught.append(number)
        # print() is unsafe in a signal handler.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nfinishing this step ...\n")

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        restore_handlers()
