"""A trace of a few training steps, for TensorBoard's profiler and Perfetto."""

from pathlib import Path
from typing import Any

import jax

_FIRST, _LAST = 10, 15


class StepProfiler:
    """Traces the steps 10 to 15 of a process, or the last 6 if it has fewer than 15.

    Args:
        folder: where the trace goes.
        steps: how many steps this process is to train.
        enabled: whether to trace at all.
    """

    def __init__(self, folder: Path, steps: int, *, enabled: bool):
        self._folder = folder
        self._last = min(_LAST, steps) if enabled else 0
        self._first = max(self._last - (_LAST - _FIRST), 1)
        self._is_tracing = False

    def before(self, step: int, state: Any) -> None:
        """Begins the trace if it is the turn of a step, which is about to start.

        Args:
            step: its number in this process, counted from 1.
            state: arrays of the steps before, which are waited for.
        """
        if step == self._first <= self._last:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True

    def after(self, step: int, state: Any) -> None:
        """Ends the trace if a step was the last.

        Args:
            step: its number in this process, counted from 1.
            state: arrays of this step, which are waited for.
        """
        if step == self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Writes the trace, if there is one under way."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
