"""Runs jobs in parallel, each in a process on one core, until they are done or time is up."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train.errors import run_program

_POLL_SECONDS = 0.5  # between checks of the clock and of signals


class Job(NamedTuple):
    """The job of one process.

    Attributes:
        name: for messages.
        run: a module-level function that returns the exit status: 0, or 128 + a signal's number. It must end soon after
            SIGTERM, and a later run resumes.
        arguments: its arguments; they must be picklable.
        log: the file to which its output is appended.
    """

    name: str
    run: Callable[..., int]
    arguments: tuple[Any, ...]
    log: Path


def cores() -> list[int]:
    """Returns the cores that this process may use; all cores if the system has no affinities."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def run_side_by_side(
    jobs: Sequence[Job],
    processes: int,
    until: float,
    stopped_by: Sequence[int],
    on_end: Callable[[Job, int, float], None],
) -> int:
    """Runs jobs, the first ones first.

    Args:
        jobs: the jobs.
        processes: the number of parallel jobs.
        until: at this `time.monotonic`, running jobs get SIGTERM and no other job starts.
        stopped_by: likewise as soon as it is not empty.
        on_end: called after each job that was not stopped, with its exit status and seconds; a negative status is the
            signal that killed it.

    Returns:
        The number of jobs that were stopped or have not started.
    """
    context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    waiting, free = deque(jobs), deque(cores()[:processes])
    running: dict[Any, tuple[Job, int, float]] = {}
    stopping, interrupted = False, 0
    while running or (waiting and not stopping):
        if not stopping and (stopped_by or time.monotonic() >= until):
            stopping = True
            for process in running:
                process.terminate()
        while waiting and free and not stopping:
            job, core = waiting.popleft(), free.popleft()
            process = context.Process(target=_work, args=(job, core), name=job.name)
            process.start()
            running[process] = (job, core, time.monotonic())
        multiprocessing.connection.wait([process.sentinel for process in running], timeout=_POLL_SECONDS)
        for process in [process for process in running if not process.is_alive()]:
            process.join()
            job, core, began = running.pop(process)
            free.append(core)
            if process.exitcode in (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT):
                interrupted += 1
            else:
                on_end(job, process.exitcode, time.monotonic() - began)
    return interrupted + len(waiting)


def _work(job: Job, core: int) -> None:
    """Runs a job on a core; the main function of a process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    # Otherwise two processes could train in one folder after the parent was killed and restarted.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_program(lambda argv: job.run(*job.arguments))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
