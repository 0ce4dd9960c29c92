"""What a finished run leaves besides its curves and checkpoints: result.json, test_answers.npz, samples, the report."""

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
from train.errors import UserError, decorating
from train.page import Page, encode_png, enlarged, page_html
from train.task import Evaluator, Result, Task
from train.untrusted import file_name, finite, load_json, quoted

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
        result = {str(name): finite(value) for name, value in load_json(path.read_bytes()).items()}
        result["step"]  # it has one, or it is damaged
        if kind:
            result_line(result, kind)
        return result
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged; remove it, and the result is computed anew") from error


def missing_report(workdir: Path) -> str:
    """Says what to do if a finished run has no report, which is written after the result; "" if it has one."""
    report = workdir / "report.html"
    if report.exists():
        return ""
    return f"{report} is missing; remove {workdir / 'result.json'}, and the same command evaluates anew and writes both"


def write_results(workdir: Path, trained: Trained, evaluator: Evaluator, result: Result) -> dict[str, Path]:
    """Writes all files of a finished run, the numbers before the report; gives the sample files by name.

    With ``result.json`` the run is finished. Pictures that cannot be drawn are left out with a note on stderr.
    """
    (workdir / "report.html").unlink(missing_ok=True)  # of a run that has become longer
    write_arrays(workdir, evaluator.arrays())
    samples: Mapping[str, np.ndarray] = {}
    with decorating("the folder of samples"):
        samples = trained.task.samples()
    files = write_samples(samples, workdir / "samples")
    write_text(workdir / "result.json", json.dumps(result) + "\n")
    write_report(workdir, trained, evaluator, result)
    return files


def write_report(workdir: Path, trained: Trained, evaluator: Evaluator, result: Result) -> None:
    """Writes ``report.html``, if it can be drawn."""
    config, source = trained.config, trained.source
    curves = workdir / "curves.png"
    html = ""
    with decorating("report.html"):
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
    """Writes what the evaluator kept of every test sample, in the order of the split: ``test_answers.npz``."""
    buffer, named = io.BytesIO(), dict[str, Any](arrays)
    np.savez_compressed(buffer, **named)
    write_bytes(workdir / _ARRAYS, buffer.getvalue())


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
    paths: dict[str, Path] = {}
    used: set[str] = set()
    for name, image in samples.items():
        png = b""
        with decorating(f"the sample {quoted(name)}"):
            png = encode_png(enlarged(image, 128))
        if png:
            paths[name] = folder / f"{file_name(name, used)}.png"
            paths[name].write_bytes(png)
    return paths
