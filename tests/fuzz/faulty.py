"""A check with every kind of fault, for testing the driver."""

import os
import sys

import numpy as np

from tests.fuzz.driver import MEMORY, Fuzzer, main


def make(rng: np.random.Generator) -> bytes:
    """Draws one of six letters."""
    return b"acehmr"[rng.integers(6) :][:1]


def check(data: bytes) -> None:
    """Crashes, raises an unexpected error, hangs, uses much memory, or rejects the input."""
    if data == b"c":
        os.abort()
    if data == b"e":
        raise KeyError("lost")
    while data == b"h":
        pass
    if data == b"m":
        np.ones(MEMORY + 2**27, np.uint8)
    if data == b"r":
        raise ValueError("refused")


FUZZER = Fuzzer("faulty", make, check, (ValueError,))

if __name__ == "__main__":
    sys.exit(main(FUZZER, sys.argv[1:]))
