"""PSConv with learnt dilations: a binary mask over the kernel lattice, trained with the kernels.

D. Li, A. Yao, Q. Chen: "PSConv", ECCV 2020, Sec. 4.2: a binary mask chooses one of two dilations for every kernel of
the lattice. The mask is a Kronecker product, trained with a straight-through estimator. The paper gives neither sizes
nor gradients, and its code is not public. This module assumes

    S = sign(U) kron sign(V) in {-1, +1},   sign(0) = +1,   M = (1 + S) / 2,
    Y = conv(X; W * (1 - M), first dilation) + conv(X; W * M, second dilation),

with real factors U (a x b) and V (out / a x inputs of a group / b), and d sign(u) / du taken as 1 where |u| <= 1,
else 0.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from msconv_jax.arguments import dilated_extent, per_axis
from msconv_jax.convolution import grouped_lattice
from msconv_jax.costs import Shape
from msconv_jax.lattice import KernelLattice, Tile
from msconv_jax.operators.lattice_conv import (
    ConvOptions,
    LatticeConv,
    apply_lattice,
    check_kernel_size,
    refuse_out_sharding,
)
from msconv_jax.signatures import explains_arguments


class DynamicPSConv(LatticeConv):
    """Poly-scale convolution whose lattice is learnt, a drop-in for ``nnx.Conv``.

    Training costs twice the plain convolution's multiply-accumulates. The mask adds
    ``a * b + out_features * inputs of a group / (a * b)`` parameters. After training,
    ``lattice_convolve(x, conv.kernel[...], conv.lattice)`` computes the same output at the plain cost.

    Args:
        in_features: number of input channels.
        out_features: number of output channels.
        kernel_size: taps per spatial axis, odd, one int for each axis.
        strides: pixels between outputs, one int or one per axis.
        dilations: the two dilations to choose from, in units of `kernel_dilation`: for mask 0 and for mask 1.
        factors: a and b, the shape of the first factor; a divides `out_features` and b the inputs of a group.
        rngs: for the initial values.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`.

    Attributes:
        kernel: ``(*kernel_size, inputs of a group, out_features)``.
        outer_factor: U, ``(a, b)``, drawn from N(0, 0.01^2).
        inner_factor: V, ``(out_features // a, inputs of a group // b)``, drawn from N(0, 0.01^2).
        bias: ``(out_features,)``, or None.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Source: Sec. 4.2 of the paper; the estimator is that of XNOR-Net, which it cites.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax import DynamicPSConv
        >>> conv = DynamicPSConv(16, 16, (3, 3), padding=1, rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 9, 9, 16))).shape
        (1, 9, 9, 16)
        >>> conv.dilation_mask.shape, sorted({int(d) for d in conv.lattice.dilations.ravel()})
        ((16, 16), [1, 2])
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        dilations: Sequence[int] = (1, 2),
        factors: Sequence[int] = (4, 4),
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        size = check_kernel_size(kernel_size, "DynamicPSConv", odd=True)
        base = per_axis("kernel_dilation", options.get("kernel_dilation"), len(size))
        self.dilations = per_axis("dilations", tuple(dilations), 2)
        self.factors = per_axis("factors", tuple(factors), 2)
        groups = options.get("feature_group_count", 1)
        plain = grouped_lattice(in_features, out_features, size, base, groups)
        fan_in = in_features // groups
        if out_features % self.factors[0] or fan_in % self.factors[1]:
            raise ValueError(
                f"factors={self.factors}: the first must divide out_features={out_features}, the second the {fan_in} "
                "inputs of a group; choose divisors."
            )
        super().__init__(plain, size, strides, rngs=rngs, **options)
        small = nnx.initializers.normal(0.01)
        shapes = self.factors, (out_features // self.factors[0], fan_in // self.factors[1])
        self.outer_factor, self.inner_factor = (nnx.Param(small(rngs.params(), s, self.param_dtype)) for s in shapes)

    def __call__(self, inputs: ArrayLike, out_sharding: None = None) -> jax.Array:
        """Maps ``(*batch, *spatial, in_features)`` to ``(*batch, *output_spatial, out_features)``."""
        refuse_out_sharding(type(self).__name__, out_sharding)
        kernel = self.kernel[...]
        mask = ((1 + self._signs()) / 2).astype(kernel.dtype).T
        mask = mask.reshape((1,) * len(self.kernel_size) + mask.shape)
        results = [
            apply_lattice(self, inputs, (part,), lattice=lattice, use_bias=number == 0)
            for number, (lattice, part) in enumerate(
                zip(self._candidates(), (kernel * (1 - mask), kernel * mask), strict=True)
            )
        ]
        return results[0] + results[1]

    @property
    def dilation_mask(self) -> np.ndarray:
        """The current mask of the kernels with the second dilation: bool (inputs of a group, out_features)."""
        return np.asarray(self._signs() > 0).T

    @property
    def lattice(self) -> KernelLattice:
        """The current kernel lattice, with the dilations that the mask chooses; needs the factors' values."""
        mask, groups = self.dilation_mask.T, self.feature_group_count
        base = per_axis("kernel_dilation", self.kernel_dilation, len(self.kernel_size))
        fan_in, fan_out = self.in_features // groups, self.out_features // groups
        tiles, first = [], 0
        for (group, _), run in itertools.groupby(range(len(mask)), key=lambda c: (c // fan_out, mask[c].tobytes())):
            last = first + sum(1 for _ in run)
            start = group * fan_in
            for chosen, inputs in itertools.groupby(mask[first]):
                stop = start + sum(1 for _ in inputs)
                dilation = tuple(self.dilations[int(chosen)] * d for d in base)
                tiles.append(Tile(slice(first, last), slice(start, stop), tuple(self.kernel_size), dilation))
                start = stop
            first = last
        return KernelLattice(self.in_features, self.out_features, tuple(tiles), dilated_extent(self.kernel_size, base))

    @property
    def num_parameters(self) -> int:
        """Number of weights, with the mask's factors, without the bias."""
        outer, inner = self.outer_factor, self.inner_factor
        return math.prod(self.kernel_shape) + math.prod(outer.shape) + math.prod(inner.shape)

    def macs_per_image(self, output_size: Shape) -> int:
        """Multiply-accumulates for one image, in training: both dilations of every kernel are computed."""
        return sum(lattice.macs(output_size) for lattice in self._candidates())

    def _signs(self) -> jax.Array:
        """S, ``(out_features, inputs of a group)`` of -1 and +1."""
        return jnp.kron(sign_straight_through(self.outer_factor[...]), sign_straight_through(self.inner_factor[...]))

    def _candidates(self) -> list[KernelLattice]:
        """One lattice for each dilation, with this dilation for all kernels."""
        size = tuple(self.kernel_size)
        base = per_axis("kernel_dilation", self.kernel_dilation, len(size))
        return [
            dataclasses.replace(
                grouped_lattice(
                    self.in_features, self.out_features, size, tuple(d * b for b in base), self.feature_group_count
                ),
                base_extent=dilated_extent(size, base),
            )
            for d in self.dilations
        ]


@jax.custom_jvp
def sign_straight_through(u: jax.Array) -> jax.Array:
    """The sign of `u`, +1 at 0, with the straight-through gradient: 1 where ``|u| <= 1``, else 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from msconv_jax.operators.dynamic_psconv import sign_straight_through
        >>> u = jnp.array([-2.0, -0.5, 0.0, 3.0])
        >>> sign_straight_through(u).tolist(), jax.grad(lambda u: sign_straight_through(u).sum())(u).tolist()
        ([-1.0, -1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0])
    """
    return jnp.where(u >= 0, 1, -1).astype(u.dtype)


@sign_straight_through.defjvp
def _straight_through(primals, tangents):
    (u,), (tangent,) = primals, tangents
    return sign_straight_through(u), jnp.where(jnp.abs(u) <= 1, tangent, jnp.zeros_like(tangent))
