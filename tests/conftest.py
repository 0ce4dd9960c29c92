"""What holds for all tests."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Compiled programs of one file are of no use to the next, and Linux gives a process 65,530 memory maps at most.

    A program takes several; thousands in one process end it in the middle of a compilation.
    """
    yield
    jax.clear_caches()
