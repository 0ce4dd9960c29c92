"""Predicts for image files with the best checkpoint of a run.

    python -m train.predict --workdir=runs/digits [--top=3] [--out=FOLDER] IMAGE ...

prints a line for each image; the training data are not needed. For a classification network the line names the most
probable classes and their probabilities. For a segmentation network it names the classes that cover most of the image,
and a picture with the classes in colours is written into --out, by default the folder "predictions" of the run.

An image is converted to grey or colour for the network, and cropped as in the evaluation. If all images of the data set
have one size, the image is first resized to it, whatever its proportions. So it should look like the training images:
for the digits, one white digit that fills a black square. The exit status is 1 if an image cannot be read; the other
images are predicted.
"""

import functools
import sys
from pathlib import Path

import numpy as np
from absl import flags

from train.config import read_config
from train.errors import UserError, define_path, expand_user, parse_flags, required, run_program
from train.untrusted import escaped, file_name

_MAX_BYTES = 2**26


def read_image(path: Path, channels: int) -> np.ndarray:
    """Reads an image file as (height, width, channels) uint8, 1 channel for grey and 3 for colour.

    Raises a `UserError` if there is no such file, or it is empty, too large or not an image.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file")
    if not path.is_file():
        raise UserError(f"{path}: not a file; name image files")
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise UserError(f"{path}: the file has {size:,} bytes, at most {_MAX_BYTES:,} are read")
    from train.data.images import ImageError, decode

    try:
        return decode(path.read_bytes(), channels, strict=True)
    except ImageError as error:
        raise UserError(f"{path}: {error}") from error


def picture_name(path: Path, used: set[str]) -> str:
    """Names the picture of an image as `file_name` does, other than the names `used` before."""
    return f"{file_name(path.stem, used)}.png"


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    values = flags.FlagValues()
    define_path(values, "workdir", "folder of the run")
    flags.DEFINE_integer(
        "top", None, "how many classes to name (default 3, or all if fewer)", lower_bound=1, flag_values=values
    )
    define_path(values, "out", "folder for pictures (default: predictions in the workdir)")
    paths = [Path(expand_user(argument)) for argument in parse_flags(values, argv, __doc__)]
    workdir = Path(required(values, "workdir", "runs/digits"))
    if not paths:
        raise UserError("no image is named; give the files after the flags")
    config = read_config(workdir)
    if values["out"].present and config.task.name == "classification":
        raise UserError(
            "--out is for the pictures of a segmentation; this run classifies, and only prints; leave it out"
        )
    # Slow imports come after the checks of the command line.
    from train.engine.trained import load_best
    from train.page import encode_png
    from train.tasks import task_kind

    trained = load_best(workdir, task_kind)
    task, top = trained.task, values["top"].value
    if top is not None and not 1 <= top <= len(task.names):
        raise UserError(f"--top is {top} but must be from 1 to the {len(task.names)} classes")
    out = Path(values["out"].value or workdir / "predictions")
    predict = functools.partial(trained.scorer().predict, trained.params, trained.other_state)

    status, used = 0, set()
    for path in paths:
        try:
            image = read_image(path, trained.source.image_shape[-1])
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
            continue
        line, picture = task.show(image, task.predict_image(predict, image), top)
        print(f"{escaped(str(path))}: {line}")
        if picture is not None:
            out.mkdir(parents=True, exist_ok=True)
            target = out / picture_name(path, used)
            target.write_bytes(encode_png(picture))
            print(f"  {escaped(str(target))}")
    return status


if __name__ == "__main__":
    run_program(main)
