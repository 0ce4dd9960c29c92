"""Jobs for processes of their own, which start quickly because nothing large is imported here."""

import os
import signal
import time
from pathlib import Path

from studies.side_by_side import cores, run_side_by_side
from train.errors import UserError


def note(folder, name, seconds, status=0):
    """A job: notes when it began and ended, and on which cores."""
    began = time.time()
    print("hello from", name)
    time.sleep(seconds)
    Path(folder, name).write_text(f"{began} {time.time()} {len(cores())}")
    return status


def refuse():
    raise UserError("it cannot be; do something else")


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def stop_upon_sigterm(folder):
    """As a training: ends soon with 128 + 15."""
    stopped = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    Path(folder, "began").write_text(str(os.getpid()))
    while not stopped:
        time.sleep(0.01)
    Path(folder, "stopped").write_text("")
    return 128 + signal.SIGTERM


def collect(jobs, processes=2, until=float("inf"), stopped_by=()):
    told = []
    left = run_side_by_side(jobs, processes, until, stopped_by, lambda job, status, s: told.append((job.name, status)))
    return left, told
