"""What the benchmark programs print: a Markdown table for each comparison, and a summary over several."""

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
    """One shape's timings: of what is compared with, `base`, and of what is compared, `timed`."""

    shape: str
    base: Timed
    timed: Timed


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The time of one thing over another's.

    Attributes:
        name: what is compared.
        base: what it is compared with.
        setting: a line on how it was set up; empty if there is nothing to say.
        rows: for each kind of work, `FORWARD` and `BACKWARD`, a row per shape.
        targets: ratios that the project aims at, by kind of work, or `COMPILE`; empty if there are none.
    """

    name: str
    base: str
    setting: str
    rows: Mapping[str, Sequence[Row]]
    targets: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def mean(self, work: str) -> float:
        """Geometric mean over the shapes of the ratios of one kind of work.

        For `COMPILE`: of the ratios of compile time, forward + backward.
        """
        if work == COMPILE:
            return statistics.geometric_mean(row.timed.compile_s / row.base.compile_s for row in self.rows[BACKWARD])
        return statistics.geometric_mean(row.timed.ratio_to(row.base) for row in self.rows[work])

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
    """A table of the geometric means, with the targets."""
    columns = (FORWARD, BACKWARD, COMPILE)
    heads = [cell for work in columns for cell in (work, "target")]
    lines = [_line("", "over", *heads), "|---" * (2 + len(heads)) + "|"]
    for comparison in comparisons:
        cells = [comparison.name, comparison.base]
        for work in columns:
            cells += [_number(comparison.mean(work), 2), _number(comparison.targets.get(work, math.nan), 2)]
        lines.append(_line(*cells))
    return "\n".join(lines)


def overheads(comparisons: Sequence[Comparison], others: Sequence[Comparison], target: float) -> str:
    """A table of ratios over ratios: each of `others`, named "operator, framework", beside the operator's own."""
    own = {comparison.name: comparison for comparison in comparisons}
    lines = [_line("", FORWARD, BACKWARD, "target"), "|---" * 4 + "|"]
    for other in others:
        mine = own.get(other.name.partition(",")[0])
        if mine is not None:
            ratios = (mine.mean(work) / other.mean(work) for work in (FORWARD, BACKWARD))
            lines.append(_line(f"over {other.name}", *(_number(ratio, 2) for ratio in ratios), _number(target, 2)))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _both(value: float, base: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{_number(value, digits)} ({_number(base, digits)})"
