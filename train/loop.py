"""The story of a training run, from the config to the test accuracy."""

import contextlib
import functools
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from train.checkpoint import CheckpointWriter, agreed_checkpoint, latest_of, restore, wait_until_shared
from train.config import check_accumulation, check_batch_size, check_workdir, write_config, write_text
from train.data import load_source, train_batches
from train.distributed import from_main, is_connected
from train.evaluate import evaluate_split, load_best, result_line, test_result
from train.guard import check_state, check_step
from train.mesh import create_mesh, state_shardings, to_devices, to_mesh
from train.metrics import MetricsLog, ProgressReport, Record, SpeedMeter
from train.network import create_network, split_model
from train.optim import create_optimiser
from train.profiling import StepProfiler
from train.report import write_report
from train.results import read_result, report_of, write_answers, write_samples
from train.settings import TRAINING, Config
from train.step import TrainState, create_eval_step, create_state, create_train_step, evaluated, zero_sums


def train(config: Config, workdir: Path, command: str) -> int:
    """Trains the network of a config, from the start or from where an earlier process stopped.

    Args:
        config: a checked config.
        workdir: folder of the run.
        command: the command line that goes on with the run, for messages.

    Returns:
        The exit status: 0, or 128 + the number of the signal that stopped the training.

    Raises:
        UserError: if something does not fit together; the message says what to do.
    """
    is_main = jax.process_index() == 0  # of several processes, one writes and speaks
    say = print if is_main else lambda *_: None

    # The folder must be new, or hold a run of this very config. Process 0 looks, for all.
    result = None
    if is_main:
        check_workdir(workdir, config)
        result = read_result(workdir)
    if from_main(result is not None):
        say(f"this run is finished; its files are in {workdir}")
        if result is not None:
            say(result_line(result))
        return 0

    # Data.
    source = load_source(config)
    if source.note:
        say(source.note)
    train_images = len(source.splits["train"])
    check_batch_size(config, train_images, jax.device_count())
    check_accumulation(config, jax.device_count())
    # Batches go on over the end of an epoch, so none is short; an epoch is the nearest whole
    # number of them.
    steps_per_epoch = round(train_images / config.batch_size)
    total_steps = config.epochs * steps_per_epoch

    # Model, optimiser, and the state that training changes.
    network = create_network(config, source)
    model, params, rest = split_model(network, source)
    optimiser, learning_rate = create_optimiser(config, steps_per_epoch)
    mesh = create_mesh(config.shards)
    parameter_count = sum(leaf.size for leaf in jax.tree.leaves(params))
    create = functools.partial(create_state, optimiser=optimiser, ema_decay=config.ema_decay)
    shardings = state_shardings(jax.eval_shape(create, params, rest), mesh)
    params, rest = to_mesh((params, rest), mesh)
    state = jax.jit(create, out_shardings=shardings)(params, rest)
    del network, params, rest  # the state is all that is kept on the devices

    # From here on the folder is this run's. Go on from the latest checkpoint, if there is one.
    if is_main:
        write_config(workdir, config)
        if source.report:
            write_text(workdir / "images.txt", source.report)
            say(f"{source.report.partition(chr(10))[0]}; see {workdir / 'images.txt'}")
    latest = agreed_checkpoint(workdir / "checkpoints", latest_of, repair=True)
    if not is_main:
        wait_until_shared(workdir / TRAINING.file)
        check_workdir(workdir, config)
    if latest:
        state = restore(latest, state, shardings)
        say(f"going on from the checkpoint of step {latest.step} of {total_steps}")
    first_step = int(state.step)
    say(
        f"{config.source}: {train_images} images to train on; {config.model}: {parameter_count:,} "
        f"parameters; {jax.device_count()} {jax.default_backend()} device(s)"
        f"{f' of {jax.process_count()} processes' * (jax.process_count() > 1)}; {total_steps} steps"
    )

    # Train.
    train_step = create_train_step(model, optimiser, config, mesh, len(source.classes), shardings)
    eval_step = create_eval_step(model, mesh)
    batches = train_batches(
        source,
        config,
        first_step,
        total_steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    step = first_step
    previous: Any = None
    speed = SpeedMeter()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(MetricsLog(workdir, first_step, enabled=is_main))
        writer = stack.enter_context(CheckpointWriter(workdir / "checkpoints", resume=command))
        progress = stack.enter_context(ProgressReport(total_steps, first_step, enabled=is_main))
        stopped_by = stack.enter_context(catch_signals())
        profiler = StepProfiler(workdir / "profile", total_steps - first_step, enabled=config.profile and is_main)
        stack.callback(profiler.close)
        if first_step < total_steps:
            say("compiling the first step ...")

        for batch in speed.watch(batches):
            on_devices = to_devices(batch, mesh)
            profiler.before(step - first_step + 1, state)
            state, report = train_step(state, on_devices)
            step += 1
            profiler.after(step - first_step, state)
            # Be one step ahead of the device and no more, so that a signal is answered soon.
            if previous is not None:
                check_step(step - 1, previous, config)
            previous = report
            speed.count(config.batch_size)
            if step == first_step + 1:
                jax.block_until_ready(report)
                speed.restart()  # compilation is no part of it
            if progress.is_due():
                progress.step(step, *means(state), speed.images_per_second)
            if is_connected() and writer.reached_preemption(step):
                stopped_by.append(signal.SIGTERM)

            if step % steps_per_epoch == 0:
                check_step(step, report, config)
                check_state(step, state, config)
                loss, accuracy = means(state)
                epoch = step // steps_per_epoch
                measured = {"images_per_second": speed.images_per_second, "waiting": speed.waiting}
                answers = evaluate_split(eval_step, *evaluated(state), source, "validation", config, mesh)
                record: Record = {
                    "step": step,
                    "epoch": epoch,
                    "learning_rate": float(learning_rate(step - 1)),
                    "train_loss": loss,
                    "train_accuracy": accuracy,
                    "validation_loss": answers.loss,
                    "validation_accuracy": answers.accuracy,
                }
                log.write(record)
                if step > first_step + 1:  # the first step is compiled
                    log.write_speed({"step": step, "epoch": epoch, **measured})
                progress.epoch(record, config.epochs, measured["images_per_second"])
                state = state._replace(sums=to_mesh(zero_sums(), mesh))
                writer.save(step, state, answers.accuracy)
                speed.restart()
            elif stopped_by or (config.checkpoint_every and step % config.checkpoint_every == 0):
                check_step(step, report, config)
                check_state(step, state, config)
                writer.save(step, state, accuracy=None)
            if stopped_by:
                break
        writer.wait()

    if stopped_by:
        name = signal.Signals(stopped_by[0]).name
        where = f", on each of the {jax.process_count()} processes with its own id," * (jax.process_count() > 1)
        say(f"stopped by {name} after step {step} of {total_steps}; go on with{where}\n{command}")
        return 128 + stopped_by[0]

    # The best checkpoint looks at the test split, once.
    trained = load_best(workdir)
    answers = evaluate_split(eval_step, trained.params, trained.rest, source, "test", config, mesh)
    result = test_result(trained, answers)
    samples: dict[int, Path] = {}
    if is_main:
        samples = write_samples(source, workdir / "samples")
        write_report(workdir / "report.html", report_of(workdir, trained, answers, result))
        write_answers(workdir, answers)
        write_text(workdir / "result.json", json.dumps(result) + "\n")
    say(
        f"written to {workdir}: report.html, config.json, metrics.jsonl, speeds.jsonl, curves.png, tensorboard, "
        "checkpoints, samples, test_answers.npz, result.json"
    )
    if samples:
        example = samples[max(samples)]
        say(
            "classify an image with: python -m train.predict "
            f"--workdir={shlex.quote(str(workdir))} {shlex.quote(str(example))}"
        )
    say(result_line(result))
    return 0


def means(state: TrainState) -> tuple[float, float]:
    """Gives loss and accuracy over the images of the epoch so far."""
    images = max(float(state.sums["images"]), 1.0)  # none, if the first step changed nothing
    return float(state.sums["loss"]) / images, float(state.sums["correct"]) / images


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list it gives; a second one acts as usual.

    Of several processes, all must stop after the same step, not this one alone: JAX handles SIGTERM so, see
    `CheckpointWriter.reached_preemption`, and SIGINT becomes SIGTERM.
    """
    caught: list[int] = []
    numbers = (signal.SIGINT,) if is_connected() else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore_handlers() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        restore_handlers()
        if is_connected():
            signal.raise_signal(signal.SIGTERM)
        else:
            caught.append(number)
        # print() is not safe within a signal handler.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nfinishing this step ...\n")

    for number in before:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        restore_handlers()
