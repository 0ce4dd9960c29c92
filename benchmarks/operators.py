"""Times each operator over the plain 3x3 convolution of the same shape, at the four stage shapes of ResNet-50.

    python -m benchmarks.operators [--batch 8] [--rounds 7] [--sizes 56 28 14 7] [--only PSConv PyConv] [--native]

Forward, and forward with the gradients of parameters and input, jitted, float32. Both run in turn in one process; see
`benchmarks.tables.LEGEND`. `--native` also times `GroupedConv` over the native grouped `nnx.Conv`, with few rounds: its
gradients take seconds on CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.tables import BACKWARD, FORWARD, LEGEND, Comparison, Row, summary
from benchmarks.timing import machine, time_interleaved
from msconv_jax import GroupedConv, HetConv, ICConv, OctConv, PSConv, PyConv

SIZES, WIDTHS = (56, 28, 14, 7), (64, 128, 256, 512)  # image sizes and channels of the 3x3 in ResNet-50's stages
NATIVE_ROUNDS = 3  # at most: one round can take seconds

# The published dilations of IC-ResNet-50 (k9, detection) in the second block of each stage: (d_h, d_w, filters).
# fmt: off
IC_PATTERNS = (
    ((1, 1, 30), (1, 2, 6), (1, 3, 1), (1, 4, 1), (2, 1, 9), (2, 2, 4), (2, 3, 1), (3, 1, 1), (3, 3, 1), (4, 1, 5),
     (4, 2, 4), (4, 4, 1)),
    ((1, 1, 65), (1, 2, 3), (1, 3, 3), (1, 4, 4), (2, 1, 9), (2, 2, 7), (2, 3, 5), (2, 4, 1), (3, 1, 2), (3, 2, 2),
     (3, 3, 2), (3, 4, 5), (4, 1, 3), (4, 2, 2), (4, 3, 2), (4, 4, 13)),
    ((1, 1, 84), (1, 2, 14), (1, 3, 8), (1, 4, 17), (2, 1, 16), (2, 2, 7), (2, 3, 5), (2, 4, 6), (3, 1, 9), (3, 2, 7),
     (3, 3, 9), (3, 4, 7), (4, 1, 18), (4, 2, 5), (4, 3, 8), (4, 4, 36)),
    ((1, 1, 143), (1, 2, 39), (1, 3, 22), (1, 4, 56), (2, 1, 29), (2, 2, 19), (2, 3, 4), (2, 4, 14), (3, 1, 23),
     (3, 2, 14), (3, 3, 6), (3, 4, 17), (4, 1, 37), (4, 2, 14), (4, 3, 16), (4, 4, 59)),
)
# fmt: on


def pyconv_levels(stage: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel sizes and groups of PyConvResNet-50: four levels in the first stage, one fewer in each further stage."""
    return (3, 5, 7, 9)[: 4 - stage], (1, 4, 8, 16)[: 4 - stage]


@dataclasses.dataclass(frozen=True)
class Subject:
    """An operator to time.

    Attributes:
        operator: the operator's class.
        setting: a one-line description of the setting.
        options: from the index of the stage and its width to the operator's further arguments.
        targets: target ratios, forward and forward + backward.
        limits: largest ratios for a single shape, likewise.
        widen: factor of ResNet-50's widths.
        native: name in tables of the grouped `nnx.Conv` to compare with; empty compares with the plain one.
        label: prefix of the class's name.
    """

    operator: Callable[..., nnx.Module]
    setting: str
    options: Callable[[int, int], dict[str, Any]]
    targets: tuple[float, float] | None = None
    limits: tuple[float, float] | None = None
    widen: int = 1
    native: str = ""
    label: str = ""

    @property
    def name(self) -> str:
        """The operator's name in tables."""
        return self.label + self.operator.__name__

    @property
    def base(self) -> str:
        """The name in tables of the convolution to compare with."""
        return self.native or "nnx.Conv"


def _in_32_groups(stage: int, width: int) -> dict[str, Any]:
    return {"feature_group_count": 32}


def _depthwise(stage: int, width: int) -> dict[str, Any]:
    return {"feature_group_count": width}


_DEPTHWISE = "A group for each channel."
_RESNEXT = "32 groups, at the widths of ResNeXt-50 32x4d, twice those of ResNet-50."

SUBJECTS = (
    Subject(PSConv, "Pattern (1, 2, 1, 4).", lambda stage, width: {}, (1.3, 1.2), (1.8, 1.6)),
    Subject(
        PyConv,
        "The levels of PyConvResNet-50: kernels (3, 5, 7, 9) in groups (1, 4, 8, 16), one level less in each stage.",
        lambda stage, width: dict(zip(("kernel_sizes", "groups"), pyconv_levels(stage), strict=True)),
        (1.8, 2.0),
    ),
    Subject(
        ICConv,
        "The published dilations of IC-ResNet-50 (k9, detection), second block of each stage.",
        lambda stage, width: {"pattern": IC_PATTERNS[stage]},
        (2.0, 2.0),
    ),
    Subject(HetConv, "Parts 4.", lambda stage, width: {"parts": 4}, (0.75, 0.9)),
    Subject(
        OctConv,
        "Alpha 0.5: half of the channels at half of the height and width, in and out.",
        lambda stage, width: {"alpha_in": 0.5, "alpha_out": 0.5},
        (0.65, 0.75),
    ),
    Subject(GroupedConv, _RESNEXT, _in_32_groups, widen=2),
    Subject(GroupedConv, _RESNEXT, _in_32_groups, (0.25, 0.05), widen=2, native="nnx.Conv in groups"),
    Subject(GroupedConv, _DEPTHWISE, _depthwise, label="depthwise "),
    Subject(GroupedConv, _DEPTHWISE, _depthwise, (0.2, 0.3), native="depthwise nnx.Conv", label="depthwise "),
)
NAMES = tuple(dict.fromkeys(subject.operator.__name__ for subject in SUBJECTS))


def conv(operator: Callable[..., nnx.Module], width: int, **options: Any) -> nnx.Module:
    """An operator with the arguments of the plain 3x3 convolution."""
    rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))  # rbg keys draw fast
    return operator(width, width, kernel_size=(3, 3), padding=1, use_bias=False, rngs=rngs, **options)


def signal(subject: Subject, batch: int, size: int, width: int) -> Any:
    """The operator's input: an array; for `OctConv` a pair of arrays, each with half of the channels."""
    x = jax.random.normal(jax.random.key(0), (batch, size, size, width))
    if subject.operator is not OctConv:
        return x
    half = -(-size // 2)
    return x[..., : width // 2], x[:, :half, :half, width // 2 :]


def functions_of(module: nnx.Module) -> tuple[dict[str, Callable[..., Any]], Any]:
    """A pure function of parameters and input for each kind of work, and the module's parameters."""
    graphdef, state = nnx.split(module)

    def apply(state: Any, x: Any) -> Any:
        return nnx.merge(graphdef, state)(x)  # type: ignore[operator]

    def total(state: Any, x: Any) -> jax.Array:
        return sum((jnp.sum(y**2) for y in jax.tree.leaves(apply(state, x))), start=jnp.zeros(()))

    return {FORWARD: apply, BACKWARD: jax.value_and_grad(total, argnums=(0, 1))}, state


def compare(subject: Subject, sizes: Sequence[int], batch: int, rounds: int) -> Comparison:
    """Times one operator; the sizes are those of the first stages."""
    rows: dict[str, list[Row]] = {FORWARD: [], BACKWARD: []}
    for stage, size in enumerate(sizes):
        width = WIDTHS[stage] * subject.widen
        options = subject.options(stage, width)
        groups = {"feature_group_count": options["feature_group_count"]} if subject.native else {}
        base, base_state = functions_of(conv(nnx.Conv, width, **groups))
        own, own_state = functions_of(conv(subject.operator, width, **options))
        x = jax.random.normal(jax.random.key(0), (batch, size, size, width))
        arguments = {"base": (base_state, x), "own": (own_state, signal(subject, batch, size, width))}
        for work, of_work in rows.items():
            functions = {"base": base[work], "own": own[work]}
            timed = time_interleaved(functions, arguments, min(rounds, NATIVE_ROUNDS) if subject.native else rounds)
            of_work.append(Row(f"{size}x{size}x{width}", timed["base"], timed["own"]))
    targets = dict(zip(rows, subject.targets, strict=True)) if subject.targets else {}
    limits = dict(zip(rows, subject.limits, strict=True)) if subject.limits else {}
    return Comparison(subject.name, subject.base, subject.setting, rows, targets, limits)


def compare_all(
    sizes: Sequence[int] = SIZES,
    batch: int = 8,
    rounds: int = 7,
    only: Sequence[str] | None = None,
    native: bool = False,
) -> Iterator[Comparison]:
    """Times the operators one after the other; `only` names classes."""
    for subject in SUBJECTS:
        if (native or not subject.native) and (only is None or subject.operator.__name__ in only):
            yield compare(subject, sizes, batch, rounds)


def add_arguments(parser: argparse.ArgumentParser, rounds: int | None = 7) -> None:
    """Adds the common arguments of the programs on operators; `rounds` is the default."""
    parser.add_argument("--batch", type=int, default=8, help="images at a time (default 8)")
    parser.add_argument("--rounds", type=int, default=rounds, help="timings of each function")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=SIZES,
        help="height and width at the stages, from the first; fewer than four leave the last stages out",
    )


def check_arguments(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exits with an error if an argument of `add_arguments` is out of range."""
    if len(options.sizes) > len(SIZES):
        parser.error(f"--sizes has {len(options.sizes)} numbers: there are {len(SIZES)} stages")
    if min(options.batch, options.rounds, *options.sizes) < 1:
        parser.error("--batch, --rounds and --sizes must be at least 1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser("python -m benchmarks.operators", description="Time operators over nnx.Conv.")
    add_arguments(parser)
    parser.add_argument("--only", nargs="+", choices=NAMES, help="these operators instead of all")
    parser.add_argument("--native", action="store_true", help="time GroupedConv over the grouped nnx.Conv as well")
    options = parser.parse_args(arguments)
    check_arguments(parser, options)
    print(f"{machine()}; batch {options.batch}, float32, {options.rounds} interleaved rounds\n\n{LEGEND}\n")
    done = []
    for comparison in compare_all(options.sizes, options.batch, options.rounds, options.only, options.native):
        done.append(comparison)
        print(comparison.markdown(), flush=True)
    print(summary(done))


if __name__ == "__main__":
    main()
