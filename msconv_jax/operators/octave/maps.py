"""Maps of two frequencies, the inputs and outputs of octave convolutions: pooling, upsampling and mapped functions.

They are a pair ``(high, low)``, where a part without channels is None; maps without a low part are one array. The
convolution, and the paper's reference, are in :mod:`msconv_jax.operators.octave.octconv`.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from msconv_jax.modes.dtypes import wide_dtype
from msconv_jax.modes.meshes import sharded_like

Odd = Literal["ceil", "floor"]
Maps = ArrayLike | tuple[ArrayLike | None, ArrayLike | None]
OctArrays = jax.Array | tuple[jax.Array | None, jax.Array | None]
FREQUENCIES = ("high", "low")

T = TypeVar("T")


def oct_pool(x: jax.Array, ndim: int, odd: Odd = "ceil") -> jax.Array:
    """Halves the resolution by the mean over two pixels along every spatial axis.

    Args:
        x: ``(*batch, *spatial, channels)``.
        ndim: number of spatial axes.
        odd: "ceil" keeps the last pixel of an odd axis unchanged, "floor" drops it.

    Returns:
        ``(*batch, *halves, channels)``, in the dtype of `x` if this is a floating dtype, else in float32.

    Raises:
        ValueError: if "floor" leaves no pixel.

    Source: pool2 of Eq. (3); its index ``2 p + 0.5 + i`` denotes this mean.

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax.operators.octave.maps import oct_pool
        >>> oct_pool(jnp.array([[1.0], [3.0], [7.0]]), 1).ravel().tolist()
        [2.0, 7.0]
    """
    spatial = x.shape[-ndim - 1 : -1]
    size = halved_size(spatial, odd)
    if 0 in size and 0 not in spatial:
        raise ValueError(f"maps of size {spatial} have no pooled pixel with odd={odd!r}: take odd='ceil'.")
    return sharded_like(x, lambda x: _mean_of_pairs(x, size), x)


def _mean_of_pairs(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Pools to maps of this size."""
    ndim = len(size)
    spatial = x.shape[-ndim - 1 : -1]
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.dtype(jnp.float32)
    keep = [(0, 0, 0)] * (x.ndim - ndim - 1)  # the batch axes
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [*keep, *((0, 2 * half - n, 0) for half, n in zip(size, spatial, strict=True)), (0, 0, 0)],
    )
    # A sum over a reshaped array: XLA's windowed sums and their gradients are slow in half precision.
    x = x.reshape((*x.shape[: len(keep)], *(n for half in size for n in (half, 2)), x.shape[-1]))
    total = x.sum(tuple(len(keep) + 2 * axis + 1 for axis in range(ndim)), dtype=wide_dtype(dtype))
    weights = np.ones((1,) * total.ndim)
    for axis, (half, n) in enumerate(zip(size, spatial, strict=True)):
        of_axis = np.where(2 * np.arange(half) + 1 < n, 0.5, 1.0)  # 1 for an odd last pixel
        weights = weights * of_axis.reshape((-1,) + (1,) * (ndim - axis))
    return (total * jnp.asarray(weights, total.dtype)).astype(dtype)


def oct_upsample(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Doubles the resolution: repeats each pixel twice along every spatial axis and crops.

    Args:
        x: ``(*batch, *spatial, channels)``.
        size: the output's spatial size in pixels, twice that of `x` or one less.

    Returns:
        ``(*batch, *size, channels)``.

    Raises:
        ValueError: for another size.

    Source: up2 of Eq. (4), nearest neighbour as in the public codes.

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax.operators.octave.maps import oct_upsample
        >>> oct_upsample(jnp.array([[2.0], [7.0]]), (3,)).ravel().tolist()
        [2.0, 2.0, 7.0]
    """
    size, ndim = tuple(size), len(size)
    spatial, first = x.shape[-ndim - 1 : -1], x.ndim - ndim - 1
    if halved_size(size, "ceil") != spatial:
        raise ValueError(
            f"low maps of size {spatial} are {tuple(2 * n for n in spatial)} after upsampling, which does not fit high "
            f"maps of size {size}: odd='floor' cannot give odd sizes back; take odd='ceil', or even sizes."
        )

    def repeated(x: jax.Array) -> jax.Array:
        for axis, n in enumerate(size, first):
            x = lax.slice_in_dim(jnp.repeat(x, 2, axis), 0, n, axis=axis)
        return x

    return sharded_like(x, repeated, x)


def oct_map(function: Callable[[Any], T], maps: Any) -> T | tuple[T | None, T | None]:
    """Applies a function to each existing frequency.

    Args:
        function: of one array, such as an activation.
        maps: ``(high, low)``, with None for a part without channels, or one array.

    Returns:
        The results in the same form.

    Raises:
        ValueError: if `maps` is a tuple that is not a pair.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax.operators.octave.maps import oct_map
        >>> high, low = oct_map(nnx.relu, (-jnp.ones((4, 4, 3)), None))
        >>> float(high.max()), low
        (0.0, None)
    """
    if not is_pair(maps):
        return function(maps)
    high, low = (None if part is None else function(part) for part in maps)
    return high, low


def oct_channels(features: int, alpha: float, name: str = "alpha") -> tuple[int, int]:
    """Numbers of high and of low channels: low is ``int(alpha * features)``, as in the public codes.

    Args:
        features: number of channels.
        alpha: share of the low channels, in [0, 1].
        name: name of `alpha` in error messages.

    Raises:
        ValueError: if `alpha` is not a number in [0, 1].

    Example:
        >>> from msconv_jax.operators.octave.maps import oct_channels
        >>> oct_channels(30, 0.25)
        (23, 7)
    """
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not 0 <= alpha <= 1:
        raise ValueError(
            f"{name}={alpha!r}: expected a share of low-frequency channels in [0, 1], such as 0.5; 0 for none."
        )
    low = int(alpha * features)
    return int(features) - low, low  # nnx would treat NumPy ints as data


# --- pairs and their sizes ---


def halved_size(size: Sequence[int], odd: Odd) -> tuple[int, ...]:
    """The size of the low maps for high maps of this size."""
    return tuple(n // 2 if odd == "floor" else -(-n // 2) for n in size)


def is_pair(maps: Any) -> bool:
    """Whether `maps` is a pair, not one array.

    Raises:
        ValueError: for a tuple or list of another length.
    """
    if not isinstance(maps, tuple | list):
        return False
    if len(maps) != 2:
        raise ValueError(f"expected a pair (high, low) or one array, not a {type(maps).__name__} of {len(maps)}.")
    return True


def high_and_low(maps: Maps, split: tuple[int, int], ndim: int, user: str) -> tuple[jax.Array | None, jax.Array | None]:
    """The maps as ``(high, low)``, checked against the numbers of channels."""
    high_low: Sequence[ArrayLike | None]
    if isinstance(maps, tuple | list) and is_pair(maps):
        high_low = maps
    elif 0 in split:
        high_low = (maps, None) if split[0] else (None, maps)  # type: ignore[assignment]
    else:
        shape = jnp.shape(maps)  # type: ignore[arg-type]  # pairs are handled above
        raise ValueError(
            f"inputs are one array of shape {shape}: {user} expects a pair (high, low) with {split[0]} and {split[1]} "
            "channels; for plain maps, begin with a layer of alpha_in=0."
        )
    parts = [None if part is None else jnp.asarray(part) for part in high_low]
    for name, x, channels in zip(FREQUENCIES, parts, split, strict=True):
        if (x is None) != (channels == 0) or (x is not None and (x.ndim < ndim + 1 or x.shape[-1] != channels)):
            given = "missing" if x is None else f"of shape {x.shape}"
            spatial = f"{ndim} spatial axes" if ndim else "*spatial"
            wanted = f"(*batch, {spatial}, {channels} channels)" if channels else "None: it has no channels"
            raise ValueError(f"the {name} input is {given}: {user} expects {wanted}.")
    return parts[0], parts[1]


def joined_maps(high: jax.Array | None, low: jax.Array | None) -> OctArrays:
    """The pair, or only the high part if there is no low part."""
    return high if low is None and high is not None else (high, low)
