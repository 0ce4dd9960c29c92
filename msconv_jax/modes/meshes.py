"""Computations on meshes with explicit axes, where JAX has every array's sharding in its type.

``jax.make_mesh`` makes such meshes. JAX then refuses operations whose result could be sharded in several ways, such as
reshapes of sharded axes and the gradients of a kernel. The library's computations are of that kind inside, but not as a
whole: their results are sharded as their input is, as those of ``nnx.Conv`` are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def sharded_like(x: jax.Array, function: Callable[..., Any], *arrays: Any) -> Any:
    """``function(*arrays)``; on a mesh with explicit axes the compiler shards what is inside.

    Args:
        x: the array whose sharding the results take over, along their first axes.
        function: gives arrays, or a tree of them.
        *arrays: arrays, or trees of them.

    Returns:
        What `function` gives. Along each axis but the last it is sharded as `x` is, where the shards divide the axis;
        its last axis, of channels, is not sharded.
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
    """The number of shards along an axis that is sharded over these axes of the mesh."""
    names = names if isinstance(names, tuple) else () if names is None else (names,)
    return math.prod(mesh.shape[name] for name in names)
