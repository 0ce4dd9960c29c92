"""Pixel-adaptive convolution (PAC): a kernel of guide features weights the taps of a convolution.

H. Su, V. Jampani, D. Sun, O. Gallo, E. Learned-Miller, J. Kautz: "Pixel-Adaptive Convolutional Neural Networks",
CVPR 2019. Eq. (3), for the signal v, the guide f, the weights W and the adapting kernel K:

    v'_i = sum_{j in Omega(i)} K(f_i, f_j) W[p_j - p_i] v_j + b,      K(f_i, f_j) = exp(-|f_i - f_j|^2 / 2).

The paper writes W[p_i - p_j]; this module correlates, like the public code and every convolution of this library. The
transposed operator inserts zeros into the signal and does not flip its kernel either: under a constant guide it is the
ordinary transposed convolution with the kernel flipped. The guide is zero outside the image, so K is K(f_i, 0) there;
normalisation excludes those taps.

This file has the operators as modules. :mod:`msconv_jax.operators.pac.functions` has them as pure functions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Unpack, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Initializer
from jax.typing import ArrayLike, DTypeLike

from msconv_jax.arguments import Padding, check_padding, per_axis, zero_padding
from msconv_jax.costs import Shapes, known_shape
from msconv_jax.modes.dtypes import compute_dtype
from msconv_jax.operators.composite import CompositeConv
from msconv_jax.operators.lattice_conv import ConvOptions, check_kernel_size
from msconv_jax.operators.pac.functions import Result, pac_convolve, pac_convolve_transpose, pac_kernel, pac_pool
from msconv_jax.operators.pac.geometry import Geometry, check_output_padding, transpose_geometry
from msconv_jax.operators.pac.kernel import KernelType, smoothing_kernel
from msconv_jax.signatures import explains_arguments

Filler = Literal["uniform", "linear"]


class PACOptions(ConvOptions, total=False):
    """:class:`ConvOptions` and the additional options of :class:`PACConv`."""

    kernel_type: str
    normalize_kernel: bool
    shared_filters: bool
    smooth_kernel_type: str


class _Adapting(nnx.Module):
    """The parameters of the adapting kernel, common to all three modules."""

    transposed: ClassVar[bool] = False
    kernel_size: tuple[int, ...]
    strides: int | Sequence[int] | None
    padding: Padding
    kernel_dilation: int | Sequence[int] | None

    def _make_adapting(
        self,
        kernel_type: str,
        smooth_kernel_type: str,
        normalize_kernel: bool,
        dtype: DTypeLike,
        channel_wise: bool = False,
        features: int | None = None,
    ) -> None:
        named = KernelType.parse(kernel_type)
        smooth = smoothing_kernel(smooth_kernel_type, len(self.kernel_size))
        learnt = named.inverse and not named.fixed
        if learnt and channel_wise and features is None:
            raise ValueError(
                f"kernel_type={kernel_type!r} with channel_wise=True learns one alpha and one lambda for each channel: "
                "give their number as features=..., or append '_fixed' to the kernel type."
            )
        self.kernel_type = kernel_type
        self.smooth_kernel_type = smooth_kernel_type
        self.normalize_kernel = bool(normalize_kernel)
        self.channel_wise = bool(channel_wise)
        shape = (features,) if channel_wise and features is not None else ()
        self.inv_alpha = nnx.Param(jnp.full(shape, named.alpha, dtype)) if learnt else nnx.data(None)
        self.inv_lambda = nnx.Param(jnp.full(shape, named.power, dtype)) if learnt else nnx.data(None)
        full = smooth is not None and smooth_kernel_type.startswith("full_")
        self.smooth_kernel = nnx.Param(jnp.asarray(smooth, dtype)) if full else nnx.data(None)

    def _settings(self) -> dict[str, Any]:
        """The arguments of the pure functions other than the arrays and the kernel size."""
        smooth = None if self.smooth_kernel is None else self.smooth_kernel[...]
        return {
            "strides": self.strides,
            "padding": self.padding,
            "kernel_dilation": self.kernel_dilation,
            "kernel_type": self.kernel_type,
            "normalize_kernel": self.normalize_kernel,
            "channel_wise": self.channel_wise,
            "smooth_kernel": smoothing_kernel(self.smooth_kernel_type, len(self.kernel_size))
            if smooth is None
            else smooth,
            "inv_alpha": None if self.inv_alpha is None else self.inv_alpha[...],
            "inv_lambda": None if self.inv_lambda is None else self.inv_lambda[...],
        }

    def _kernel_macs(self, guide_features: int | None) -> int:
        """Multiply-accumulates of one tap of K: the squared distance and its scaling; 0 for a precomputed K."""
        if guide_features is None:
            return 0
        return guide_features + (guide_features if self.channel_wise else 1)

    def adapting_kernel(self, guide: ArrayLike, mask: ArrayLike | None = None) -> Result:
        """K for this guide, and with a mask also the output's mask: see :func:`pac_kernel`."""
        return pac_kernel(guide, self.kernel_size, mask=mask, transposed=self.transposed, **self._settings())


class _PACBase(_Adapting, CompositeConv):
    """The convolution and, with `transposed`, its transpose."""

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        kernel_type: str = "gaussian",
        normalize_kernel: bool = False,
        shared_filters: bool = False,
        smooth_kernel_type: str = "none",
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        super().__init__(in_features, out_features, kernel_size, strides, **options)
        name, size = type(self).__name__, check_kernel_size(self.kernel_size, type(self).__name__, odd=True)
        zero_padding(self.padding, len(size), name)
        if self.feature_group_count != 1:
            raise ValueError(
                f"feature_group_count={self.feature_group_count}: {name} has no groups; leave it at 1, or take "
                "shared_filters=True to keep the channels apart."
            )
        if self.lowering != "auto":
            raise ValueError(f"lowering={self.lowering!r}: {name} has one way to be computed; leave it at 'auto'.")
        if shared_filters and in_features != out_features:
            raise ValueError(
                f"shared_filters=True with in_features={in_features} and out_features={out_features}: one filter for "
                "each channel by itself needs as many outputs as inputs."
            )
        self._make_adapting(kernel_type, smooth_kernel_type, normalize_kernel, self.param_dtype)
        self.shared_filters = bool(shared_filters)
        uniform = _uniform((in_features if shared_filters else 1) / math.sqrt(in_features * math.prod(size)))
        shape = (*size, 1, 1) if shared_filters else (*size, in_features, out_features)
        value = options.get("kernel_init", uniform)(rngs.params(), shape, self.param_dtype)
        self.kernel = nnx.Param(value, **options.get("kernel_metadata", {}))
        self.make_bias({"bias_init": uniform, **options}, rngs)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the weights: ``(*kernel_size, in_features, out_features)``, ``(*kernel_size, 1, 1)`` if shared."""
        return self.kernel.shape

    @overload
    def macs(self, output_size: int | Sequence[int], *, guide_features: int | None = None) -> int: ...

    @overload
    def macs(self, output_size: Shapes, output_shapes: Shapes) -> int: ...

    def macs(
        self,
        output_size: int | Sequence[int] | Shapes,
        output_shapes: Shapes | None = None,
        *,
        guide_features: int | None = None,
    ) -> int:
        """Multiply-accumulates for one image or of one call: the convolution, its inputs times K, and K itself.

        The cost is ``taps * (in * out + in + guide_features + 1)`` for each output pixel; for shared filters, ``out``
        is 1. On average only one of ``prod(strides)`` taps of the transposed operator coincides with a sample. A call
        with a precomputed K has no cost for K.

        Args:
            output_size: spatial size of the output, in pixels, one int or one per axis. With `output_shapes` it is
                the shapes of the inputs, in the order of the call: signal, guide and K.
            output_shapes: shapes of the outputs of one call: see :mod:`msconv_jax.costs`.
            guide_features: channels of the guide, for one image.

        Raises:
            ValueError: for a size or shapes that do not fit, or without `guide_features` for one image.
        """
        ndim = len(self.kernel_size)
        if output_shapes is None:
            if guide_features is None:
                raise ValueError("guide_features=None: the cost depends on the guide; give its number of channels.")
            positions = math.prod(per_axis("output_size", cast("int | Sequence[int]", output_size), ndim))
        else:
            guide_features = _guide_features(cast("Shapes", output_size))
            positions = math.prod(known_shape("output_shapes", output_shapes, 0, ndim + 1)[:-1])
        outputs = 1 if self.shared_filters else self.out_features
        each = self.in_features * outputs + self.in_features + self._kernel_macs(guide_features)
        skipped = math.prod(per_axis("strides", self.strides, ndim)) if self.transposed else 1
        return math.prod(self.kernel_size) * each * positions // skipped

    def __call__(
        self,
        inputs: ArrayLike,
        guide: ArrayLike | None = None,
        *,
        kernel: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        out_sharding: None = None,
    ) -> Result:
        """Convolves.

        Args:
            inputs: ``(*batch, *spatial, in_features)``, any number of batch axes.
            guide: ``(*batch, *spatial, guide channels)``; for the transposed operator with the output's size.
            kernel: K from :meth:`adapting_kernel` of this or another layer, instead of the guide and the mask.
                `normalize_kernel` normalises it; a layer that smooths raises an error.
            mask: ``(*batch, *spatial)`` or with one channel: True where the inputs are valid.
            out_sharding: as in ``nnx.Conv``, must be None.

        Returns:
            ``(*batch, *output_spatial, out_features)``; with a mask also the output's mask: see :func:`pac_convolve`
            and :func:`pac_convolve_transpose`.

        Raises:
            ValueError: if the inputs do not fit.
        """
        x, weights = self.check_input(inputs, out_sharding), self.kernel[...]
        dtype = self.dtype if self.dtype is not None else compute_dtype(x, weights)
        x, weights = self.promote_dtype((x, weights), dtype=dtype)
        function = pac_convolve_transpose if self.transposed else pac_convolve
        result: Any = function(
            x,
            weights,
            guide,
            adapting_kernel=kernel,
            mask=mask,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            **self._settings(),
        )
        return self.add_bias(result) if mask is None else (self.add_bias(result[0]), result[1])


class PACConv(_PACBase):
    """Pixel-adaptive convolution, called with a signal and a guide.

    Args:
        in_features: number of input channels.
        out_features: number of output channels.
        kernel_size: taps per spatial axis, odd, one int for each axis.
        strides: pixels between outputs, one int or one per axis.
        kernel_type: "gaussian", or "inv_{alpha}_{lambda}" with the optional suffixes ``_asym`` and ``_fixed``: see
            :class:`AdaptingOptions`. Alpha and lambda are learnt (`inv_alpha`, `inv_lambda`) unless fixed.
        normalize_kernel: divide K by its sum over the taps in the image.
        shared_filters: apply one filter ``(*kernel_size, 1, 1)`` to every channel separately.
        smooth_kernel_type: smoothing of the centre's guide feature: "none", "gaussian", "average_{n}", or "full_{n}",
            which is learnt (`smooth_kernel`).
        rngs: for the initial values.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`. There are no groups and no `lowering`.
            By default kernel and bias are initially uniform in +-1/sqrt(in_features * prod(kernel_size)) (shared
            filters: times in_features). `precision` is as in :func:`pac_convolve`.

    Attributes:
        kernel: ``(*kernel_size, in_features, out_features)``, or ``(*kernel_size, 1, 1)``.
        bias: ``(out_features,)``, or None.
        inv_alpha: (), or None; `inv_lambda` has the same shape.
        smooth_kernel: ``(n, n)``, or None.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Source: Eq. (3) of the paper.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax.operators.pac.modules import PACConv
        >>> conv = PACConv(16, 32, (5, 5), rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 12, 12, 16)), jnp.ones((1, 12, 12, 3))).shape
        (1, 12, 12, 32)
    """


class PACConvTranspose(_PACBase):
    """Transposed pixel-adaptive convolution: up-sampling of a signal under a guide of the output's size.

    Args:
        in_features: number of input channels.
        out_features: number of output channels.
        kernel_size: taps per spatial axis, odd, one int for each axis.
        strides: the factor of up-sampling, one int or one per axis.
        output_padding: additional pixels after the image, one int or one per axis.
        filler: the initial values: "uniform" as in :class:`PACConv`, or "linear". Under a constant guide the latter
            up-samples each channel linearly, except at the edges; its bias is zero. `kernel_init` and `bias_init`
            take precedence.
        rngs: for the initial values.
        **options: the other arguments of :class:`PACConv`. `padding` crops, as in PyTorch: see
            :func:`pac_convolve_transpose`; the default "SAME" gives outputs of ``input * stride``. `normalize_kernel`
            sums over the taps that coincide with a sample of the signal.

    Attributes:
        kernel: as in :class:`PACConv`, not flipped; the other parameters are those of :class:`PACConv`.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Source: Sec. 3 of the paper.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax.operators.pac.modules import PACConvTranspose
        >>> up = PACConvTranspose(4, 4, (5, 5), 2, filler="linear", rngs=nnx.Rngs(0))
        >>> up(jnp.ones((1, 8, 8, 4)), jnp.ones((1, 16, 16, 3))).shape
        (1, 16, 16, 4)
    """

    transposed = True

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        output_padding: int | Sequence[int] = 0,
        filler: Filler = "uniform",
        rngs: nnx.Rngs,
        **options: Unpack[PACOptions],
    ):
        size = check_kernel_size(kernel_size, "PACConvTranspose", odd=True)
        dilation, padding = options.get("kernel_dilation", 1), options.get("padding", "SAME")
        geometry = transpose_geometry((1,) * len(size), size, strides, dilation, padding, output_padding)
        self.output_padding = check_output_padding(output_padding, len(size))
        if filler == "linear":
            if not options.get("shared_filters", False) and in_features != out_features:
                raise ValueError(
                    f"filler='linear' with in_features={in_features} and out_features={out_features}: it up-samples "
                    "each channel by itself and needs as many outputs as inputs."
                )
            options.setdefault("kernel_init", _linear(geometry, bool(options.get("normalize_kernel", False))))
            options.setdefault("bias_init", nnx.initializers.zeros_init())
        elif filler != "uniform":
            raise ValueError(f"filler={filler!r}: expected 'uniform' or 'linear'.")
        super().__init__(in_features, out_features, kernel_size, strides, rngs=rngs, **options)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "output_padding": self.output_padding}


class PACPool(_Adapting):
    """Pixel-adaptive pooling: sums each channel over the taps with the weights K, without learnt weights.

    Args:
        kernel_size: taps per spatial axis, odd, one int for each axis.
        strides: pixels between outputs, one int or one per axis.
        padding: "SAME", "SAME_LOWER", "VALID", an int, or for each axis an int or a pair.
        kernel_dilation: pixels between taps, one int or one per axis.
        kernel_type: as in :class:`PACConv`.
        normalize_kernel: divide K by its sum over the taps in the image: a weighted mean.
        channel_wise: one K for each guide channel; the guide then has as many channels as the signal.
        smooth_kernel_type: as in :class:`PACConv`.
        features: number of guide channels; needed for learnt alpha and lambda with `channel_wise`.
        dtype: of the computation; by default that of the inputs.
        param_dtype: of the parameters.

    Attributes:
        inv_alpha: () or, with `channel_wise`, ``(features,)``; or None; `inv_lambda` has the same shape.
        smooth_kernel: ``(n, n)``, or None.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Source: Sec. 3 of the paper.

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax.operators.pac.modules import PACPool
        >>> pool = PACPool((3, 3), 2, normalize_kernel=True)
        >>> pool(jnp.ones((1, 8, 8, 4)), jnp.ones((1, 8, 8, 3))).shape
        (1, 4, 4, 4)
    """

    @explains_arguments
    def __init__(
        self,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        padding: Padding = "SAME",
        kernel_dilation: int | Sequence[int] | None = 1,
        kernel_type: str = "gaussian",
        normalize_kernel: bool = False,
        channel_wise: bool = False,
        smooth_kernel_type: str = "none",
        features: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        self.kernel_size = check_kernel_size(kernel_size, "PACPool", odd=True)
        ndim = len(self.kernel_size)
        if features is not None:
            (features,) = per_axis("features", features, 1)
        self.strides = per_axis("strides", strides, ndim)
        self.padding = check_padding(zero_padding(padding, ndim, "PACPool"), ndim)
        self.kernel_dilation = per_axis("kernel_dilation", kernel_dilation, ndim)
        self.features = features
        self.dtype = dtype
        self.param_dtype = param_dtype
        self._make_adapting(kernel_type, smooth_kernel_type, normalize_kernel, param_dtype, channel_wise, features)

    def __call__(
        self,
        inputs: ArrayLike,
        guide: ArrayLike | None = None,
        *,
        kernel: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Result:
        """Pools ``(*batch, *spatial, features)``; arguments, result and errors as for :class:`PACConv`."""
        x = inputs if self.dtype is None else jnp.asarray(inputs, self.dtype)
        return pac_pool(x, guide, self.kernel_size, adapting_kernel=kernel, mask=mask, **self._settings())

    def macs(self, input_shapes: Shapes, output_shapes: Shapes) -> int:
        """Multiply-accumulates of one call: the inputs times K, and K itself unless it is precomputed.

        The cost is ``taps * (features + guide channels + 1)`` for each output pixel.

        Args:
            input_shapes: shapes of the signal, the guide and K: see :mod:`msconv_jax.costs`.
            output_shapes: shape of the output.
        """
        *positions, features = known_shape("output_shapes", output_shapes, 0, len(self.kernel_size) + 1)
        each = features + self._kernel_macs(_guide_features(input_shapes))
        return math.prod(self.kernel_size) * each * math.prod(positions)


def _guide_features(input_shapes: Shapes) -> int | None:
    """Number of guide channels of a call; None for a precomputed K."""
    guide = input_shapes[1] if len(input_shapes) > 1 else None
    return None if guide is None else guide[-1]


def _uniform(bound: float) -> Initializer:
    """Uniform in +-bound."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _linear(geometry: Geometry, normalized: bool) -> Initializer:
    """Linear up-sampling of each channel; if `normalized`, times the number of samples under the kernel."""
    rows = []
    for K, s, d in zip(geometry.size, geometry.strides, geometry.dilation, strict=True):
        if 2 * s - 1 > K or d != 1:
            raise ValueError(
                f"filler='linear' with kernel_size={geometry.size}, strides={geometry.strides} and kernel_dilation="
                f"{geometry.dilation}: linear up-sampling needs kernels of at least 2 * stride - 1 taps, undilated."
            )
        row = np.maximum(0, s - np.abs(np.arange(K) - K // 2)) / s
        rows.append(row * [(K - 1 - j) // s + j // s + 1 for j in range(K)] if normalized else row)
    spatial = functools.reduce(np.multiply.outer, rows)

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del key, out_sharding
        return jnp.asarray(np.multiply.outer(spatial, np.eye(*shape[-2:])), dtype)

    return init
