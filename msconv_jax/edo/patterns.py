# pyright: strict
"""Patterns: the dilations of a network's filters as plain data, and their published form.

A pattern lists the dilations ``[d_h, d_w]`` of each filter of a convolution. The patterns of a network are a dictionary
from the paths of its convolutions to patterns. A published file is a list with one dictionary per convolution, in the
order of construction: ``{"(p, q)": count}`` means that ``count`` filters have the dilations ``(p + 1, q + 1)``.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from msconv_jax.arguments import check_groups
from msconv_jax.operators.icconv import Pattern, dilations_of_filters

__all__ = ["Patterns", "by_path", "published_patterns", "rearranged"]

Patterns = dict[str, list[list[int]]]


def published_patterns(patterns: Mapping[str, Sequence[Sequence[int]]], d_max: int) -> list[dict[str, int]]:
    """Converts patterns to the published form, which counts the filters with each pair of dilations.

    Args:
        patterns: the dilations of each filter, by the convolution's path, in the order of construction.
        d_max: the largest dilation of the search. Every pair up to it gets a key, also with count zero.

    Returns:
        One dictionary per convolution, ready for ``json.dump``.

    Raises:
        ValueError: if a dilation is larger than `d_max`.

    Source: the pattern files of the paper's public code.

    Example:
        >>> published_patterns({"conv": [[1, 2], [2, 2], [1, 2]]}, 2)
        [{'(0, 0)': 0, '(0, 1)': 2, '(1, 0)': 0, '(1, 1)': 1}]
    """
    entries: list[dict[str, int]] = []
    for path, pattern in patterns.items():
        counts = Counter(tuple(dilations) for dilations in pattern)
        axes = len(next(iter(counts), (1, 1)))
        keys = list(itertools.product(range(1, d_max + 1), repeat=axes))
        beyond = sorted(set(counts) - set(keys))
        if beyond:
            raise ValueError(f"the pattern of {path!r} has the dilations {beyond[0]}, beyond d_max={d_max}.")
        entries.append({str(tuple(d - 1 for d in key)): counts[key] for key in keys})
    return entries


def rearranged(pattern: Sequence[Sequence[int]], feature_group_count: int = 1) -> list[int]:
    """The order of filters in which filters with equal dilations are adjacent, within each group.

    Args:
        pattern: the dilations of each filter.
        feature_group_count: number of groups of the convolution.

    Returns:
        The old numbers in the new order: sorted by dilations; filters with equal dilations keep their order.

    Source: Sec. 3.2 of the paper, Fig. 2.

    Example:
        >>> rearranged([[2, 1], [1, 1], [2, 1], [1, 2]])
        [1, 3, 0, 2]
        >>> rearranged([[2, 1], [1, 1], [2, 1], [1, 2]], feature_group_count=2)
        [1, 0, 3, 2]
    """
    check_groups(feature_group_count, len(pattern), feature_group_count)
    size = len(pattern) // feature_group_count
    return sorted(range(len(pattern)), key=lambda number: (number // size, tuple(pattern[number])))


def by_path(
    patterns: Mapping[str, Pattern] | Sequence[Pattern], filters: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Converts patterns in any form to tuples of the dilations of each filter, by path.

    Args:
        patterns: a dictionary by path, or a published list; each pattern in any form that :class:`msconv_jax.ICConv`
            takes.
        filters: number of filters and number of spatial axes of each convolution, by path, in the order of
            construction.

    Raises:
        ValueError: for an unknown path, a list whose length is not the number of convolutions, or a pattern that does
            not fit its convolution.

    Example:
        >>> by_path([{"(0, 0)": 1, "(1, 0)": 1}], {"conv": (2, 2)})
        {'conv': ((1, 1), (2, 1))}
    """
    if not isinstance(patterns, Mapping):
        if len(patterns) != len(filters):
            raise ValueError(
                f"a list of {len(patterns)} patterns for {len(filters)} convolutions ({_ends(list(filters))}): choose "
                "the convolutions with where=..., or give a dictionary by path."
            )
        patterns = dict(zip(filters, patterns, strict=True))
    unknown = [path for path in patterns if path not in filters]
    if unknown:
        raise ValueError(f"a pattern for {unknown[0]!r}, but the convolutions are {_ends(list(filters))}.")
    result: dict[str, tuple[tuple[int, ...], ...]] = {}
    for path, pattern in patterns.items():
        try:
            result[path] = dilations_of_filters(pattern, *filters[path])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return result


def _ends(paths: list[str]) -> str:
    if len(paths) > 4:
        paths = [*paths[:2], "...", paths[-1]]
    return ", ".join(paths) or "none"
