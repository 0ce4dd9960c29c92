"""Support for the modes of JAX: strict dtype promotion, meshes with explicit axes, pickling."""
