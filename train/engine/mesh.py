"""The mesh of devices of a run, and how arrays are sharded over it.

The mesh has two axes. A batch is sharded over both. Parameters, the optimiser's state and batch statistics are sharded
over "fsdp" and replicated along "data"; a step gathers them for its computations (`gather`).
"""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.errors import UserError
from train.task import Row

Tree = TypeVar("Tree")
BATCH_AXES = ("data", "fsdp")
_MIN_SHARDED = 2**10  # elements; gathering a smaller array costs more than replicas of it


def create_mesh(shards: int = 1) -> Mesh:
    """Creates the mesh over all devices of all processes; a parameter is sharded over `shards` of them.

    The devices of a process are neighbours: its part of a batch is one block (`train.data.batches`), and shards are
    gathered within a host where possible. `jax.make_mesh` does not guarantee this order on a TPU. Raises a `UserError`
    if `shards` does not divide the number of devices.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if len(devices) % shards:
        divisors = [str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise UserError(
            f"config.compute.shards is {shards} but must divide the number of devices, {len(devices)}; "
            f"{', '.join(divisors)} would do"
        )
    axis_types = (jax.sharding.AxisType.Auto,) * 2  # explicit axes break gradients of convolutions
    return Mesh(np.array(devices).reshape(-1, shards), BATCH_AXES, axis_types=axis_types)


def replicate(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Tree, mesh: Mesh) -> Tree:
    """Returns the sharding of every array of a state, or of a tree of shapes.

    An array is sharded over "fsdp" along its longest divisible axis, the last of equally long ones. Arrays without such
    an axis, or with fewer than 1024 elements, are replicated. Only the shape matters, so the optimiser's state of a
    parameter is sharded like the parameter.
    """
    shards = mesh.shape["fsdp"]

    def sharding(leaf: Any) -> NamedSharding:
        divisible = [axis for axis, length in enumerate(leaf.shape) if length % shards == 0]
        if shards == 1 or not divisible or np.prod(leaf.shape) < _MIN_SHARDED:
            return replicate(mesh)
        longest = max(divisible, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return jax.tree.map(sharding, state)


def gather(arrays: Tree, mesh: Mesh) -> Tree:
    """Gathers sharded arrays on every device, within a compiled function.

    A step gathers the parameters before it applies them, and the gradients afterwards. Without this, XLA may gather the
    activations of all images instead, or compute with parts of kernels.
    """
    return jax.lax.with_sharding_constraint(arrays, replicate(mesh))


def shard_arrays(arrays: Tree, mesh: Mesh) -> Tree:
    """Shards host arrays that are identical on every process; each device receives only its shard."""

    def place(array: Any, sharding: NamedSharding) -> jax.Array:
        values = np.asarray(array)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(place, arrays, state_shardings(arrays, mesh))


def shard_batch(batch: Row, mesh: Mesh) -> dict[str, jax.Array]:
    """Shards this process's part of a batch over its devices."""
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(rows)) for name, rows in batch.items()}
