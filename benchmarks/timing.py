"""Timing of compiled JAX functions against each other: one process, interleaved, medians."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import jax
import jaxlib


class Timed(NamedTuple):
    """A function's compile time in seconds, and its times in milliseconds, one per round."""

    compile_s: float
    times_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.times_ms)

    def ratio_to(self, other: Timed) -> float:
        """Median over the rounds of this function's time over the other's in the same round."""
        return statistics.median(a / b for a, b in zip(self.times_ms, other.times_ms, strict=True))


def time_interleaved(
    functions: Mapping[str, Callable[..., Any]], arguments: Mapping[str, Sequence[Any]], rounds: int
) -> dict[str, Timed]:
    """Compiles each function and times them in turn, so that a slow spell of the machine meets all of them.

    Args:
        functions: what to time, by name.
        arguments: the arguments of each.
        rounds: times that each is run; a round runs each once (or a few times, if it is very short).
    """
    compiled, compile_s, repeats = {}, {}, {}
    for name, function in functions.items():
        started = time.perf_counter()
        compiled[name] = jax.jit(function).lower(*arguments[name]).compile()
        compile_s[name] = time.perf_counter() - started
        jax.block_until_ready(compiled[name](*arguments[name]))  # first touch of its memory
        started = time.perf_counter()
        jax.block_until_ready(compiled[name](*arguments[name]))
        repeats[name] = max(1, round(0.004 / (time.perf_counter() - started)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, run in compiled.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                result = run(*arguments[name])
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - started) / repeats[name] * 1e3)
    return {name: Timed(compile_s[name], tuple(times[name])) for name in functions}


def machine() -> str:
    """One line on what runs here: device, processor, versions."""
    device = jax.devices()[0]
    return (
        f"{device.platform} {device.device_kind}, {platform.machine()}, Python {platform.python_version()}, "
        f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, flax {flax.__version__}"
    )
