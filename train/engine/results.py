"""The results of a finished run: result.json, test_answers.npz, samples and the report."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from train.config import Split, flatten, write_bytes, write_text
from train.engine.log import SPEEDS, read_metrics
from train.engine.trained import Trained
from train.errors import UserError, warn_on_failure
from train.page import Page, encode_png, enlarged, page_html
from train.task import Evaluator, Result, Task
from train.untrusted import file_name, finite, load_json, quoted

_ARRAYS = "test_answers.npz"


def make_result(evaluator: Evaluator, step: int) -> Result:
    """Returns the content of result.json: the results on the test split, and the "step" of the checkpoint."""
    return {**{f"test_{name}": value for name, value in evaluator.result().items()}, "step": step}


def result_line(result: Result, kind: type[Task] | Task, split: Split = "test") -> str:
    """Formats a result of `make_result` as the last line of training and evaluation."""
    values = {name.removeprefix("test_"): value for name, value in result.items() if name != "step"}
    return f"{split} {kind.line(values)} (step {result['step']:.0f}, best of validation)"


def read_result(workdir: Path, kind: type[Task] | None = None) -> Result | None:
    """Reads ``result.json``, which marks a finished run; None if it does not exist.

    Raises a `UserError` if it is damaged, or lacks numbers that `result_line` needs for `kind`.
    """
    path = workdir / "result.json"
    if not path.exists():
        return None
    try:
        result = {str(name): finite(value) for name, value in load_json(path.read_bytes()).items()}
        result["step"]  # a KeyError if it is missing
        if kind:
            result_line(result, kind)
        return result
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged; remove it to compute the result again") from error


def missing_report(workdir: Path) -> str:
    """Advises what to do if a finished run has no report, which is written after the result; "" if it has one."""
    report = workdir / "report.html"
    if report.exists():
        return ""
    return (
        f"{report} is missing; remove {workdir / 'result.json'}, and the same command evaluates again and writes both"
    )


def write_results(workdir: Path, trained: Trained, evaluator: Evaluator, result: Result) -> dict[str, Path]:
    """Writes all files of a finished run, the numbers before the report; returns the sample files by name.

    ``result.json`` marks the run as finished. Pictures that cannot be drawn are skipped with a note on stderr.
    """
    (workdir / "report.html").unlink(missing_ok=True)  # of a shorter run
    write_arrays(workdir, evaluator.arrays())
    samples: Mapping[str, np.ndarray] = {}
    with warn_on_failure("the folder of samples"):
        samples = trained.task.samples()
    files = write_samples(samples, workdir / "samples")
    write_text(workdir / "result.json", json.dumps(result) + "\n")
    write_report(workdir, trained, evaluator, result)
    return files


def write_report(workdir: Path, trained: Trained, evaluator: Evaluator, result: Result) -> None:
    """Writes ``report.html``; a failure is a note on stderr."""
    config, source = trained.config, trained.source
    curves = workdir / "curves.png"
    html = ""
    with warn_on_failure("report.html"):
        page = Page(
            title=f"{config.model.name} on {config.data.source}",
            result=result_line(result, trained.task),
            curves=curves.read_bytes() if curves.exists() else None,
            sections=list(evaluator.sections()),
            speeds=read_metrics(workdir / "speeds.jsonl", int(result["step"]), SPEEDS).records,
            notes="\n".join(filter(None, [source.note, source.report])),
            config=flatten(config.model_dump()),
        )
        html = page_html(page)
    if html:
        write_text(workdir / "report.html", html)


def write_arrays(workdir: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the evaluator's arrays of the test samples, in the order of the split: ``test_answers.npz``."""
    buffer, named = io.BytesIO(), dict[str, Any](arrays)
    np.savez_compressed(buffer, **named)
    write_bytes(workdir / _ARRAYS, buffer.getvalue())


def read_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Reads the file of `write_arrays`; raises a `UserError` if it is missing or damaged."""
    path = workdir / _ARRAYS
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}); remove {workdir / 'result.json'} and give the command of the run "
            "again to evaluate it"
        ) from error


def write_samples(samples: Mapping[str, np.ndarray], folder: Path) -> dict[str, Path]:
    """Writes images, (height, width, channels) uint8 by name, as PNG files; returns the files by name.

    Every pixel becomes a square, so resizing the file to the network's input restores the image.
    """
    folder.mkdir(exist_ok=True)
    paths: dict[str, Path] = {}
    used: set[str] = set()
    for name, image in samples.items():
        png = b""
        with warn_on_failure(f"the sample {quoted(name)}"):
            png = encode_png(enlarged(image, 128))
        if png:
            paths[name] = folder / f"{file_name(name, used)}.png"
            paths[name].write_bytes(png)
    return paths
