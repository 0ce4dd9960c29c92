"""Compares trainings number by number: two folders of a run, or two folders that hold runs of the same names.

    python -m tests.train.compare_runs BEFORE AFTER [--tolerance=1e-5]

reads checkpoints, metrics.jsonl and result.json directly, so that the runs may stem from different versions of
``train``. It prints a line a run: "identical", or the largest deviation and where it is. A deviation is the largest
difference within an array over the largest value of the array; of single numbers it is the relative difference. The
exit status is 1 if a deviation exceeds the tolerance, or if something is there on one side alone.

Compared are the arrays that a network and its optimiser consist of. Sums over an epoch go by other names in other
versions, and metrics.jsonl holds their means. The state of an optimiser is named by the places of its parts, which
another version may order otherwise: names of one side alone are printed for it, and for nothing else allowed.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

COMPARED = ("params.", "rest.", "average.", "opt_state.")
MAY_DIFFER_IN_NAMES = "opt_state."


class Deviation(NamedTuple):
    """A relative deviation, 0 for identical bits and infinite for what cannot be compared, and where it is."""

    size: float
    place: str


class Comparison(NamedTuple):
    """What was compared of a run, with the deviation of each number or array, and remarks for the reader."""

    deviations: list[Deviation]
    remarks: list[str]

    @property
    def largest(self) -> Deviation:
        return max(self.deviations)

    @property
    def first(self) -> Deviation | None:
        """Where the metrics deviate at first: rounding grows from step to step, a mistake is there from the start."""
        return next((d for d in self.deviations if d.size and d.place.startswith("metrics.jsonl")), None)


def deviation(left: Any, right: Any) -> float:
    """The largest difference of two arrays or numbers over their largest value.

    >>> deviation([1.0, -4.0], [1.0, -4.0])
    0.0
    >>> deviation([1.0, -4.0], [2.0, -4.0])
    0.25
    >>> deviation([1.0, float("nan")], [1.0, 2.0])
    inf
    """
    left, right = np.asarray(left), np.asarray(right)
    if left.shape != right.shape or left.dtype != right.dtype:
        return np.inf
    if left.tobytes() == right.tobytes():
        return 0.0
    left, right = left.astype(np.float64), right.astype(np.float64)
    scale = max(np.abs(left).max(), np.abs(right).max())
    found = np.abs(left - right).max() / scale if scale else 0.0
    return float(found) if np.isfinite(found) else np.inf


def compare_named(left: dict[str, Any], right: dict[str, Any], place: str) -> Comparison:
    """Compares what has the same name; a name of one side alone is an infinite deviation or, if it may be, a remark."""
    both = [name for name in left if name in right]
    deviations = [Deviation(deviation(left[name], right[name]), f"{place} {name}") for name in both]
    remarks = []
    for side, names in (("before", left.keys() - right.keys()), ("after", right.keys() - left.keys())):
        allowed = sorted(name for name in names if name.startswith(MAY_DIFFER_IN_NAMES))
        if allowed:
            remarks.append(f"{place}: only {side}, not compared: {', '.join(allowed)}")
        deviations += [Deviation(np.inf, f"{place} {name}, only {side}") for name in sorted(names.difference(allowed))]
    return Comparison(deviations, remarks)


def read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """The compared arrays of a checkpoint by name, and the validation accuracy it was saved with, if there is one."""
    with warnings.catch_warnings(), ocp.StandardCheckpointer() as reader:
        warnings.simplefilter("ignore")  # without a template orbax warns that devices may differ
        state = reader.restore(folder.absolute() / "state")
    arrays = {name: np.asarray(array) for name, array in state.items() if name.startswith(COMPARED)}
    meta = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
    accuracy = meta["accuracy"] if "accuracy" in meta else (meta["metrics"] or {}).get("accuracy")
    return arrays if accuracy is None else {**arrays, "accuracy": np.float64(accuracy)}


def read_checkpoints(run: Path) -> dict[str, Path]:
    """The folders of a run's checkpoints, the best and the latest, by their steps."""
    return {folder.name: folder for folder in (run / "checkpoints").iterdir() if folder.name.isdecimal()}


def read_metrics(run: Path) -> dict[str, float]:
    """The numbers of metrics.jsonl, named as "step 18 train_loss"."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {f"step {line['step']} {name}": float(line[name]) for line in map(json.loads, lines) for name in line}


def compare_runs(before: Path, after: Path) -> Comparison:
    """Compares two folders of runs; a file that one of them lacks is an infinite deviation."""
    parts = []
    for name, read in (("checkpoints", read_checkpoints), ("metrics.jsonl", read_metrics), ("result.json", _read_json)):
        missing = [f"{name}, missing {side}" for side, run in _sides(before, after) if not (run / name).exists()]
        if missing:
            parts.append(Comparison([Deviation(np.inf, place) for place in missing], []))
            continue
        left, right = read(before), read(after)
        if name != "checkpoints":
            parts.append(compare_named(left, right, name))
            continue
        for step in sorted(left.keys() | right.keys(), key=int):
            if step in left and step in right:
                arrays = read_checkpoint(left[step]), read_checkpoint(right[step])
                parts.append(compare_named(*arrays, f"checkpoint {step}"))
            else:
                side = "before" if step in left else "after"
                parts.append(Comparison([Deviation(np.inf, f"checkpoint {step}, only {side}")], []))
    return Comparison([d for part in parts for d in part.deviations], [r for part in parts for r in part.remarks])


def runs_in(folder: Path) -> dict[str, Path]:
    """The runs of a folder, or the folder itself if it is one's, by their paths in it."""
    return {str(path.parent.relative_to(folder)): path.parent for path in sorted(folder.rglob("checkpoints"))}


def _sides(before: Path, after: Path) -> tuple[tuple[str, Path], tuple[str, Path]]:
    return ("before", before), ("after", after)


def _read_json(run: Path) -> dict[str, float]:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest relative deviation that is allowed")
    flags = parser.parse_args(argv)
    befores, afters = runs_in(flags.before), runs_in(flags.after)
    names = list(befores | afters)
    for side, runs, folder in (("before", befores, flags.before), ("after", afters, flags.after)):
        if not runs:
            print(f"{folder}, {side}, holds no runs: no folder named checkpoints is in it", file=sys.stderr)
            return 1
    failed = 0
    for name in names:
        if name not in befores or name not in afters:
            print(f"{name}: only {'before' if name in befores else 'after'}")
            failed += 1
            continue
        compared = compare_runs(befores[name], afters[name])
        size, place = compared.largest
        is_wrong = size > flags.tolerance
        failed += is_wrong
        verdict = f"deviates by {size:.2g} at {place}" if size else "identical"
        print(f"{name}: {verdict}{', TOO MUCH' * is_wrong} ({len(compared.deviations)} arrays and numbers)", flush=True)
        if compared.first:
            print(f"    the first metric that deviates: by {compared.first.size:.2g} at {compared.first.place}")
        for remark in compared.remarks:
            print(f"    {remark}")
    print(f"{len(names) - failed} of {len(names)} runs agree to {flags.tolerance:g}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
