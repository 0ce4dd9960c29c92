"""Time of each operator over the plain 3x3 convolution of the same shape, at the four stage shapes of ResNet-50.

    python -m benchmarks.operators [--batch 8] [--rounds 7] [--only PSConv] [--native]

Forward, and forward with both gradients, jitted, float32; ratios of the same round, their median over the rounds.
The last line of each operator is the geometric mean over the shapes. `GroupedConv` has 32 groups and the widths of
ResNeXt-50 32x4d and is shown over the plain dense convolution of those widths; `--native` puts the grouped `nnx.Conv`
beside it, which takes minutes on CPU.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.timing import Timed, machine, time_interleaved
from msconv_jax import GroupedConv, PSConv

STAGES = ((56, 64), (28, 128), (14, 256), (7, 512))  # height and width, channels of the 3x3 in ResNet-50

Module = Callable[..., nnx.Module]


def subjects(in_groups: bool, native: bool) -> dict[str, Module]:
    """What is timed, the plain convolution first."""

    def make(kind: Module, **options: Any) -> Module:
        return lambda width: kind(width, width, (3, 3), padding=1, use_bias=False, rngs=nnx.Rngs(0), **options)

    if not in_groups:
        return {"nnx.Conv": make(nnx.Conv), "PSConv": make(PSConv)}
    made = {"nnx.Conv": make(nnx.Conv), "GroupedConv": make(GroupedConv, feature_group_count=32)}
    return {**made, "nnx.Conv in groups": make(nnx.Conv, feature_group_count=32)} if native else made


def forward(module: nnx.Module) -> tuple[Callable[..., Any], Any]:
    """The module as a pure function, and its parameters."""
    graphdef, state = nnx.split(module)
    return lambda state, x: nnx.merge(graphdef, state)(x), state


def forward_and_backward(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Value and both gradients of a sum over the output."""
    return jax.value_and_grad(lambda state, x: jnp.sum(apply(state, x) ** 2), argnums=(0, 1))


def time_stage(
    made: dict[str, Module], size: int, width: int, batch: int, rounds: int, backward: bool
) -> dict[str, Timed]:
    """Times all subjects at one stage's shape."""
    x = jax.random.normal(jax.random.key(0), (batch, size, size, width))
    functions, arguments = {}, {}
    for name, make in made.items():
        apply, state = forward(make(width))
        functions[name] = forward_and_backward(apply) if backward else apply
        arguments[name] = (state, x)
    return time_interleaved(functions, arguments, rounds)


def table(in_groups: bool, batch: int, rounds: int, native: bool = False) -> str:
    """The table of one family as Markdown."""
    lines = []
    for backward in (False, True):
        made = subjects(in_groups, native)
        work = "forward + backward" if backward else "forward"
        others = [name for name in made if name != "nnx.Conv"]
        heads = " | ".join(f"{name}, ms | ratio | compile, s" for name in others)
        lines += [
            f"| {work} | plain, ms | {heads} |",
            "|---" * (2 + 3 * len(others)) + "|",
        ]
        ratios: dict[str, list[float]] = {name: [] for name in others}
        for size, channels in STAGES:
            width = channels * (2 if in_groups else 1)  # ResNeXt-50 32x4d is twice as wide
            timed = time_stage(made, size, width, batch, rounds, backward)
            cells = [f"{size}x{size}x{width}", f"{timed['nnx.Conv'].median_ms:.2f}"]
            for name in others:
                ratios[name].append(timed[name].ratio_to(timed["nnx.Conv"]))
                cells += [f"{timed[name].median_ms:.2f}", f"{ratios[name][-1]:.2f}", f"{timed[name].compile_s:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
        means = [f"| {math.exp(sum(map(math.log, values)) / len(values)):.2f} | " for values in ratios.values()]
        lines += ["| geometric mean | | " + " | ".join(f" {mean}" for mean in means) + " |", ""]
    return "\n".join(lines)


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser("python -m benchmarks.operators", description="Time operators over nnx.Conv.")
    parser.add_argument("--batch", type=int, default=8, help="images at a time (default 8)")
    parser.add_argument("--rounds", type=int, default=7, help="timings of each function (default 7)")
    parser.add_argument("--only", choices=("PSConv", "GroupedConv"), help="one operator instead of both")
    parser.add_argument("--native", action="store_true", help="time the grouped nnx.Conv as well")
    options = parser.parse_args()
    print(f"{machine()}; batch {options.batch}, float32, median of {options.rounds} interleaved rounds\n")
    for name in ("PSConv", "GroupedConv"):
        if options.only in (None, name):
            print(
                f"### {name}\n\n{table(name == 'GroupedConv', options.batch, options.rounds, options.native)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
