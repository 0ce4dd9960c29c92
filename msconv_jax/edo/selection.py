"""Selects dilations from a trained supernet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from msconv_jax.convolution import convolve
from msconv_jax.edo.inputs import input_shapes
from msconv_jax.edo.objective import Objective, best_dilations, dilation_errors, residual_masks
from msconv_jax.edo.patterns import Patterns
from msconv_jax.edo.supernet import SupernetConv, supernet_convs

__all__ = ["Axes", "Per", "errors", "select"]

Per = Literal["filter", "layer"]
Axes = Literal["both", "tied"]


def select(
    supernet: nnx.Module,
    objective: Objective = "sum",
    per: Per = "filter",
    axes: Axes = "both",
    *,
    input_shape: Sequence[int] | None = None,
    expected: Mapping[str, ArrayLike] | None = None,
) -> Patterns:
    """Selects the dilations of each filter of a trained supernet by the paper's statistical optimisation.

    Args:
        supernet: a trained supernet.
        objective: "sum", "same" or "abs": see :mod:`msconv_jax.edo.objective`.
        per: "filter", or "layer" for the same dilations in all filters of a convolution, with the smallest total error
            (the paper's ablation "sl", Table 9).
        axes: "both", or "tied" for equal dilations along all axes (the ablation "1d").
        input_shape: for "same", ``(*spatial, channels)`` of the network's images.
        expected: the expected input of each convolution, from :func:`msconv_jax.edo.expected_inputs`. The objective is
            then the norm of Eq. (3) over all positions, without the assumption of a constant expectation. `objective`
            must be "same"; the expected inputs replace its map of ones.

    Returns:
        A dictionary from the path of each searched convolution to the dilations ``[d_h, d_w]`` of each filter, in units
        of its `kernel_dilation`. Among equal errors the smallest dilations are selected, the first axis first. Plain
        data, ready for ``json.dump`` and :func:`msconv_jax.edo.rewrite`.

    Raises:
        ValueError: for unknown arguments, missing arguments of the objective, or weights that are not finite.

    Source: Sec. 3.2 of the paper, Eqs. (2) to (4), and Table 9.

    Example:
        >>> from msconv_jax import edo
        >>> supernet = edo.supernet(nnx.Sequential(nnx.Conv(4, 2, (3, 3), rngs=nnx.Rngs(0))), d_max=4)
        >>> conv = supernet.layers[0]
        >>> conv.kernel[...] = jnp.zeros((9, 9, 4, 2)).at[::4, 3:6].set(1.0)
        >>> edo.select(supernet)
        {'layers.0': [[4, 1], [4, 1]]}
    """
    for name, value, known in (("per", per, get_args(Per)), ("axes", axes, get_args(Axes))):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}.")
    patterns = {}
    for path, lost in errors(supernet, objective, input_shape=input_shape, expected=expected).items():
        if not np.isfinite(lost).all():
            raise ValueError(f"{path} has weights or inputs that are not finite numbers: its training has diverged.")
        filters, ndim = len(lost), lost.ndim - 1
        if per == "layer":
            lost = lost.sum(axis=0, keepdims=True)
        if axes == "tied":
            diagonal = np.full_like(lost, np.inf)
            places = (slice(None), *(np.arange(lost.shape[1]),) * ndim)
            diagonal[places] = lost[places]
            lost = diagonal
        best = best_dilations(lost)
        patterns[path] = np.broadcast_to(best, (filters, ndim)).tolist()
    return patterns


def errors(
    supernet: nnx.Module,
    objective: Objective = "sum",
    *,
    input_shape: Sequence[int] | None = None,
    expected: Mapping[str, ArrayLike] | None = None,
) -> dict[str, np.ndarray]:
    """The error of each filter of a supernet for each choice of dilations; :func:`select` takes the smallest.

    Args:
        supernet: a trained supernet.
        objective: see :func:`select`.
        input_shape: see :func:`select`.
        expected: see :func:`select`.

    Returns:
        A dictionary from the path of each searched convolution to a float array ``(out_features, d_max, ..., d_max)``;
        index 0 is dilation 1. Constant factors of a convolution are omitted.

    Raises:
        ValueError: see :func:`select`.

    Source: Eqs. (2) to (4) of the paper.

    Example:
        >>> from msconv_jax import edo
        >>> supernet = edo.supernet(nnx.Sequential(nnx.Conv(4, 8, (3, 3), rngs=nnx.Rngs(0))), d_max=2)
        >>> edo.errors(supernet)["layers.0"].shape
        (8, 2, 2)
    """
    convs = supernet_convs(supernet)
    if expected is not None:
        if objective != "same":
            raise ValueError(
                f"objective={objective!r} with expected inputs: use 'same', whose map of ones they replace."
            )
        missing = [path for path in convs if path not in expected]
        if missing:
            raise ValueError(f"expected has no input for {missing[0]!r}: measure them all with edo.expected_inputs.")
        return {path: _measured_errors(conv, path, jnp.asarray(expected[path])) for path, conv in convs.items()}
    if objective != "same":
        return {path: dilation_errors(_kernel(c), c.base_kernel_size, objective=objective) for path, c in convs.items()}
    if input_shape is None:
        raise ValueError("objective='same' needs input_shape=(height, width, channels) of the network's images.")
    shapes = input_shapes(supernet, input_shape)
    return {
        path: dilation_errors(
            _kernel(conv),
            conv.base_kernel_size,
            objective="same",
            map_size=shapes[path][:-1],
            strides=conv.strides,
            padding=conv.padding,
            kernel_dilation=conv.kernel_dilation,
        )
        for path, conv in convs.items()
    }


def _kernel(conv: SupernetConv) -> jax.Array:
    return conv.kernel[...]


def _measured_errors(conv: SupernetConv, path: str, expected: jax.Array) -> np.ndarray:
    """The norm of Eq. (3): of an expected input convolved with the taps that each dilation leaves unsampled."""
    kernel, large = _kernel(conv), conv.kernel_size
    ndim = len(large)
    if expected.ndim != ndim + 1 or expected.shape[-1] != conv.in_features:
        raise ValueError(
            f"the expected input of {path!r} has shape {expected.shape}: expected {ndim} spatial axes and "
            f"{conv.in_features} channels."
        )

    @jax.jit
    def lost(kernel: jax.Array, left_out: jax.Array) -> jax.Array:
        outputs = convolve(
            expected[None].astype(jnp.float32),
            kernel.astype(jnp.float32) * left_out.reshape(*large, 1, 1),
            conv.strides,
            conv.padding,
            kernel_dilation=conv.kernel_dilation,
            feature_group_count=conv.feature_group_count,
            precision=jax.lax.Precision.HIGHEST,
        )
        return jnp.abs(outputs).sum(axis=tuple(range(ndim + 1)))

    result = np.empty((conv.out_features, *(conv.d_max,) * ndim))
    for dilations, left_out in residual_masks(large, conv.base_kernel_size):
        result[(slice(None), *(d - 1 for d in dilations))] = lost(kernel, jnp.asarray(left_out, jnp.float32))
    return result
