"""Patterns, the dilations of a network's filters, as plain data, and the form in which they were published.

A pattern has for each filter of a convolution its dilations, ``[d_h, d_w]``; the patterns of a network are a
dictionary of them by the convolutions' paths. The published files are a list, one entry to a convolution in the order
of construction, of ``{"(p, q)": count}``: how many filters have the dilations ``(p + 1, q + 1)``.
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
    """Patterns in the published form, which keeps how many filters have a pair of dilations, but not which.

    Args:
        patterns: for each convolution a pair of dilations for each filter, in the order of construction.
        d_max: the search's largest dilation: every pair up to it gets a key, zero counts too.

    Returns:
        One dictionary to a convolution, ready for ``json.dump``.

    Raises:
        ValueError: if a dilation is larger than `d_max`.

    Source: the pattern files of the paper's public code.

    Example:
        >>> published_patterns({"conv": [[1, 2], [2, 2], [1, 2]]}, 2)
        [{'(0, 0)': 0, '(0, 1)': 2, '(1, 0)': 0, '(1, 1)': 1}]
    """
    entries = []
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
    """The filters' numbers in an order in which those of equal dilations stand together, within each group.

    Args:
        pattern: the dilations of each filter.
        feature_group_count: number of groups of the convolution.

    Returns:
        The old numbers in the new order: ascending dilations, equal ones as they were.

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
    """Patterns in any form as one tuple of dilations for each filter, by path.

    Args:
        patterns: by path, or a published list; each in any form that :class:`msconv_jax.ICConv` takes.
        filters: for the path of each convolution that may have one, in the order of construction, its number of
            filters and of spatial axes.

    Raises:
        ValueError: for a path that is not there, another number of convolutions than a list has entries, or a
            pattern that does not fit its convolution.

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
    result = {}
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
