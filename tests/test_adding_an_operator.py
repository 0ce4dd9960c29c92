"""The documented operator needs changes in three files, and passes the common tests."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.commands import ROOT

DOCUMENT = ROOT / "docs" / "adding_an_operator.md"


def apply(diff, text):
    """Applies a diff: a line with " " or "-" occurs once in the text; "-" removes it; "+" adds a line after it."""
    lines = text.splitlines()
    place = 0
    for change in diff.splitlines():
        kind, line = change[0], change[1:]
        if kind == "+":
            lines.insert(place, line)
            place += 1
        else:
            assert lines.count(line) == 1, line
            place = lines.index(line) + 1
            if kind == "-":
                place -= 1
                del lines[place]
    return "\n".join(lines) + "\n"


@pytest.mark.slow
def test_the_documented_operator_needs_three_files(tmp_path):
    blocks = re.findall(r'^```(python|diff) title="(.*?)"\n(.*?)^```', DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    assert [path for _, path, _ in blocks] == [
        "msconv_jax/operators/bandconv.py",
        "tests/operators/test_bandconv.py",
        "msconv_jax/operators/__init__.py",
    ]
    for folder in ("msconv_jax", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for kind, path, text in blocks:
        target = tmp_path / path
        target.write_text(text if kind == "python" else apply(text, target.read_text()))
    files = ["tests/operators/test_bandconv.py", "tests/operators/test_contract.py", "tests/test_linen.py"]
    chosen = "BandConv or has_its_row or is_there"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *files,
            "-q",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow",
            "-k",
            chosen,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) > 30, done.stdout
