"""What a finished run leaves besides its curves and checkpoints: result.json, samples and the page report.html."""

import dataclasses
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np

from train.data import Source
from train.data.images import as_pixels
from train.data.opencv import cv2
from train.errors import UserError
from train.evaluate import Answers, Trained, result_line
from train.metrics import read_metrics
from train.report import Mistake, RunReport, confusion_matrix
from train.settings import flatten

_ANSWERS = "test_answers.npz"
_MISTAKES = 24  # shown on the page


def read_result(workdir: Path) -> dict[str, float] | None:
    """Reads ``result.json``, the mark of a finished run; None if it is not there.

    Raises:
        UserError: if it is damaged.
    """
    path = workdir / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        names = ["test_accuracy", "test_loss", "step", *({"test_top5_accuracy"} & result.keys())]
        return {name: float(result[name]) for name in names}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged; remove it, and the result is computed anew") from error


def write_answers(workdir: Path, answers: Answers) -> None:
    """Writes what a network answered to each image of the test split, in its order: ``test_answers.npz``."""
    temporary = workdir / f".{_ANSWERS}.tmp"
    with temporary.open("wb") as file:
        np.savez_compressed(file, **answers._asdict())
    os.replace(temporary, workdir / _ANSWERS)


def read_answers(workdir: Path) -> Answers:
    """Reads what a finished run's network answered to the images of the test split.

    Raises:
        UserError: if the file is missing or damaged.
    """
    path = workdir / _ANSWERS
    try:
        with np.load(path, allow_pickle=False) as file:
            return Answers(**{name: file[name] for name in Answers._fields})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}); remove {workdir / 'result.json'} and give the command of the run "
            "again, which evaluates anew"
        ) from error


def report_of(workdir: Path, trained: Trained, answers: Answers, result: dict[str, float]) -> RunReport:
    """Gathers what the page of a finished run shows."""
    config, source = trained.config, trained.source
    curves = workdir / "curves.png"
    wrong = np.flatnonzero(answers.predicted != answers.labels)
    worst = wrong[np.argsort(-answers.losses[wrong], kind="stable")][:_MISTAKES]
    mistakes = []
    for place in map(int, worst):
        image = as_pixels(source.splits["test"][place]["image"], source.image_shape[-1])
        label, predicted = int(answers.labels[place]), int(answers.predicted[place])
        mistakes.append(Mistake(image, label, predicted, float(answers.losses[place])))
    return RunReport(
        title=f"{config.model} on {config.source}",
        result=result_line(result),
        config=flatten(dataclasses.asdict(config)),
        curves=curves.read_bytes() if curves.exists() else None,
        classes=source.classes,
        confusion=confusion_matrix(answers.labels, answers.predicted, len(source.classes)),
        mistakes=mistakes,
        speeds=read_metrics(workdir / "speeds.jsonl", int(result["step"])),
        notes="\n".join(filter(None, [source.note, source.report])),
    )


def sample_name(source: Source, label: int) -> str:
    """Gives the name of a class as part of a file name."""
    return re.sub(r"[^\w-]+", "_", source.classes[label])


def write_samples(source: Source, folder: Path) -> dict[int, Path]:
    """Writes an image a class from the validation split as PNG files, enlarged to be seen.

    Every pixel becomes a square, so that resizing the file to the model's input gives it back.

    Returns:
        The file of every class of which there is an image.
    """
    folder.mkdir(exist_ok=True)
    written: dict[int, Path] = {}
    for record in source.splits["validation"]:
        label = record["label"]
        if label not in written:
            image = as_pixels(record["image"], source.image_shape[-1])
            factor = -(-128 // min(image.shape[:2]))
            large = np.kron(image, np.ones((factor, factor, 1), np.uint8))
            # OpenCV's colours are blue, green, red.
            _, png = cv2.imencode(".png", large[..., ::-1])
            written[label] = folder / f"{sample_name(source, label)}.png"
            written[label].write_bytes(png.tobytes())
        if len(written) == len(source.classes):
            break
    return written
