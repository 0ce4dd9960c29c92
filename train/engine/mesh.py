"""The devices of a run: their mesh, and how arrays are divided over it.

The mesh has two axes. A batch is divided over both: every device computes other images. Parameters, and whatever goes
with them (the optimiser's state, running means), are divided over "fsdp" alone and copied along "data"; a step brings
the parts together (`collected`) for as long as it computes with them.
"""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.errors import UserError
from train.task import Row

Tree = TypeVar("Tree")
BATCH_AXES = ("data", "fsdp")
_SMALLEST_DIVIDED = 2**10  # elements; to collect the parts of a smaller array costs more than its copies


def create_mesh(shards: int = 1) -> Mesh:
    """Gives the mesh over all devices of all processes; a parameter is divided over `shards` of them.

    The devices of a process are neighbours: its part of a batch is one block (`train.data.batches`), and the parts of
    a parameter are collected within a host where they fit there. `jax.make_mesh` promises no such order on a TPU.
    Raises a `UserError` if `shards` does not divide the number of devices.
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
    """Gives the sharding that keeps a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Tree, mesh: Mesh) -> Tree:
    """Gives the sharding of every array of a state, or of a tree of shapes.

    An array is divided over "fsdp" along its longest axis that divides, the last of equals; one without such an axis,
    or with fewer than 1024 elements, is copied to all devices. The shape alone decides, so what an optimiser keeps for
    a parameter is divided as the parameter is.
    """
    shards = mesh.shape["fsdp"]

    def sharding(leaf: Any) -> NamedSharding:
        dividing = [axis for axis, length in enumerate(leaf.shape) if length % shards == 0]
        if shards == 1 or not dividing or np.prod(leaf.shape) < _SMALLEST_DIVIDED:
            return replicate(mesh)
        longest = max(dividing, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return jax.tree.map(sharding, state)


def collected(arrays: Tree, mesh: Mesh) -> Tree:
    """Within a compiled function, has every device hold arrays in full.

    Parameters that are divided must pass here before images meet them, and their gradients afterwards: left to itself,
    XLA in places collects the activations of all images instead, or computes with pieces of kernels.
    """
    return jax.lax.with_sharding_constraint(arrays, replicate(mesh))


def to_mesh(arrays: Tree, mesh: Mesh) -> Tree:
    """Shards host arrays that are identical on every process; each device receives only its shard."""

    def place(array: Any, sharding: NamedSharding) -> jax.Array:
        values = np.asarray(array)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(place, arrays, state_shardings(arrays, mesh))


def to_devices(batch: Row, mesh: Mesh) -> dict[str, jax.Array]:
    """Divides this process's part of a batch among its devices."""
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(rows)) for name, rows in batch.items()}
