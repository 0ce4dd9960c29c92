"""Efficient dilation optimisation (EDO): which dilation keeps most of what a large kernel computes.

J. Liu et al.: "Inception Convolution with Efficient Dilation Search", CVPR 2021, Sec. 3.2. A supernet has kernels of
size ``2 k d_max + 1`` in place of ``2 k + 1``; the filter of dilation d samples ``(2 k + 1)^2`` of their taps. The
dilation of each filter minimises the expected change of the output when the other taps are left out (Eqs. 2 to 4).
With a constant expected input this separates by filter,

    d[i] = argmin over d of || (W[i] - W_d[i]) * 1 ||_1,

where ``*`` is the layer's convolution: it sums over the input channels before the norm is taken, so the unsampled
weights of a filter may cancel. That literal reading is ``objective="sum"``; ``"abs"`` is the other reading, the sum
of their absolute values.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import numpy as np
from jax.typing import ArrayLike

from msconv_jax.lattice import per_axis

Objective = Literal["sum", "abs"]


def dilation_errors(kernel: ArrayLike, kernel_size: Sequence[int], *, objective: Objective = "sum") -> np.ndarray:
    """What each filter of a supernet loses by each choice of dilations.

    Args:
        kernel: a supernet's kernel, ``(*large sizes, inputs of a group, out_features)``, each large size being
            ``(kernel_size - 1) * d_max + 1`` with one d_max for all axes.
        kernel_size: taps of the dilated kernel along each axis, odd.
        objective: "sum" for Eq. (4) as it stands, ``|sum of the unsampled weights|``; "abs" for the sum of their
            absolute values. Constant factors are left out.

    Returns:
        float64 array ``(out_features, d_max, ..., d_max)``, one axis of dilations per spatial axis, from dilation 1 on.

    Raises:
        ValueError: if the sizes do not fit each other, or the objective is not one of the two.

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
    weights = np.asarray(jax.device_get(kernel), np.float64)
    sizes = per_axis("kernel_size", tuple(kernel_size), max(weights.ndim - 2, 1))
    large = weights.shape[:-2]
    spans = {(n - 1) / (size - 1) if size > 1 else 0.0 for n, size in zip(large, sizes, strict=True)}
    (d_max,) = spans if len(spans) == 1 else (0.0,)
    if d_max < 1 or d_max != int(d_max) or any(size % 2 == 0 for size in sizes):
        raise ValueError(
            f"kernel of {large} taps for kernel_size={sizes}: expected odd sizes k and (k - 1) * d_max + 1 taps along "
            "every axis, with one whole d_max."
        )
    per_tap = weights if objective == "sum" else np.abs(weights)
    per_tap = per_tap.sum(axis=-2)  # over the inputs: (*large, out_features)
    choices = range(1, int(d_max) + 1)
    errors = np.empty((weights.shape[-1], *(len(choices),) * len(sizes)))
    for dilations in itertools.product(choices, repeat=len(sizes)):
        left_out = np.ones(large, bool)
        grid = [n // 2 + d * (np.arange(size) - size // 2) for n, d, size in zip(large, dilations, sizes, strict=True)]
        left_out[np.ix_(*grid)] = False
        errors[(slice(None), *(d - 1 for d in dilations))] = np.abs(per_tap[left_out].sum(axis=0))
    return errors


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
