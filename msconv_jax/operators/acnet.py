"""Adaptively connected convolution (ACNet): local, pointwise and global connections, mixed by learnt weights.

G. Wang, K. Wang, L. Lin: "Adaptively Connected Neural Networks", CVPR 2019. Eq. (1), for node i of an image or a graph:

    y_i = alpha_i sum_{j=i} x_j u_ij + beta_i sum_{j in N(i)} x_j v_ij + gamma_i sum_{all j} x_j w_ij,

with (alpha, beta, gamma) the softmax of three learnt numbers (Eq. 2, "dataset-aware"), or a gate computed from the
input (Eq. 3, "pixel-aware"). :class:`ACConv` has both forms for images and follows the public code. :class:`ACGraph` is
the form for general graphs (Eqs. 5 and 6), which has no public code. The asymmetric convolutions (ACNet) are unrelated.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Literal, Unpack, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from msconv_jax.arguments import Padding, base_pads, check_padding, dilated_extent, per_axis
from msconv_jax.costs import Shape
from msconv_jax.modes.dtypes import compute_dtype, wide_dtype
from msconv_jax.operators.composite import CompositeConv
from msconv_jax.operators.grouped import GroupedConv
from msconv_jax.operators.lattice_conv import ConvOptions
from msconv_jax.signatures import explains_arguments

Kind = Literal["dataset", "pixel"]
Mix = Literal["scalar", "channel", "position"]
Term = Literal["local", "point", "global"]

TERMS: tuple[Term, ...] = get_args(Term)
_KERNEL_INIT, _BIAS_INIT = nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()  # nnx.Linear's


class ACConv(CompositeConv):
    """Adaptively connected convolution, a drop-in for ``nnx.Conv``.

    C is the number of output channels, `local` the convolution of ``nnx.Conv``, and
    ``g = fc2(relu(fc1(mean of the input over its spatial axes)))`` one vector per image:

    * "dataset" (Eqs. 1 and 2): ``z = p[0] * local(x) + p[1] * point(x) + p[2] * g``, where `point` is a 1 x 1
      convolution and ``p = softmax(mix_logits, axis=0)`` is learnt. The logits start at 1, so the weights are equal;
    * "pixel" (Eq. 3 in the public code's form): ``z = l + g * sigmoid(gate2(relu(gate1([l, g]))))`` with
      ``l = local(x)`` and 1 x 1 convolutions 2 C -> C -> C. The gate applies to the global term only, for each pixel
      and channel, and there is no pointwise term.

    The output is z plus the bias. In the paper's networks batch normalisation and ReLU follow, and there is no bias.
    The mean is over the whole input for any strides.

    The paper has scalar weights (`mix` "scalar", the default, for images of any size). The public code learns three
    weights for each output position ("position"), so it fits one size only. "channel" is a third choice.

    `feature_group_count` and `kernel_dilation` apply to the local convolution only; the other terms connect all
    channels. With `padding` "SAME" or "SAME_LOWER" the pointwise convolution pads by the same rule and reads pixels
    0, s, 2 s, ... for strides s, as in the released networks. With any other padding each output reads pixel
    ``(extent - 1) // 2`` of the local kernel's window: the middle tap, for an even extent the pixel before the middle;
    zero outside the image. For odd kernels with ``padding = kernel_size // 2`` this also gives pixels 0, s, 2 s, ...

    Compared with a plain convolution of C to C channels, "dataset" with output positions ``Ho x Wo`` adds
    ``C^2 + 2 (C^2 + C)`` parameters, and ``3``, ``3 C`` or ``3 Ho Wo`` logits; "pixel" adds ``5 C^2 + 2 C``.

    Args:
        in_features: number of input channels.
        out_features: number of output channels C.
        kernel_size: taps per spatial axis of the local convolution, one int for each axis.
        strides: pixels between outputs, one int or one per axis.
        kind: "dataset" or "pixel".
        mix: one weight per term ("scalar"), per term and channel ("channel") or per term and position ("position").
            This and the next three arguments are for "dataset" only.
        spatial_shape: size of the OUTPUT, one int or one per axis, for "position" only; an input with another output
            size is an error.
        use: a subset of "local", "point" and "global": the terms of the sum and the softmax. A single term has weight 1
            and no logits.
        learn_mix: if false, the terms have equal fixed weights and no logits, for every `mix`.
        rngs: for the initial values.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`. `kernel_init` applies to all convolutions;
            the defaults are those of ``nnx.Conv``, and of ``nnx.Linear`` for the linear layers. The public code
            initialises convolutions with truncated normals of ``std = sqrt(2 / fan_out)`` and linear layers with
            ``std = sqrt(1.3 * 2 / fan_in)``.

    Attributes:
        local: ``(*kernel_size, in_features // feature_group_count, C)`` convolution, or None.
        point: 1 x 1 convolution, or None.
        fc1: linear layer with bias, ``in_features -> C``, or None.
        fc2: linear layer with bias, ``C -> C``, or None.
        gate1: 1 x 1 convolution ``2 C -> C`` of "pixel", or None.
        gate2: 1 x 1 convolution ``C -> C`` of "pixel", or None.
        mix_logits: ``(n,)``, ``(n, C)`` or ``(n, *spatial_shape, 1)`` for n terms in the order local, point, global,
            or None.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Source: Eqs. (1) to (3) and Tables 1 and 4 of the paper.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax.operators.acnet import ACConv
        >>> conv = ACConv(8, 16, (3, 3), strides=2, padding=1, rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 15, 15, 8))).shape, conv.mix_logits.shape
        ((1, 8, 8, 16), (3,))
        >>> gated = ACConv(8, 16, (3, 3), kind="pixel", rngs=nnx.Rngs(0))
        >>> gated(jnp.ones((1, 15, 15, 8))).shape
        (1, 15, 15, 16)
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        kind: Kind = "dataset",
        mix: Mix = "scalar",
        spatial_shape: int | Sequence[int] | None = None,
        use: Sequence[Term] = TERMS,
        learn_mix: bool = True,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        super().__init__(in_features, out_features, kernel_size, strides, **options)
        ndim = len(self.kernel_size)
        for name, value, choices in (("kind", kind, get_args(Kind)), ("mix", mix, get_args(Mix))):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}.")
        terms = _check_terms(use)
        if kind == "pixel" and (mix != "scalar" or spatial_shape is not None or terms != TERMS or not learn_mix):
            raise ValueError(
                f"mix={mix!r}, spatial_shape={spatial_shape!r}, use={tuple(use)!r} and learn_mix={learn_mix!r} with "
                "kind='pixel': its gate is computed from the input and has no such choices; leave them out, or take "
                "kind='dataset'."
            )
        if (mix == "position") != (spatial_shape is not None):
            raise ValueError(
                f"mix={mix!r} with spatial_shape={spatial_shape!r}: the output's size is needed for mix='position', "
                "and for that alone; give both or neither."
            )
        self.kind = kind
        self.mix = mix
        self.spatial_shape = None if spatial_shape is None else per_axis("spatial_shape", spatial_shape, ndim)
        self.use = terms if kind == "dataset" else ("local", "global")
        self.learn_mix = bool(learn_mix)
        self.local: GroupedConv | None = nnx.data(None)
        self.point: GroupedConv | None = nnx.data(None)
        self.fc1: nnx.Linear | None = nnx.data(None)
        self.fc2: nnx.Linear | None = nnx.data(None)
        self.gate1: GroupedConv | None = nnx.data(None)
        self.gate2: GroupedConv | None = nnx.data(None)
        self.mix_logits: nnx.Param[jax.Array] | None = nnx.data(None)

        def pointwise(features: int, strides: int | Sequence[int] | None, padding: Padding) -> GroupedConv:
            plain = {"kernel_dilation": 1, "feature_group_count": 1, "padding": padding}
            return self.inner(features, out_features, (1,) * ndim, strides, options, rngs=rngs, **plain)

        if "local" in self.use:
            self.local = self.inner(in_features, out_features, self.kernel_size, strides, options, rngs=rngs)
        if "point" in self.use:
            self.point = pointwise(in_features, strides, self._point_padding())
        if "global" in self.use:
            settings = {"dtype": self.dtype, "param_dtype": self.param_dtype, "precision": self.precision}
            self.fc1 = nnx.Linear(in_features, out_features, rngs=rngs, **settings)
            self.fc2 = nnx.Linear(out_features, out_features, rngs=rngs, **settings)
        if kind == "pixel":
            self.gate1 = pointwise(2 * out_features, 1, "VALID")
            self.gate2 = pointwise(out_features, 1, "VALID")
        elif self.learn_mix and len(terms) > 1:
            own = {"scalar": (), "channel": (out_features,), "position": (*(self.spatial_shape or ()), 1)}[mix]
            self.mix_logits = nnx.Param(jnp.ones((len(terms), *own), self.param_dtype))
        self.make_bias(options, rngs)

    def __call__(self, inputs: ArrayLike, out_sharding: None = None) -> jax.Array:
        """Convolves.

        Args:
            inputs: ``(*batch, *spatial, in_features)``, any number of batch axes.
            out_sharding: as in ``nnx.Conv``, must be None.

        Returns:
            ``(*batch, *output_spatial, out_features)``, in the local convolution's dtype.

        Raises:
            ValueError: if the inputs do not fit, or the output size differs from `spatial_shape`.
        """
        x = self.check_input(inputs, out_sharding)
        size = self._output_size(x.shape[-len(self.kernel_size) - 1 : -1])
        if self.spatial_shape is not None and size != self.spatial_shape:
            raise ValueError(
                f"inputs of shape {x.shape} give an output of size {size}: this ACConv has weights for each position "
                f"of one of size {self.spatial_shape}; build it with mix='scalar' or 'channel' to take any size."
            )
        terms = []
        if self.local is not None:
            terms.append(self.local(x))
        if self.point is not None:
            terms.append(self.point(x))
        if self.fc1 is not None:
            terms.append(self._global_term(x, self.fc1))
        y = self._mixed(terms) if self.kind == "dataset" else self._gated(*terms)
        if self.use == ("global",):
            y = jnp.broadcast_to(y, (*y.shape[: -len(size) - 1], *size, self.out_features))
        return self.add_bias(y)

    def macs_per_image(self, output_size: Shape) -> int:
        """Multiply-accumulates for one image whose output has this spatial size.

        The count covers the convolutions and linear layers of the equations, not the mean or the mixing. It includes
        the half of `gate1` that reads g at every pixel, although this half is computed once per image.
        """
        convolutions = (self.local, self.point, self.gate1, self.gate2)
        linear = 0 if self.fc1 is None else (self.in_features + self.out_features) * self.out_features
        return linear + sum(conv.lattice.macs(output_size) for conv in convolutions if conv is not None)

    def _global_term(self, x: jax.Array, fc1: nnx.Linear) -> jax.Array:
        """g: ``(*batch, 1, ..., 1, out_features)``."""
        assert self.fc2 is not None  # built together with fc1
        axes = tuple(range(-len(self.kernel_size) - 1, -1))
        g = jnp.mean(x, axes, keepdims=True)
        g = self._linear(self.fc2, nnx.relu(self._linear(fc1, g)))
        return g if self.preferred_element_type is None else g.astype(self.preferred_element_type)

    def _mixed(self, terms: list[jax.Array]) -> jax.Array:
        """The weighted sum of the terms; a half-precision sum is rounded once."""
        dtype = terms[0].dtype
        wide = wide_dtype(dtype)
        if self.mix_logits is None:
            weights = [jnp.asarray(1 / len(terms), wide)] * len(terms)
        else:
            weights = list(jax.nn.softmax(self.mix_logits[...].astype(wide), axis=0))
        # Explicit leading axes: the weights of channels or positions have fewer axes than the terms.
        spread = [weight.reshape((1,) * (terms[0].ndim - weight.ndim) + weight.shape) for weight in weights]
        products = [weight * term.astype(wide) for weight, term in zip(spread, terms, strict=True)]
        return functools.reduce(operator.add, products).astype(dtype)

    def _gated(self, local: jax.Array, g: jax.Array) -> jax.Array:
        """The local term plus the gated global term."""
        assert self.gate1 is not None
        assert self.gate2 is not None
        # g is the same at every pixel: its half of the kernel is applied once, without a concatenation over the image.
        kernel = self.gate1.kernel[...].reshape(2, self.out_features, self.out_features)
        gate = nnx.relu(self._product(local, kernel[0]) + self._product(g, kernel[1]))
        return local + (g * nnx.sigmoid(self.gate2(gate))).astype(local.dtype)

    def _linear(self, layer: nnx.Linear, x: jax.Array) -> jax.Array:
        return self._product(x, layer.kernel[...], None if layer.bias is None else layer.bias[...])

    def _product(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """``x @ kernel + bias`` in the convolutions' compute dtype."""
        dtype = self.dtype if self.dtype is not None else compute_dtype(x, kernel)
        x, kernel, bias = self.promote_dtype((x, kernel, bias), dtype=dtype)
        y = jnp.matmul(x, kernel, precision=self.precision)
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))

    def _point_padding(self) -> Padding:
        """The padding of the 1 x 1 convolution, which reads the pixels described in the class docstring."""
        padding = check_padding(self.padding, len(self.kernel_size))  # type: ignore[arg-type]
        if padding in ("SAME", "SAME_LOWER"):
            return padding
        extent = self._extent()
        ones = (1,) * len(extent)
        pads = base_pads(padding, ones, extent, ones)
        return tuple((low - (n - 1) // 2, high - n // 2) for (low, high), n in zip(pads, extent, strict=True))

    def _output_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The output's spatial size, equal to ``nnx.Conv``'s."""
        extent = self._extent()
        strides = per_axis("strides", self.strides, len(extent))
        pads = base_pads(self.padding, spatial, extent, strides)  # type: ignore[arg-type]
        return tuple(
            max((n + sum(pad) - reach) // stride + 1, 0)
            for n, pad, reach, stride in zip(spatial, pads, extent, strides, strict=True)
        )

    def _extent(self) -> tuple[int, ...]:
        ndim = len(self.kernel_size)
        return dilated_extent(self.kernel_size, per_axis("kernel_dilation", self.kernel_dilation, ndim))


def _check_terms(use: Sequence[Term]) -> tuple[Term, ...]:
    """The terms in the order local, point, global."""
    names = () if isinstance(use, str) else tuple(use)
    if not names or len(set(names)) != len(names) or not set(names) <= set(TERMS):
        raise ValueError(f"use={use!r}: expected a tuple of one or more of {', '.join(TERMS)}, each once.")
    return tuple(term for term in TERMS if term in names)
