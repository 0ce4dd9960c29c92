"""Jobs in processes of their own: how many at a time, what is told of them, and how they are stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from studies.side_by_side import Job, cores
from tests.studies.jobs import collect, kill_itself, note, refuse, stop_upon_sigterm

ROOT = Path(__file__).parents[2]


def test_all_are_done_with_a_core_each(tmp_path):
    jobs = [Job(name, note, (tmp_path, name, 0.3), tmp_path / f"{name}.txt") for name in ("a", "b", "c")]
    processes = min(2, len(cores()))
    left, told = collect(jobs, processes)
    assert left == 0
    assert sorted(told) == [("a", 0), ("b", 0), ("c", 0)]
    times = {name: (tmp_path / name).read_text().split() for name in ("a", "b", "c")}
    assert all(count == "1" for *_, count in times.values())
    spans = [(float(began), float(ended)) for began, ended, _ in times.values()]
    for began, _ in spans:
        assert sum(other <= began < end for other, end in spans) <= processes
    assert (tmp_path / "b.txt").read_text() == "hello from b\n"


def test_one_that_fails_is_told_and_the_others_go_on(tmp_path):
    jobs = [
        Job("refuses", refuse, (), tmp_path / "deep" / "refuses.txt"),
        Job("dies", kill_itself, (), tmp_path / "dies.txt"),
        Job("errs", note, (tmp_path, "errs", 0, 3), tmp_path / "errs.txt"),
        Job("works", note, (tmp_path, "works", 0), tmp_path / "works.txt"),
    ]
    left, told = collect(jobs)
    assert left == 0
    assert sorted(told) == [("dies", -signal.SIGKILL), ("errs", 3), ("refuses", 1), ("works", 0)]
    assert (tmp_path / "deep" / "refuses.txt").read_text() == "error: it cannot be; do something else\n"


def test_when_time_is_up_those_that_run_are_stopped_and_no_other_begins(tmp_path):
    jobs = [Job(name, note, (tmp_path, name, 60), tmp_path / "log.txt") for name in ("first", "second")]
    began = time.monotonic()
    assert collect(jobs, processes=1, until=began + 1) == (2, [])
    assert time.monotonic() - began < 30
    assert not (tmp_path / "first").exists()


def test_a_signal_stops_them_and_they_may_end_in_order(tmp_path):
    stopped_by = []

    def stop_when_it_began():
        wait_for((tmp_path / "began").exists)
        stopped_by.append(signal.SIGINT)

    thread = threading.Thread(target=stop_when_it_began)
    thread.start()
    assert collect([Job("job", stop_upon_sigterm, (tmp_path,), tmp_path / "log.txt")], stopped_by=stopped_by) == (1, [])
    thread.join()
    assert (tmp_path / "stopped").exists()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone tells of processes this way")
def test_they_end_with_their_parent(tmp_path):
    program = (
        "import pathlib; from tests.studies import jobs as t; from studies.side_by_side import Job\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "t.collect([Job('job', t.stop_upon_sigterm, (folder,), folder / 'log.txt')])\n"
    )
    main = tmp_path / "program.py"
    main.write_text(f"if __name__ == '__main__':\n    {program.replace(chr(10), chr(10) + '    ')}\n")
    parent = subprocess.Popen([sys.executable, str(main)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    began = tmp_path / "began"
    wait_for(lambda: began.exists() and began.read_text())
    parent.kill()
    parent.wait()
    wait_for((tmp_path / "stopped").exists)


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
