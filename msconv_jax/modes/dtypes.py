"""The dtype of each computation.

With ``jax_numpy_dtype_promotion`` set to "strict", JAX refuses to mix dtypes. The library applies JAX's standard rule
in either mode, as ``nnx.Conv`` does with a `dtype`, and casts the arrays explicitly.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def common_dtype(*arrays: jax.Array | DTypeLike) -> jnp.dtype:
    """The dtype that arrays or dtypes promote to by JAX's standard rule, also in strict mode.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> with jax.numpy_dtype_promotion("strict"):
        ...     common_dtype(jnp.bfloat16, jnp.ones((), jnp.float16))
        dtype('float32')
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(jnp.result_type(*arrays))


def compute_dtype(x: jax.Array, *others: jax.Array) -> jnp.dtype:
    """The dtype of the computation: that of half-precision `x`, else what all arrays promote to.

    Example:
        >>> import jax.numpy as jnp
        >>> compute_dtype(jnp.ones(3, jnp.bfloat16), jnp.ones(3)), compute_dtype(jnp.ones(3), jnp.ones(3, jnp.bfloat16))
        (dtype(bfloat16), dtype('float32'))
    """
    return x.dtype if x.dtype in (jnp.bfloat16, jnp.float16) else common_dtype(x, *others)


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of sums: at least float32, so that half precision is rounded once.

    Example:
        >>> import jax.numpy as jnp
        >>> wide_dtype(jnp.bfloat16), wide_dtype(jnp.float64)
        (dtype('float32'), dtype('float64'))
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(jnp.promote_types(dtype, jnp.float32))
