"""A small run for tests, and functions that start it."""

import contextlib
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

from msconv_jax.models.registry import ModelEntry, register_model
from train.config import Config, merge_changes, validate_config
from train.data import Source, load_source, train_batches
from train.engine.checkpoint import intact_checkpoints, restore
from train.engine.mesh import create_mesh, replicate, shard_arrays, shard_batch, state_shardings
from train.engine.network import SplitModel, split_model, split_shapes
from train.engine.optim import create_optimiser
from train.engine.step import TrainState, create_state, create_train_step
from train.errors import run_program
from train.task import Batch, Task
from train.tasks import Classification

ROOT = Path(__file__).parents[2]
TINY_CONFIG = Path(__file__).with_name("tiny_config.py")


class TinyNet(nnx.Module):
    """A minimal network with convolution, batch statistics and dropout; compiles fast."""

    def __init__(self, *, num_classes: int, in_channels: int, width: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(in_channels, width, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(16 * width, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        maps = nnx.relu(self.norm(self.conv(images)))
        return self.head(self.drop(maps.reshape(len(maps), -1)))


TINY_ENTRY = ModelEntry(
    name="tiny_for_tests",
    builder=TinyNet,
    config={},
    num_classes=10,
    input_size=(8, 8, 1),
    paper="none",
)


class TinySegmenter(nnx.Module):
    """A minimal segmentation network with batch statistics, dropout and, in training mode, auxiliary logits."""

    def __init__(self, *, num_classes: int, in_channels: int, width: int = 4, rngs: nnx.Rngs):
        self.conv = nnx.Conv(in_channels, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Conv(width, num_classes, (3, 3), rngs=rngs)
        self.auxiliary = nnx.Conv(width, num_classes, (1, 1), rngs=rngs)
        self.deterministic = False

    def __call__(self, images: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        maps = nnx.relu(self.norm(self.conv(images)))
        logits = self.head(self.drop(maps))
        return logits if self.deterministic else (logits, self.auxiliary(maps))


TINY_SEGMENTER = ModelEntry(
    name="tiny_segmenter_for_tests",
    builder=TinySegmenter,
    config={},
    num_classes=3,
    input_size=(12, 16, 3),
    paper="none",
    task="segmentation",
)


def register_tiny() -> None:
    """Registers the tiny models in a new process; in the test process a fixture registers them."""
    register_model(TINY_ENTRY)
    register_model(TINY_SEGMENTER)


# 1163 images in batches of 240: 5 steps an epoch, 10 in all. 4 devices divide the batch; the batch does not divide the
# validation split (270) or the test split (364).
TINY: dict[str, Any] = {
    "data": {
        "source": "digits",
        "augment": {"warp": {"shift": 1.0, "rotation": 10.0, "scale": 0.1}},
        "threads": 2,
    },
    "model": {"name": "tiny_for_tests", "kwargs": {"width": 8}, "conv": "", "conv_kwargs": {}, "convs": {}},
    "optimizer": {
        "learning_rate": 0.1,
        "warmup_epochs": 0.5,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
    },
    "task": {"label_smoothing": 0.1},
    "seed": 0,
    "epochs": 2,
    "batch_size": 240,
    "checkpoint_every": 2,
}


def tiny_values(changes: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """The values of `tiny`, nested and unchecked, as a config file contains them."""
    return merge_changes(TINY, {**(changes or {}), **more}, Config)


def tiny(changes: Mapping[str, Any] | None = None, **more: Any) -> Config:
    """The config of a run of a few seconds, with changes.

    `changes` have dotted names, `tiny({"optimizer.learning_rate": 0.5})`, or are nested,
    `tiny({"optimizer": {"learning_rate": 0.5}})`. Top-level settings and sections may be keyword arguments,
    `tiny(epochs=3)`, `tiny(optimizer={"learning_rate": 0.5})`. A dictionary updates a section, but replaces the value
    of a setting: `tiny({"model.kwargs": {}})` has no width. `tiny(task={"name": "segmentation"})` drops the settings
    of classification.
    """
    return validate_config(tiny_values(changes, **more))


def normalised(images: np.ndarray, source: Source) -> np.ndarray:
    """The network's input by definition: images scaled to 0..1, minus the mean, over the standard deviation."""
    return ((np.asarray(images, np.float64) / 255 - source.mean) / source.std).astype(np.float32)


class Start(NamedTuple):
    """A run before its first step; `batches` are on the devices, for the first steps."""

    state: TrainState
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
    batches: list[Batch]
    model: SplitModel
    task: Task


def start(config: Config, kind: type[Task] = Classification, steps: int = 2) -> Start:
    """Prepares the first steps of a run on the devices of this process; an epoch has 5 steps."""
    source, mesh = load_source(config, kind.needs), create_mesh(config.compute.shards)
    task = kind(config, source)
    model, params, other_state = split_model(task.create(), config.model.frozen)
    optimiser, _ = create_optimiser(config, steps_per_epoch=5)
    create = functools.partial(
        create_state, optimiser=optimiser, terms=task.terms, ema_decay=config.optimizer.ema_decay
    )
    shardings = state_shardings(jax.eval_shape(create, params, other_state), mesh)
    state = jax.jit(create, out_shardings=shardings)(*shard_arrays((params, other_state), mesh))
    rows = train_batches(source, config, task.transform(training=True), 0, steps)
    train_step = create_train_step(model, task, optimiser, config, mesh, shardings)
    return Start(state, train_step, [shard_batch(batch, mesh) for batch in rows], model, task)


def run_python(*arguments: str, limit: int = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the repository, for at most `limit` seconds."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )


TRAIN_TINY = """
import runpy, sys
from tests.train.helpers import register_tiny
register_tiny()
{before}
sys.argv[0] = "train"
runpy.run_module("train", run_name="__main__")
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def processes(
    workdir: Path, count: int, devices: int, *arguments: str, before: str = "", config: Path = TINY_CONFIG
) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts processes that train a network together, and ends them with the block.

    Args:
        workdir: the folder of the run.
        count: the number of processes.
        devices: CPU devices per process.
        arguments: further flags.
        before: Python code that each process runs before training.
        config: the config file.
    """
    coordinator = f"127.0.0.1:{free_port()}"
    started = []
    try:
        for number in range(count):
            place = [f"--coordinator={coordinator}", f"--num_processes={count}", f"--process_id={number}"]
            program = TRAIN_TINY.format(before=before)
            flags = [f"--config={config}", f"--workdir={workdir}", *(place if count > 1 else []), *arguments]
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", program, *flags],
                    cwd=ROOT,
                    env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdout.close()


def endings(started: list[subprocess.Popen[str]], seconds: float = 240) -> list[tuple[int, str]]:
    """Waits for processes; returns the exit status and the output of each."""
    outputs = [process.communicate(timeout=seconds)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def stored_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of the latest checkpoint of a tiny run."""
    task = Classification(tiny(), load_source(tiny()))
    optimiser, _ = create_optimiser(tiny(), steps_per_epoch=5)
    _, params, other_state = split_shapes(task.create)
    template = jax.eval_shape(lambda p, r: create_state(p, r, optimiser, task.terms), params, other_state)
    intact, _ = intact_checkpoints(workdir / "checkpoints")
    state = restore(intact[-1], template, replicate(create_mesh()))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


def assert_same_arrays(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    assert len(left) > 15
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def assert_same_runs(workdir: Path, finished_run: Path) -> None:
    """Compares the arrays and results of two runs, bit by bit."""
    assert_same_arrays(stored_arrays(workdir), stored_arrays(finished_run))
    for name in ("metrics.jsonl", "result.json"):
        assert (workdir / name).read_text() == (finished_run / name).read_text()


def fail(main: Callable[[list[str]], int], monkeypatch: Any, capsys: Any, *arguments: str) -> tuple[str, str]:
    """Runs a program that must exit with one sentence; returns its output and the sentence."""
    monkeypatch.setattr("sys.argv", ["program", *map(str, arguments)])
    with pytest.raises(SystemExit) as ending:
        run_program(main)
    output, errors = capsys.readouterr()
    assert ending.value.code == 1
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return output, errors
