"""Measures the images per second that the host prepares: decode and random resized crop to 224, and the pipeline.

    python -m benchmarks.input_pipeline [--write NAME]

The images are JPEGs of 500 x 375 pixels, cropped from scikit-learn's photographs, with the mean size of ImageNet's
files (110 KB). The paths run in turn, with one thread pinned to one core or two threads on two cores. The program
prints images per second of wall time and of processor time; other programs disturb the latter less. If TensorFlow is
installed, it also times tf.data's fused decode-and-crop. `--write` writes the table to
`benchmarks/results/NAME-input.md`. Run nothing else on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from sklearn.datasets import load_sample_images

from benchmarks.timing import host
from train.config import validate_config
from train.data import Sample, Source, train_batches
from train.data.resizing import resize
from train.data.transforms.crops import RandomResizedCrop
from train.tasks import Classification

SIDE, FILES, IMAGES, BATCH, ROUNDS = 224, 64, 1024, 64, 7
QUALITY = 98  # gives ImageNet's mean file size
TARGET = 1000  # images a second and core
RESULTS = pathlib.Path(__file__).parent / "results"


class Run(NamedTuple):
    """A timed path: its number of cores, and a function that prepares IMAGES images."""

    cores: int
    prepare: Callable[[], object]


def make_files(count: int = FILES) -> list[bytes]:
    """Different JPEG files of 500 x 375 pixels: random crops of the photographs in turn, half of them mirrored."""
    photographs, rng = load_sample_images().images, np.random.default_rng(0)
    files = []
    for n in range(count):
        photograph = photographs[n % len(photographs)]
        height = int(rng.integers(375, photograph.shape[0] + 1))
        width = height * 4 // 3
        top, left = rng.integers(photograph.shape[0] - height + 1), rng.integers(photograph.shape[1] - width + 1)
        part = photograph[top : top + height, left : left + width, :][:, :: (-1) ** (n // 2)]
        image = resize(np.ascontiguousarray(part), 375, 500)
        files.append(simplejpeg.encode_jpeg(image, QUALITY, colorsubsampling="420"))
    return files


def crop_run(files: Sequence[bytes]) -> Run:
    """The transform alone, in this thread."""
    crop, rng = RandomResizedCrop((SIDE, SIDE, 3)), np.random.default_rng(0)
    samples = [Sample(image=data) for data in files]
    return Run(1, lambda: [crop(samples[n % len(files)], rng) is None for n in range(IMAGES)])


def pipeline_run(files: Sequence[bytes], threads: int) -> Run:
    """The training pipeline with random resized crop and flip; gives uint8 batches."""
    samples = [Sample(image=files[n % len(files)], label=0) for n in range(IMAGES)]
    source = Source({"train": samples}, ("a",), (SIDE, SIDE, 3), False, (0.0,) * 3, (1.0,) * 3)
    config = validate_config(
        {
            "data": {"source": "files", "augment": {"random_resized_crop": {}, "flip": {}}, "threads": threads},
            "model": {"name": "none"},
            "optimizer": {"learning_rate": 0.1},
            "epochs": 1,
            "batch_size": BATCH,
        }
    )
    transform = Classification(config, source).transform(training=True)

    def prepare() -> object:
        return [len(batch["label"]) for batch in train_batches(source, config, transform, 0, IMAGES // BATCH)]

    return Run(threads, prepare)


def tensorflow_run(files: Sequence[bytes], threads: int) -> Run:
    """tf.data with decode_and_crop_jpeg, the same random crop, a bilinear resize and batches."""
    import tensorflow as tf

    def prepare(number: object) -> object:
        data = tf.gather(encoded, number)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_ACCURATE")
        return tf.cast(tf.image.resize(image, (SIDE, SIDE)) + 0.5, tf.uint8)

    encoded = tf.constant(list(files))
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    numbers = tf.data.Dataset.range(IMAGES).map(lambda n: n % len(files))
    dataset = numbers.map(prepare, num_parallel_calls=threads).batch(BATCH).with_options(options)
    return Run(threads, lambda: [len(batch) for batch in dataset.as_numpy_iterator()])


@contextlib.contextmanager
def pinned(count: int) -> Iterator[None]:
    """Pins this thread, and the threads it starts, to the first `count` cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def speeds(runs: Mapping[str, Run], rounds: int) -> dict[str, np.ndarray]:
    """Times the runs in turn, after an uncounted round.

    Returns:
        (2, rounds) for each run: images per second of wall time, and of processor time of all threads.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            with pinned(run.cores):
                clock, processor = time.perf_counter(), time.process_time()
                run.prepare()
                found[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return {name: IMAGES / np.array(times[1:]).T for name, times in found.items()}


def table(rounds: int = ROUNDS) -> str:
    """Measures all paths; returns a Markdown table."""
    files = make_files()
    runs = {"decode and random resized crop": crop_run(files)}
    runs |= {f"whole pipeline, {threads} thread(s)": pipeline_run(files, threads) for threads in (1, 2)}
    if importlib.util.find_spec("tensorflow") is not None:
        runs |= {f"tf.data, {threads} thread(s)": tensorflow_run(files, threads) for threads in (1, 2)}
    sizes = [len(data) / 1e3 for data in files]
    lines = [
        f"{FILES} JPEGs of 500 x 375 pixels, 4:2:0, mean {statistics.mean(sizes):.0f} KB ({min(sizes):.0f} to "
        f"{max(sizes):.0f}); {rounds} rounds of {IMAGES} images; median (quartiles).",
        "",
        "| path | cores | images/s | images/s and core | images a second of processor time |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, measured in speeds(runs, rounds).items():
        cores = runs[name].cores
        cells = [
            "{1:,.0f} ({0:,.0f} to {2:,.0f})".format(*np.quantile(values, (0.25, 0.5, 0.75)))
            for values in (measured[0], measured[0] / cores, measured[1])
        ]
        lines.append(f"| {name} | {cores} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser("python -m benchmarks.input_pipeline", description=__doc__)
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME-input.md")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.write is not None and not re.fullmatch(r"\w[\w-]*", options.write):
        parser.error(f"--write {options.write!r}: a name for this machine, of letters, digits and dashes")
    aim = f"the aim is {TARGET:,} images a second and core"
    text = f"# The input pipeline\n\n{host()}; {aim}.\n\n{table(options.rounds)}\n"
    if options.write is None:
        print(text)
        return
    path = RESULTS / f"{options.write}-input.md"
    path.write_text(text)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
