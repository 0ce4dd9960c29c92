"""Inception convolution (IC-Conv): one dilation per filter and axis.

J. Liu, C. Li, F. Liang, C. Lin, M. Sun, J. Yan, W. Ouyang, D. Xu: "Inception Convolution with Efficient Dilation
Search", CVPR 2021. Each output channel i has one pair of dilations, shared by all its inputs (Sec. 3.1):

    Y[i, y, x] = sum_c sum_{a,b} W[i, c, a, b] * X[c, y + a * d_h[i], x + b * d_w[i]].

The paper does not specify the image axis of either dilation. Here, as in the public files, the first is the vertical
one. :mod:`msconv_jax.edo` searches for the dilations.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from msconv_jax.arguments import check_groups, dilated_extent, per_axis
from msconv_jax.lattice import KernelLattice, Tile
from msconv_jax.operators.lattice_conv import ConvOptions, LatticeConv, check_kernel_size
from msconv_jax.signatures import explains_arguments

Dilations = tuple[tuple[int, ...], ...]
Pattern = Sequence[Sequence[int]] | Mapping[Any, int]


class ICConv(LatticeConv):
    """Inception convolution, a drop-in for ``nnx.Conv`` with the same parameters and multiply-accumulates.

    Args:
        in_features: number of input channels.
        out_features: number of output channels.
        kernel_size: taps per spatial axis, odd, one int for each axis.
        strides: pixels between outputs, one int or one per axis.
        pattern: the dilations of the filters, in units of `kernel_dilation`: one ``(d_h, d_w)`` for each filter; or
            one ``(d_h, d_w, count)`` for each run of filters, in order; or an entry of the published pattern files,
            ``{"(p, q)": count}`` with zero-based p and q, in the file's order. Filter i has the i-th dilation for any
            number of groups, and so has channel i of a depthwise convolution.
        rngs: for the initial values.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`.

    Attributes:
        pattern: the dilations of each filter, ``out_features`` tuples.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Source: Sec. 3.1 of the paper. The public module pads dilated kernels larger than 3x3 too little, and does not
    support dilations per filter within groups. Here every kernel is centred, and any number of groups works.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax import ICConv
        >>> pattern = ((1, 1, 40), (1, 2, 8), (4, 1, 16))
        >>> conv = ICConv(64, 64, (3, 3), strides=2, pattern=pattern, padding=1, rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 15, 15, 64))).shape
        (1, 8, 8, 64)
        >>> conv.lattice.dilations[45, 0]
        array([1, 2])
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        pattern: Pattern,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        lattice = icconv_lattice(
            in_features,
            out_features,
            kernel_size,
            pattern=pattern,
            kernel_dilation=options.get("kernel_dilation"),
            feature_group_count=options.get("feature_group_count", 1),
        )
        super().__init__(lattice, lattice.tiles[0].kernel_size, strides, rngs=rngs, **options)
        self.pattern = dilations_of_filters(pattern, out_features, lattice.ndim)


def icconv_lattice(
    in_features: int,
    out_features: int,
    kernel_size: Sequence[int],
    *,
    pattern: Pattern,
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
) -> KernelLattice:
    """The kernel lattice of an inception convolution; see :class:`ICConv` for the arguments.

    Raises:
        ValueError: for arguments that do not fit.

    Example:
        >>> from msconv_jax.operators.icconv import icconv_lattice
        >>> icconv_lattice(2, 4, (3, 3), pattern=((1, 1, 3), (2, 4, 1)))
        KernelLattice(2 -> 4 features, 2 tiles:
          outputs 0:3  inputs 0:2  kernel 3x3  dilation 1x1
          outputs 3:4  inputs 0:2  kernel 3x3  dilation 2x4)
    """
    size = check_kernel_size(kernel_size, "ICConv", odd=True)
    factor = per_axis("kernel_dilation", kernel_dilation, len(size))
    check_groups(in_features, out_features, feature_group_count)
    dilations = dilations_of_filters(pattern, out_features, len(size))
    return _icconv_lattice(int(in_features), size, dilations, factor, int(feature_group_count))


@functools.lru_cache(maxsize=1024)
def _icconv_lattice(
    in_features: int, kernel_size: tuple[int, ...], dilations: Dilations, factor: tuple[int, ...], groups: int
) -> KernelLattice:
    fan_in, fan_out = in_features // groups, len(dilations) // groups
    tiles = []
    for group in range(groups):
        inputs = slice(group * fan_in, (group + 1) * fan_in)
        first = group * fan_out
        for dilation, run in itertools.groupby(dilations[first : first + fan_out]):
            last = first + sum(1 for _ in run)
            own = tuple(d * f for d, f in zip(dilation, factor, strict=True))
            tiles.append(Tile(slice(first, last), inputs, kernel_size, own))
            first = last
    return KernelLattice(in_features, len(dilations), tuple(tiles), dilated_extent(kernel_size, factor))


def dilations_of_filters(pattern: Pattern, out_features: int, ndim: int = 2) -> Dilations:
    """Converts a pattern of any form to one tuple of dilations per filter.

    Args:
        pattern: see :class:`ICConv`.
        out_features: expected number of filters.
        ndim: number of spatial axes.

    Raises:
        ValueError: if the pattern has none of the forms, or another number of filters.

    Example:
        >>> from msconv_jax.operators.icconv import dilations_of_filters
        >>> dilations_of_filters({"(0, 0)": 2, "(0, 1)": 0, "(1, 3)": 1}, 3)
        ((1, 1), (1, 1), (2, 4))
    """
    rule = (
        f"expected one tuple of {ndim} dilations for each of the {out_features} filters, or tuples of {ndim} dilations "
        'and a count, or a mapping of zero-based dilations such as "(0, 3)" to counts'
    )
    try:
        if isinstance(pattern, Mapping):
            entries = [(*(d + 1 for d in _key(key)), operator.index(count)) for key, count in pattern.items()]
            if any(len(entry) != ndim + 1 for entry in entries):
                raise TypeError
        else:
            entries = [tuple(operator.index(value) for value in entry) for entry in pattern]
    except TypeError:
        entries = []
    if not entries or len(set(map(len, entries))) != 1 or len(entries[0]) not in (ndim, ndim + 1):
        raise ValueError(f"pattern={_short(pattern)}: {rule}.")
    counted = len(entries[0]) == ndim + 1
    if any(min(entry[:ndim]) < 1 for entry in entries) or (counted and any(entry[-1] < 0 for entry in entries)):
        raise ValueError(f"pattern={_short(pattern)}: dilations are at least 1 and counts at least 0; {rule}.")
    filters = [entry[:ndim] for entry in entries for _ in range(entry[-1] if counted else 1)]
    if len(filters) != out_features:
        raise ValueError(f"pattern={_short(pattern)} is for {len(filters)} filters: {rule}.")
    return tuple(filters)


def _key(key: Any) -> tuple[int, ...]:
    """Parses a key of a published pattern file: a string "(p, q)" or a tuple of ints."""
    if isinstance(key, str):
        return tuple(int(number) for number in re.findall(r"\d+", key))
    return tuple(operator.index(number) for number in key)


def _short(pattern: Any) -> str:
    text = repr(pattern)
    return text if len(text) <= 100 else f"{text[:97]}..."


def icconv_official_init(pattern: Pattern) -> Any:
    """The public code's initialiser: Kaiming normal, with a fan that counts only the filters of the same dilation.

    The public module has one convolution per dilation, so rare dilations get larger weights than common ones. The usual
    initialisers compute the fan of the whole layer.

    Args:
        pattern: see :class:`ICConv`.

    Returns:
        An initialiser for `kernel_init`: standard deviation ``sqrt(2 / (taps * filters of the same dilation))``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from msconv_jax.operators.icconv import icconv_official_init
        >>> init = icconv_official_init(((1, 1, 60), (2, 2, 4)))
        >>> kernel = init(jax.random.key(0), (3, 3, 64, 64), jnp.float32)
        >>> bool(kernel[..., 60:].std() > 3 * kernel[..., :60].std())
        True
    """

    def init(
        key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32, out_sharding: None = None
    ) -> jax.Array:
        del out_sharding  # part of the initialisers' signature
        filters = dilations_of_filters(pattern, shape[-1], len(shape) - 2)
        sharing = np.array([filters.count(dilation) for dilation in filters])
        std = np.sqrt(2.0 / (math.prod(shape[:-2]) * sharing)).reshape((1,) * (len(shape) - 1) + (-1,))
        return jax.random.normal(key, tuple(shape), dtype) * jnp.asarray(std, dtype)

    return init
