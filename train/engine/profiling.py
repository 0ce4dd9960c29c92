"""A trace of a few training steps, for TensorBoard's profiler and Perfetto."""

from pathlib import Path
from typing import Any

import jax

_FIRST, _LAST = 10, 15


class StepProfiler:
    """Traces steps 10 to 15 of a process into a folder, or the last 6 if the process has fewer than 15 `steps`.

    The steps of a process are counted from 1. `before` and `after` wait for their state, so the trace holds whole
    steps.
    """

    def __init__(self, folder: Path, steps: int, *, enabled: bool):
        self._folder = folder
        self._last = min(_LAST, steps) if enabled else 0
        self._first = max(self._last - (_LAST - _FIRST), 1)
        self._is_tracing = False

    def before(self, step: int, state: Any) -> None:
        """Starts the trace before its first step."""
        if step == self._first <= self._last:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True

    def after(self, step: int, state: Any) -> None:
        """Ends the trace after its last step."""
        if step == self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Writes the trace if one is running."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
