"""Pyramidal convolution (PyConv): parallel levels with larger kernels and more groups from level to level.

I. C. Duta, L. Liu, F. Zhu, L. Shao: "Pyramidal Convolution: Rethinking Convolutional Neural Networks for Visual
Recognition", 2020. Level l convolves the full input with kernels ``K_l`` in ``G_l`` groups and computes ``O_l`` of
the output channels (Sec. 3, Eq. 1):

    Y = concat over l of GroupConv(X; W_l, kernel K_l, groups G_l).

The paper's Table 1 lists the levels from the largest kernel to the smallest. The channels here follow the public code,
which starts with the smallest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Unpack

import jax
from flax import nnx

from msconv_jax.arguments import check_groups, dilated_extent, per_axis
from msconv_jax.lattice import KernelLattice, Tile
from msconv_jax.operators.composite import CompositeConv
from msconv_jax.operators.lattice_conv import ConvOptions, LatticeOperator, check_kernel_size
from msconv_jax.signatures import explains_arguments

KernelSizes = Sequence[int | Sequence[int]]


class PyConv(CompositeConv, LatticeOperator):
    """Pyramidal convolution, for images or volumes, with ``nnx.Conv``'s arguments and one kernel size per level.

    `padding` refers to the smallest kernel and fixes the output shape. A larger kernel gets half the size difference
    as additional padding on each side.

    Args:
        in_features: number of input channels.
        out_features: number of output channels, over all levels.
        kernel_sizes: odd kernel size of each level: an int for a square image kernel, or one int per spatial
            axis, as in ``((3, 3, 3), (5, 7, 7))`` for video, in the order of the output channels.
        strides: pixels between outputs, one int or one per axis.
        groups: number of groups of each level, a divisor of `in_features` and the level's outputs. None applies
            the paper's rule, :func:`pyconv_groups`. The published networks use (1, 4, 8, 16).
        level_features: number of output channels of each level. None divides them like the public networks,
            :func:`pyconv_split`: equally among 1, 2 or 4 levels, 1/4, 1/4 and 1/2 among three.
        kernel_size: kernel size of the replaced plain convolution, if a network or ``functools.partial`` passes it
            by this name; it must equal the first of `kernel_sizes`.
        rngs: for the initial values.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`. `feature_group_count` multiplies the
            groups of every level; `kernel_dilation` dilates every level.

    Attributes:
        kernels: one parameter per level, ``(*kernel_size, in_features // groups, level outputs)``.
        bias: ``(out_features,)``, or None.
        lattice: the :class:`msconv_jax.KernelLattice`.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Source: Sec. 3 and Eq. (1) of the paper; the split and the default order are the public code's.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax import PyConv
        >>> conv = PyConv(64, 64, (3, 5, 7, 9), strides=2, groups=(1, 4, 8, 16), padding=1, rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 15, 15, 64))).shape
        (1, 8, 8, 64)
        >>> [kernel.shape for kernel in conv.kernels]
        [(3, 3, 64, 16), (5, 5, 16, 16), (7, 7, 8, 16), (9, 9, 4, 16)]
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_sizes: KernelSizes,
        strides: int | Sequence[int] | None = 1,
        *,
        groups: Sequence[int] | None = None,
        level_features: Sequence[int] | None = None,
        kernel_size: Sequence[int] | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        self.lattice = pyconv_lattice(
            in_features,
            out_features,
            kernel_sizes,
            groups=groups,
            level_features=level_features,
            kernel_dilation=options.get("kernel_dilation"),
            feature_group_count=options.get("feature_group_count", 1),
        )
        groups_of_all = options.get("feature_group_count", 1)
        levels = _levels(in_features, out_features, kernel_sizes, groups, level_features, groups_of_all)
        self.kernel_sizes, self.groups, self.level_features = levels
        if kernel_size is not None and tuple(kernel_size) != self.kernel_sizes[0]:
            raise ValueError(
                f"kernel_size={tuple(kernel_size)}: the first level of kernel_sizes={self.kernel_sizes} takes the "
                "place of that kernel and must have its size."
            )
        super().__init__(in_features, out_features, self.kernel_sizes[0], strides, **options)
        init = options.get("kernel_init", nnx.initializers.lecun_normal())
        metadata: Any = options.get("kernel_metadata", {})
        self.kernels = nnx.List(
            [
                nnx.Param(
                    init(
                        rngs.params(),
                        (*size, in_features // (own * self.feature_group_count), features),
                        self.param_dtype,
                    ),
                    **metadata,
                )
                for size, own, features in zip(*levels, strict=True)
            ]
        )
        self.make_bias(options, rngs)

    @property
    def lattice_kernels(self) -> tuple[jax.Array, ...]:
        """The kernels of the lattice, one array for each of its banks."""
        return tuple(_packed(self.lattice, [kernel[...] for kernel in self.kernels]))


def pyconv_groups(
    in_features: int, level_features: Sequence[int], kernel_sizes: KernelSizes, feature_group_count: int = 1
) -> tuple[int, ...]:
    """The paper's rule for the groups of the levels.

    Levels of equal cost need ``prod(K_l) / prod(K_1)`` groups (the denominators of Eq. 1), rarely a whole number.
    The rule takes the closest common divisor of the level's inputs and outputs, the smaller one in a tie. The
    published networks use 1, 4, 8, 16 instead, which costs less.

    Args:
        in_features: number of input channels.
        level_features: output channels of each level.
        kernel_sizes: kernel size of each level; the first is the reference K_1.
        feature_group_count: number of additional groups of every level; the rule applies to the channels of one.

    Returns:
        The number of groups of each level.

    Raises:
        ValueError: for arguments that do not fit.

    Source: Sec. 3 of the paper, the paragraph after Eq. (1).

    Example:
        >>> from msconv_jax.operators.pyconv import pyconv_groups
        >>> pyconv_groups(64, (16, 16, 16, 16), (3, 5, 7, 9))
        (1, 2, 4, 8)
        >>> pyconv_groups(30, (10, 20), (3, 5))
        (1, 2)
    """
    sizes = _sizes(kernel_sizes)
    outputs = per_axis("level_features", level_features, len(sizes))
    common = [math.gcd(in_features, features) // feature_group_count for features in outputs]
    wanted = [math.prod(size) / math.prod(sizes[0]) for size in sizes]
    return tuple(
        min((g for g in range(1, most + 1) if most % g == 0), key=lambda g: (abs(g - ideal), g), default=1)
        for most, ideal in zip(common, wanted, strict=True)
    )


def pyconv_split(out_features: int, levels: int) -> tuple[int, ...]:
    """The output channels of each level in the public networks.

    The channels form ``m`` equal shares; m is the smallest power of two that is not below the number of levels. Every
    level gets one share, and the largest kernels get one more each from the remainder. So 2 and 4 levels are equal,
    3 levels have 1/4, 1/4, 1/2, and 5 levels 1/8, 1/8, 1/4, 1/4, 1/4 (Table 2, line (5, 4, 3, 2)).

    Args:
        out_features: number of output channels.
        levels: number of levels.

    Returns:
        The output channels of each level.

    Raises:
        ValueError: if the shares are not whole.

    Example:
        >>> from msconv_jax.operators.pyconv import pyconv_split
        >>> pyconv_split(128, 3)
        (32, 32, 64)
    """
    shares = 1 << (levels - 1).bit_length()
    if out_features % shares:
        raise ValueError(
            f"out_features={out_features} does not divide into {shares} shares for {levels} levels: give "
            "level_features, whose sum is out_features."
        )
    share = out_features // shares
    return tuple(share * (1 if level < 2 * levels - shares else 2) for level in range(levels))


def pyconv_lattice(
    in_features: int,
    out_features: int,
    kernel_sizes: KernelSizes,
    *,
    groups: Sequence[int] | None = None,
    level_features: Sequence[int] | None = None,
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
) -> KernelLattice:
    """The kernel lattice of a pyramidal convolution; see :class:`PyConv` for the arguments.

    Raises:
        ValueError: for arguments that do not fit.

    Example:
        >>> from msconv_jax.operators.pyconv import pyconv_lattice
        >>> pyconv_lattice(4, 4, (3, 5), groups=(1, 2))
        KernelLattice(4 -> 4 features, 3 tiles:
          outputs 0:2  inputs 0:4  kernel 3x3  dilation 1x1
          outputs 2:3  inputs 0:2  kernel 5x5  dilation 1x1
          outputs 3:4  inputs 2:4  kernel 5x5  dilation 1x1)
    """
    check_groups(in_features, out_features, feature_group_count)
    sizes, counts, features = _levels(
        in_features, out_features, kernel_sizes, groups, level_features, feature_group_count
    )
    dilation = per_axis("kernel_dilation", kernel_dilation, len(sizes[0]))
    for level, (size, count, outputs) in enumerate(zip(sizes, counts, features, strict=True)):
        total = count * feature_group_count
        if in_features % total or outputs % total:
            common = math.gcd(in_features, outputs) // feature_group_count
            fitting = [g for g in range(1, common + 1) if common % g == 0]
            raise ValueError(
                f"groups={tuple(counts)}: level {level} (kernel {'x'.join(map(str, size))}) has {total} groups, which "
                f"do not divide its {in_features} inputs and {outputs} outputs; take one of {fitting}."
            )
    return _pyconv_lattice(int(in_features), sizes, counts, features, dilation, int(feature_group_count))


@functools.lru_cache(maxsize=1024)
def _pyconv_lattice(
    in_features: int,
    sizes: tuple[tuple[int, ...], ...],
    groups: tuple[int, ...],
    features: tuple[int, ...],
    dilation: tuple[int, ...],
    feature_group_count: int,
) -> KernelLattice:
    tiles, first = [], 0
    for size, count, outputs in zip(sizes, groups, features, strict=True):
        total = count * feature_group_count
        fan_in, fan_out = in_features // total, outputs // total
        for g in range(total):
            own = slice(first + g * fan_out, first + (g + 1) * fan_out)
            tiles.append(Tile(own, slice(g * fan_in, (g + 1) * fan_in), size, dilation))
        first += outputs
    smallest = tuple(map(min, zip(*sizes, strict=True)))
    return KernelLattice(in_features, first, tuple(tiles), dilated_extent(smallest, dilation))


def _packed(lattice: KernelLattice, kernels: Sequence[jax.Array]) -> list[jax.Array]:
    """The levels' kernels as the lattice's banks: levels of equal kernel size and fan-in share a bank."""
    shapes = [(*bank.kernel_size, bank.fan_in) for bank in lattice.banks]
    of_bank = [[kernel for kernel in kernels if kernel.shape[:-1] == shape] for shape in shapes]
    return [jax.numpy.concatenate(own, axis=-1) if len(own) > 1 else own[0] for own in of_bank]


def _sizes(kernel_sizes: KernelSizes) -> tuple[tuple[int, ...], ...]:
    """The kernel size of each level, one int per axis.

    Raises:
        ValueError: if `kernel_sizes` is empty, the levels differ in their number of axes, or a size is even.
    """
    rule = "expected a size for each level, such as (3, 5, 7, 9) or ((3, 3, 3), (5, 7, 7))"
    if isinstance(kernel_sizes, int | str) or not isinstance(kernel_sizes, Sequence) or not kernel_sizes:
        raise ValueError(f"kernel_sizes={kernel_sizes!r}: {rule}.")
    written = [size if isinstance(size, Sequence) else (size, size) for size in kernel_sizes]
    sizes = tuple(check_kernel_size(size, "PyConv", odd=True) for size in written)
    if len(set(map(len, sizes))) > 1:
        raise ValueError(f"kernel_sizes={kernel_sizes!r}: the levels differ in their number of axes; {rule}.")
    return sizes


def _levels(
    in_features: int,
    out_features: int,
    kernel_sizes: KernelSizes,
    groups: Sequence[int] | None,
    level_features: Sequence[int] | None,
    feature_group_count: int = 1,
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...], tuple[int, ...]]:
    """The kernel sizes, groups and output channels of the levels, with defaults filled in.

    Raises:
        ValueError: if they do not fit together.
    """
    sizes = _sizes(kernel_sizes)
    if level_features is None:
        features = pyconv_split(out_features, len(sizes))
    else:
        features = _per_level("level_features", level_features, len(sizes))
        if sum(features) != out_features:
            raise ValueError(
                f"level_features={features} add up to {sum(features)}, not to out_features={out_features}."
            )
    if groups is None:
        return sizes, pyconv_groups(in_features, features, sizes, feature_group_count), features
    return sizes, _per_level("groups", groups, len(sizes)), features


def _per_level(name: str, values: Sequence[int], levels: int) -> tuple[int, ...]:
    try:
        if not isinstance(values, Sequence):
            raise ValueError
        return per_axis(name, values, levels)
    except ValueError:
        raise ValueError(
            f"{name}={values!r}: expected a positive int for each of the {levels} levels of kernel_sizes."
        ) from None
