"""How many images a second the host prepares: decode, random resized crop to 224, and the whole pipeline.

    python -m benchmarks.input_pipeline [--write NAME]

The images are JPEGs of 500 x 375 pixels made of scikit-learn's photographs, in two qualities: the higher one has about
as many bytes as ImageNet's files. Where TensorFlow is installed, its fused decode-and-crop runs beside, on one thread.
With `--write`, the table goes to `benchmarks/results/input-pipeline-NAME.md`. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import re
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.datasets import load_sample_images

from benchmarks.timing import host, run_interleaved
from train.data import Source, train_batches
from train.data.augment.crops import RandomResizedCrop
from train.data.opencv import cv2
from train.settings import Config

SIDE, IMAGES, ROUNDS = 224, 128, 7
QUALITIES = (90, 97)
TARGET = 1000  # images a second and core
RESULTS = pathlib.Path(__file__).parent / "results"


def make_files(quality: int) -> list[bytes]:
    """JPEG files of 500 x 375 pixels, from each photograph in turn."""
    files = []
    for photograph in load_sample_images().images:
        image = cv2.resize(cv2.cvtColor(photograph, cv2.COLOR_RGB2BGR), (500, 375), interpolation=cv2.INTER_AREA)
        files.append(cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes())
    return [files[n % len(files)] for n in range(IMAGES)]


def crop_runner(files: Sequence[bytes]) -> Callable[[int], object]:
    """Our transform alone, in this thread."""
    crop, rng = RandomResizedCrop((SIDE, SIDE, 3)), np.random.default_rng(0)
    return lambda times: [crop(data, rng) for _ in range(times) for data in files]


def pipeline_runner(files: Sequence[bytes], threads: int) -> Callable[[int], object]:
    """The training pipeline, to normalised float32 batches."""
    records = [{"image": data, "label": 0} for data in files]
    source = Source({"train": records}, ("a",), (SIDE, SIDE, 3), False, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    augment = {"random_resized_crop": {}, "flip": {}}
    config = Config("", "", 1, IMAGES // 4, 0.1, augment=augment, data_threads=threads)
    return lambda times: [batch["label"] for batch in train_batches(source, config, 0, 4 * times)]


def tensorflow_runner(files: Sequence[bytes]) -> Callable[[int], object]:
    """tf.data with decode_and_crop_jpeg and a bilinear resize, one at a time."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def prepare(data: object) -> object:
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        return tf.image.resize([image], (SIDE, SIDE))[0]

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    dataset = tf.data.Dataset.from_tensor_slices(list(files)).map(prepare).with_options(options)
    return lambda times: [None for _ in range(times) for _ in dataset]


def table() -> str:
    """Measures everything; Markdown."""
    lines = ["| JPEG quality (mean KB) | path | images/s | quartiles |", "|---|---|---:|---:|"]
    for quality in QUALITIES:
        files = make_files(quality)
        runs = {"random resized crop, 1 thread": crop_runner(files)}
        runs |= {f"whole pipeline, {threads} threads": pipeline_runner(files, threads) for threads in (1, 2)}
        if importlib.util.find_spec("tensorflow") is not None:
            runs["tf.data, fused decode and crop, 1 thread"] = tensorflow_runner(files)
        kilobytes = statistics.mean(map(len, files)) / 1e3
        for name, times in run_interleaved(runs, ROUNDS).items():
            speeds = np.quantile([IMAGES / ms * 1e3 for ms in times], (0.25, 0.5, 0.75))
            lines.append(
                f"| {quality} ({kilobytes:.0f}) | {name} | {speeds[1]:,.0f} | {speeds[0]:,.0f} to {speeds[2]:,.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser("python -m benchmarks.input_pipeline", description=__doc__)
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/input-pipeline-NAME.md")
    options = parser.parse_args()
    if options.write is not None and not re.fullmatch(r"\w[\w-]*", options.write):
        parser.error(f"--write {options.write!r}: a name for this machine, of letters, digits and dashes")
    text = f"# The input pipeline\n\n{host()}; the aim is {TARGET:,} images a second and core.\n\n{table()}\n"
    if options.write is None:
        print(text)
        return
    path = RESULTS / f"input-pipeline-{options.write}.md"
    path.write_text(text)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
