import json
import signal
import socket
import time

import jax
import numpy as np
import pytest
from absl import flags

from tests.train.helpers import TINY_CONFIG, endings, free_port, processes, run_python
from train import __main__ as program
from train.config import parse_command_line
from train.engine.distributed import ProcessInfo, broadcast_from_main, define_flags, in_cluster, read_process_info
from train.errors import UserError


def place_of(*arguments, **environment):
    values = flags.FlagValues()
    define_flags(values)
    values(["train", *arguments])
    return read_process_info(values, environment)


def test_the_place_comes_from_flags_or_from_jaxs_variables():
    expected = ProcessInfo("10.0.0.1:8476", 4, 3)
    variables = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    arguments = ("--coordinator=10.0.0.1:8476", "--num_processes=4", "--process_id=3")
    assert place_of(*arguments) == expected
    assert place_of(**variables) == expected
    assert place_of(*arguments, JAX_COORDINATOR_ADDRESS="h:1", JAX_NUM_PROCESSES="9", JAX_PROCESS_ID="8") == expected
    assert place_of("--coordinator=[fe80::1]:80", "--num_processes=1", "--process_id=0") == ProcessInfo(
        "[fe80::1]:80", 1, 0
    )
    assert place_of() is None
    assert place_of(JAX_COORDINATOR_ADDRESS="h:1") is None  # a cluster environment sets the rest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_processes=2"], "--coordinator, --process_id is not given; give all of"),
        (["--coordinator=h:1", "--num_processes=2"], "--process_id is not given"),
        (["--coordinator=h", "--num_processes=2", "--process_id=0"], "--coordinator is 'h' but must be HOST:PORT"),
        (["--coordinator=h:0", "--num_processes=2", "--process_id=0"], "must be HOST:PORT"),
        (["--coordinator=h:65536", "--num_processes=2", "--process_id=0"], "must be HOST:PORT"),
        (["--coordinator=h:1", "--num_processes=0", "--process_id=0"], "--num_processes is 0 but must be at least 1"),
        (["--coordinator=h:1", "--num_processes=2", "--process_id=2"], "--process_id is 2 but must be from 0 to 1"),
        (["--coordinator=h:1", "--num_processes=2", "--process_id=-1"], "--process_id is -1"),
    ],
)
def test_wrong_places_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        place_of(*arguments)


def test_wrong_variables_are_refused():
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID is not given"):
        place_of(JAX_NUM_PROCESSES="2")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is 'two' but must be a whole number"):
        place_of(JAX_COORDINATOR_ADDRESS="h:1", JAX_NUM_PROCESSES="two", JAX_PROCESS_ID="0")


SLURM = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
ALONE = {"TPU_SKIP_MDS_QUERY": "1"}  # JAX sets it without a TPU


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (ALONE, False),
        ({**ALONE, **SLURM, "SLURM_NTASKS": "2"}, True),
        ({**ALONE, **SLURM, "SLURM_NTASKS": "1"}, False),
        ({**ALONE, "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}, False),  # a batch script without srun
        ({**ALONE, "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({**ALONE, "OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({**ALONE, "TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({**ALONE, "TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({**ALONE, "TPU_PROCESS_ADDRESSES": "a:1,b:1"}, True),
        ({**ALONE, "MEGASCALE_NUM_SLICES": "2"}, True),
        ({**ALONE, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ],
)
def test_launchers_are_known_by_their_environment(environment, expected):
    assert in_cluster(environment) is expected


def test_a_tpu_machine_is_asked(monkeypatch):
    for found in (None, object()):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=found: found if name == "libtpu" else None)
        assert in_cluster({}) is (found is not None)
        assert not in_cluster(ALONE)


def test_a_process_on_its_own_decides_alone():
    assert not jax.distributed.is_initialized()
    assert [broadcast_from_main(value) for value in (-1, 0, 2**31 - 1)] == [-1, 0, 2**31 - 1]


def test_the_flags_are_read_beside_the_config_and_shown_by_help(tmp_path, capsys):
    values = flags.FlagValues()
    define_flags(values)
    arguments = ["train", f"--config={TINY_CONFIG}", f"--workdir={tmp_path}", "--process_id=1", "--config.seed=4"]
    config, workdir = parse_command_line(arguments, "words", values=values)
    assert (config.seed, workdir, values["process_id"].value) == (4, tmp_path, 1)
    with pytest.raises(SystemExit):
        program.main(["train", "--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in ("coordinator", "num_processes", "process_id"))


CONNECT = """
import sys
from train.engine.distributed import ProcessInfo, connect
from train.errors import run_program

def main(argv):
    connect(ProcessInfo(argv[1], 2, int(argv[2])), timeout_seconds=2)
    return 0

run_program(main)
"""


@pytest.mark.parametrize("number", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_processes_that_never_come_are_not_waited_for_for_ever(number):
    coordinator = f"127.0.0.1:{free_port()}"
    run = run_python("-c", CONNECT, coordinator, number)
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: the processes did not come together at {coordinator} in 2 s; check that")
    assert run.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        run = run_python("-c", CONNECT, f"127.0.0.1:{port}", "0")
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: process 0 cannot have port {port} of --coordinator=127.0.0.1:{port} (Address")
    assert run.stderr.count("\n") == 1


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_close(found, expected):
    assert len(found) == len(expected) == 2
    for mine, other in zip(found, expected, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            np.testing.assert_allclose(mine[name], other[name], rtol=1e-5, err_msg=name)


def run_all(workdir, count, devices, *arguments):
    with processes(workdir, count, devices, *arguments) as started:
        ended = endings(started)
    for status, output in ended:
        assert status == 0, output
    return [output for _, output in ended]


@pytest.mark.slow
def test_two_processes_train_as_one(finished_run, tmp_path):
    outputs = run_all(tmp_path / "run", 2, 1, "--config.checkpoint_every=0")
    assert_close(records(tmp_path / "run"), records(finished_run))
    assert "2 cpu device(s) of 2 processes" in outputs[0]
    assert "epoch" not in outputs[1]
    assert "accuracy" not in outputs[1]


@pytest.mark.slow
def test_every_topology_trains_alike_and_goes_on_with_what_another_began(finished_run, tmp_path):
    # Enables everything that draws random numbers or splits a batch.
    settings = (
        "--config.task.mixup_alpha=0.2",
        "--config.optimizer.ema_decay=0.9",
        "--config.optimizer.accumulation_steps=2",
    )
    results = []
    for count, devices, shards in ((1, 4, 1), (2, 2, 2)):
        workdir = tmp_path / f"{count}x{devices}x{shards}"
        run_all(workdir, count, devices, f"--config.compute.shards={shards}", *settings)
        results.append((records(workdir), json.loads((workdir / "result.json").read_text())))
        assert_close(results[-1][0], results[0][0])
        assert results[-1][1] == pytest.approx(results[0][1], rel=1e-5)

    # One run on all topologies in turn: each stops after a step or two.
    workdir, topologies = tmp_path / "in turn", [(4, 1), (1, 4), (2, 2)]
    for number, (count, devices) in enumerate(topologies):
        stop = "import os, signal; from train.engine import loop; original, calls = loop.shard_batch, []\n"
        stop += "def stopping(*a):\n calls.append(1)\n"
        stop += " if len(calls) == 2 and jax.process_index() == jax.process_count() - 1:\n"
        stop += "  os.kill(os.getpid(), signal.SIGTERM)\n return original(*a)\n"
        stop = "import jax\n" + stop + "loop.shard_batch = stopping\n" if number < 2 else ""
        with processes(workdir, count, devices, "--config.compute.shards=2", before=stop) as started:
            ended = endings(started)
        assert {status for status, _ in ended} <= {0, 143}, ended
        if number:
            assert "going on from the checkpoint of step" in ended[0][1] or "is finished" in ended[0][1]
    assert_close(records(workdir), records(finished_run))


FAILING = """
import jax
from train.engine import loop
from train.errors import UserError
original, calls = loop.shard_batch, []
def failing(*arguments):
    calls.append(1)
    if len(calls) == 3 and jax.process_index() == 1:
        raise {error}
    return original(*arguments)
loop.shard_batch = failing
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "sentence"),
    [("UserError('this will not do')", "this will not do"), ("KeyError('a bug')", "KeyError: 'a bug'")],
)
def test_the_failure_of_one_process_ends_all(error, sentence, tmp_path):
    before = FAILING.format(error=error)
    with processes(tmp_path / "run", 2, 1, before=before) as started:
        (first, first_output), (second, second_output) = endings(started, seconds=240)
    assert (first, second) == (1, 1)
    assert f"error: process 1 has ended: {sentence}" in first_output
    assert sentence.split(": ")[-1] in second_output
    assert ("Traceback" in second_output) is ("KeyError" in error)
    assert "Traceback" not in first_output


def wait_for_epoch(workdir, started):
    latest = time.monotonic() + 240
    while not ((workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").read_text()):
        assert time.monotonic() < latest
        assert all(process.poll() is None for process in started)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_a_signal_to_one_process_stops_all_after_the_same_step(number, to, tmp_path):
    arguments = ("--config.epochs=2000", "--config.checkpoint_every=0")
    with processes(tmp_path / "run", 2, 1, *arguments) as started:
        wait_for_epoch(tmp_path / "run", started)
        started[to].send_signal(number)
        (first, output), (second, _) = endings(started, seconds=240)
    assert (first, second) == (143, 143), output
    (line,) = [line for line in output.splitlines() if line.startswith("stopped by SIGTERM after step ")]
    step = int(line.split()[5])
    assert (tmp_path / "run" / "checkpoints" / str(step) / "manifest.json").exists()
    assert "on each of the 2 processes with its own id" in line
    with processes(tmp_path / "run", 1, 2, *arguments) as started:
        time.sleep(0.1)
        wait_for = f"going on from the checkpoint of step {step} of 10000"
        for line in started[0].stdout:
            if wait_for in line:
                break
        else:
            pytest.fail(wait_for)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_does_not_leave_the_other_hanging(victim, tmp_path):
    with processes(tmp_path / "run", 2, 1, "--config.epochs=2000") as started:
        wait_for_epoch(tmp_path / "run", started)
        started[victim].kill()
        ended = endings(started, seconds=300)  # JAX gives up 100 s after the last heartbeat
    assert ended[victim][0] == -signal.SIGKILL
    status, output = ended[1 - victim]
    assert status in (1, -signal.SIGABRT)
    assert "has lost another one" in output or "another task died" in output
