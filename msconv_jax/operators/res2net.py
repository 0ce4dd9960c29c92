"""Res2Net's convolution: the channels form slices, and the result of each slice is added to the next slice.

S.-H. Gao, M.-M. Cheng, K. Zhao, X.-Y. Zhang, M.-H. Yang, P. Torr: "Res2Net: A New Multi-scale Backbone Architecture",
TPAMI 2021. With s slices x_1, ..., x_s of equal width and K_i a convolution with normalisation and activation,

    y_1 = K_1(x_1),   y_i = K_i(x_i + y_{i-1}) for 1 < i < s,   y_s = x_s,

concatenated. The paper's Eq. (1) passes the first slice unchanged, the public code the last. The two are equal up to
the order of the slices; this module follows the public code, so that its weights fit. The paper's formula does not
cover the first block of a stage. There the public code omits the sums, ``y_i = K_i(x_i)`` with the block's stride, and
averages the last slice over the kernel's window.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from msconv_jax.arguments import BORDERS, base_pads, check_padding, dilated_extent, per_axis
from msconv_jax.convolution import convolve, with_border
from msconv_jax.costs import Shape, call_macs
from msconv_jax.modes.dtypes import common_dtype, compute_dtype
from msconv_jax.modes.normalization import BatchNorm
from msconv_jax.modes.picklable import Picklable
from msconv_jax.operators.composite import CompositeConv
from msconv_jax.operators.grouped import GroupedConv
from msconv_jax.operators.lattice_conv import ConvOptions
from msconv_jax.signatures import explains_arguments

Kind = Literal["normal", "stage"]
LastSlice = Literal["pool", "conv"]

_BATCH_NORM = functools.partial(BatchNorm, momentum=0.9, epsilon=1e-5)  # PyTorch's defaults


class Res2Conv(Picklable, CompositeConv):
    """Res2Net's split convolution, a drop-in for ``nnx.Conv`` with normalisation and activation inside.

    The default is the part of the paper's block between its two 1x1 convolutions: each K_i is a convolution without
    bias, a batch normalisation and a ReLU. The slices are contiguous blocks of ``in_features / scale`` channels.

    * ``kind="normal"``: the sums of the module's formula; the image size does not change.
    * ``kind="stage"``: no sums, a stride in each K_i, and the last slice averaged over windows of `kernel_size` with
      the same stride and padding. The mean includes the zeros of the padding, so the divisor is the same everywhere.
      The windows are not dilated; each is at the centre of K_i's window.

    One slice (``scale=1``) is a plain convolution with normalisation and activation, for either kind.

    The operator has ``k^2 w^2 n / g`` kernel weights for slices of w channels, g groups and n convolutions. n is
    ``scale - 1``, or `scale` for ``scale=1`` and ``last_slice="conv"``.

    Args:
        in_features: number of input channels, divisible by `scale`.
        out_features: number of output channels; equal to `in_features` unless `scale` is 1.
        kernel_size: taps per spatial axis, one int for each axis.
        strides: pixels between outputs, one int or one per axis; 1 for several slices of kind "normal".
        scale: number of slices, at least 1.
        kind: "normal" or "stage"; "auto" is "stage" with strides other than 1, else "normal".
        last_slice: the function of the last slice for kind "stage": "pool" averages it like the public code, "conv"
            convolves it with one more K, which reproduces the parameter counts of the paper's CIFAR table. Kind
            "normal" always passes the last slice unchanged.
        conv: factory of the slices' convolutions, with the arguments of ``nnx.Conv``, such as a class, or a
            ``functools.partial`` of one. Its arguments are the slice's width and all other arguments and options.
        norm: factory of the normalisations, called with the width and ``nnx.BatchNorm``'s `dtype`, `param_dtype` and
            `rngs`; None for no normalisation. The default is ``nnx.BatchNorm`` with momentum 0.9 and epsilon 1e-5.
        act: activation function; None for no activation. The module stores it: use a named function, since two lambdas
            are never equal. (The factories are used at construction only.)
        rngs: for the initial values.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`. `feature_group_count` (Res2NeXt's
            cardinality) applies to each slice's convolution and divides the slice's width. `use_bias` applies to each
            slice's convolution, not to the whole output; by default there are biases only without `norm`, which would
            cancel them. The `padding` of kind "normal" must keep the image size, as "SAME" does.

    Attributes:
        convs: the slices' convolutions, an ``nnx.List``.
        bns: their normalisations, an ``nnx.List``, empty for ``norm=None``.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Source: Eq. (1) and Fig. 2 of the paper; "stage" and ``last_slice="pool"``: the public code.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax.operators.res2net import Res2Conv
        >>> conv = Res2Conv(64, 64, (3, 3), scale=4, rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 14, 14, 64))).shape
        (1, 14, 14, 64)
        >>> [k.kernel.shape for k in conv.convs]
        [(3, 3, 16, 16), (3, 3, 16, 16), (3, 3, 16, 16)]
        >>> first = Res2Conv(64, 64, (3, 3), 2, scale=4, kind="stage", padding=1, rngs=nnx.Rngs(0))
        >>> first(jnp.ones((1, 15, 15, 64))).shape
        (1, 8, 8, 64)
    """

    norm_follows: ClassVar = {"convs": "bns"}

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        scale: int = 4,
        kind: Kind | Literal["auto"] = "normal",
        last_slice: LastSlice = "pool",
        conv: Callable[..., Any] = GroupedConv,
        norm: Callable[..., Any] | None = _BATCH_NORM,
        act: Callable[[jax.Array], jax.Array] | None = nnx.relu,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        options.setdefault("use_bias", norm is None)
        super().__init__(in_features, out_features, kernel_size, strides, **options)
        self.scale = _check_scale(scale)
        if kind == "auto":
            kind = "normal" if set(per_axis("strides", self.strides, len(self.kernel_size))) == {1} else "stage"
        for name, value, choices in (("kind", kind, get_args(Kind)), ("last_slice", last_slice, get_args(LastSlice))):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}.")
        self.kind: Kind = kind
        self.last_slice = last_slice
        if kind == "normal" and last_slice != "pool":
            raise ValueError(
                f"last_slice={last_slice!r} with kind='normal', which passes the last slice on as it is: take "
                "kind='stage', or leave last_slice out."
            )
        if self.scale > 1:
            self._check_slices()
        self.act = act
        count = self.scale if self.scale == 1 or last_slice == "conv" else self.scale - 1
        inputs, outputs = in_features // self.scale, out_features // self.scale
        self.convs = nnx.List(
            [
                conv(inputs, outputs, kernel_size=self.kernel_size, strides=strides, rngs=rngs, **options)
                for _ in range(count)
            ]
        )
        norms = [] if norm is None else [norm] * count
        self.bns = nnx.List(
            [make(outputs, dtype=self.dtype, param_dtype=self.param_dtype, rngs=rngs) for make in norms]
        )

    def _check_slices(self) -> None:
        """Raises ValueError unless the arguments suit several slices."""
        scale, groups = self.scale, self.feature_group_count
        if self.in_features != self.out_features:
            raise ValueError(
                f"in_features={self.in_features} and out_features={self.out_features} with scale={scale}: slices keep "
                "their width, so the two must be equal; change the width by a 1x1 convolution before or after, or "
                "take scale=1."
            )
        if self.in_features % scale:
            raise ValueError(
                f"in_features={self.in_features} is not divisible by scale={scale}: take one of "
                f"{_divisors(self.in_features)} as scale, or other channels."
            )
        width = self.in_features // scale
        if width % groups:
            raise ValueError(
                f"feature_group_count={groups} does not divide the {width} channels of a slice "
                f"(in_features={self.in_features}, scale={scale}): take one of {_divisors(width)}."
            )
        if self.kind == "stage":
            return
        ndim = len(self.kernel_size)
        if any(stride != 1 for stride in per_axis("strides", self.strides, ndim)):
            raise ValueError(
                f"strides={self.strides!r} with kind='normal': its sums need slices of one size; take kind='stage', "
                "which has no sums, for the block that changes the stride."
            )
        extent = self._extent()
        pads = base_pads(self.padding, (1,) * ndim, extent, (1,) * ndim)
        if any(sum(pad) != reach - 1 for pad, reach in zip(pads, extent, strict=True)):
            raise ValueError(
                f"padding={self.padding!r} with kind='normal' and kernel_size={self.kernel_size}: its sums need slices "
                "of one size; take 'SAME', which keeps the image's size, or kind='stage', which has no sums."
            )

    def __call__(self, inputs: ArrayLike, out_sharding: None = None) -> jax.Array:
        """Convolves.

        In training (``module.train()``, the initial mode) the batch normalisations use the batch statistics and update
        the running ones. After ``module.eval()`` they use the running ones.

        Args:
            inputs: ``(*batch, *spatial, in_features)``, any number of batch axes.
            out_sharding: as in ``nnx.Conv``, must be None: the output has the input's sharding.

        Returns:
            ``(*batch, *output_spatial, out_features)``, with ``nnx.Conv``'s output size.

        Raises:
            ValueError: if the inputs do not fit.
        """
        x = self.check_input(inputs, out_sharding)
        dtype = compute_dtype(x, jnp.zeros((), self.param_dtype)) if self.dtype is None else self.dtype
        (x,) = self.promote_dtype((x,), dtype=dtype)
        branches = [functools.partial(self._branch, number) for number in range(len(self.convs))]
        last = self._average if self.kind == "stage" else None
        y = res2conv(x, branches, scale=self.scale, kind=self.kind, last=last)
        return y.astype(dtype if self.preferred_element_type is None else self.preferred_element_type)

    def _branch(self, number: int, x: jax.Array) -> jax.Array:
        """The convolution of one slice, with normalisation and activation: K of the module's formula."""
        y = self.convs[number](x)
        if len(self.bns):
            y = self.bns[number](y).astype(y.dtype)  # float32 parameters would widen half precision
        return y if self.act is None else self.act(y)

    def _average(self, x: jax.Array) -> jax.Array:
        """The mean over windows of `kernel_size`, at the positions of K_i's windows.

        It is a convolution with ones: XLA's window sums are two to three times slower on CPU, and coarser in bfloat16.
        """
        extent, ndim = self._extent(), len(self.kernel_size)
        strides = per_axis("strides", self.strides, ndim)
        pads = []
        for (low, high), reach, size in zip(
            base_pads(self.padding, x.shape[-ndim - 1 : -1], extent, strides), extent, self.kernel_size, strict=True
        ):
            before = (reach - size) // 2
            pads.append((low - before, high - (reach - size - before)))
        width = x.shape[-1]
        ones = jnp.ones((*self.kernel_size, 1, width), x.dtype)
        if check_padding(self.padding, ndim) in BORDERS:
            x, pads = with_border(x, self.padding, pads), "VALID"
        total = convolve(x, ones, strides, pads, feature_group_count=width, precision="highest")
        return total / math.prod(self.kernel_size)

    def _extent(self) -> tuple[int, ...]:
        """Pixels per axis that the slices' dilated kernels span."""
        return dilated_extent(
            self.kernel_size, per_axis("kernel_dilation", self.kernel_dilation, len(self.kernel_size))
        )

    @property
    def num_parameters(self) -> int:
        """Weights of the slices' convolutions, without biases and normalisations."""
        flat = [leaf for conv in self.convs for leaf in nnx.to_flat_state(nnx.state(conv, nnx.Param))]
        return sum(math.prod(variable.shape) for path, variable in flat if path[-1] != "bias")

    def macs_per_image(self, output_size: Shape) -> int:
        """Multiply-accumulates of the slices' convolutions for one image; pooling and normalisation count none.

        Args:
            output_size: spatial size of the output, in pixels.

        Raises:
            TypeError: if `conv` made modules whose cost is not known: see :func:`msconv_jax.costs.call_macs`.
        """
        strides = per_axis("strides", self.strides, len(output_size))
        size = tuple(n * stride for n, stride in zip(output_size, strides, strict=True))
        inputs = [(1, *size, self.in_features // self.scale)]
        outputs = [(1, *output_size, self.out_features // self.scale)]
        return sum(call_macs(conv, inputs, outputs) for conv in self.convs)


def res2conv(
    x: ArrayLike,
    branches: Sequence[Callable[[jax.Array], jax.Array]],
    *,
    scale: int = 4,
    kind: Kind = "normal",
    last: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """:class:`Res2Conv`'s split as a pure function of the K_i.

    Args:
        x: ``(*batch, *spatial, features)``.
        branches: the functions K_i, from a slice to a map of the same batch, and of the same shape for kind "normal".
            There are ``scale - 1`` of them, or `scale` if the last slice has a K.
        scale: number of slices, a divisor of the features.
        kind: "normal" adds the result for each slice to the next one, "stage" does not.
        last: function of the last slice if it has no K; None passes it unchanged.

    Returns:
        ``(*batch, *output_spatial, output features)``, the slices' maps in their order.

    Raises:
        ValueError: for arguments that do not fit.

    Source: Eq. (1) of the paper.

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax.operators.res2net import res2conv
        >>> res2conv(jnp.array([1.0, 2.0, 3.0, 4.0]), [lambda x: 10 * x] * 3)
        Array([  10.,  120., 1230.,    4.], dtype=float32)
    """
    x = jnp.asarray(x)
    scale = _check_scale(scale)
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(get_args(Kind))}.")
    if not x.ndim or x.shape[-1] % scale:
        raise ValueError(f"x has shape {x.shape}: expected a last axis divisible by scale={scale}.")
    if len(branches) not in (max(scale - 1, 1), scale):
        raise ValueError(f"{len(branches)} branches with scale={scale}: expected {max(scale - 1, 1)} or {scale}.")
    outputs: list[jax.Array] = []
    for number, own in enumerate(jnp.split(x, scale, axis=-1)):
        if number == len(branches):
            outputs.append(own if last is None else last(own))
            continue
        if kind == "normal" and number:
            dtype = common_dtype(own, outputs[-1])
            own = (own.astype(dtype) + outputs[-1].astype(dtype)).astype(x.dtype)
        outputs.append(branches[number](own))
    dtype = common_dtype(*outputs)
    return jnp.concatenate([output.astype(dtype) for output in outputs], axis=-1)


def _check_scale(scale: int) -> int:
    if isinstance(scale, bool) or not isinstance(scale, int | np.integer) or scale < 1:
        raise ValueError(f"scale={scale!r}: expected an int of at least 1; the paper uses 4, and 1 does not split.")
    return int(scale)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
