"""Output of the benchmark programs: a Markdown table for each comparison, and a summary of several."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.timing import Timed

FORWARD, BACKWARD, COMPILE = "forward", "forward + backward", "compile"

LEGEND = (
    "Ratios are of times in the same round: their median over the rounds and their quartiles, and the geometric mean "
    "of the medians over the shapes. Temporary memory is what the compiled program needs besides its arguments and "
    "results. In parentheses stand compile time and memory of what is compared with."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """The timings for one shape: `base`, and `timed`, which is compared with it."""

    shape: str
    base: Timed
    timed: Timed


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The time of one thing over another's.

    Attributes:
        name: name of what is timed.
        base: name of what it is compared with.
        setting: a one-line description of the setting; may be empty.
        rows: a row per shape for each kind of work, `FORWARD` and `BACKWARD`.
        targets: target ratios by kind of work, or `COMPILE`; may be empty.
        limits: largest ratios for a single shape, by kind of work.
    """

    name: str
    base: str
    setting: str
    rows: Mapping[str, Sequence[Row]]
    targets: Mapping[str, float] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def mean(self, work: str) -> float:
        """Geometric mean over the shapes of the ratios for one kind of work; NaN if it was not measured.

        `COMPILE` is the ratio of the compile times of forward + backward.
        """
        if (BACKWARD if work == COMPILE else work) not in self.rows:
            return math.nan
        if work == COMPILE:
            return statistics.geometric_mean(row.timed.compile_s / row.base.compile_s for row in self.rows[BACKWARD])
        return statistics.geometric_mean(row.timed.ratio_to(row.base) for row in self.rows[work])

    def worst(self, work: str) -> float:
        """The largest ratio over the shapes."""
        return max(row.timed.ratio_to(row.base) for row in self.rows[work])

    def markdown(self) -> str:
        """A heading and a table for each kind of work."""
        lines = [f"### {self.name} over {self.base}", "", *([self.setting, ""] if self.setting else [])]
        for work, rows in self.rows.items():
            heads = [f"{self.base}, ms", f"{self.name}, ms", "ratio", "quartiles", "compile, s", "temporary, MiB"]
            lines += [_line(work, *heads), "|---" * 7 + "|"]
            for row in rows:
                low, high = row.timed.quartiles_to(row.base)
                lines.append(
                    _line(
                        row.shape,
                        f"{row.base.median_ms:.2f}",
                        f"{row.timed.median_ms:.2f}",
                        f"{row.timed.ratio_to(row.base):.2f}",
                        f"{low:.2f} to {high:.2f}",
                        _both(row.timed.compile_s, row.base.compile_s, 1),
                        _both(row.timed.temporary_mib, row.base.temporary_mib, 0),
                    )
                )
            if len(rows) > 1:
                lines.append(f"| geometric mean | |  | {self.mean(work):.2f} | | | |")
            lines.append("")
        return "\n".join(lines)


def summary(comparisons: Sequence[Comparison]) -> str:
    """A table of geometric means and targets; with a limit, the worst shape is in parentheses."""
    columns = (FORWARD, BACKWARD, COMPILE)
    heads = [cell for work in columns for cell in (work, "target")]
    lines = [_line("", "over", *heads), "|---" * (2 + len(heads)) + "|"]
    for comparison in comparisons:
        cells = [comparison.name, comparison.base]
        for work in columns:
            pairs = [(comparison.mean(work), comparison.targets.get(work, math.nan))]
            if work in comparison.limits:
                pairs.append((comparison.worst(work), comparison.limits[work]))
            cells += _beside_target(pairs)
        lines.append(_line(*cells))
    return "\n".join(lines)


def overheads(comparisons: Sequence[Comparison], others: Sequence[Comparison], target: float) -> str:
    """A table of ratios over the ratios of `others`, which are named "operator, framework"."""
    own = {comparison.name: comparison for comparison in comparisons}
    lines = [_line("", FORWARD, "target", BACKWARD, "target"), "|---" * 5 + "|"]
    for other in others:
        mine = own.get(other.name.partition(",")[0])
        if mine is not None:
            ratios = [mine.mean(work) / other.mean(work) for work in (FORWARD, BACKWARD)]
            cells = [cell for ratio in ratios for cell in _beside_target([(ratio, target)])]
            lines.append(_line(f"over {other.name}", *cells))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _beside_target(pairs: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """Two cells, measured and target; pairs after the first are in parentheses."""
    measured, targets = ([_number(value, 2) for value in column] for column in zip(*pairs, strict=True))
    missed = any(round(value, 2) > target for value, target in pairs)
    both = [cells[0] + "".join(f" ({cell})" for cell in cells[1:]) for cells in (measured, targets)]
    return both[0], both[1] + (", missed" if missed else "")


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _both(value: float, base: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{_number(value, digits)} ({_number(base, digits)})"
