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
from jax._src.distributed import global_state  # its key-value store has no public name
from jax.experimental import multihost_utils

from train.errors import UserError, explain

_FAILURE = "train/failure"  # key under which a process says why it ends


class Place(NamedTuple):
    """The place of this process, of number `process_id` from 0; others find process 0 at the address, HOST:PORT."""

    coordinator_address: str
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
    """Reads this process's place from the flags, or else from JAX's environment variables; None if neither gives one.

    If one of the three is missing or out of range, that is a `UserError`.
    """
    given: dict[str, Any] = {f"--{name}": values[name].value for name in ("coordinator", "num_processes", "process_id")}
    if all(value is None for value in given.values()):
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        given = {name: environment.get(name) for name in names}
        if given["JAX_NUM_PROCESSES"] is None and given["JAX_PROCESS_ID"] is None:
            return None  # an address alone goes with a cluster that JAX detects
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
    return Place(address, num_processes, process_id)


def in_cluster(environment: Mapping[str, str] = os.environ) -> bool:
    """Says whether a launcher started this process that `jax.distributed.initialize` can ask for its place.

    Only the environment is looked at: a process on its own neither touches the network nor waits.
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
        # TPU virtual machines, of one host or more: JAX sets this variable on machines without TPU chips.
        or ("TPU_SKIP_MDS_QUERY" not in environment and importlib.util.find_spec("libtpu") is not None)
    )


def connect(place: Place | None, timeout_seconds: int = 300) -> None:
    """Brings the processes of a run together; a process on its own goes on at once.

    Without a place of `read_place`, JAX finds it out where the process is `in_cluster`. Must come before anything that
    asks JAX for its devices; a second call does nothing. CPU devices talk by gloo, JAX's default. If the processes
    cannot come together, that is a `UserError`; if they do not in time, this one ends with a sentence.
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
    if place and place.process_id == 0:
        _check_port(place.coordinator_address)
    # JAX asks no cluster for a place that is given; devices are left to JAX_LOCAL_DEVICE_IDS.
    own: dict[str, Any] = {**place._asdict(), "cluster_detection_method": "deactivate"} if place else {}
    where = place.coordinator_address if place else "the coordinator that JAX found"
    advice = (
        "check that all of them were started, with the same coordinator and number and each with an id of its own, "
        "that process 0 runs on that host, and that no firewall holds the port"
    )

    def give_up() -> None:
        late = f"error: the processes did not come together at {where} in {timeout_seconds} s; {advice}"
        print(late, file=sys.stderr, flush=True)
        os._exit(1)

    # At its own timeout JAX aborts the process with a stack trace; this comes before.
    alarm = threading.Timer(timeout_seconds, give_up)
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(**own, initialization_timeout=timeout_seconds + 60)
    except (RuntimeError, ValueError, OSError, KeyError) as error:  # JAX's own errors are RuntimeErrors
        raise UserError(f"the processes cannot come together at {where} ({first_line(error)}); {advice}") from error
    finally:
        alarm.cancel()


def _check_port(address: str) -> None:
    # JAX's service crashes if it cannot have its port.
    port = int(address.rpartition(":")[2])
    try:
        socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError(
                f"process 0 cannot have port {port} of --coordinator={address} ({os.strerror(error.errno)}); "
                "name another to all processes"
            ) from error  # anything else, such as a host without IPv6, JAX may know better


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
        sentence = explain(error) or explain_lost(error)
        if sentence is None:
            traceback.print_exc()
            sentence = f"{type(error).__name__}: {first_line(error)}"
        else:
            print(f"error: {sentence}", file=sys.stderr)
        with contextlib.suppress(RuntimeError):  # another was first, or the store is gone with process 0
            store.key_value_set(_FAILURE, f"process {jax.process_index()} has ended: {sentence}")
        _leave(store)
    done.set()
    watcher.join()


def _watch(store: Any, done: threading.Event) -> None:
    while not done.wait(0.5):
        with contextlib.suppress(RuntimeError):  # no such key
            failure = store.key_value_try_get(_FAILURE)
            if not done.is_set():
                print(f"error: {failure}", file=sys.stderr)
                _leave(store)


def _leave(store: Any) -> NoReturn:
    """Ends the process at once: an orderly exit would wait for processes that wait for this one."""
    with contextlib.suppress(RuntimeError):  # some never come
        store.wait_at_barrier("train/leave", 5000)  # ms for the others to hear of the failure
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
        f"({first_line(error)}); start all processes again, and the run goes on from its latest checkpoint"
    )


def first_line(error: BaseException) -> str:
    """Gives the first line of a message, at most 200 characters of it, where libraries write many."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else line[:200] + " ..."
