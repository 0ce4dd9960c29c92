"""Times PSConv, PyConv and IC-Conv in PyTorch on CPU, over PyTorch's plain 3x3 convolution.

    python -m benchmarks.pytorch_operators [--batch 8] [--rounds 7] [--sizes 56 28 14 7] [--compile]

Channels-last, float32, with as many threads as JAX. `--compile` times everything under `torch.compile` instead, which
needs a C++ compiler; the compile time is that of the first run. PyTorch is not a dependency of the library: install it
with `pip install torch`; `make bench-full` skips this part without it. The operators are those of
`benchmarks/pytorch_definitions.py`; the tests compare their numbers with the library's.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.operators import IC_PATTERNS, SIZES, WIDTHS, add_arguments, check_arguments, pyconv_levels
from benchmarks.tables import BACKWARD, FORWARD, LEGEND, Comparison, Row, summary
from benchmarks.timing import Timed, cores, host, run_interleaved
from msconv_jax.operators.pyconv import pyconv_split


def installed() -> bool:
    """Whether PyTorch can be imported."""
    return importlib.util.find_spec("torch") is not None


def compiler() -> str | None:
    """The C++ compiler for `torch.compile`; None if there is none."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def machine() -> str:
    """One line about processor, PyTorch and threads."""
    import torch

    return f"{host()}, torch {torch.__version__} on {cores()} threads"


def operators(stage: int) -> dict[str, Callable[[], Any]]:
    """A constructor of each operator at a stage of ResNet-50."""
    from benchmarks import pytorch_definitions

    width = WIDTHS[stage]
    kernels, groups = pyconv_levels(stage)
    features = pyconv_split(width, len(kernels))
    return {
        "PSConv": lambda: pytorch_definitions.PSConv(width),
        "PyConv": lambda: pytorch_definitions.PyConv(width, kernels, groups, features),
        "ICConv": lambda: pytorch_definitions.ICConv(width, IC_PATTERNS[stage]),
    }


def time_both(base: Any, own: Any, shape: tuple[int, ...], rounds: int, compiled: bool) -> dict[str, Row]:
    """Times one module over another for each kind of work; `shape` is the input's (N, C, H, W)."""
    import torch

    x = torch.randn(shape).to(memory_format=torch.channels_last)
    label = f"{shape[2]}x{shape[3]}x{shape[1]}"

    def forward(module: Any, x: Any) -> None:
        with torch.no_grad():
            module(x)

    def both(module: Any, x: Any) -> None:
        torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()])

    if compiled:
        torch.compiler.reset()  # after several shapes of one class it would fall back to eager
    rows = {}
    for work, run, signal in ((FORWARD, forward, x), (BACKWARD, both, x.clone().requires_grad_())):
        runs, first_s = {}, {}
        for name, module in (("base", base), ("own", own)):
            module = module.to(memory_format=torch.channels_last)
            if compiled:
                module = torch.compile(module, dynamic=False)
            started = time.perf_counter()
            run(module, signal)
            first_s[name] = time.perf_counter() - started if compiled else math.nan
            runs[name] = _repeated(run, module, signal)
        times = run_interleaved(runs, rounds)
        rows[work] = Row(label, *(Timed(times[name], first_s[name]) for name in ("base", "own")))
    return rows


def _repeated(run: Callable[..., None], *arguments: Any) -> Callable[[int], None]:
    def repeat(times: int) -> None:
        for _ in range(times):
            run(*arguments)

    return repeat


def compare_all(
    sizes: Sequence[int] = SIZES, batch: int = 8, rounds: int = 7, compiled: bool = False
) -> Iterator[Comparison]:
    """Times the operators one after the other; the sizes are those of the first stages."""
    import torch

    from benchmarks.pytorch_definitions import centred

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    way, setting = ("compiled", "Both under torch.compile.") if compiled else ("eager", "Both eager.")
    if compiled:
        torch.compiler.config.force_disable_caches = True  # otherwise later compile times measure cache look-ups
        torch.compile(torch.sin)(torch.ones(64))  # warms the compiler up
    for name in operators(0):
        rows: dict[str, list[Row]] = {FORWARD: [], BACKWARD: []}
        for stage, size in enumerate(sizes):
            width = WIDTHS[stage]
            timed = time_both(
                centred(width, width, 3), operators(stage)[name](), (batch, width, size, size), rounds, compiled
            )
            for work, row in timed.items():
                rows[work].append(row)
        yield Comparison(f"{name}, PyTorch {way}", "torch.nn.Conv2d", setting, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pytorch_operators", description="Time PyTorch's operators over its plain convolution."
    )
    add_arguments(parser)
    parser.add_argument("--compile", action="store_true", help="under torch.compile (needs a C++ compiler)")
    options = parser.parse_args(arguments)
    check_arguments(parser, options)
    if not installed():
        sys.exit("This benchmark times PyTorch, which is not installed here: pip install torch")
    if options.compile and compiler() is None:
        sys.exit("--compile: torch.compile needs a C++ compiler, such as g++, and there is none here")
    print(f"{machine()}; batch {options.batch}, float32, {options.rounds} interleaved rounds\n\n{LEGEND}\n", flush=True)
    done = []
    for comparison in compare_all(options.sizes, options.batch, options.rounds, options.compile):
        done.append(comparison)
        print(comparison.markdown(), flush=True)
    print(summary(done))


if __name__ == "__main__":
    main()
