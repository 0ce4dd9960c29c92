"""The devices of a run: their mesh, and how arrays lie on it."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.data import Batch


def create_mesh() -> Mesh:
    """Gives the mesh with the one axis "data" over all devices of all processes."""
    axis_types = (jax.sharding.AxisType.Auto,)  # explicit axes break gradients of convolutions
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=axis_types)


def replicate(mesh: Mesh) -> NamedSharding:
    """Gives the sharding that keeps a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def to_devices(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Divides this process's part of a batch among its devices."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(values)) for name, values in batch.items()
    }
