"""One row for each operator: how the tests of all operators build it. A test file lists its operators' in `ROWS`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import tests.operators

IMAGE = jax.random.normal(jax.random.key(0), (2, 8, 6, 8))
SPATIAL = {"kernel_size": (3, 3)}


class Row(NamedTuple):
    """How the tests build an operator.

    Attributes:
        operator: its class.
        linen: arguments of the Linen form, besides the features.
        inputs: inputs of the Linen form, with 8 channels in.
        settings: of a drop-in, the arguments, besides those of ``nnx.Conv``, under which it keeps the contract. There
            are at least two; features and kernels are those of `test_contract.build`.
        plain: of a drop-in, the arguments that make it the plain convolution; None if there are none.
    """

    operator: Any
    linen: Mapping[str, Any]
    inputs: tuple[Any, ...] = (IMAGE,)
    settings: Sequence[dict[str, Any]] = ()
    plain: dict[str, Any] | None = None


def rows() -> list[Row]:
    """The rows of all test files beside this one."""
    names = [module.name for module in pkgutil.iter_modules(tests.operators.__path__, "tests.operators.")]
    names = [name for name in names if name.rpartition(".")[2] not in ("rows", "test_contract", "test_borders")]
    return [row for name in names for row in getattr(importlib.import_module(name), "ROWS", ())]


NODES = jax.random.normal(jax.random.key(4), (5, 8))
EDGES = jnp.ones((5, 5)) / 5
LOW = jax.random.normal(jax.random.key(1), (2, 4, 3, 4))
GUIDE = jax.random.normal(jax.random.key(2), (2, 8, 6, 3))
FINE = jax.random.normal(jax.random.key(3), (2, 16, 12, 3))
