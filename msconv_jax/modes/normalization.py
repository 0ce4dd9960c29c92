"""Batch normalisation as ``nnx.BatchNorm``, in every mode of JAX's dtype promotion."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx


class BatchNorm(nnx.BatchNorm):
    """``nnx.BatchNorm``, which also normalises half precision where ``jax_numpy_dtype_promotion`` is "strict".

    ``nnx.BatchNorm`` computes the statistics of half-precision maps in float32 and relies on JAX's standard promotion
    to mix the two dtypes, which the strict mode refuses. The numbers are the same in both modes.

    Args:
        num_features: number of channels.
        rngs: for the initial values.
        **options: the other arguments of ``nnx.BatchNorm``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax.modes.normalization import BatchNorm
        >>> norm = BatchNorm(4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        >>> with jax.numpy_dtype_promotion("strict"):
        ...     norm(jnp.ones((2, 3, 3, 4))).dtype
        dtype(bfloat16)
    """

    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalises ``(*batch, num_features)``; arguments, result and errors are those of ``nnx.BatchNorm``."""
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, use_running_average, mask=mask)
