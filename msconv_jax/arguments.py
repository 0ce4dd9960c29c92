# pyright: strict, reportUnnecessaryIsInstance=false
"""Checks of arguments, for every part of the library."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np

Padding = str | int | Sequence[int | tuple[int, int]]
Pads = tuple[tuple[int, int], ...]
# Paddings that repeat the image's pixels, as in ``nnx.Conv``, and jnp.pad's names for them.
BORDERS = {"CIRCULAR": "wrap", "REFLECT": "reflect"}


def check_positive(name: str, value: object, way_out: str) -> None:
    """Raises `ValueError` unless `value` is an integer of at least 1.

    Args:
        name: the argument's name, for the message.
        value: its value.
        way_out: what to do instead.

    Raises:
        ValueError: if `value` is not an integer or less than 1.

    Example:
        >>> check_positive("width", 16, "use 16")
        >>> check_positive("width", 0, "use 16")
        Traceback (most recent call last):
        ValueError: width=0: must be an integer of at least 1; use 16
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: must be an integer of at least 1; {way_out}")


def per_axis(name: str, values: int | Sequence[int] | None, ndim: int | None = None) -> tuple[int, ...]:
    """`values` as a tuple of positive ints, one per spatial axis.

    With `ndim`, an int applies to all axes and None means 1, as in ``nnx.Conv``.

    Raises:
        ValueError: if there are too few or too many, or one is not a positive int.
    """
    rule = "a tuple of positive ints, such as (3, 3)"
    if ndim is not None:
        rule = f"a positive int, or one for each of the {ndim} spatial axes"
    try:
        if isinstance(values, Sequence | np.ndarray):
            result = tuple(operator.index(value) for value in values)
        elif ndim is None or isinstance(values, bool):
            raise TypeError
        else:
            result = (1 if values is None else operator.index(values),) * ndim
    except TypeError:
        result = ()
    if not result or min(result) < 1 or len(result) != (ndim or len(result)):
        raise ValueError(f"{name}={values!r}: expected {rule}.")
    return result


def dilated_extent(kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Pixels from a kernel's first tap to its last, both included, along each spatial axis."""
    return tuple((size - 1) * int(gap) + 1 for size, gap in zip(kernel_size, dilation, strict=True))


def check_groups(in_features: int, out_features: int, feature_group_count: int) -> None:
    """Raises ValueError unless `feature_group_count` divides both channel counts."""
    for name, features in (("in_features", in_features), ("out_features", out_features)):
        if isinstance(features, bool) or not isinstance(features, int | np.integer) or features < 1:
            raise ValueError(f"{name}={features!r}: expected a positive int.")
    groups = feature_group_count
    if isinstance(groups, bool) or not isinstance(groups, int | np.integer) or groups < 1:
        raise ValueError(f"feature_group_count={groups!r}: expected a positive int.")
    if in_features % groups or out_features % groups:
        common = math.gcd(in_features, out_features)
        fitting = [g for g in range(1, common + 1) if common % g == 0]
        raise ValueError(
            f"feature_group_count={groups} does not divide in_features={in_features} and "
            f"out_features={out_features}: take one of {fitting}."
        )


def check_padding(padding: Padding, ndim: int) -> str | Pads:
    """`padding` in canonical form: an upper-case name, or a pair of ints per spatial axis.

    Raises:
        ValueError: if it is neither.
    """
    rule = (
        f"padding={padding!r}: expected 'SAME', 'SAME_LOWER', 'VALID', 'CIRCULAR', 'REFLECT', 'CAUSAL' (for one "
        f"spatial axis), an int, or for each of the {ndim} spatial axes an int or a pair of ints (before, after)."
    )
    if isinstance(padding, str):
        name = padding.upper()
        if name in ("SAME", "SAME_LOWER", "VALID", *BORDERS) or (name == "CAUSAL" and ndim == 1):
            return name
        if name == "CAUSAL":
            rule += " For several axes, pad the input with jnp.pad and use 'VALID'."
        raise ValueError(rule)
    try:
        if not isinstance(padding, Sequence):
            padding = (operator.index(padding),) * ndim
        pads: list[tuple[int, int]] = []
        for pad in padding:
            before, after = pad if isinstance(pad, Sequence) else (pad, pad)
            pads.append((operator.index(before), operator.index(after)))
    except (TypeError, ValueError):
        raise ValueError(rule) from None
    if len(pads) != ndim:
        raise ValueError(rule)
    return tuple(pads)


def base_pads(padding: Padding, spatial: Sequence[int], extent: Sequence[int], strides: Sequence[int]) -> Pads:
    """The width of the border before and after each spatial axis, for a kernel of the given extent."""
    padding = check_padding(padding, len(spatial))
    if not isinstance(padding, str):
        return padding
    if padding == "VALID":
        return ((0, 0),) * len(spatial)
    if padding in BORDERS:
        return tuple(((taps - 1) // 2, taps // 2) for taps in extent)
    if padding == "CAUSAL":
        return tuple((taps - 1, 0) for taps in extent)
    pads: list[tuple[int, int]] = []
    for size, taps, stride in zip(spatial, extent, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + taps - size, 0)
        small, large = total // 2, total - total // 2
        pads.append((large, small) if padding == "SAME_LOWER" else (small, large))
    return tuple(pads)


def output_size(spatial: Sequence[int], pads: Pads, extent: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Outputs of a kernel of the given extent along each spatial axis; 0 where the kernel exceeds the padded axis."""
    return tuple(
        max((size + sum(pad) - taps) // stride + 1, 0)
        for size, pad, taps, stride in zip(spatial, pads, extent, strides, strict=True)
    )


def zero_padding(padding: Padding, ndim: int, operator_name: str) -> Padding:
    """The padding, for an operator that pads with zeros only.

    Raises:
        ValueError: if it is malformed, "CIRCULAR", "REFLECT" or "CAUSAL".
    """
    if check_padding(padding, ndim) in (*BORDERS, "CAUSAL"):
        raise ValueError(
            f"padding={padding!r}: {operator_name} pads with zeros only; pad its inputs with jnp.pad and use 'VALID'."
        )
    return padding


def short_list(items: Sequence[object], most: int = 6) -> str:
    """The first `most` items as text, and how many there are.

    Example:
        >>> short_list(range(9))
        '0, 1, 2, 3, 4, 5, ... (9 in all)'
    """
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown}, ... ({len(items)} in all)"
