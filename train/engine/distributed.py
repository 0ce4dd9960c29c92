"""Training with several processes: how they connect, agree and stop.

A launcher starts the same command on every host (or GPU), and `connect` connects the processes by `jax.distributed`.
All processes must execute the same steps. So process 0 broadcasts its decisions, and an error in one process ends all
of them: otherwise they would wait for it for ever.
"""

import contextlib
import errno
import importlib.util
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from absl import flags
from jax._src.distributed import global_state  # JAX has no public name for its key-value store
from jax.experimental import multihost_utils

from train.errors import UserError, explain

_FAILURE = "train/failure"  # the key of the message of the first process that fails


class ProcessInfo(NamedTuple):
    """The arguments of `jax.distributed.initialize`: HOST:PORT of process 0, their number, and this one's index."""

    coordinator_address: str
    num_processes: int
    process_id: int


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags that identify this process among several."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "of several processes: HOST:PORT of process 0. Slurm and TPU hosts need none of these three flags; "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do the same",
        flag_values=values,
    )
    flags.DEFINE_integer("num_processes", None, "of several processes: their number", flag_values=values)
    flags.DEFINE_integer("process_id", None, "of several processes: this one's, from 0", flag_values=values)


def read_process_info(values: flags.FlagValues, environment: Mapping[str, str] = os.environ) -> ProcessInfo | None:
    """Reads the flags, or else JAX's environment variables; None if neither are set.

    Raises a `UserError` if one of the three values is missing or out of range.
    """
    given: dict[str, Any] = {f"--{name}": values[name].value for name in ("coordinator", "num_processes", "process_id")}
    if all(value is None for value in given.values()):
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        given = {name: environment.get(name) for name in names}
        if given["JAX_NUM_PROCESSES"] is None and given["JAX_PROCESS_ID"] is None:
            return None  # JAX detects a cluster, whose coordinator is at this address
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise UserError(f"{', '.join(missing)} is not given; give all of {', '.join(given)}, or none for one process")
    (address_name, address), (count_name, count), (id_name, number) = given.items()
    port = re.fullmatch(r"(?:\[[0-9a-fA-F:]+\]|[^:\s\[\]]+):([0-9]{1,5})", address)
    if not port or not 1 <= int(port[1]) < 2**16:
        raise UserError(f"{address_name} is {address!r} but must be HOST:PORT of process 0, such as 10.0.0.1:8476")
    for name, value in ((count_name, count), (id_name, number)):
        if not re.fullmatch("-?[0-9]+", str(value)):
            raise UserError(f"{name} is {value!r} but must be a whole number")
    num_processes, process_id = int(count), int(number)
    if num_processes < 1:
        raise UserError(f"{count_name} is {num_processes} but must be at least 1")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"{id_name} is {process_id} but must be from 0 to {num_processes - 1}, as {count_name} is {num_processes}"
        )
    return ProcessInfo(address, num_processes, process_id)


def in_cluster(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher that `jax.distributed.initialize` detects has started this process.

    Only the environment is checked: a single process needs no network and does not wait.
    """

    def several(name: str) -> bool:
        value = environment.get(name, "")
        return value.isascii() and value.isdecimal() and int(value) > 1

    return (
        # Slurm starts a step (`srun`) of several tasks, Open MPI (`mpirun`) several processes.
        ("SLURM_STEP_NODELIST" in environment and several("SLURM_NTASKS"))
        or several("OMPI_COMM_WORLD_SIZE")
        # Several TPU slices, or one of several hosts, under GKE (xpk).
        or several("MEGASCALE_NUM_SLICES")
        or any("," in environment.get(name, "") for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"))
        or bool(environment.get("TPU_PROCESS_ADDRESSES_PATH"))
        # TPU virtual machines; JAX sets TPU_SKIP_MDS_QUERY on machines without TPU chips.
        or ("TPU_SKIP_MDS_QUERY" not in environment and importlib.util.find_spec("libtpu") is not None)
    )


def connect(process: ProcessInfo | None, timeout_seconds: int = 300) -> None:
    """Connects the processes of a run; a single process returns at once.

    `process` comes from `read_process_info`; if it is None, JAX detects it where the process is `in_cluster`. Call this
    before anything asks JAX for its devices; a second call does nothing. CPU devices communicate by gloo, JAX's
    default. Raises a `UserError` if the processes cannot connect, and ends this process with a message if they do not
    connect in time.
    """
    if jax.distributed.is_initialized():
        return
    if process is None and not in_cluster():
        if "JAX_COORDINATOR_ADDRESS" in os.environ:
            raise UserError(
                "JAX_COORDINATOR_ADDRESS is set, but neither JAX_NUM_PROCESSES and JAX_PROCESS_ID nor a cluster says "
                "which process this is; set them too, or unset it for one process"
            )
        return
    if process and process.process_id == 0:
        _check_port(process.coordinator_address)
    # With explicit arguments JAX detects no cluster, and JAX_LOCAL_DEVICE_IDS chooses the devices.
    arguments: dict[str, Any] = {**process._asdict(), "cluster_detection_method": "deactivate"} if process else {}
    where = process.coordinator_address if process else "the coordinator that JAX found"
    advice = (
        "check that all of them were started, with the same coordinator and number and each with a different id, "
        "that process 0 runs on that host, and that no firewall holds the port"
    )

    def give_up() -> None:
        late = f"error: the processes did not come together at {where} in {timeout_seconds} s; {advice}"
        print(late, file=sys.stderr, flush=True)
        os._exit(1)

    # JAX's timeout aborts the process with a stack trace; this one comes first.
    alarm = threading.Timer(timeout_seconds, give_up)
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=timeout_seconds + 60)
    except (RuntimeError, ValueError, OSError, KeyError) as error:  # JAX's own errors are RuntimeErrors
        raise UserError(f"the processes cannot come together at {where} ({first_line(error)}); {advice}") from error
    finally:
        alarm.cancel()


def _check_port(address: str) -> None:
    # JAX's service crashes if its port is taken.
    port = int(address.rpartition(":")[2])
    try:
        socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError(
                f"process 0 cannot have port {port} of --coordinator={address} ({os.strerror(error.errno)}); "
                "name another to all processes"
            ) from error  # JAX may handle other errors, such as a host without IPv6


def broadcast_from_main(value: int) -> int:
    """Broadcasts an int32 of process 0 to all processes, which must call this together."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def abort_all_on_error() -> Iterator[None]:
    """Ends all processes with a message and exit status 1 when one of them raises an exception.

    The failing process publishes a message. A thread of every other process polls for it twice a second, because the
    main thread is most likely blocked in a computation. A killed process publishes nothing: computations that need it
    fail where the network notices, and otherwise JAX's heartbeat ends the other processes after 100 s. With a single
    process the exception propagates.
    """
    if not jax.distributed.is_initialized():
        yield
        return
    store: Any = global_state.client
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(store, done), daemon=True)
    watcher.start()
    try:
        yield
    except BaseException as error:
        done.set()
        sentence = explain(error) or describe_lost_process(error)
        if sentence is None:
            traceback.print_exc()
            sentence = f"{type(error).__name__}: {first_line(error)}"
        else:
            print(f"error: {sentence}", file=sys.stderr)
        with contextlib.suppress(
            RuntimeError
        ):  # another process was first, or process 0 has ended and the store with it
            store.key_value_set(_FAILURE, f"process {jax.process_index()} has ended: {sentence}")
        _exit_now(store)
    done.set()
    watcher.join()


def _watch(store: Any, done: threading.Event) -> None:
    while not done.wait(0.5):
        with contextlib.suppress(RuntimeError):  # no such key
            failure = store.key_value_try_get(_FAILURE)
            if not done.is_set():
                print(f"error: {failure}", file=sys.stderr)
                _exit_now(store)


def _exit_now(store: Any) -> NoReturn:
    """Ends the process at once: a normal exit would wait for processes that wait for this one."""
    with contextlib.suppress(RuntimeError):  # a process never arrives
        store.wait_at_barrier("train/leave", 5000)  # ms for the others to read the message
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def describe_lost_process(error: BaseException) -> str | None:
    """Describes an error in one sentence if another process seems to have ended; None otherwise."""
    signs = ("gloo", "connection", "unavailable", "deadline", "heartbeat", "coordination", "barrier")
    is_single = jax.process_count() == 1
    if is_single or isinstance(error, UserError) or not any(sign in str(error).lower() for sign in signs):
        return None
    return (
        f"process {jax.process_index()} has lost another one, which was killed or is unreachable "
        f"({first_line(error)}); start all processes again to resume from the latest checkpoint"
    )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, at most 200 characters of it."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else line[:200] + " ..."
