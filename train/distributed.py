"""Several processes that train as one: how they find each other, agree, and end.

Launchers start the same command once on every host (or GPU); `connect` brings the processes together by
`jax.distributed`. From then on all must do the same steps, so whatever one process alone decides it tells the others,
and none may go its own way when something fails: they would wait for it for ever.
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
from jax._src import distributed as _jax_distributed  # its key-value store has no public name
from jax.experimental import multihost_utils

from train.errors import UserError, explain

_FLAGS = ("coordinator", "num_processes", "process_id")
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_FAILURE = "train/failure"  # key under which a process says why it ends
_SECONDS_FOR_OTHERS = 5  # that a failing process gives the others to hear of it


class Place(NamedTuple):
    """The place of this process among all.

    Attributes:
        coordinator: HOST:PORT of process 0, as the others reach it.
        num_processes: how many processes there are.
        process_id: the number of this one, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags that say where this process stands among several."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "of several processes: HOST:PORT of process 0. Slurm and TPU hosts need none of these three flags; "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do the same",
        flag_values=values,
    )
    flags.DEFINE_integer("num_processes", None, "of several processes: their number", flag_values=values)
    flags.DEFINE_integer("process_id", None, "of several processes: this one's, from 0", flag_values=values)


def read_place(values: flags.FlagValues, environment: Mapping[str, str] = os.environ) -> Place | None:
    """Reads this process's place from the flags, or else from JAX's environment variables.

    Returns:
        None if neither gives one.

    Raises:
        UserError: if one of the three is missing or out of range.
    """
    given: dict[str, Any] = {f"--{name}": values[name].value for name in _FLAGS}
    if all(value is None for value in given.values()):
        given = {name: environment.get(name) for name in _VARIABLES}
        if given["JAX_NUM_PROCESSES"] is None and given["JAX_PROCESS_ID"] is None:
            return None  # an address alone goes with a cluster that JAX detects
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise UserError(f"{', '.join(missing)} is not given; give all of {', '.join(given)}, or none for one process")
    (address, coordinator), (count_name, count), (id_name, number) = given.items()
    port = re.fullmatch(r"(?:\[[0-9a-fA-F:]+\]|[^:\s\[\]]+):([0-9]{1,5})", coordinator)
    if not port or not 1 <= int(port[1]) < 2**16:
        raise UserError(f"{address} is {coordinator!r} but must be HOST:PORT of process 0, such as 10.0.0.1:8476")
    num_processes, process_id = _whole(count_name, count), _whole(id_name, number)
    if num_processes < 1:
        raise UserError(f"{count_name} is {num_processes} but must be at least 1")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"{id_name} is {process_id} but must be from 0 to {num_processes - 1}, as {count_name} is {num_processes}"
        )
    return Place(coordinator, num_processes, process_id)


def _whole(name: str, value: int | str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise UserError(f"{name} is {value!r} but must be a whole number") from error


def in_cluster(environment: Mapping[str, str] = os.environ) -> bool:
    """Says whether a launcher started this process that `jax.distributed.initialize` can ask for its place.

    Only the environment is looked at: a process on its own neither touches the network nor waits. These are

    * Slurm, for steps (``srun``) of more than one task;
    * Open MPI's ``mpirun`` with more than one process;
    * TPU slices of several hosts under GKE (xpk), and several slices;
    * TPU virtual machines, of one host or more: JAX has set TPU_SKIP_MDS_QUERY on machines without TPU chips.
    """
    several = {name: environment.get(name, "") for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")}
    return (
        ("SLURM_STEP_NODELIST" in environment and _count(environment, "SLURM_NTASKS") > 1)
        or _count(environment, "OMPI_COMM_WORLD_SIZE") > 1
        or any("," in hosts for hosts in several.values())
        or bool(environment.get("TPU_PROCESS_ADDRESSES_PATH"))
        or _count(environment, "MEGASCALE_NUM_SLICES") > 1
        or ("TPU_SKIP_MDS_QUERY" not in environment and importlib.util.find_spec("libtpu") is not None)
    )


def _count(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    return int(value) if value.isascii() and value.isdecimal() else 0


def connect(place: Place | None, timeout_seconds: int = 300) -> None:
    """Brings the processes of a run together; a process on its own goes on at once.

    Must come before anything that asks JAX for its devices. A second call does nothing. CPU devices talk by gloo,
    JAX's default.

    Args:
        place: of `read_place`; None leaves it to JAX to find out, where `in_cluster`.
        timeout_seconds: how long to wait for the other processes.

    Raises:
        UserError: if they do not come together in that time.
    """
    if jax.distributed.is_initialized():
        return
    if place is None and not in_cluster():
        if "JAX_COORDINATOR_ADDRESS" in os.environ:
            raise UserError(
                "JAX_COORDINATOR_ADDRESS is set, but neither JAX_NUM_PROCESSES and JAX_PROCESS_ID nor a cluster says "
                "which process this is; set them too, or unset it for one process"
            )
        return
    own: dict[str, Any] = {}
    if place is not None:
        # Named, so that JAX asks no cluster; devices are left to JAX_LOCAL_DEVICE_IDS.
        own = {
            "coordinator_address": place.coordinator,
            "num_processes": place.num_processes,
            "process_id": place.process_id,
            "cluster_detection_method": "deactivate",
        }
        if place.process_id == 0:
            _check_port(place.coordinator)
    where = place.coordinator if place else "the coordinator that JAX found"
    advice = (
        "check that all of them were started, with the same coordinator and number and each with an id of its own, "
        "that process 0 runs on that host, and that no firewall holds the port"
    )

    def give_up() -> None:
        print(
            f"error: the processes did not come together at {where} in {timeout_seconds} s; {advice}", file=sys.stderr
        )
        sys.stderr.flush()
        os._exit(1)

    # At its own timeout JAX aborts the process with a stack trace; this comes before.
    alarm = threading.Timer(timeout_seconds, give_up)
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(**own, initialization_timeout=timeout_seconds + 60)
    except (RuntimeError, ValueError, OSError, KeyError) as error:  # JAX's own errors are RuntimeErrors
        raise UserError(f"the processes cannot come together at {where} ({_first_line(error)}); {advice}") from error
    finally:
        alarm.cancel()


def _check_port(coordinator: str) -> None:
    # JAX's service crashes if it cannot have its port.
    port = int(coordinator.rpartition(":")[2])
    try:
        with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True):
            pass
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError(
                f"process 0 cannot have port {port} of --coordinator={coordinator} ({os.strerror(error.errno)}); "
                "name another to all processes"
            ) from error  # anything else, such as a host without IPv6, JAX may know better


def is_connected() -> bool:
    """Says whether this process is one of several (or was told to be the only one of them)."""
    return jax.distributed.is_initialized()


def from_main(value: int) -> int:
    """Gives every process the number of process 0, and waits until all have asked; within 32 bits."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends all processes when one of them cannot go on, each with a sentence and exit status 1.

    The failing process tells the others, who look for such news every half second, wherever they are: most likely
    within a computation that waits for it. One that was killed tells nothing: computations that need it then fail where
    the network notices, and otherwise JAX ends all others 100 s after its last sign of life. A process on its own
    goes on with its exception.
    """
    if not is_connected():
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(done,), daemon=True)
    watcher.start()
    try:
        yield
    except BaseException as error:
        done.set()
        sentence = explain(error) or explain_lost(error)
        if sentence is None:
            traceback.print_exc()
            sentence = f"{type(error).__name__}: {_first_line(error)}"
        else:
            print(f"error: {sentence}", file=sys.stderr)
        with contextlib.suppress(RuntimeError):  # another was first, or the store is gone with process 0
            _client().key_value_set(_FAILURE, f"process {jax.process_index()} has ended: {sentence}")
        _leave()
    done.set()
    watcher.join()


def _client() -> Any:
    return _jax_distributed.global_state.client


def _watch(done: threading.Event) -> None:
    while not done.wait(0.5):
        try:
            failure = _client().key_value_try_get(_FAILURE)
        except RuntimeError:  # no such key
            continue
        if not done.is_set():
            print(f"error: {failure}", file=sys.stderr)
            _leave()


def _leave() -> NoReturn:
    """Ends the process at once: an orderly exit would wait for processes that wait for this one."""
    with contextlib.suppress(RuntimeError):  # some never come
        _client().wait_at_barrier("train/leave", _SECONDS_FOR_OTHERS * 1000)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def explain_lost(error: BaseException) -> str | None:
    """Puts an error into one sentence if it looks as if another process has gone; None otherwise."""
    signs = ("gloo", "connection", "unavailable", "deadline", "heartbeat", "coordination", "barrier")
    alone = jax.process_count() == 1
    if alone or isinstance(error, UserError) or not any(sign in str(error).lower() for sign in signs):
        return None
    return (
        f"process {jax.process_index()} has lost another one, which was killed or cannot be reached "
        f"({_first_line(error)}); start all processes again, and the run goes on from its latest checkpoint"
    )


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else line[:200] + " ..."
