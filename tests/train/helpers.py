"""A run small enough for a test, and ways to start one."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from msconv_jax.models.registry import ModelEntry, register_model
from train.checkpoint import intact_checkpoints, restore
from train.data import Source, load_source
from train.mesh import create_mesh, replicate
from train.network import split_shapes
from train.optim import create_optimiser
from train.settings import Config
from train.step import create_state

ROOT = Path(__file__).parents[2]
TINY_CONFIG = Path(__file__).with_name("tiny_config.py")


class TinyNet(nnx.Module):
    """The least that has convolution, batch statistics and random numbers; compiles at once."""

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


def register_tiny() -> None:
    """Makes the tiny model known in a process of its own; within the tests a fixture does."""
    register_model(TINY_ENTRY)


# 1163 images in batches of 240: 5 steps an epoch, 10 in all. The batch divides by 4 devices, the
# validation split (270) and the test split (364) do not divide by the batch.
TINY: dict[str, Any] = {
    "seed": 0,
    "source": "digits",
    "model": "tiny_for_tests",
    "model_kwargs": {"width": 8},
    "conv": "",
    "conv_kwargs": {},
    "convs": {},
    "augment": {"warp": {"shift": 1.0, "rotation": 10.0, "scale": 0.1}},
    "epochs": 2,
    "batch_size": 240,
    "learning_rate": 0.1,
    "warmup_epochs": 0.5,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    "checkpoint_every": 2,
    "data_threads": 2,
}


def tiny(**changes: Any) -> Config:
    return Config(**{**TINY, **changes})


def normalised(images: np.ndarray, source: Source) -> np.ndarray:
    """The network's input by its definition: images scaled to 0..1, less the mean, over the standard deviation."""
    return ((np.asarray(images, np.float64) / 255 - source.mean) / source.std).astype(np.float32)


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the repository, with warnings of our own code as errors."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=300,
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
    workdir: Path, count: int, devices: int, *arguments: str, before: str = ""
) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts processes that train the tiny network together; none outlives the block.

    Args:
        workdir: the folder of the run.
        count: the number of processes.
        devices: CPU devices of each.
        arguments: further flags.
        before: a program that each runs before it trains.
    """
    coordinator = f"127.0.0.1:{free_port()}"
    started = []
    try:
        for number in range(count):
            place = [f"--coordinator={coordinator}", f"--num_processes={count}", f"--process_id={number}"]
            program = TRAIN_TINY.format(before=before)
            flags = [f"--config={TINY_CONFIG}", f"--workdir={workdir}", *(place if count > 1 else []), *arguments]
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


def endings(started: list[subprocess.Popen[str]], seconds: float = 120) -> list[tuple[int, str]]:
    """Waits for processes; gives the exit status and the output of each."""
    outputs = [process.communicate(timeout=seconds)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def stored_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of the latest checkpoint of a tiny run."""
    source, optimiser = load_source(tiny()), create_optimiser(tiny(), steps_per_epoch=5)[0]
    _, params, rest = split_shapes(tiny(), source)
    template = jax.eval_shape(lambda p, r: create_state(p, r, optimiser), params, rest)
    intact, _ = intact_checkpoints(workdir / "checkpoints")
    state = restore(intact[-1], template, replicate(create_mesh()))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


def assert_same_arrays(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    assert len(left) > 15
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
