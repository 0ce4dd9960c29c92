"""The adapting kernel K of pixel-adaptive convolution: its options, its types and its values for two guide features."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from msconv_jax.modes.dtypes import common_dtype, wide_dtype

MaybeArray = jax.Array | None


class AdaptingOptions(TypedDict, total=False):
    """The options of the pure functions for the adapting kernel K.

    `kernel_type` is "gaussian" (default) or "inv_{alpha}_{lambda}": K = exp(-q / 2) or
    K = alpha + (q + 1e-4)^(lambda / 2), where q is the squared distance of the two guide features. The suffix ``_asym``
    of the latter clips negative differences (neighbour minus centre) to 0; the suffix ``_fixed`` affects the modules
    only. `inv_alpha` and `inv_lambda` replace the two numbers in the name, as scalars or, with `channel_wise`, one for
    each guide channel. `channel_wise` gives one K for each guide channel instead of one for their sum. `smooth_kernel`,
    of odd sizes along the spatial axes, smooths the centre's feature. `normalize_kernel` divides K by its sum over the
    taps in the image.
    """

    kernel_type: str
    normalize_kernel: bool
    channel_wise: bool
    smooth_kernel: ArrayLike | None
    inv_alpha: ArrayLike | None
    inv_lambda: ArrayLike | None


class KernelType(NamedTuple):
    """The fields of a kernel type's name."""

    inverse: bool = False
    alpha: float = 0.0
    power: float = 0.0
    asym: bool = False
    fixed: bool = False

    @classmethod
    def parse(cls, name: str) -> KernelType:
        """Parses "gaussian" or "inv_{alpha}_{lambda}[_asym][_fixed]"; raises ValueError for another name."""
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
        smooth_kernel_type: "none", "gaussian" (the outer product of 1/4, 1/2, 1/4), "average_{n}" or "full_{n}" with
            an odd n. The last two have the same initial values.
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
    """The checked :class:`AdaptingOptions`, which with the guide determine K. The arrays are the pytree's leaves."""

    alpha: MaybeArray = None  # of an inverse kernel: () or (guide channels,)
    power: MaybeArray = None  # lambda, of the same shape
    smooth: MaybeArray = None  # the smoothing kernel, with the spatial axes
    kind: KernelType = dataclasses.field(default=KernelType(), metadata=_STATIC)
    channel_wise: bool = dataclasses.field(default=False, metadata=_STATIC)
    normalize: bool = dataclasses.field(default=False, metadata=_STATIC)

    @classmethod
    def of(cls, options: AdaptingOptions, guide: MaybeArray, ndim: int) -> AdaptingKernel:
        """Validates the options. Without a guide K is precomputed, and only `normalize_kernel` applies.

        Raises:
            TypeError: for an unknown option.
            ValueError: for an option that does not fit, such as a smoothing kernel without a guide.
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
            array = jnp.asarray(default, guide.dtype) if value is None else as_float32(value)
            if array.shape not in {(), (channels,) if channel_wise else ()}:
                raise ValueError(
                    f"{name} has shape {array.shape}: expected a scalar, or with channel_wise=True one for each of the "
                    f"guide's {channels} channels."
                )
            numbers.append(array if kind.inverse else None)
        smooth = options.get("smooth_kernel")
        smooth = None if smooth is None else as_float32(smooth)
        if smooth is not None and (smooth.ndim != ndim or any(n % 2 == 0 for n in smooth.shape)):
            raise ValueError(f"smooth_kernel has shape {smooth.shape}: expected odd sizes along {ndim} spatial axes.")
        alpha, power = numbers
        return cls(alpha, power, smooth, kind, channel_wise, normalize)

    def between(self, neighbour: jax.Array, centre: jax.Array) -> jax.Array:
        """K of two feature arrays (..., G), not normalised: (..., 1), or (..., G) if it is channel-wise."""
        difference = neighbour - centre
        if self.kind.asym:
            difference = jax.nn.relu(difference)
        q = difference * difference
        if not self.channel_wise:
            q = q.sum(-1, keepdims=True)
        if self.alpha is None or self.power is None:  # an inverse kernel has both
            return jnp.exp(-0.5 * q)
        dtype = common_dtype(q, self.alpha, self.power)
        ones = (1,) * (q.ndim - 1)  # both are scalars or have one number for each channel
        alpha, power = (number.astype(dtype).reshape((*ones, -1)) for number in (self.alpha, self.power))
        return alpha + (q.astype(dtype) + 1e-4) ** (power / 2)


def as_float32(array: ArrayLike) -> jax.Array:
    """The array in at least float32, since half precision would lose the differences of features."""
    array = jnp.asarray(array)
    return array.astype(wide_dtype(array.dtype))
