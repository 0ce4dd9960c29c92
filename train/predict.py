"""Classifies image files with the best checkpoint of a run.

    python -m train.predict --workdir=runs/digits [--top=3] IMAGE ...

prints a line an image: the most probable classes and their probabilities. An image is turned into
grey or colour as the network needs it, and cropped as in the evaluation. Where all images of the
data set have one size, it is first resized to it, without regard to proportions, so it should show
what the network was trained on: for the digits, one white digit filling a black square. The exit
status is 1 if an image could not be read; the others are classified all the same.
"""

import sys
from pathlib import Path

import numpy as np
from absl import flags

from train.data import Source
from train.data.evaluation import create_evaluation
from train.data.images import ImageError, decode
from train.data.resizing import resize
from train.errors import UserError, parse_flags, required, run_program
from train.evaluate import load_best
from train.settings import Config
from train.step import create_predict_step

_MAX_BYTES = 2**26


def read_image(path: Path, config: Config, source: Source) -> np.ndarray:
    """Reads an image file as the input of the model.

    Args:
        path: a file in a format that `train.data.images.decode` reads: PNG, JPEG, WebP, GIF, ...
        config: says how images are cropped.
        source: says the size and the channels.

    Returns:
        (height, width, channels) uint8; with `config.eval_crops` 10 (10, height, width, channels).

    Raises:
        UserError: if there is no such file, or it is empty, too large or not an image.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file")
    if not path.is_file():
        raise UserError(f"{path}: not a file; name image files")
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise UserError(f"{path}: the file has {size:,} bytes, at most {_MAX_BYTES:,} are read")
    height, width, channels = source.image_shape
    try:
        image = decode(path.read_bytes(), channels, strict=True)
    except ImageError as error:
        raise UserError(f"{path}: {error}") from error
    if source.is_sized:
        image = resize(image, height, width)
    return create_evaluation(config, source)(image)


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_integer("top", None, "how many classes to print (default 3, or all if fewer)", flag_values=values)
    paths = [Path(argument) for argument in parse_flags(values, argv, __doc__)]
    workdir = Path(required(values, "workdir", "runs/digits"))
    if not paths:
        raise UserError("no image is named; give the files to classify after the flags")
    trained = load_best(workdir)
    classes = trained.source.classes
    top = min(3, len(classes)) if values["top"].value is None else values["top"].value
    if not 1 <= top <= len(classes):
        raise UserError(f"--top is {top} but must be from 1 to the {len(classes)} classes")

    predict_step = create_predict_step(trained.model)
    status = 0
    for path in paths:
        try:
            image = read_image(path, trained.config, trained.source)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
            continue
        probabilities = np.asarray(predict_step(trained.params, trained.rest, image[None]))[0]
        best = np.argsort(-probabilities, kind="stable")[:top]
        print(f"{path}: " + ", ".join(f"{classes[i]} {probabilities[i]:.1%}" for i in best))
    return status


if __name__ == "__main__":
    run_program(main)
