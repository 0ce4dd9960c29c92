"""Runs a check on many damaged inputs: none may crash, hang, use much memory or raise an unexpected error.

A fuzzer is a module that defines a `Fuzzer` and ends with

    if __name__ == "__main__":
        sys.exit(main(FUZZER, sys.argv[1:]))

``python -m tests.fuzz.NAME --count=10000 --seed=0`` then runs 10,000 inputs in a separate process, which restarts after
a crash. It saves every failing input in ``--out``; the exit status is 1 if there is one. Input n of a seed is always
the same: ``--count=1 --first=N`` repeats one.

A quick test calls `failures`, which runs inputs in the same process and checks for unexpected errors and slowness only.
"""

import argparse
import queue
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

SECONDS = 5.0  # processor time per input
IDLE_SECONDS = 60.0  # wall time per input, for a busy machine
MEMORY = 2**30  # bytes; largest growth of the process's peak per input
_ADDRESSES = 2**32  # bytes; largest growth of the address space
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


class Fuzzer(NamedTuple):
    """A fuzzed check.

    Attributes:
        name: name for files and messages.
        make: makes an input from a random generator, its only source of randomness.
        check: processes an input; its result is ignored.
        allowed: the expected errors for a rejected input.
    """

    name: str
    make: Callable[[np.random.Generator], bytes]
    check: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]

    def input(self, seed: int, number: int) -> bytes:
        """Makes the input with this seed and number."""
        return self.make(np.random.default_rng((seed, number)))


def failures(fuzzer: Fuzzer, count: int, seed: int = 0) -> list[str]:
    """Runs inputs in this process; describes those with unexpected errors or too much time."""
    found = []
    for number in range(count):
        data, start = fuzzer.input(seed, number), time.process_time()
        try:
            fuzzer.check(data)
        except fuzzer.allowed:
            pass
        except Exception as error:
            found.append(f"{fuzzer.name} {number}: {type(error).__name__}: {error}")
        if time.process_time() - start > SECONDS:
            found.append(f"{fuzzer.name} {number}: {time.process_time() - start:.1f} seconds")
    return found


def mutated(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Applies one to four mutations: flips bits, overwrites, truncates, removes, repeats or splices parts."""
    for _ in range(int(rng.integers(1, 5))):
        data = _MUTATIONS[int(rng.integers(len(_MUTATIONS)))](data, others, rng)
    return data


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Draws a position, with probability 1/2 among the first 64 bytes, the header."""
    end = min(len(data), 64) if rng.random() < 0.5 else len(data)
    return int(rng.integers(end + 1))


def _flip(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if changed:
            changed[min(_place(data, rng), len(data) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _number(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    size, place = int(rng.choice((1, 2, 4, 8))), _place(data, rng)
    value = EXTREMES[int(rng.integers(len(EXTREMES)))] % 256**size
    order = "little" if rng.random() < 0.5 else "big"
    return data[:place] + value.to_bytes(size, order) + data[place + size :]


def _cut(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)]


def _remove(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    first, last = sorted((_place(data, rng), _place(data, rng)))
    return data[:first] + data[last:]


def _repeat(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    first, last = sorted((_place(data, rng), _place(data, rng)))
    times = int(rng.choice((2, 3, 100))) if last - first < 1000 else 2
    return data[:first] + data[first:last] * times + data[last:]


def _splice(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    other = others[int(rng.integers(len(others)))] if others else data
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def _fill(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    place, count = _place(data, rng), int(rng.integers(1, 64))
    return data[:place] + rng.bytes(count) + data[place + count :]


_MUTATIONS = (_flip, _flip, _number, _number, _cut, _remove, _repeat, _splice, _fill)


def edited(values: Any, texts: Sequence[str], rng: np.random.Generator) -> Any:
    """Changes one value in a JSON object: its number, its text (from `texts`), type, key or depth."""
    if isinstance(values, dict | list) and values and rng.random() < 0.85:
        places = list(values) if isinstance(values, dict) else range(len(values))
        place: Any = places[rng.integers(len(places))]
        copy: Any = values.copy()
        if rng.random() < 0.1:
            del copy[place]
        elif rng.random() < 0.1 and isinstance(values, dict):
            copy[texts[rng.integers(len(texts))]] = copy.pop(place)
        else:
            copy[place] = edited(values[place], texts, rng)
        return copy
    number = EXTREMES[rng.integers(len(EXTREMES))] * int(rng.choice((1, -1)))
    deep: Any = values
    for _ in range(int(rng.choice((1, 10, 400)))):
        deep = [deep]
    others = (
        *(number, str(number), float(rng.normal()), None, True, [], {}, deep, [values] * 50, {"a": values}),
        *(texts[rng.integers(len(texts))] for _ in range(6)),
    )
    return others[rng.integers(len(others))]


def main(fuzzer: Fuzzer, argv: Sequence[str]) -> int:
    """Runs a fuzzer from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=f"Tries damaged inputs: {fuzzer.name}.")
    parser.add_argument("--count", type=int, default=10_000, help="number of inputs")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder for inputs that fail")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.worker:
        _work(fuzzer, given.seed, range(given.first, given.first + given.count))
        return 0
    failed, refused, slowest, most = 0, 0, 0.0, 0
    start = time.monotonic()
    for number, result in _results(given.seed, range(given.first, given.first + given.count)):
        if result.startswith("ok "):
            _, was_refused, seconds, memory = result.split()
            refused, slowest, most = refused + int(was_refused), max(slowest, float(seconds)), max(most, int(memory))
            continue
        failed += 1
        given.out.mkdir(parents=True, exist_ok=True)
        path = given.out / f"{fuzzer.name}-{given.seed}-{number}.bin"
        path.write_bytes(fuzzer.input(given.seed, number))
        print(f"{path}: {result}", flush=True)
    print(
        f"{fuzzer.name}: {given.count:,} inputs, {refused:,} refused, {failed} failures; at most {slowest:.2f} s "
        f"and {most / 2**20:,.0f} MiB for one; {time.monotonic() - start:,.0f} s in all",
        flush=True,
    )
    return 1 if failed else 0


def _results(seed: int, numbers: range) -> Iterator[tuple[int, str]]:
    """Yields the result of every input; restarts the worker process when it ends."""
    module = sys.modules["__main__"].__spec__
    assert module is not None, "run it as a module"
    left = numbers
    while left:
        command = [sys.executable, "-m", module.name, "--worker", f"--seed={seed}", f"--first={left[0]}"]
        command += [f"--count={len(left)}"]
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as worker,
        ):
            lines: queue.SimpleQueue[str] = queue.SimpleQueue()
            threading.Thread(target=_read_lines, args=(worker.stdout, lines), daemon=True).start()
            while left:
                try:
                    line = lines.get(timeout=IDLE_SECONDS)
                except queue.Empty:
                    line = None
                if not line:
                    if line is None:
                        worker.kill()
                    worker.wait()
                    errors.seek(0)
                    yield left[0], _ending(None if line is None else worker.returncode, errors.read())
                    left = left[1:]
                    break
                yield left[0], line
                left = left[1:]


def _read_lines(stream: IO[str], lines: "queue.SimpleQueue[str]") -> None:
    for line in stream:
        lines.put(line.strip())
    lines.put("")


def _ending(status: int | None, errors: str) -> str:
    if status is None:
        return f"hangs: more than {IDLE_SECONDS:.0f} s by the clock"
    if status == -signal.SIGPROF:
        return f"hangs: more than {SECONDS:.0f} s of processor time"
    return f"ends the process with status {status}: {' '.join(errors.split())[-300:]}"


def _work(fuzzer: Fuzzer, seed: int, numbers: range) -> None:
    """Runs inputs and prints a line for each; the parent process detects a crash."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _status("VmSize") + _ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in numbers:
        data = fuzzer.input(seed, number)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of memory
        before, start = _status("VmRSS"), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # the signal ends the process even in C code
        refused, problem = 0, ""
        try:
            fuzzer.check(data)
        except fuzzer.allowed:
            refused = 1
        except BaseException as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds, memory = time.process_time() - start, _status("VmHWM") - before
        if memory > MEMORY:
            problem = problem or f"takes {memory / 2**20:,.0f} MiB"
        print(problem or f"ok {refused} {seconds:.3f} {max(memory, 0)}", flush=True)


def _status(name: str) -> int:
    """Reads a memory size of this process from Linux, in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{name}:")[1].split()[0])
