"""The table of docs/operators/index.md: the cost of each operator over the plain 3x3 convolution of equal width.

    python -m benchmarks --docs NAME

writes it. The library counts parameters and multiply-accumulates from shapes only. Times come from
`python -m benchmarks --write NAME`; the cell of an untimed setting is empty.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from benchmarks import operators
from benchmarks.operators import SIZES, SUBJECTS, WIDTHS
from msconv_jax import (
    ACConv,
    DynamicPSConv,
    GroupedConv,
    HetConv,
    ICConv,
    OctConv,
    PACConv,
    PSConv,
    PyConv,
    Res2Conv,
    SISConv,
)
from msconv_jax.counting import count_parameters

OPENING, CLOSING = "<!-- `python -m benchmarks --docs` wrote this table -->", "<!-- the table's end -->"
STAGES = (0, 2)  # of ResNet-50: 56x56x64 and 14x14x256
GUIDE = 3  # channels of PACConv's guide, a colour picture


@dataclasses.dataclass(frozen=True)
class Costed:
    """An operator in one setting.

    Attributes:
        operator: the operator's class.
        setting: a short description of the setting.
        options: from the index of the stage and its number of channels to the operator's further arguments.
        measured: name in the tables of times; empty if it is not timed.
        macs: further arguments of the operator's `macs`.
    """

    operator: Callable[..., nnx.Module]
    setting: str
    options: Callable[[int, int], dict[str, Any]]
    measured: str = ""
    macs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def ratios(self, stage: int) -> tuple[float, float]:
        """Parameters and multiply-accumulates over the plain convolution, both without a bias."""
        channels, size = WIDTHS[stage], (SIZES[stage],) * 2
        options = self.options(stage, channels)
        conv: Any = nnx.eval_shape(lambda: operators.conv(self.operator, channels, **options))
        plain = 9 * channels * channels
        return count_parameters(conv) / plain, conv.macs(size, **self.macs) / (plain * math.prod(size))


def _fixed(**options: Any) -> Callable[[int, int], dict[str, Any]]:
    return lambda stage, channels: options


def _timed(operator: Callable[..., nnx.Module], setting: str, label: str = "") -> Costed:
    """An operator in its timed setting."""
    (subject,) = (s for s in SUBJECTS if s.operator is operator and s.label == label and not s.native)
    return Costed(operator, setting, subject.options, subject.name)


ROWS = (
    _timed(PSConv, "pattern (1, 2, 1, 4)"),
    Costed(DynamicPSConv, "dilations 1 and 2, as in training", _fixed(dilations=(1, 2))),
    _timed(PyConv, "as in PyConvResNet-50: 4 levels at 64 channels, 2 at 256"),
    _timed(ICConv, "the published dilations of IC-ResNet-50"),
    _timed(HetConv, "4 parts"),
    _timed(OctConv, "half of the channels low, in and out"),
    Costed(Res2Conv, "4 slices", _fixed(scale=4, norm=None)),
    Costed(SISConv, "basic", _fixed(kind="basic")),
    Costed(SISConv, "interactive", _fixed(kind="interactive1")),
    Costed(SISConv, "recurrent, 2 steps", _fixed(kind="recurrent1")),
    Costed(ACConv, "dataset-aware", _fixed(kind="dataset")),
    Costed(ACConv, "pixel-aware", _fixed(kind="pixel")),
    Costed(PACConv, "a guide of 3 channels", _fixed(), macs={"guide_features": GUIDE}),
    _timed(GroupedConv, "32 groups; timed at twice the channels"),
    _timed(GroupedConv, "depthwise", "depthwise "),
)


def measured(results: str) -> dict[str, tuple[str, str]]:
    """The times over the plain convolution in `results` by name: forward and forward + backward."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in results.splitlines() if line.startswith("|")]
    return {
        name: (forward.split()[0], backward.split()[0])
        for name, base, forward, _, backward, *_ in (row for row in cells if len(row) == 8)
        if base == "nnx.Conv" and forward and backward
    }


def table(results: str) -> str:
    """The table, with the times in `results`."""
    times = measured(results)
    heads = ["operator", "setting"]
    for stage in STAGES:
        heads += [f"parameters, {WIDTHS[stage]} channels", f"MACs, {WIDTHS[stage]}"]
    heads += ["time, forward", "forward + backward"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for row in ROWS:
        cells = [f"`{row.operator.__name__}`", row.setting]
        ratios = [ratio for stage in STAGES for ratio in row.ratios(stage)]
        cells += [f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}" for ratio in ratios]
        cells += times.get(row.measured, ("", ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_costs(text: str, results: str) -> str:
    """The document with the table between its two comments.

    Raises:
        ValueError: if the document lacks the comments.
    """
    before, opening, rest = text.partition(OPENING)
    _, closing, after = rest.partition(CLOSING)
    if not (opening and closing):
        raise ValueError(f"the document has no place for the costs: it needs the lines {OPENING!r} and {CLOSING!r}.")
    return f"{before}{OPENING}\n{table(results)}\n{CLOSING}{after}"
