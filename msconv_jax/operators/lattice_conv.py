"""What the drop-in operators share: ``nnx.Conv`` with a kernel lattice in place of the plain kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer, PromoteDtypeFn
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from msconv_jax.arguments import Padding, check_padding, per_axis
from msconv_jax.convolution import lattice_convolve
from msconv_jax.costs import ConvCost
from msconv_jax.lattice import KernelLattice
from msconv_jax.lowering.choose import Lowering, check_lowering
from msconv_jax.modes.dtypes import compute_dtype
from msconv_jax.signatures import explains_arguments


class ConvOptions(TypedDict, total=False):
    """The keyword arguments of ``nnx.Conv`` that every drop-in operator takes, with ``nnx.Conv``'s defaults.

    `padding` is "SAME" (default), "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT", "CAUSAL" (one spatial axis), an int,
    or for each axis an int or a pair; it speaks of the undilated base kernel, and a border is as wide as the largest
    tile needs. `input_dilation`, `mask` and `conv_general_dilated` are accepted for the sake
    of exchange and must be left at their defaults. `lowering` is our own: see
    :func:`msconv_jax.lattice_convolve`.
    """

    padding: Padding
    input_dilation: int | Sequence[int] | None
    kernel_dilation: int | Sequence[int] | None
    feature_group_count: int
    use_bias: bool
    mask: None
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    precision: lax.PrecisionLike
    kernel_init: Initializer
    bias_init: Initializer
    conv_general_dilated: Any
    promote_dtype: PromoteDtypeFn
    preferred_element_type: DTypeLike | None
    kernel_metadata: Mapping[str, Any]
    bias_metadata: Mapping[str, Any]
    lowering: Lowering


class LatticeConv(nnx.Conv, ConvCost):
    """Base of the operators whose one kernel has the plain convolution's shape.

    A subclass makes the lattice and passes it on; this class holds the parameters exactly as ``nnx.Conv`` does
    (it is one) and applies them. One rule differs: without `dtype`, half-precision input is computed and
    returned in half precision, where ``nnx.Conv`` would promote it to the parameters' float32.

    Attributes:
        lowering: the forced lowering, or "auto".
        kernel: ``(*kernel_size, in_features // feature_group_count, out_features)``.
        bias: ``(out_features,)``, or None.

    Raises:
        ValueError: for arguments that do not fit, at construction.
    """

    @explains_arguments
    def __init__(
        self,
        lattice: KernelLattice,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        check_conv_options(type(self).__name__, lattice.ndim, strides, options)
        self.lowering: Lowering = options.get("lowering", "auto")
        shape = (*kernel_size, lattice.banks[0].fan_in, lattice.out_features)
        if [bank.shape for bank in lattice.banks] != [shape]:
            raise ValueError(f"{lattice} needs other kernels than one of shape {shape}.")
        own: dict[str, Any] = {
            name: value for name, value in options.items() if name not in ("lowering", "conv_general_dilated")
        }
        super().__init__(lattice.in_features, lattice.out_features, tuple(kernel_size), strides, rngs=rngs, **own)
        self._lattice = lattice

    @property
    def lattice(self) -> KernelLattice:
        """The kernel lattice."""
        return self._lattice

    @property
    def num_parameters(self) -> int:
        """Number of weights, without the bias."""
        return self.lattice.num_parameters

    @property
    def lattice_kernels(self) -> tuple[jax.Array, ...]:
        """The kernels of the lattice, packed: one array per bank, here a single one."""
        return (self.kernel[...],)

    def __call__(self, inputs: ArrayLike, out_sharding: None = None) -> jax.Array:
        """Convolves.

        Args:
            inputs: ``(*batch, *spatial, in_features)``, any number of batch axes.
            out_sharding: as in ``nnx.Conv``, must be None: the output is sharded as the input is.

        Returns:
            ``(*batch, *output_spatial, out_features)``.

        Raises:
            ValueError: if the inputs do not fit.
        """
        refuse_out_sharding(type(self).__name__, out_sharding)
        return apply_lattice(self, inputs, self.lattice_kernels)


def apply_lattice(
    module: Any,
    inputs: ArrayLike,
    kernels: Sequence[ArrayLike],
    *,
    lattice: KernelLattice | None = None,
    use_bias: bool = True,
) -> jax.Array:
    """Convolves with a module's lattice under its options, and adds its bias.

    Args:
        module: an operator with ``nnx.Conv``'s attributes, and `lattice` and `lowering`.
        inputs: ``(*batch, *spatial, in_features)``.
        kernels: the lattice's kernels, in a form that :class:`msconv_jax.KernelLattice` takes.
        lattice: another lattice than the module's own.
        use_bias: whether to add the module's bias, if it has one.

    Returns:
        ``(*batch, *output_spatial, out_features)``.
    """
    x = jnp.asarray(inputs)
    arrays = [jnp.asarray(kernel) for kernel in kernels]
    bias = None if module.bias is None or not use_bias else module.bias[...]
    dtype = module.dtype if module.dtype is not None else compute_dtype(x, *arrays)
    x, bias, *arrays = module.promote_dtype((x, bias, *arrays), dtype=dtype)
    y = lattice_convolve(
        x,
        arrays,
        module.lattice if lattice is None else lattice,
        module.strides,
        module.padding,
        lowering=module.lowering,
        precision=module.precision,
        preferred_element_type=module.preferred_element_type,
    )
    return y if bias is None else y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def check_conv_options(
    operator_name: str, ndim: int, strides: int | Sequence[int] | None, options: ConvOptions
) -> None:
    """Checks those of ``nnx.Conv``'s arguments that mean the same for every operator.

    Raises:
        ValueError: for a value that is malformed, or that no operator can honour.
    """
    per_axis("strides", strides, ndim)
    check_padding(options.get("padding", "SAME"), ndim)
    per_axis("kernel_dilation", options.get("kernel_dilation"), ndim)
    if any(d != 1 for d in per_axis("input_dilation", options.get("input_dilation"), ndim)):
        raise ValueError(
            f"input_dilation={options.get('input_dilation')!r}: {operator_name} does not dilate its "
            "input; leave it at 1, or insert the zeros with jax.lax.pad before."
        )
    if options.get("mask") is not None:
        raise ValueError(
            f"mask: {operator_name} takes no kernel mask; multiply its kernel, or describe the empty "
            "cells with a KernelLattice and call msconv_jax.lattice_convolve."
        )
    if options.get("conv_general_dilated") not in (None, lax.conv_general_dilated):
        raise ValueError(
            f"conv_general_dilated: {operator_name} chooses its own convolutions; leave it out and "
            "use lowering=... to force one."
        )
    check_lowering(options.get("lowering", "auto"))


def refuse_out_sharding(operator_name: str, out_sharding: object) -> None:
    """Raises ValueError unless `out_sharding`, an argument of ``nnx.Conv.__call__``, is None."""
    if out_sharding is not None:
        raise ValueError(
            f"out_sharding={out_sharding!r}: the output of {operator_name} is sharded as its input is; leave the "
            "argument out, and call jax.reshard on the output for another sharding."
        )


def check_kernel_size(kernel_size: Sequence[int], operator_name: str, *, odd: bool = False) -> tuple[int, ...]:
    """`kernel_size` as a tuple of positive ints.

    Raises:
        ValueError: if it is an int (``nnx.Conv`` would build a one-dimensional kernel), or does not fit.
    """
    if isinstance(kernel_size, int):
        raise ValueError(
            f"kernel_size={kernel_size!r}: {operator_name} takes one int per spatial axis; for images write "
            f"kernel_size=({kernel_size}, {kernel_size})."
        )
    try:
        sizes = per_axis("kernel_size", kernel_size, len(kernel_size))
    except TypeError:
        raise ValueError(f"kernel_size={kernel_size!r}: expected a tuple of ints, such as (3, 3).") from None
    if not sizes:
        raise ValueError(f"kernel_size={kernel_size!r}: expected at least one spatial axis.")
    if odd and any(size % 2 == 0 for size in sizes):
        raise ValueError(
            f"kernel_size={kernel_size!r}: {operator_name} needs odd sizes, so that kernels of every dilation "
            "share one centre."
        )
    return sizes
