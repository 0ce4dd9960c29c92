"""Poolings of maps, and the two rules by which published networks pad."""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from msconv_jax.modes.dtypes import wide_dtype

__all__ = ["PaddingRule", "average_pool", "check_padding_rule", "max_pool"]

# How a network pads: evenly, by half of each kernel, or by TensorFlow's "SAME", which at a stride of 2 and an even
# size pads less before than after. Both give maps of ceil(size / stride), shifted against each other.
PaddingRule = Literal["torch", "tf"]


def check_padding_rule(padding: str) -> None:
    """Raises `ValueError` unless `padding` is a `PaddingRule`.

    Example:
        >>> check_padding_rule("SAME")
        Traceback (most recent call last):
        ValueError: padding='SAME': must be 'torch' (half of each kernel on either side) or 'tf' (TensorFlow's SAME)
    """
    if padding not in get_args(PaddingRule):
        raise ValueError(
            f"padding={padding!r}: must be 'torch' (half of each kernel on either side) or 'tf' (TensorFlow's SAME)"
        )


def max_pool(
    x: Float[Array, "N H W C"],
    strides: int,
    padding: PaddingRule | Sequence[tuple[int, int]] = "torch",
    *,
    window: int = 3,
) -> Float[Array, "N h w C"]:
    """Computes the maximum over windows, without the padding.

    Args:
        x: maps (N, H, W, C).
        strides: pixels between windows.
        padding: "torch" centres the first window on pixel 0, "tf" is TensorFlow's "SAME"; or the padding before and
            after each axis.
        window: side of the windows.

    Returns:
        Maps (N, ceil(H / strides), ceil(W / strides), C), unless the padding is given in pixels.

    Example:
        >>> x = jnp.arange(36.0).reshape(1, 6, 6, 1)
        >>> max_pool(x, 2)[0, 0, :, 0].tolist(), max_pool(x, 2, "tf")[0, 0, :, 0].tolist()
        ([7.0, 9.0, 11.0], [14.0, 16.0, 17.0])
    """
    if padding == "torch":
        pairs = [(window // 2, window // 2)] * 2
    elif padding == "tf":
        pairs = lax.padtype_to_pads(x.shape[1:3], (window, window), (strides, strides), "SAME")
    else:
        pairs = padding
    # XLA fuses this padding with the pooling.
    padded = jnp.pad(x, [(0, 0), *pairs, (0, 0)], constant_values=-jnp.inf)
    return nnx.max_pool(padded, window_shape=(window, window), strides=(strides, strides), padding="VALID")


def average_pool(x: Float[Array, "N H W C"], window: int, strides: int) -> Float[Array, "N h w C"]:
    """Computes the mean over windows, the first one from pixel 0 on, cropped at the last row and column.

    Args:
        x: maps (N, H, W, C).
        window: side of the windows.
        strides: pixels between windows; the last window begins before the edge.

    Returns:
        Maps (N, ceil(H / strides), ceil(W / strides), C), of the same type.

    Example:
        >>> average_pool(jnp.arange(3.0).reshape(1, 1, 3, 1), 2, 2).ravel().tolist()
        [0.5, 2.0]
    """
    pairs, counts = [(0, 0)], []
    for size in x.shape[1:3]:
        starts = np.arange(0, size, strides)
        pairs.append((0, int(starts[-1]) + window - size))
        counts.append(np.minimum(starts + window, size) - starts)
    wide = jnp.pad(x.astype(wide_dtype(x.dtype)), [*pairs, (0, 0)])
    with jax.numpy_dtype_promotion("standard"):  # flax divides by an integer
        means = nnx.avg_pool(wide, window_shape=(window, window), strides=(strides, strides), padding="VALID")
    return (means * jnp.asarray(window**2 / np.outer(*counts)[None, :, :, None], wide.dtype)).astype(x.dtype)
