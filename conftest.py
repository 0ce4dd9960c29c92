"""What holds for all tests, the documentation's examples included."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Compiled programs of one file are of no use to the next, and Linux gives a process 65,530 memory maps at most.

    A program takes several; thousands in one process end it in the middle of a compilation.
    """
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _quick_compilation(request):
    """Most of the time is LLVM's: quick tests leave out its optimisations, slow ones are compiled as users compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("slow") is None)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
