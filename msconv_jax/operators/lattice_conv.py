"""Base classes of the drop-in operators: ``nnx.Conv`` with a kernel lattice instead of the plain kernel."""

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
    or for each axis an int or a pair. It refers to the undilated base kernel; the library pads larger tiles further.
    `input_dilation`, `mask` and `conv_general_dilated` exist for compatibility and must keep their defaults.
    ``nnx.Conv`` has no `lowering`: see :func:`msconv_jax.lattice_convolve`.
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


class LatticeOperator(ConvCost):
    """Mixin of the operators that are one convolution with a kernel lattice.

    It must be the last base, after :class:`LatticeConv`'s or :class:`CompositeConv`'s Flax classes. The operator has
    ``nnx.Conv``'s attributes, ``lattice`` and ``lowering``; an operator with several kernels overrides
    `lattice_kernels`.
    """

    kernel: Any
    lattice: Any
    lowering: Lowering

    @property
    def lattice_kernels(self) -> tuple[jax.Array, ...]:
        """The kernels of the lattice, one array for each of its banks."""
        return (self.kernel[...],)

    def __call__(self, inputs: ArrayLike, out_sharding: None = None) -> jax.Array:
        """Convolves.

        Args:
            inputs: ``(*batch, *spatial, in_features)``, any number of batch axes.
            out_sharding: as in ``nnx.Conv``, must be None: the output has the input's sharding.

        Returns:
            ``(*batch, *output_spatial, out_features)``.

        Raises:
            ValueError: if the inputs do not fit.
        """
        refuse_out_sharding(type(self).__name__, out_sharding)
        return apply_lattice(self, inputs, self.lattice_kernels)


class LatticeConv(nnx.Conv, LatticeOperator):
    """Base of the operators with one kernel of the plain convolution's shape.

    A subclass builds the lattice; this class holds the parameters of ``nnx.Conv`` and applies them. One rule differs
    from ``nnx.Conv``: without `dtype`, half-precision input is computed and returned in half precision, not promoted
    to the parameters' float32.

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
        of_conv: dict[str, Any] = {
            name: value for name, value in options.items() if name not in ("lowering", "conv_general_dilated")
        }
        super().__init__(lattice.in_features, lattice.out_features, tuple(kernel_size), strides, rngs=rngs, **of_conv)
        self._lattice = lattice

    @property
    def lattice(self) -> KernelLattice:
        """The kernel lattice."""
        return self._lattice

    @property
    def num_parameters(self) -> int:
        """Number of weights, without the bias."""
        return self.lattice.num_parameters

    def __call__(self, inputs: ArrayLike, out_sharding: None = None) -> jax.Array:
        """Convolves ``(*batch, *spatial, in_features)``; see :meth:`LatticeOperator.__call__`."""
        return LatticeOperator.__call__(self, inputs, out_sharding)  # nnx.Conv precedes it in the MRO


def apply_lattice(
    module: Any,
    inputs: ArrayLike,
    kernels: Sequence[ArrayLike],
    *,
    lattice: KernelLattice | None = None,
    use_bias: bool = True,
) -> jax.Array:
    """Convolves with a module's lattice and options, and adds its bias.

    Args:
        module: an operator with ``nnx.Conv``'s attributes, and `lattice` and `lowering`.
        inputs: ``(*batch, *spatial, in_features)``.
        kernels: the lattice's kernels, one array for each bank.
        lattice: the lattice; the module's by default.
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
    """Checks the arguments of ``nnx.Conv`` that have the same meaning for every operator.

    Raises:
        ValueError: for a malformed value, or a value that no operator supports.
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
            f"out_sharding={out_sharding!r}: the output of {operator_name} has its input's sharding; leave the "
            "argument out, and call jax.reshard on the output for another sharding."
        )


def check_kernel_size(kernel_size: Sequence[int], operator_name: str, *, odd: bool = False) -> tuple[int, ...]:
    """`kernel_size` as a tuple of positive ints.

    Raises:
        ValueError: if it is an int (``nnx.Conv`` would build a one-dimensional kernel), or malformed.
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
