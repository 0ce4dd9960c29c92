"""What lets the operators run in every mode of JAX: strict promotion, explicit meshes, pickling."""
