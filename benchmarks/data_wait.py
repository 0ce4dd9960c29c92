"""Measures the share of time that training of ResNet-50 at 224 x 224 waits for the next batch.

    python -m benchmarks.data_wait [--batch 16] [--steps 6] [--threads 2]

The steps are those of `train.engine.loop`, on JPEGs of ImageNet's size with random resized crop and flip; each step
runs to its end. The first two steps, in which XLA compiles and the pipeline fills, do not count. Run nothing else on
the machine meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax

from benchmarks.input_pipeline import SIDE, make_files
from benchmarks.timing import machine
from train.config import validate_config
from train.data import Sample, Source, train_batches
from train.engine.mesh import create_mesh, replicate, shard_batch
from train.engine.network import split_model
from train.engine.optim import create_optimiser
from train.engine.step import create_state, create_train_step
from train.tasks import Classification

UNCOUNTED = 2


def waits(
    batch_size: int, steps: int, threads: int, model: str = "resnet50", side: int = SIDE
) -> list[tuple[float, float]]:
    """Trains; returns the seconds of waiting and of computing for each counted step."""
    samples = [Sample(image=data, label=n % 10) for n, data in enumerate(make_files())]
    classes = tuple(map(str, range(10)))
    source = Source(
        {"train": samples}, classes, (side, side, 3), False, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    config = validate_config(
        {
            "data": {"source": "files", "augment": {"random_resized_crop": {}, "flip": {}}, "threads": threads},
            "model": {"name": model},
            "optimizer": {"learning_rate": 0.1},
            "epochs": 1,
            "batch_size": batch_size,
        }
    )
    task = Classification(config, source)
    split, params, other_state = split_model(task.create())
    optimiser, _ = create_optimiser(config, steps_per_epoch=steps)
    mesh = create_mesh()
    state = jax.device_put(create_state(params, other_state, optimiser, task.terms), replicate(mesh))
    train_step = create_train_step(split, task, optimiser, config, mesh)
    batches = iter(train_batches(source, config, task.transform(training=True), 0, steps + UNCOUNTED))
    found = []
    for _ in range(steps + UNCOUNTED):
        started = time.perf_counter()
        batch = shard_batch(next(batches), mesh)
        ready = time.perf_counter()
        state, report = train_step(state, batch)
        jax.block_until_ready((state, report))
        found.append((ready - started, time.perf_counter() - ready))
    return found[UNCOUNTED:]


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser("python -m benchmarks.data_wait", description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if min(options.batch, options.steps) < 1 or not 0 <= options.threads <= 512:
        parser.error("--batch and --steps must be at least 1, and --threads from 0 to 512")
    found = waits(options.batch, options.steps, options.threads)
    waited, computed = (sum(column) for column in zip(*found, strict=True))
    print(f"{machine()}; batches of {options.batch}, {options.threads} data threads, {options.steps} steps")
    print(
        f"a step takes {statistics.median(step for _, step in found):.2f} s, and has waited for its batch "
        f"{1e3 * statistics.median(wait for wait, _ in found):.1f} ms (median), at most "
        f"{1e3 * max(wait for wait, _ in found):.1f} ms: {waited / (waited + computed):.2%} of all time"
    )


if __name__ == "__main__":
    main()
