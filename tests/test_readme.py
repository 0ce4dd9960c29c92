"""What the README shows runs, and names what is there."""

import builtins
import doctest
import os
import pathlib
import re
import subprocess
import sys

import pytest

import msconv_jax
from benchmarks.__main__ import with_summary
from msconv_jax.lowering.choose import LOWERINGS

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_python_examples_run_one_after_the_other(tmp_path):
    program = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    program += "\nassert y.shape == (1, 8, 8, 8)\nassert logits.shape == (1, 10)\nassert 'ps_resnet50' in names\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.stablehlo").stat().st_size > 300_000


def test_every_shown_result_comes_out():
    """The interactive examples, one after the other in one session."""
    text = "\n".join(re.findall(r"```pycon\n(.*?)```", README, re.DOTALL))
    examples = doctest.DocTestParser().get_doctest(text, {}, "README.md", "README.md", 0)
    assert {name for name in msconv_jax.__all__ if f"ms.{name}(" in text} >= {
        *(operator.__name__ for operator in msconv_jax.operators.DROP_IN),
        *("ACGraph", "OctConv", "PACConv", "PACConvTranspose", "PACPool"),
    }
    assert doctest.DocTestRunner().run(examples).failed == 0


def test_commands_name_targets_and_files_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"configs/\w+\.py", README) + re.findall(r"\]\(([\w/.-]+)\)", README):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:train|tests|benchmarks)[\w.]*)", README):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_every_operator_is_named():
    for name in msconv_jax.operators.DROP_IN:
        assert f"`{name.__name__}`" in README


def test_every_lowering_is_named():
    for name in LOWERINGS:
        assert f'`"{name}"`' in README or name == "auto"


def test_the_public_names_of_the_changelog_exist():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for name in re.findall(r"`([A-Z]\w+)`", changelog):
        assert any(
            hasattr(place, name) for place in (msconv_jax, msconv_jax.models, msconv_jax.segmentation, builtins)
        ), name


def test_the_quoted_memory_is_that_of_the_kept_table():
    table = (ROOT / "benchmarks" / "results" / "x86-2-cores-pac-memory.md").read_text()
    mebibytes = re.findall(r"\| (?:unfolded|pac_convolve) \| (\d+) \|", table)
    unfolded, ours, unfolded_both, ours_both = mebibytes
    text = " ".join(README.split())
    assert f"{ours} MiB besides its inputs and output, and {ours_both} MiB with gradients" in text
    assert f"where unfolding needs {unfolded} and {unfolded_both} " in text


def test_the_quoted_receptive_fields_are_those_of_the_kept_table():
    table = (ROOT / "benchmarks" / "results" / "receptive-fields.md").read_text()
    sides = dict(re.findall(r"^\| (\w+) \| layer2 \| [^|]+ \| ([\d.]+)", table, re.MULTILINE))
    plain, ps, pyconv = (round(float(sides[name])) for name in ("resnet50", "ps_resnet50", "pyconv_resnet50"))
    text = " ".join(README.split())
    assert f"squares of {plain} pixels in `resnet50`, {ps} in `ps_resnet50` and {pyconv} in `pyconv_resnet50`" in text


def test_the_summary_of_times_is_that_of_the_kept_tables():
    results = (ROOT / "benchmarks" / "results" / "x86-2-cores.md").read_text()
    assert with_summary(README, results) == README
