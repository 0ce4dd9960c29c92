"""What a finished run leaves besides its curves and checkpoints: result.json, test_answers.npz, samples, the report."""

import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from train.config import Split, flatten, write_text
from train.engine.log import read_metrics
from train.engine.trained import Trained
from train.errors import UserError
from train.page import Page, encode_png, enlarged, write_page
from train.task import Evaluator, Result, Task

_ARRAYS = "test_answers.npz"


def result_of(evaluator: Evaluator, step: int) -> Result:
    """Gives the content of result.json: the results on the test split, and the "step" of the checkpoint."""
    return {**{f"test_{name}": value for name, value in evaluator.result().items()}, "step": step}


def result_line(result: Result, kind: type[Task] | Task, split: Split = "test") -> str:
    """Writes a result, of `result_of`, as the line that training and evaluation print last."""
    values = {name.removeprefix("test_"): value for name, value in result.items() if name != "step"}
    return f"{split} {kind.line(values)} (step {result['step']:.0f}, best of validation)"


def read_result(workdir: Path, kind: type[Task] | None = None) -> Result | None:
    """Reads ``result.json``, the mark of a finished run; None if it is not there.

    Raises a `UserError` if it is damaged, or lacks numbers that `result_line` writes for `kind`, if that is given.
    """
    path = workdir / "result.json"
    if not path.exists():
        return None
    try:
        result = {name: float(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
        result["step"]  # it has one, or it is damaged
        if kind:
            result_line(result, kind)
        return result
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged; remove it, and the result is computed anew") from error


def write_results(workdir: Path, trained: Trained, evaluator: Evaluator, result: Result) -> dict[str, Path]:
    """Writes all files of a finished run, ``result.json`` last; gives the sample files by name."""
    samples = write_samples(trained.task.samples(), workdir / "samples")
    config, source = trained.config, trained.source
    curves = workdir / "curves.png"
    page = Page(
        title=f"{config.model.name} on {config.data.source}",
        result=result_line(result, trained.task),
        curves=curves.read_bytes() if curves.exists() else None,
        sections=list(evaluator.sections()),
        speeds=read_metrics(workdir / "speeds.jsonl", int(result["step"])),
        notes="\n".join(filter(None, [source.note, source.report])),
        config=flatten(config.model_dump()),
    )
    write_page(workdir / "report.html", page)
    write_arrays(workdir, evaluator.arrays())
    write_text(workdir / "result.json", json.dumps(result) + "\n")
    return samples


def write_arrays(workdir: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes what the evaluator kept of every test sample, in the order of the split: ``test_answers.npz``."""
    temporary, named = workdir / f".{_ARRAYS}.tmp", dict[str, Any](arrays)
    with temporary.open("wb") as file:
        np.savez_compressed(file, **named)
    os.replace(temporary, workdir / _ARRAYS)


def read_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` wrote; raises a `UserError` if the file is missing or damaged."""
    path = workdir / _ARRAYS
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}); remove {workdir / 'result.json'} and give the command of the run "
            "again, which evaluates anew"
        ) from error


def write_samples(samples: Mapping[str, np.ndarray], folder: Path) -> dict[str, Path]:
    """Writes images, (height, width, channels) uint8 by name, as PNG files; gives the files by name.

    Every pixel becomes a square, so that resizing the file to the network's input gives it back.
    """
    folder.mkdir(exist_ok=True)
    paths = {name: folder / (re.sub(r"[^\w-]+", "_", name) + ".png") for name in samples}
    for name, path in paths.items():
        path.write_bytes(encode_png(enlarged(samples[name], 128)))
    return paths
