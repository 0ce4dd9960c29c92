"""Runs jobs beside each other, a process and a core for each, until they are done or time is up."""

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

_POLL_SECONDS = 0.5  # seconds between looks at the clock and for signals


class Job(NamedTuple):
    """What one process does.

    Attributes:
        name: for people.
        run: a function of a module, which gives the exit status: 0, or 128 + a signal's number after SIGTERM, upon
            which it must end soon and can be run again later.
        arguments: its arguments, which can be pickled.
        log: file for what it prints, added to what is there.
    """

    name: str
    run: Callable[..., int]
    arguments: tuple[Any, ...]
    log: Path


def cores() -> list[int]:
    """The cores that this process may use; one each of those that the system counts, where it does not say which."""
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
        jobs: what is to be done.
        processes: how many at a time.
        until: when `time.monotonic` reaches this, those that run are told to stop and no other begins.
        stopped_by: as soon as there is something in it, likewise.
        on_end: called after each job that ended by itself with its exit status and seconds; a negative status is the
            signal that killed it.

    Returns:
        How many jobs have not ended, or have never begun.
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
    """The whole life of a process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    # Else two would train in one folder when the parent was killed and its command is given again.
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
