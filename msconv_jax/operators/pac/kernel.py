"""The engine of pixel-adaptive convolution: sums over taps that are weighted by a kernel of guide features.

:mod:`msconv_jax.operators.pac.modules` has the paper's operators. This file has what computes them: the adapting
kernel K (:class:`AdaptingOptions`, :class:`AdaptingKernel`), the places of the taps (:class:`Geometry`), and the two
computations, :func:`weighted_sum` and :func:`kernel_of_taps`. Arrays are (n, *spatial, channels), with one batch axis.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from msconv_jax.arguments import Padding, base_pads, check_padding, dilated_extent, per_axis, zero_padding
from msconv_jax.convolution import Pads
from msconv_jax.modes.dtypes import common_dtype, wide_dtype
from msconv_jax.modes.meshes import sharded_like

Shape = tuple[int, ...]
Ints = int | Sequence[int] | None
MaybeArray = jax.Array | None

# --- the adapting kernel ---


class AdaptingOptions(TypedDict, total=False):
    """What the pure functions take to describe the adapting kernel K.

    `kernel_type` is "gaussian" (default) or "inv_{alpha}_{lambda}": with q the squared distance of the two guide
    features, K = exp(-q / 2) or K = alpha + (q + 1e-4)^(lambda / 2). ``_asym`` behind the latter counts only where the
    neighbour's feature exceeds the centre's; ``_fixed`` matters to the modules alone. `inv_alpha` and `inv_lambda` take
    the place of the two numbers in the name, as scalars or, with `channel_wise`, one for each guide channel.
    `channel_wise` gives one K for each guide channel instead of one for their sum. `smooth_kernel`, of odd sizes along
    the spatial axes, smooths the centre's feature. `normalize_kernel` divides K by its sum over the taps in the image.
    """

    kernel_type: str
    normalize_kernel: bool
    channel_wise: bool
    smooth_kernel: ArrayLike | None
    inv_alpha: ArrayLike | None
    inv_lambda: ArrayLike | None


class KernelType(NamedTuple):
    """A kernel type's name, taken apart."""

    inverse: bool = False
    alpha: float = 0.0
    power: float = 0.0
    asym: bool = False
    fixed: bool = False

    @classmethod
    def parse(cls, name: str) -> KernelType:
        """Reads "gaussian" or "inv_{alpha}_{lambda}[_asym][_fixed]"; raises ValueError for another name."""
        if name == "gaussian":
            return cls()
        head, *rest = str(name).split("_")
        flags = rest[2:]
        try:
            alpha, power = map(float, rest[:2])
        except ValueError:
            alpha = power = math.nan
        known = sorted(flags) in ([], ["asym"], ["fixed"], ["asym", "fixed"])
        if head != "inv" or not known or not math.isfinite(alpha + power):
            raise ValueError(
                f"kernel_type={name!r}: expected 'gaussian' or 'inv_alpha_lambda' with two numbers and, if wanted, "
                "'_asym' and '_fixed' behind it, such as 'inv_0.1_0.5_fixed'."
            )
        return cls(True, alpha, power, "asym" in flags, "fixed" in flags)


def smoothing_kernel(smooth_kernel_type: str, ndim: int = 2) -> np.ndarray | None:
    """The kernel that smooths the centre's feature: float32 with `ndim` axes, or None for "none".

    Args:
        smooth_kernel_type: "none", "gaussian" (the outer product of 1/4, 1/2, 1/4), "average_{n}" or, with the same
            initial values, "full_{n}", with an odd n.
        ndim: number of spatial axes.

    Raises:
        ValueError: for another name, or an even size.

    Example:
        >>> from msconv_jax.operators.pac.kernel import smoothing_kernel
        >>> smoothing_kernel("gaussian")[1].tolist()
        [0.125, 0.25, 0.125]
    """
    if smooth_kernel_type == "none":
        return None
    if smooth_kernel_type == "gaussian":
        return functools.reduce(np.multiply.outer, [np.array([0.25, 0.5, 0.25], np.float32)] * ndim)
    kind, _, count = str(smooth_kernel_type).partition("_")
    if kind not in ("average", "full") or not count.isdecimal() or int(count) % 2 == 0:
        raise ValueError(
            f"smooth_kernel_type={smooth_kernel_type!r}: expected 'none', 'gaussian', 'average_n' or 'full_n' with an "
            "odd size n, such as 'average_3'."
        )
    return np.full((int(count),) * ndim, 1 / int(count) ** ndim, np.float32)


_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptingKernel:
    """All that decides K besides the guide: :class:`AdaptingOptions`, checked. Its arrays are a pytree's leaves."""

    alpha: MaybeArray = None  # of an inverse kernel: () or (guide channels,)
    power: MaybeArray = None  # its lambda, likewise
    smooth: MaybeArray = None  # the smoothing kernel, with the spatial axes
    kind: KernelType = dataclasses.field(default=KernelType(), metadata=_STATIC)
    channel_wise: bool = dataclasses.field(default=False, metadata=_STATIC)
    normalize: bool = dataclasses.field(default=False, metadata=_STATIC)

    @classmethod
    def of(cls, options: AdaptingOptions, guide: MaybeArray, ndim: int) -> AdaptingKernel:
        """Checks the options against the guide; without one, K is given and can only be normalised.

        Raises:
            TypeError: for an option that does not exist.
            ValueError: for one that does not fit, such as a smoothing kernel without a guide.
        """
        unknown = set(options) - set(AdaptingOptions.__annotations__)
        if unknown:
            raise TypeError(f"unexpected keyword argument {sorted(unknown)[0]!r}")
        kind = KernelType.parse(options.get("kernel_type", "gaussian"))
        normalize = bool(options.get("normalize_kernel", False))
        if guide is None:
            if options.get("smooth_kernel") is not None:
                raise ValueError(
                    "smooth_kernel, or a layer with smooth_kernel_type, together with a precomputed adapting kernel: "
                    "smoothing changes the guide's features, which K no longer has. Give the guide in place of K, or "
                    "smooth where K is made (pac_kernel, adapting_kernel) and leave smooth_kernel out here "
                    "(smooth_kernel_type='none')."
                )
            return cls(normalize=normalize)
        channels, channel_wise, numbers = guide.shape[-1], bool(options.get("channel_wise", False)), []
        for name, default in (("inv_alpha", kind.alpha), ("inv_lambda", kind.power)):
            value = options.get(name)
            if value is not None and not kind.inverse:
                raise ValueError(f"{name} belongs to the inverse kernel types: leave it out of a Gaussian kernel.")
            array = jnp.asarray(default, guide.dtype) if value is None else widened(value)
            if array.shape not in {(), (channels,) if channel_wise else ()}:
                raise ValueError(
                    f"{name} has shape {array.shape}: expected a scalar, or with channel_wise=True one for each of the "
                    f"guide's {channels} channels."
                )
            numbers.append(array if kind.inverse else None)
        smooth = options.get("smooth_kernel")
        smooth = None if smooth is None else widened(smooth)
        if smooth is not None and (smooth.ndim != ndim or any(n % 2 == 0 for n in smooth.shape)):
            raise ValueError(f"smooth_kernel has shape {smooth.shape}: expected odd sizes along {ndim} spatial axes.")
        alpha, power = numbers
        return cls(alpha, power, smooth, kind, channel_wise, normalize)

    def between(self, neighbour: jax.Array, centre: jax.Array) -> jax.Array:
        """K of features, (..., G) and (..., G), as (..., 1), or (..., G) if it is channel-wise; not normalised."""
        difference = neighbour - centre
        if self.kind.asym:
            difference = jax.nn.relu(difference)
        q = difference * difference
        if not self.channel_wise:
            q = q.sum(-1, keepdims=True)
        if self.alpha is None or self.power is None:  # an inverse kernel has both
            return jnp.exp(-0.5 * q)
        dtype = common_dtype(q, self.alpha, self.power)
        ones = (1,) * (q.ndim - 1)  # both are scalars, or have one number for each channel
        alpha, power = (number.astype(dtype).reshape((*ones, -1)) for number in (self.alpha, self.power))
        return alpha + (q.astype(dtype) + 1e-4) ** (power / 2)


def widened(array: ArrayLike) -> jax.Array:
    """In at least float32, as all that K is made of: it depends on differences."""
    array = jnp.asarray(array)
    return array.astype(wide_dtype(array.dtype))


# --- geometry ---


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where an operator's taps lie: output o and tap k meet padded pixel ``o * stride + k * dilation``."""

    size: Shape  # taps per axis
    dilation: Shape  # pixels between taps
    strides: Shape  # pixels between outputs, or of the transposed operator samples' distance
    signal: Shape  # the signal's size
    low: Shape  # zeros before the signal (of the transposed operator: with zeros inserted; its own stride is 1)
    output: Shape  # the output's size
    transposed: bool = False  # whether zeros are inserted

    @property
    def taps(self) -> list[Shape]:
        """The taps' indices, in the order of the kernel's values."""
        return list(itertools.product(*map(range, self.size)))

    @property
    def guide(self) -> Geometry:
        """Where the taps lie in the guide: of the transposed operator it has the output's size, centred below."""
        if not self.transposed:
            return self
        low = tuple((K - 1) * d // 2 for K, d in zip(self.size, self.dilation, strict=True))
        return Geometry(self.size, self.dilation, (1,) * len(low), self.output, low, self.output)


def convolution_geometry(
    signal: Shape, size: Shape, strides: Ints, kernel_dilation: Ints, padding: Padding
) -> Geometry:
    """The geometry of a convolution or pooling, of the arguments as they are given; ValueError if they do not fit."""
    strides = per_axis("strides", strides, len(size))
    dilation = per_axis("kernel_dilation", kernel_dilation, len(size))
    extent = dilated_extent(size, dilation)
    pads = base_pads(zero_padding(padding, len(size), "pixel-adaptive convolution"), signal, extent, strides)
    output = tuple(
        max((n + sum(pad) - reach) // s + 1, 0) for n, pad, reach, s in zip(signal, pads, extent, strides, strict=True)
    )
    return Geometry(size, dilation, strides, signal, tuple(before for before, _ in pads), output)


def transpose_geometry(
    signal: Shape | None,
    size: Shape,
    strides: Ints,
    kernel_dilation: Ints,
    padding: Padding,
    extra: int | Sequence[int],
    output: Shape = (),
) -> Geometry:
    """The geometry of the transposed operator for a signal, or without one for an output, of this size.

    Raises:
        ValueError: for arguments that do not fit, and if no signal has an output of this size.
    """
    strides = per_axis("strides", strides, len(size))
    dilation = per_axis("kernel_dilation", kernel_dilation, len(size))
    extent = dilated_extent(size, dilation)
    cuts = _cuts(padding, extra, extent, strides)
    if signal is None:
        spread = [n + sum(cut) - reach for n, cut, reach in zip(output, cuts, extent, strict=True)]
        if any(n < 0 or n % s for n, s in zip(spread, strides, strict=True)):
            raise ValueError(
                f"guide of size {output}: no signal has an output of this size with kernel_size={size}, "
                f"strides={strides}, kernel_dilation={dilation}, padding={padding!r} and "
                f"output_padding={extra!r}."
            )
        signal = tuple(n // s + 1 for n, s in zip(spread, strides, strict=True))
    output = tuple(
        max((n - 1) * s - sum(cut) + reach, 0) for n, s, cut, reach in zip(signal, strides, cuts, extent, strict=True)
    )
    low = tuple(reach - 1 - before for reach, (before, _) in zip(extent, cuts, strict=True))
    return Geometry(size, dilation, strides, signal, low, output, transposed=True)


def check_output_padding(output_padding: int | Sequence[int], ndim: int) -> Shape:
    """`output_padding` for each axis; ValueError if it is neither an int at least 0 nor one for each axis."""
    try:
        values = output_padding if isinstance(output_padding, Sequence) else (output_padding,) * ndim
        extra = tuple(operator.index(n) for n in values)
    except TypeError:
        extra = ()
    if len(extra) != ndim or min(extra) < 0:
        raise ValueError(
            f"output_padding={output_padding!r}: expected an int at least 0, or one for each of the {ndim} axes."
        )
    return extra


def _cuts(padding: Padding, output_padding: int | Sequence[int], extent: Shape, strides: Shape) -> Pads:
    """What the transposed operator's padding cuts off before and after each axis; output_padding cuts less after."""
    extra = check_output_padding(output_padding, len(extent))
    named = check_padding(zero_padding(padding, len(extent), "pixel-adaptive convolution"), len(extent))
    if named == "VALID":
        named = ((0, 0),) * len(extent)
    if not isinstance(named, str):
        return tuple((before, after - more) for (before, after), more in zip(named, extra, strict=True))
    if any(extra):
        raise ValueError(
            f"output_padding={output_padding!r} with padding={padding!r}: the output's size is input * stride; "
            "leave output_padding at 0, or give the padding as ints."
        )
    pads = []
    for reach, stride in zip(extent, strides, strict=True):
        large = max(0, -((stride - reach) // 2))  # PyTorch's padding; the rest is its output_padding
        pads.append((large, reach - stride - large) if named == "SAME" else (reach - stride - large, large))
    return tuple(pads)


class _Group(NamedTuple):
    """Taps that read the same residue class of the signal's pixels and write the same phase of the output's."""

    phase: int
    residue: int
    taps: Shape
    offsets: tuple[Shape, ...]


class _Layout(NamedTuple):
    """How the signal is padded and cut into residue classes, and the groups of taps."""

    low: Shape  # zeros before the signal, negative to cut
    sizes: Shape  # pixels per class
    step: Shape  # number of classes, per axis
    phases: Shape  # number of phases, per axis
    window: Shape  # outputs per phase
    groups: tuple[_Group, ...]


@functools.lru_cache(maxsize=256)
def _layout(geometry: Geometry) -> _Layout:
    strides, ones = geometry.strides, (1,) * len(geometry.size)
    places: list[list[tuple[int, int, int]]] = []  # per axis and tap: phase, residue, offset
    low, count, window = [], [], []
    for K, d, s, zeros, output in zip(
        geometry.size, geometry.dilation, strides, geometry.low, geometry.output, strict=True
    ):
        if geometry.transposed:
            phases = [(zeros - k * d) % s for k in range(K)]
            offsets = [(r + k * d - zeros) // s for k, r in enumerate(phases)]
            low.append(-min(offsets))
            window.append(-(-output // s))
            places.append([(r, 0, offset - min(offsets)) for r, offset in zip(phases, offsets, strict=True)])
        else:
            low.append(zeros)
            window.append(output)
            places.append([(0, k * d % s, k * d // s) for k in range(K)])
        count.append(window[-1] + max(offset for _, _, offset in places[-1]))
    step, phases = (ones, strides) if geometry.transposed else (strides, ones)
    found: dict[tuple[int, int], list[tuple[int, Shape]]] = {}
    for number, tap in enumerate(geometry.taps):
        phase, residue, offset = zip(*(axis[k] for axis, k in zip(places, tap, strict=True)), strict=True)
        key = int(np.ravel_multi_index(phase, phases)), int(np.ravel_multi_index(residue, step))
        found.setdefault(key, []).append((number, offset))
    groups = tuple(_Group(*key, *zip(*taps, strict=True)) for key, taps in sorted(found.items()))
    return _Layout(tuple(low), tuple(count), step, phases, tuple(window), groups)


# --- the two computations ---


class Operands(NamedTuple):
    """The arrays that make a sum over the taps."""

    x: jax.Array  # (n, *signal, C)
    weights: MaybeArray = None  # (taps, C, O), or (taps,) for all channels alike; None for 1
    guide: MaybeArray = None  # (n, *guide's size, G)
    adapting: MaybeArray = None  # K as kernel_of_taps gives it, with 1 or C channels, in place of a guide; it may
    # still have to be normalised
    mask: MaybeArray = None  # (n, *signal, 1)


# Jitted, so that an eager call compiles once; inlined, because XLA optimises less across calls.
@functools.partial(jax.jit, inline=True, static_argnames=("geometry", "precision"))
def weighted_sum(
    arrays: Operands, form: AdaptingKernel, *, geometry: Geometry, precision: Any
) -> tuple[jax.Array, MaybeArray]:
    """The operator without bias, (n, *output, O), in at least float32, and what it was divided by, if it was.

    The divisor is (n, *output, 1 or C); `precision` is that of the products with the weights.
    """
    computed = functools.partial(_weighted_sum, geometry=geometry, precision=precision)
    return sharded_like(arrays.x, computed, arrays, form)


def _weighted_sum(
    arrays: Operands, form: AdaptingKernel, geometry: Geometry, precision: Any
) -> tuple[jax.Array, MaybeArray]:
    guide, mask = arrays.guide, arrays.mask
    centre = None
    if guide is not None:
        centre = _centre(guide, form.smooth, geometry)
        if geometry.transposed:  # of the neighbours only those count that lie where a sample is
            first = [zeros - own for zeros, own in zip(geometry.low, geometry.guide.low, strict=True)]
            guide = _every(guide, first, geometry.signal, geometry.strides)
    if mask is None and form.normalize:
        mask = jnp.ones((1, *geometry.signal, 1), jnp.float32)
    y, total = _sum_over_taps(arrays._replace(guide=guide, mask=mask), centre, form, geometry, precision)
    if total is None:
        return y, None
    norm = total if form.normalize else _share(total, geometry)
    return _divide(y, norm), norm


@functools.partial(jax.jit, inline=True, static_argnames=("geometry",))
def kernel_of_taps(
    guide: jax.Array, mask: MaybeArray, form: AdaptingKernel, *, geometry: Geometry
) -> tuple[jax.Array, MaybeArray]:
    """K as (n, *output, taps, 1 or G), and what it was divided by, if it was; arrays as in :class:`Operands`."""
    return sharded_like(guide, functools.partial(_kernel_of_taps, geometry=geometry), guide, mask, form)


def _kernel_of_taps(
    guide: jax.Array, mask: MaybeArray, form: AdaptingKernel, geometry: Geometry
) -> tuple[jax.Array, MaybeArray]:
    centre, seen = _centre(guide, form.smooth, geometry), geometry.guide
    if mask is None and form.normalize:
        mask = jnp.ones((1, *geometry.signal, 1), jnp.float32)
    spread = [_reach(n, s) for n, s in zip(seen.output, seen.strides, strict=True)]
    lengths = [n + reach - 1 for n, reach in zip(spread, dilated_extent(seen.size, seen.dilation), strict=True)]
    padded = [_padded(guide, seen.low, lengths)]
    if mask is not None:
        padded.append(_padded(mask, geometry.low, lengths, geometry.strides if geometry.transposed else None))

    def of_tap(offset: jax.Array) -> tuple[jax.Array, MaybeArray]:
        neighbour, *valid = (_stepped(_window(array, offset, spread), seen.strides) for array in padded)
        K = form.between(neighbour, centre)
        return (K * valid[0].astype(K.dtype), valid[0]) if valid else (K, None)

    offsets = jnp.asarray([[k * d for k, d in zip(tap, seen.dilation, strict=True)] for tap in seen.taps], jnp.int32)
    K, valid = lax.map(jax.checkpoint(of_tap, prevent_cse=False), offsets)
    K = jnp.moveaxis(K, 0, -2)
    if valid is None:
        return K, None
    norm = K.sum(-2) if form.normalize else _share(valid.sum(0), geometry)
    return _divide(K, norm[..., None, :]), norm


def _sum_over_taps(
    arrays: Operands, centre: MaybeArray, form: AdaptingKernel, geometry: Geometry, precision: Any
) -> tuple[jax.Array, MaybeArray]:
    """Sum over the taps of weight, K, mask and shifted signal; and of K and mask, or of the mask unless normalised.

    The guide holds the neighbours' features alone here, (n, *signal, G); those that they are compared with are the
    `centre`, (n, *output, G). Without a guide and without K, K is 1.
    """
    x, weights, guide, adapting, mask = arrays
    layout = _layout(geometry)
    wide = wide_dtype(x.dtype)
    sources = [a if a is None else _split(a, layout.low, layout.sizes, layout.step) for a in (x, guide, mask)]
    origin = (0,) * len(layout.window)
    centres, kernels = (a if a is None else _split(a, origin, layout.window, layout.phases) for a in (centre, adapting))

    def contribution(group: _Group, tap: dict[str, Any]) -> tuple[jax.Array, MaybeArray]:
        windows = [None if a is None else _window(a[group.residue], tap["offset"], layout.window) for a in sources]
        signal, neighbour, valid = windows
        assert signal is not None
        K, weight = tap.get("adapting"), tap.get("weight")
        if neighbour is not None:
            K = form.between(neighbour, centres[group.phase])  # type: ignore[index]
        if valid is not None:
            K = valid if K is None else K * valid.astype(K.dtype)
        term = signal.astype(wide)
        term = term if K is None else term * K.astype(wide)
        if weight is not None and weight.ndim == 2:
            term = jnp.dot(term.astype(x.dtype), weight, precision=precision, preferred_element_type=wide)
        elif weight is not None:
            term = term * weight.astype(wide)
        return term, K if form.normalize else valid

    totals: list[Any] = []
    for group in layout.groups:
        chosen = np.asarray(group.taps)
        taps: dict[str, Any] = {"offset": jnp.asarray(group.offsets, jnp.int32)}
        if weights is not None:
            taps["weight"] = weights[chosen]
        if kernels is not None:
            taps["adapting"] = jnp.moveaxis(kernels[group.phase], -2, 0)[chosen]
        # What is inside is computed anew in the gradient, one tap at a time; the sum is outside, since its value
        # is of no use there and would be kept for every tap.
        term = jax.checkpoint(functools.partial(contribution, group), prevent_cse=False)

        def step(total: Any, tap: Any, term: Any = term) -> tuple[Any, None]:
            return jax.tree.map(operator.add, total, term(tap)), None

        if not totals:
            shapes = jax.eval_shape(term, jax.tree.map(lambda a: a[0], taps))
            # Zeros that vary over a shard_map's axes as the terms do, which a scan asks of what it carries.
            totals = [jax.tree.map(jnp.zeros_like, shapes)] * math.prod(layout.phases)
        totals[group.phase], _ = lax.scan(step, totals[group.phase], taps)
    return jax.tree.map(lambda *parts: _join(parts, layout.phases, geometry.output), *totals)


def _centre(guide: jax.Array, smooth: MaybeArray, geometry: Geometry) -> jax.Array:
    """The features (n, *output, G) at the kernel's middle tap, smoothed if asked."""
    seen = geometry.guide
    middle = [K // 2 * d - zeros for K, d, zeros in zip(seen.size, seen.dilation, seen.low, strict=True)]
    if smooth is None:
        return _every(guide, middle, seen.output, seen.strides)
    before = tuple(n // 2 - m for n, m in zip(smooth.shape, middle, strict=True))
    around = Geometry(smooth.shape, (1,) * smooth.ndim, seen.strides, seen.signal, before, seen.output)
    return _sum_over_taps(Operands(guide, smooth.reshape(-1)), None, AdaptingKernel(), around, None)[0]


# --- masks and normalisation ---


def flattened(array: jax.Array, batch: Shape) -> jax.Array:
    """With one axis in place of the batch axes."""
    return array.reshape((math.prod(batch), *array.shape[len(batch) :]))


def flattened_mask(mask: ArrayLike | None, batch: Shape, signal: Shape) -> MaybeArray:
    """The mask as (n, *signal, 1) in float32; ValueError if it has another shape than the signal."""
    if mask is None:
        return None
    mask, shape = jnp.asarray(mask), (*batch, *signal)
    if mask.shape not in (shape, (*shape, 1)):
        raise ValueError(f"mask has shape {mask.shape}: expected {shape} or {(*shape, 1)}, like the signal.")
    return mask.astype(jnp.float32).reshape((math.prod(batch), *signal, 1))


def with_output_mask(
    y: jax.Array, norm: MaybeArray, batch: Shape, mask: ArrayLike | None
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`y` with its batch axes, and for a `mask` the output's: where there was something to divide by.

    It has a channel axis if the `mask` has one.
    """
    y = y.reshape((*batch, *y.shape[1:]))
    if mask is None:
        return y
    assert norm is not None  # there is one wherever there is a mask
    valid = (norm != 0).reshape((*batch, *norm.shape[1:]))
    return y, valid if valid.ndim == jnp.ndim(mask) else valid.any(-1)


def _share(total: jax.Array, g: Geometry) -> jax.Array:
    """The masks' sums (n, *output, 1) over the number of taps in the image, 0 where there are none."""
    for axis, (K, d, s, low, n, output) in enumerate(
        zip(g.size, g.dilation, g.strides, g.low, g.signal, g.output, strict=True)
    ):
        stride, apart = (1, s) if g.transposed else (s, 1)
        place = np.arange(output)[:, None] * stride + np.arange(K) * d - low
        inside = (place >= 0) & (place <= (n - 1) * apart) & (place % apart == 0)
        count = np.maximum(inside.sum(1), 1).astype(np.float32)
        total = total / count.reshape((1,) * (axis + 1) + (-1,) + (1,) * (len(g.size) - axis))
    return total


def _divide(y: jax.Array, norm: jax.Array) -> jax.Array:
    return y / jnp.where(norm == 0, 1, norm).astype(y.dtype)


# --- cutting and joining, of arrays (n, *spatial, ...) ---


def _padded(
    array: jax.Array, low: Sequence[int], lengths: Sequence[int], strides: Sequence[int] | None = None
) -> jax.Array:
    """With zeros between (strides - 1) and before, brought to the lengths by zeros or cutting."""
    config = [(0, 0, 0)] * array.ndim
    for axis, (before, length, s) in enumerate(zip(low, lengths, strides or [1] * len(low), strict=True), start=1):
        config[axis] = (before, length - before - _reach(array.shape[axis], s), s - 1)
    return lax.pad(array, jnp.zeros((), array.dtype), config)


def _reach(count: int, stride: int) -> int:
    """Pixels from the first to the last of `count`, a stride apart."""
    return max((count - 1) * stride + 1, 0)


def _stepped(array: jax.Array, strides: Sequence[int], first: Sequence[int] | None = None) -> jax.Array:
    """Every stride-th pixel, from the `first` on."""
    return array[(slice(None), *(slice(r, None, s) for r, s in zip(first or [0] * len(strides), strides, strict=True)))]


def _every(array: jax.Array, first: Sequence[int], count: Sequence[int], strides: Sequence[int]) -> jax.Array:
    """`count` pixels from `first` on, `strides` apart; zeros outside."""
    lengths = [_reach(n, s) for n, s in zip(count, strides, strict=True)]
    return _stepped(_padded(array, [-f for f in first], lengths), strides)


def _window(array: jax.Array, offset: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """The pixels from a place that is known only at run time."""
    zero = jnp.zeros((), offset.dtype)
    return lax.dynamic_slice(array, [zero, *offset, zero], (array.shape[0], *sizes, array.shape[-1]))


def _split(array: jax.Array, low: Sequence[int], count: Sequence[int], step: Sequence[int]) -> list[jax.Array]:
    """Padded, and its pixels by their residues modulo `step`: prod(step) arrays of `count` pixels each."""
    array = _padded(array, low, [n * s for n, s in zip(count, step, strict=True)])
    return [_stepped(array, step, residue) for residue in itertools.product(*map(range, step))]


def _join(parts: Sequence[jax.Array], step: Sequence[int], output: Sequence[int]) -> jax.Array:
    """The inverse of :func:`_split`, cut to the output's size."""
    if len(parts) == 1:
        return parts[0]
    n, *window, channels = parts[0].shape
    ndim = len(window)
    array = jnp.stack(parts).reshape((*step, n, *window, channels))
    axes = [ndim, *itertools.chain(*((ndim + 1 + axis, axis) for axis in range(ndim))), 2 * ndim + 1]
    array = array.transpose(axes).reshape((n, *(m * s for m, s in zip(window, step, strict=True)), channels))
    return array[(slice(None), *map(slice, output))]
