"""Times functions against each other: interleaved in one process, with medians and quartiles."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jaxlib
import numpy as np

ROUND_S = 0.004  # a faster function runs several times a round


@dataclasses.dataclass(frozen=True)
class Timed:
    """The measurements of one function.

    Attributes:
        times_ms: time in milliseconds, one per round.
        compile_s: compile time in seconds, with tracing; NaN if nothing was compiled.
        temporary_mib: memory of the compiled function in MiB, without arguments and results; NaN if unknown.
    """

    times_ms: tuple[float, ...]
    compile_s: float = math.nan
    temporary_mib: float = math.nan

    @property
    def median_ms(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.times_ms)

    def ratios_to(self, other: Timed) -> list[float]:
        """This function's time over the other's in the same round, one per round."""
        return [a / b for a, b in zip(self.times_ms, other.times_ms, strict=True)]

    def ratio_to(self, other: Timed) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios_to(other))

    def quartiles_to(self, other: Timed) -> tuple[float, float]:
        """First and third quartile of the ratios."""
        low, high = np.quantile(self.ratios_to(other), (0.25, 0.75))
        return float(low), float(high)


def time_interleaved(
    functions: Mapping[str, Callable[..., Any]], arguments: Mapping[str, Sequence[Any]], rounds: int
) -> dict[str, Timed]:
    """Compiles JAX functions and times them in turn, so that a slow phase of the machine affects all of them.

    Args:
        functions: the functions by name.
        arguments: the arguments of each function.
        rounds: number of rounds; a round runs each function once, or a few times if it is very fast.
    """
    compiled: dict[str, Any] = {}
    compile_s = {}
    for name, function in functions.items():
        started = time.perf_counter()
        compiled[name] = jax.jit(function).lower(*arguments[name]).compile()
        compile_s[name] = time.perf_counter() - started

    def runner(name: str) -> Callable[[int], object]:
        def run(times: int) -> None:
            result = None
            for _ in range(times):
                result = compiled[name](*arguments[name])
            jax.block_until_ready(result)

        return run

    times = run_interleaved({name: runner(name) for name in functions}, rounds)
    return {name: Timed(times[name], compile_s[name], _temporary_mib(compiled[name])) for name in functions}


def run_interleaved(runs: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, tuple[float, ...]]:
    """Times functions in turn.

    Args:
        runs: functions by name; each repeats its work a given number of times and waits for the end.
        rounds: number of rounds.

    Returns:
        The times of each function in milliseconds, one per round.
    """
    repeats = {}
    for name, run in runs.items():
        run(1)  # touches its memory for the first time
        started = time.perf_counter()
        run(1)
        repeats[name] = max(1, round(ROUND_S / (time.perf_counter() - started)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run(repeats[name])
            times[name].append((time.perf_counter() - started) / repeats[name] * 1e3)
    return {name: tuple(values) for name, values in times.items()}


def _temporary_mib(compiled: Any) -> float:
    analysis = compiled.memory_analysis()
    return math.nan if analysis is None else analysis.temp_size_in_bytes / 2**20


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host() -> str:
    """The processor, its cores and Python, in words."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    return f"{cores()} cores of {processor}, Python {platform.python_version()}"


def machine() -> str:
    """One line about device, processor and versions."""
    device = jax.devices()[0]
    kind = device.platform if device.device_kind == device.platform else f"{device.platform} {device.device_kind}"
    return f"{kind}, {host()}, jax {jax.__version__}, jaxlib {jaxlib.__version__}, flax {flax.__version__}"
