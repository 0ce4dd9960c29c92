"""Poly-scale convolution (PSConv): dilation varies cyclically over the kernel lattice.

D. Li, A. Yao, Q. Chen: "PSConv: Squeezing Feature Pyramid into One Compact Poly-Scale Convolutional Layer",
ECCV 2020. Eq. (3): with one dilation ``D[c, k]`` for each output channel c and input channel k,

    H[c, x, y] = sum_k sum_{i,j} G[c, k, i, j] * F[k, x + i * D[c, k], y + j * D[c, k]].

The paper does not specify the direction in which the pattern shifts from filter to filter, nor its start. This module
follows the public code: a shift to the right and ``phase=1``. All choices are equal up to a permutation of channels.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Literal, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from msconv_jax.arguments import check_groups, dilated_extent, per_axis
from msconv_jax.convolution import convolve
from msconv_jax.lattice import KernelLattice, Tile
from msconv_jax.operators.lattice_conv import ConvOptions, LatticeConv, check_kernel_size
from msconv_jax.signatures import explains_arguments

Vary = Literal["both", "in", "out", "none"]
Layout = Literal["block", "lattice"]


class PSConv(LatticeConv):
    """Poly-scale convolution, a drop-in for ``nnx.Conv`` with the same parameters and multiply-accumulates.

    The pattern d has length t. The dilation of output channel c and input channel k, both counted within their
    group, is

    * ``layout="lattice"``, the paper's literal order: ``d[(k - c + phase) mod t]``;
    * ``layout="block"``: ``d[(q - p + phase) mod t]`` for input block q and output block p. Channels of equal residue
      form contiguous blocks. This equals the lattice layout up to a permutation of the input and output channels.

    `vary` restricts the variation to one axis (Table 5): "in" drops the shift between filters,
    ``d[(k + phase) mod t]``; "out" gives each filter one dilation, ``d[(c + phase) mod t]``; "none" is
    ``d[phase mod t]`` everywhere. The depthwise form (``feature_group_count == in_features == out_features``,
    Appendix A) gives channel c the dilation ``d[(c + phase) mod t]`` in either layout.

    Args:
        in_features: number of input channels.
        out_features: number of output channels.
        kernel_size: taps per spatial axis, odd, one int for each axis.
        strides: pixels between outputs, one int or one per axis.
        pattern: the dilations d, in units of `kernel_dilation`; the default is the paper's best (Table 4).
        phase: index at which the pattern starts, at least 0 and below t. The default 1 is also accepted for t = 1,
            where it has no effect.
        vary: "both", "in", "out" or "none".
        layout: "block" or "lattice". Blocks need channels per group divisible by t along the axes that vary.
        official_compat: adds the parameter `overlap_kernel` (of the kernel's shape, initially zero) so that weights
            of the public code can be loaded. By a bug in its mask, the public code's grouped form adds dilation-1
            kernels to some of the dilated ones. Needs layout "block", vary "both" and an even t.
        rngs: for the initial values.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Source: Eq. (3), Sec. 3.2, Tables 3 to 5 and Appendix A of the paper.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax import PSConv
        >>> conv = PSConv(64, 64, (3, 3), strides=2, padding=1, rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 15, 15, 64))).shape
        (1, 8, 8, 64)
        >>> conv.lattice.dilations[::16, ::16, 0]
        array([[2, 1, 4, 1],
               [1, 2, 1, 4],
               [4, 1, 2, 1],
               [1, 4, 1, 2]])
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        pattern: Sequence[int] = (1, 2, 1, 4),
        phase: int = 1,
        vary: Vary = "both",
        layout: Layout = "block",
        official_compat: bool = False,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        lattice = psconv_lattice(
            in_features,
            out_features,
            kernel_size,
            pattern=pattern,
            phase=phase,
            vary=vary,
            layout=layout,
            kernel_dilation=options.get("kernel_dilation"),
            feature_group_count=options.get("feature_group_count", 1),
        )
        super().__init__(lattice, lattice.tiles[0].kernel_size, strides, rngs=rngs, **options)
        self.pattern = tuple(map(int, pattern))  # nnx would treat NumPy ints as data
        self.phase = int(phase)
        self.vary = vary
        self.layout = layout
        self.official_compat = official_compat
        self.overlap_kernel: nnx.Param[jax.Array] | None = nnx.data(None)
        if official_compat:
            if layout != "block" or vary != "both" or len(self.pattern) % 2:
                raise ValueError(
                    f"official_compat=True with layout={layout!r}, vary={vary!r} and pattern={self.pattern}: the "
                    "public code has the block layout, varies both axes and has an even number of parts; leave it out."
                )
            self.overlap_kernel = nnx.Param(jnp.zeros(self.kernel_shape, self.param_dtype))

    def __call__(self, inputs: ArrayLike, out_sharding: None = None) -> jax.Array:
        """Convolves ``(*batch, *spatial, in_features)``; see :meth:`LatticeConv.__call__`."""
        y = super().__call__(inputs, out_sharding)
        if self.overlap_kernel is None:
            return y
        overlap = jnp.asarray(self.official_overlap())
        kernel = jnp.where(overlap.reshape((1,) * len(self.kernel_size) + overlap.shape), self.overlap_kernel[...], 0)
        x, kernel = self.promote_dtype((jnp.asarray(inputs), kernel), dtype=y.dtype)
        return y + convolve(
            x,
            kernel,
            self.strides,
            self.padding,  # type: ignore[arg-type]  # checked at construction
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            lowering=self.lowering,
            precision=self.precision,
        ).astype(y.dtype)

    def official_overlap(self) -> np.ndarray:
        """Mask of the dilated kernels to which the public code adds a dilation-1 one: bool (fan_in, out_features)."""
        t = len(self.pattern)
        served, zeroed = official_blocks(self.feature_group_count, t)
        blocks = (served & ~zeroed).repeat(self.out_features // len(served), axis=0)
        return blocks.repeat(self.in_features // self.feature_group_count // t, axis=1).T


@functools.lru_cache(maxsize=128)
def official_blocks(groups: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Block masks of the public code's kernels, of shape (groups * parts outputs, parts inputs).

    The public code's two other kernels, dilated by d and 2 d, use two input blocks in every row. Its constructor
    is meant to zero the dense kernel in these blocks. It starts the rows of group j at ``j * groups`` instead of
    ``j * parts``, so with groups other than 1 and `parts` it misses some of these blocks and zeroes others.

    Returns:
        The blocks that the dilated kernels use, and the blocks that the constructor zeroes.
    """
    half = parts // 2
    own = np.arange(groups * parts)[:, None] % parts
    inputs = np.arange(parts)[None]
    served = (inputs == own) | (inputs == (own + half) % parts)
    zeroed = np.zeros_like(served)
    for group in range(groups):
        for part in range(parts):
            row = part + group * groups
            if row < len(zeroed):
                zeroed[row, [part, (part + half) % parts]] = True
    return served, zeroed


def psconv_lattice(
    in_features: int,
    out_features: int,
    kernel_size: Sequence[int],
    *,
    pattern: Sequence[int] = (1, 2, 1, 4),
    phase: int = 1,
    vary: Vary = "both",
    layout: Layout = "block",
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
) -> KernelLattice:
    """The kernel lattice of a poly-scale convolution; see :class:`PSConv` for the arguments.

    Raises:
        ValueError: for arguments that do not fit.

    Example:
        >>> from msconv_jax.operators.psconv import psconv_lattice
        >>> psconv_lattice(4, 4, (3, 3), pattern=(1, 2), layout="lattice")
        KernelLattice(4 -> 4 features, 4 tiles:
          outputs 0:3:2  inputs 0:3:2  kernel 3x3  dilation 2x2
          outputs 0:3:2  inputs 1:4:2  kernel 3x3  dilation 1x1
          outputs 1:4:2  inputs 0:3:2  kernel 3x3  dilation 1x1
          outputs 1:4:2  inputs 1:4:2  kernel 3x3  dilation 2x2)
    """
    size = check_kernel_size(kernel_size, "PSConv", odd=True)
    dilation = per_axis("kernel_dilation", kernel_dilation, len(size))
    check_groups(in_features, out_features, feature_group_count)
    dilations = _check_pattern(pattern)
    t = len(dilations)
    if isinstance(phase, bool) or not isinstance(phase, int | np.integer) or not 0 <= phase < max(t, 2):
        raise ValueError(f"phase={phase!r}: expected an int at least 0 and below the pattern's length {t}.")
    for name, value, choices in (("vary", vary, get_args(Vary)), ("layout", layout, get_args(Layout))):
        if value not in choices:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}.")
    return _psconv_lattice(
        int(in_features),
        int(out_features),
        size,
        dilations,
        phase,
        vary,
        layout,
        dilation,
        int(feature_group_count),
    )


def _check_pattern(pattern: Sequence[int]) -> tuple[int, ...]:
    try:
        dilations = tuple(operator.index(d) for d in pattern)
    except TypeError:
        dilations = ()
    if not dilations or min(dilations) < 1:
        raise ValueError(f"pattern={pattern!r}: expected a tuple of positive ints, such as (1, 2, 1, 4).")
    return dilations


@functools.lru_cache(maxsize=1024)
def _psconv_lattice(
    in_features: int,
    out_features: int,
    kernel_size: tuple[int, ...],
    pattern: tuple[int, ...],
    phase: int,
    vary: str,
    layout: str,
    kernel_dilation: tuple[int, ...],
    groups: int,
) -> KernelLattice:
    t = len(pattern)
    fan_in, fan_out = in_features // groups, out_features // groups
    depthwise = groups > 1 and groups == in_features == out_features
    varies_in = vary in ("both", "in") and not depthwise
    varies_out = vary in ("both", "out") and not depthwise
    if layout == "block":
        for varies, name, features in (
            (varies_in, "in_features", fan_in),
            (varies_out, "out_features", fan_out),
        ):
            if varies and features % t:
                raise ValueError(
                    f"{name}={features * groups} with feature_group_count={groups} leaves {features} channels per "
                    f"group, not divisible by the {t} entries of pattern={pattern}: change the channels or the "
                    "pattern, or take layout='lattice', which needs no divisibility."
                )

    def classes(features: int, varies: bool) -> list[tuple[int, slice]]:
        """The residues mod t along one axis of a group, and the channels of each."""
        if not varies:
            return [(0, slice(0, features))]
        if layout == "lattice":
            return [(r, slice(r, features, t)) for r in range(min(t, features))]
        return [(r, slice(r * features // t, (r + 1) * features // t)) for r in range(t)]

    def moved(channels: slice, by: int) -> slice:
        return slice(channels.start + by, channels.stop + by, channels.step)

    tiles = []
    for group in range(groups):
        # Depthwise: the group number advances the pattern. vary="out": the filter number advances it (q + p).
        place = group if depthwise and vary != "none" else 0
        for p, outputs in classes(fan_out, varies_out):
            for q, inputs in classes(fan_in, varies_in):
                shift = q - p if vary == "both" else q + p
                factor = pattern[(shift + place + phase) % t]
                tiles.append(
                    Tile(
                        moved(outputs, group * fan_out),
                        moved(inputs, group * fan_in),
                        kernel_size,
                        tuple(factor * d for d in kernel_dilation),
                    )
                )
    return KernelLattice(in_features, out_features, tuple(tiles), dilated_extent(kernel_size, kernel_dilation))
