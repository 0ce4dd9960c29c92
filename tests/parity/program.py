"""The program: finds the fixtures, checks them and prints the results."""

from __future__ import annotations

import argparse
import fnmatch
import math
from pathlib import Path

from tests.families.family import CannotBuildError
from tests.parity.dense import check_dense
from tests.parity.modules import check_operator
from tests.parity.networks import check_model
from tests.parity.results import Result


def fixtures(directory: Path, only: str = "*") -> list[Path]:
    """The fixtures in `directory` with a name, such as ops/psconv2d_s1 or seg_metrics, that matches `only`."""
    found = {f"{kind}/{path.stem}": path for kind in ("ops", "models") for path in (directory / kind).glob("*.npz")}
    found |= {path.stem: path for path in directory.glob("*.npz")}
    order = sorted(found, key=lambda name: (found[name].parent.name != "ops", name))  # the quick ones first
    return [found[name] for name in order if fnmatch.fnmatchcase(name, only)]


def check(path: Path) -> Result:
    """Checks one fixture; an exception becomes its result."""
    try:
        return {"ops": check_operator, "models": check_model}.get(path.parent.name, check_dense)(path)
    except Exception as error:  # a broken fixture must not hide the others
        problem = str(error) if isinstance(error, CannotBuildError) else f"{type(error).__name__}: {error}"
        return Result(f"{path.parent.name}/{path.stem}", math.nan, "", math.nan, f"cannot be built: {problem}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser("python -m tests.parity", description="Compare with recorded numbers.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of fixtures, or of ops/ and models/")
    parser.add_argument("--only", default="*", metavar="GLOB", help="fixtures to run, such as 'ops/psconv2d_*'")
    options = parser.parse_args(arguments)
    paths = fixtures(options.directory, options.only)
    if not paths:
        print(f"no fixture matches {options.only!r} in {options.directory}, its ops/ or its models/")
        return 1
    results = []
    for path in paths:
        results.append(check(path))
        print(results[-1], flush=True)
    failed = sum(not result.passed for result in results)
    print(f"{len(results) - failed} of {len(results)} fixtures agree")
    return 1 if failed else 0
