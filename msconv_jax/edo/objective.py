"""The objective of the search: the error of each filter of a supernet's convolution for each choice of dilations.

The filter of dilation d samples ``(2 k + 1)^2`` of the ``(2 k d_max + 1)^2`` taps of the supernet's. The dilation of
each filter minimises the expected change of the output when the other taps are left out (Eqs. 2 to 4). With a constant
expected input this separates by filter,

    d[i] = argmin over d of || (W[i] - W_d[i]) * 1 ||_1,

where ``*`` is the layer's convolution: it sums over the input channels before the norm is taken, so the unsampled
weights of a filter may cancel.

* "sum", the default: Eq. (4) read literally, away from the borders, ``|sum of the unsampled weights|``.
* "same": the same with the layer's zero padding, summed over all positions; it depends on the size of the map.
* "abs": the sum of the unsampled weights' absolute values, an upper bound, the other reading.

The authors published no code that decides between them. The default follows Eq. (4), whose convolution is inside the
norm. Besides, trained large kernels are largest in their centres, so "abs" nearly always finds the dilations (1, 1),
while half of the filters of the published networks have others. The drawback of "sum": a filter whose weights sum to
zero on every grid, such as a difference of two neighbours, has equal errors for all dilations, and gets the smallest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import jax
import numpy as np
from jax.typing import ArrayLike

from msconv_jax.arguments import Padding, base_pads, dilated_extent, per_axis, zero_padding

__all__ = ["Objective", "best_dilations", "dilation_errors", "residual_masks"]

Objective = Literal["sum", "same", "abs"]


def dilation_errors(
    kernel: ArrayLike,
    kernel_size: Sequence[int],
    *,
    objective: Objective = "sum",
    map_size: Sequence[int] | None = None,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] | None = 1,
) -> np.ndarray:
    """The error of each filter of a supernet for each choice of dilations.

    Args:
        kernel: a supernet's kernel, ``(*large sizes, inputs of a group, out_features)``, each large size being
            ``(kernel_size - 1) * d_max + 1`` with one d_max for all axes.
        kernel_size: taps of the dilated kernel along each axis, odd.
        objective: "sum" for Eq. (4) as it stands, ``|sum of the unsampled weights|``; "same" for its sum over all
            positions of a zero-padded map of ones; "abs" for the sum of absolute weights. Constant factors are left
            out.
        map_size: for "same", pixels of the layer's input along each spatial axis.
        strides: for "same", pixels between outputs.
        padding: for "same", of the large kernel.
        kernel_dilation: for "same", pixels between the taps of the large kernel.

    Returns:
        float64 array ``(out_features, d_max, ..., d_max)``, one axis of dilations per spatial axis, from dilation 1 on.

    Raises:
        ValueError: if the sizes do not fit each other, the objective is not one of the three, or lacks the map's size.

    Source: Eqs. (2) to (4) of the paper.

    Example:
        >>> import numpy as np
        >>> from msconv_jax import edo
        >>> kernel = np.zeros((5, 5, 1, 1))
        >>> kernel[::2, 1:4] = 1.0  # taps of dilation 2 vertically, 1 horizontally
        >>> edo.dilation_errors(kernel, (3, 3))[0].tolist()
        [[6.0, 8.0], [0.0, 6.0]]
    """
    if objective not in get_args(Objective):
        raise ValueError(f"objective={objective!r}: expected one of {', '.join(get_args(Objective))}.")
    weights = np.asarray(jax.device_get(kernel))
    large = weights.shape[:-2]
    d_max = _d_max(large, kernel_size)
    # Over the inputs, (*large, out_features), before anything is converted: no second kernel in memory.
    per_tap = weights.sum(axis=-2, dtype=np.float64) if objective != "abs" else _sum_of_absolutes(weights)
    norm = _interior if objective != "same" else _with_borders(large, map_size, strides, padding, kernel_dilation)
    errors = np.empty((weights.shape[-1], *(d_max,) * len(large)))
    for dilations, left_out in residual_masks(large, kernel_size):
        place = tuple(d - 1 for d in dilations)
        errors[(slice(None), *place)] = norm(per_tap * left_out[..., None])
    return errors


def residual_masks(large: Sequence[int], kernel_size: Sequence[int]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """The unsampled taps of the large kernel for each choice of dilations, the smallest first.

    Args:
        large: taps of the large kernel along each axis.
        kernel_size: taps of the dilated kernel along each axis.

    Yields:
        The dilations, one int per axis, and a boolean array of the shape `large`.

    Example:
        >>> [mask.astype(int).tolist() for _, mask in residual_masks((5,), (3,))]
        [[1, 0, 0, 0, 1], [0, 1, 0, 1, 0]]
    """
    for dilations in itertools.product(range(1, _d_max(large, kernel_size) + 1), repeat=len(large)):
        left_out = np.ones(large, bool)
        left_out[np.ix_(*sampled_taps(large, kernel_size, dilations))] = False
        yield dilations, left_out


def sampled_taps(large: Sequence[int], kernel_size: Sequence[int], dilations: Sequence[int]) -> list[np.ndarray]:
    """The indices of the taps that a dilation samples around the centre of a large kernel, along each axis.

    Example:
        >>> [taps.tolist() for taps in sampled_taps((9, 9), (3, 3), (1, 4))]
        [[3, 4, 5], [0, 4, 8]]
    """
    return [n // 2 + d * (np.arange(k) - k // 2) for n, d, k in zip(large, dilations, kernel_size, strict=True)]


def best_dilations(errors: np.ndarray) -> np.ndarray:
    """The dilations of the smallest error for each filter; the smallest dilations among equals.

    Args:
        errors: ``(out_features, d_max, ..., d_max)``, as :func:`dilation_errors` gives them.

    Returns:
        int array ``(out_features, number of axes)``.

    Example:
        >>> import numpy as np
        >>> from msconv_jax import edo
        >>> edo.best_dilations(np.array([[[6.0, 8.0], [0.0, 6.0]]])).tolist()
        [[2, 1]]
    """
    flat = errors.reshape(len(errors), -1).argmin(axis=1)
    return np.stack(np.unravel_index(flat, errors.shape[1:]), axis=-1) + 1


def _d_max(large: Sequence[int], kernel_size: Sequence[int]) -> int:
    """The d_max that two kernel sizes imply."""
    sizes = per_axis("kernel_size", tuple(kernel_size), max(len(large), 1))
    spans = {(n - 1) / (size - 1) for n, size in zip(large, sizes, strict=True) if size > 1}
    (d_max,) = spans if len(spans) == 1 else (0.0,)
    lone = any(n != 1 for n, size in zip(large, sizes, strict=True) if size == 1)
    if d_max < 1 or d_max != int(d_max) or any(size % 2 == 0 for size in sizes) or lone:
        raise ValueError(
            f"kernel of {tuple(large)} taps for kernel_size={sizes}: expected odd sizes k, not all of them 1, and "
            "(k - 1) * d_max + 1 taps along every axis, with one whole d_max."
        )
    return int(d_max)


def _sum_of_absolutes(weights: np.ndarray) -> np.ndarray:
    total = np.zeros((*weights.shape[:-2], weights.shape[-1]))
    for number in range(weights.shape[-2]):  # one input at a time: no second kernel in memory
        total += np.abs(weights[..., number, :])
    return total


def _interior(unsampled: np.ndarray) -> np.ndarray:
    """The output where a map of ones has no border, for weights ``(*taps, out_features)``."""
    return np.abs(unsampled.sum(axis=tuple(range(unsampled.ndim - 1))))


def _with_borders(
    large: tuple[int, ...],
    map_size: Sequence[int] | None,
    strides: int | Sequence[int] | None,
    padding: Padding,
    kernel_dilation: int | Sequence[int] | None,
) -> Callable[[np.ndarray], np.ndarray]:
    """The sum over all positions of a zero-padded map of ones.

    An output is the sum of the taps that lie inside the map, a range along each axis. There are few different ranges,
    so each is summed once and counted.
    """
    if map_size is None:
        raise ValueError("objective='same' needs map_size, the pixels of the layer's input along each axis.")
    size = per_axis("map_size", tuple(map_size), len(large))
    step = per_axis("strides", strides, len(large))
    dilation = per_axis("kernel_dilation", kernel_dilation, len(large))
    extent = dilated_extent(large, dilation)
    pads = base_pads(zero_padding(padding, len(size), "the objective 'same'"), size, extent, step)
    inside, counts = [], []
    for taps, reach, factor, pixels, stride, (before, after) in zip(
        large, extent, dilation, size, step, pads, strict=True
    ):
        starts = np.arange(0, pixels + before + after - reach + 1, stride) - before
        if not len(starts):
            raise ValueError(
                f"map_size={size}: the map, padded by {pads}, is smaller than the kernel's {extent} pixels."
            )
        places = starts[:, None] + factor * np.arange(taps)
        ranges, number = np.unique((places >= 0) & (places < pixels), axis=0, return_counts=True)
        inside.append(ranges.astype(np.float64))
        counts.append(number)

    def norm(unsampled: np.ndarray) -> np.ndarray:
        outputs = unsampled
        for ranges in inside:  # contracts the first axis of taps; the new axis precedes the filters
            outputs = np.moveaxis(np.tensordot(ranges, outputs, axes=(1, 0)), 0, -2)
        total = np.abs(outputs)
        for number in counts:
            total = np.tensordot(number.astype(np.float64), total, axes=(0, 0))
        return total

    return norm
