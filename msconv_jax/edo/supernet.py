"""The supernet of the search: large kernels that contain a kernel of each dilation."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar, Unpack

from flax import nnx
from flax.typing import Initializer

from msconv_jax.arguments import Padding, check_padding, dilated_extent, per_axis, zero_padding
from msconv_jax.operators import GroupedConv
from msconv_jax.operators.lattice_conv import ConvOptions, check_kernel_size
from msconv_jax.surgery import Predicate, Where, convolutions, replace_convs

__all__ = ["SEARCHED", "SupernetConv", "supernet", "supernet_convs"]

Model = TypeVar("Model", bound=nnx.Module)

SEARCHED = Where(kernel_size=3)
"""The convolutions that the paper searches: those with 3x3 taps, not a larger stem or 1x1 convolutions."""


class SupernetConv(GroupedConv):
    """A convolution whose kernel contains the taps of a smaller kernel at every dilation up to `d_max`.

    A kernel of k taps becomes an undilated one of ``(k - 1) * d_max + 1`` taps. The padding keeps the number and the
    centres of the outputs. It is trained like any other convolution; :func:`msconv_jax.edo.select` reads it.

    Args:
        in_features: number of input channels.
        out_features: number of output channels.
        kernel_size: taps of the searched kernel, odd, one int for each axis.
        strides: pixels between outputs, one int or one per axis.
        d_max: the largest dilation; the paper takes 4 (kernels of 9 for 3 taps), for human pose 6 (13).
        rngs: for the initial values.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`. `padding` refers to `kernel_size`. A
            `kernel_dilation` dilates the large kernel, and is the unit of the dilations found.

    Attributes:
        base_kernel_size: the argument `kernel_size`.
        d_max: the largest dilation.
        base_padding: the argument `padding`.
        kernel_size: taps of the large kernel.
        padding: of the large kernel.
        kernel: ``(*kernel_size, in_features // feature_group_count, out_features)``.

    Raises:
        ValueError: for arguments that do not fit, at construction. "SAME" needs strides of at most the kernel's extent:
            with larger ones it would centre the two kernels differently.

    Source: Sec. 3.2 of the paper, "Supernet".

    Example:
        >>> import jax.numpy as jnp
        >>> conv = SupernetConv(8, 16, (3, 3), strides=2, d_max=4, padding=1, rngs=nnx.Rngs(0))
        >>> conv.kernel.shape, conv.padding
        ((9, 9, 8, 16), ((4, 4), (4, 4)))
        >>> conv(jnp.ones((1, 15, 15, 8))).shape
        (1, 8, 8, 16)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        d_max: int,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        base = check_kernel_size(kernel_size, "SupernetConv", odd=True)
        d_max = _check_d_max(d_max)
        if max(base) == 1:
            raise ValueError(f"kernel_size={base}: a kernel of one tap has no dilation to search for; leave it out.")
        padding = options.get("padding", "SAME")
        dilation = per_axis("kernel_dilation", options.get("kernel_dilation"), len(base))
        own: Any = {**options, "padding": _large_padding(padding, base, strides, dilation, d_max)}
        super().__init__(in_features, out_features, large_kernel_size(base, d_max), strides, rngs=rngs, **own)
        self.base_kernel_size = base
        self.base_padding = padding
        self.d_max = d_max

    @property
    def base_arguments(self) -> dict[str, Any]:
        """The arguments of the convolution that is searched for, where they are not this one's attributes."""
        return {"kernel_size": self.base_kernel_size, "padding": self.base_padding}


def large_kernel_size(kernel_size: Sequence[int], d_max: int) -> tuple[int, ...]:
    """Taps of the supernet's kernel along each axis."""
    return tuple((k - 1) * d_max + 1 for k in kernel_size)


def _check_d_max(d_max: int) -> int:
    try:
        number = operator.index(d_max)
    except TypeError:
        number = 0
    if number < 1 or isinstance(d_max, bool):
        raise ValueError(f"d_max={d_max!r}: expected the largest dilation, a whole number of at least 1, such as 4.")
    return number


def _large_padding(
    padding: Padding, base: tuple[int, ...], strides: Any, dilation: tuple[int, ...], d_max: int
) -> Padding:
    """The padding that gives the large kernel the small one's outputs, around the same centres."""
    pads = check_padding(zero_padding(padding, len(base), "SupernetConv"), len(base))
    extent = dilated_extent(base, dilation)
    if pads in ("SAME", "SAME_LOWER"):
        step = per_axis("strides", strides, len(base))
        if any(s > n for s, n in zip(step, extent, strict=True)):
            raise ValueError(
                f"padding={padding!r} with strides={strides} larger than the kernel's extent {extent}: larger kernels "
                "would have other centres; give the padding in pixels."
            )
        return padding
    if isinstance(pads, str):  # VALID
        pads = ((0, 0),) * len(base)
    more = [(k - 1) * (d_max - 1) * f // 2 for k, f in zip(base, dilation, strict=True)]
    return tuple((before + m, after + m) for (before, after), m in zip(pads, more, strict=True))


def supernet(
    model: Model,
    d_max: int = 4,
    where: Where | Predicate | str | None = None,
    *,
    kernel_init: Initializer | None = None,
    rngs: nnx.Rngs | None = None,
) -> Model:
    """Builds the supernet of a model: a copy whose searched convolutions are :class:`SupernetConv`.

    Args:
        model: any NNX model with plain, grouped or depthwise convolutions; it stays unchanged.
        d_max: the largest dilation.
        where: the searched convolutions, as for :func:`msconv_jax.surgery.replace_convs`; None selects all kernels
            of 3 taps along each axis, so not 1x1 convolutions or a 7x7 stem.
        kernel_init: initialiser of the large kernels; None uses ``nnx.Conv``'s.
        rngs: for initial values; None uses ``nnx.Rngs(0)``.

    Returns:
        The copy. Its large kernels are initialised; all other parameters, including biases, are those of the model. For
        `d_max` 1 it also keeps the kernels.

    Raises:
        ValueError: if nothing is selected, or a selected convolution cannot be enlarged (circular padding, masks, even
            sizes): all such are listed.

    Source: Sec. 3.2 of the paper.

    Example:
        >>> convs = [nnx.Conv(8, 8, (3, 3), feature_group_count=groups, rngs=nnx.Rngs(0)) for groups in (1, 8)]
        >>> large = supernet(nnx.Sequential(*convs), 4, Where(feature_group_count="depthwise"))
        >>> [conv.kernel.shape for conv in large.layers]
        [(3, 3, 8, 8), (9, 9, 1, 8)]
    """
    options: dict[str, Any] = {} if kernel_init is None else {"kernel_init": kernel_init}
    factory = partial(SupernetConv, d_max=_check_d_max(d_max), **options)
    chosen = SEARCHED if where is None else where
    return replace_convs(model, factory, chosen, strict=True, rngs=rngs)[0]


def supernet_convs(model: nnx.Module) -> dict[str, SupernetConv]:
    """The searched convolutions of a supernet by their paths, in the order of construction.

    Raises:
        ValueError: if there are none.

    Example:
        >>> convs = [nnx.Conv(4, 4, (size, size), rngs=nnx.Rngs(0)) for size in (7, 3)]
        >>> list(supernet_convs(supernet(nnx.Sequential(*convs), 2)))
        ['layers.1']
    """
    found = {path: conv for path, conv in convolutions(model).items() if isinstance(conv, SupernetConv)}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no SupernetConv: make its supernet with edo.supernet(model, d_max=...)"
        )
    return found
