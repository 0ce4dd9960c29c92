"""Computations on meshes with explicit axes, where each array's sharding is part of its type.

``jax.make_mesh`` makes such meshes. JAX then refuses operations whose result could be sharded in several ways, such as
reshapes of sharded axes and the gradients of a kernel. The library's computations contain such operations, but their
results have the sharding of their input, like those of ``nnx.Conv``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def sharded_like(x: jax.Array, function: Callable[..., Any], *arrays: Any) -> Any:
    """``function(*arrays)``; on a mesh with explicit axes the compiler shards the computation.

    Args:
        x: the array whose sharding the results get.
        function: returns an array, or a tree of arrays.
        *arrays: arrays, or trees of arrays.

    Returns:
        The result of `function`. Each axis but the last is sharded like that of `x`, if the shards divide it; the last
        axis, of channels, is not sharded.
    """
    sharding = jax.typeof(x).sharding
    mesh = sharding.mesh
    if not mesh.explicit_axes:
        return function(*arrays)
    inside = mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, AxisType.Auto))

    def result(y: jax.Array) -> jax.Array:
        axes = zip(y.shape[:-1], sharding.spec[: y.ndim - 1], strict=False)
        spec = PartitionSpec(*(names if size % _shards(mesh, names) == 0 else None for size, names in axes))
        return jax.reshard(y, NamedSharding(mesh, spec))

    with jax.sharding.use_abstract_mesh(inside):
        free = jax.tree.map(lambda array: jax.reshard(array, NamedSharding(inside, PartitionSpec())), arrays)
        results = function(*free)
    return jax.tree.map(result, results)


def _shards(mesh: Any, names: Any) -> int:
    """The number of shards of an array's axis, by the axes of the mesh that it is sharded over."""
    names = names if isinstance(names, tuple) else () if names is None else (names,)
    return math.prod(mesh.shape[name] for name in names)
