"""What holds for all tests, the documentation's examples included."""

import contextlib
from collections.abc import Iterator

import jax
import pytest
from jaxtyping import install_import_hook

import tests.array_types

# Before any test imports the library: the annotated arrays of these modules are checked in every call.
install_import_hook(
    tests.array_types.annotated_modules(), f"{tests.array_types.__name__}.{tests.array_types.check_arrays.__name__}"
)

# Under the strictest settings that users may choose: what is promoted silently would fail for them.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def _keep_compiled_programs(tmp_path_factory):
    """Files build the same small networks again and again: what one has compiled, the others read from disk."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Compiled programs of one file are of no use to the next, and Linux gives a process 65,530 memory maps at most.

    A program takes several; thousands in one process end it in the middle of a compilation.
    """
    yield
    jax.clear_caches()


# Their slow tests are sweeps over many arguments, a program for each.
SWEPT = ("operators", "models", "segmentation", "edo")


@contextlib.contextmanager
def _compiling(*, quickly: bool) -> Iterator[None]:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", quickly)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def _quick_compilation(request):
    """Most of the time is LLVM's: quick tests and sweeps leave out its optimisations, others compile as users do."""
    is_swept = request.path.parent.name in SWEPT
    is_quick = request.node.get_closest_marker("slow") is None or is_swept
    with _compiling(quickly=is_quick and request.node.get_closest_marker("optimised") is None):
        yield


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    """Programs compiled without LLVM's optimisations, for trainings that are compared with nothing."""
    with _compiling(quickly=True):
        yield
