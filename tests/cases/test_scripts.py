"""Scripts of ``../shared/cases``, each in a process of its own; those with old names have tests beside this one."""

import os
import re
import subprocess
import sys

import pytest

from tests.train.helpers import ROOT

CASES = ROOT.parent / "shared" / "cases"
PORTED = {re.match(r"test_(\d+)_", path.name)[1] for path in (ROOT / "tests" / "cases").glob("test_[0-9]*.py")}
# These take minutes to trace all operators, as tests/operators/test_contract.py and tests/test_jax_modes.py do anyway.
TRACING = {"06", "08", "10", "12", "14", "16", "18", "20", "60", "65"}
SCRIPTS = [path for path in sorted(CASES.glob("[0-9]*.py")) if path.name[:2] not in PORTED | TRACING]


def test_ported_scripts_are_those_of_old_names():
    assert sorted(PORTED, key=int) == ["28", "34", "36", "39", "40", "42", "44", "61", "71"]


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPTS, reason=f"{CASES} is not on this machine; its scripts are no part of the code")
@pytest.mark.parametrize("script", SCRIPTS or [None], ids=lambda path: path.stem if path else "none")
def test_the_script_succeeds(script):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
