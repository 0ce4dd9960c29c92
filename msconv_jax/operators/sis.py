"""SIS: a scale-in-scale operator, several small convolutions in series inside one layer.

"SIS: A new multi-scale convolutional operator", JUSTC 2022. The first kernel computes C/2 channels, and two further
kernels compute C/4 channels each. The output concatenates the three results, whose receptive fields increase. There is
no public code. The paper's matrix notation (Eqs. 12, 15, 18 and 23) contradicts its component equations (Eqs. 8 to 11,
13, 14 and 19 to 22) in places; this module follows the component equations. Eq. 18, printed among the interactive
forms, is Eq. 24.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Literal, Unpack, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from msconv_jax.arguments import BORDERS, Padding
from msconv_jax.costs import Shape
from msconv_jax.modes.normalization import BatchNorm
from msconv_jax.operators.composite import CompositeConv
from msconv_jax.operators.grouped import GroupedConv
from msconv_jax.operators.lattice_conv import ConvOptions
from msconv_jax.signatures import explains_arguments

Kind = Literal["basic", "interactive1", "interactive2", "recurrent1", "recurrent2"]
Inner = Literal["bnrelu"]

Application = Callable[[int, jax.Array], jax.Array]
"""The n-th application of one kernel to an array, counted from 0."""


class SISConv(CompositeConv):
    """Scale-in-scale convolution, a drop-in for ``nnx.Conv`` with 1/2 to 11/16 of its weights.

    With C output channels, ``*`` a convolution and ``Y1 = K1 * X`` of C/2 channels, the output is a concatenation:

    * "basic" (Eqs. 2 to 5): ``[Y1, Y2, Y3]`` with ``Y2 = K2 * Y1`` and ``Y3 = K3 * Y2``.

    The other kinds split Y1 into its first half Y11 and its second half Y12:

    * "interactive1" (between layers, Eqs. 8 to 11, Fig. 1d): ``S = K2 * Y11 + K3 * Y12``; ``[Y1, K2 * S, K3 * S]``;
    * "interactive2" (across layers, Eqs. 13 and 14, Fig. 1e): ``[Y1, K2 * (K2 * Y11 + Y12), K3 * (Y11 + K3 * Y12)]``;
    * "recurrent1" (Eqs. 19 to 22, Fig. 1f): ``[Y1, h_T(Y11), h_T(Y12)]`` with ``h_0 = 0`` and
      ``h_t(Z) = K * (h_{t-1}(Z) + Z)``, where K is K2 for Y11 and K3 for Y12;
    * "recurrent2" (Eq. 24, Fig. 1g): ``[Y1, sum_t h_t(Y11), sum_t h_t(Y12)]``.

    The paper gives T = 2 only; more steps follow by the recursion. In the paper each of the two paths "shares a
    weight". Its equations use one kernel per path in all steps; its table of parameters fits K2 = K3 better. The
    default follows the equations, ``share_paths=True`` the table.

    Weights and multiply-accumulates, as fractions of those of ``nnx.Conv`` with as many input as output channels:

    ==================  =======  ===================  ================================
    kind                weights  with `share_paths`   multiply-accumulates
    ==================  =======  ===================  ================================
    basic               11/16    not possible         11/16
    interactive1 and 2  5/8      9/16                 3/4
    recurrent1 and 2    5/8      9/16                 1/2 + 2 T / 16
    ==================  =======  ===================  ================================

    `padding` and `strides` apply to K1, so that the output has ``nnx.Conv``'s shape; K2 and K3 keep their input's size.
    `kernel_dilation` and `feature_group_count` apply to every kernel. The paper has equal numbers of input and output
    channels; for unequal numbers the output channels are split.

    Args:
        in_features: number of input channels, divisible by `feature_group_count`.
        out_features: number of output channels C, divisible by four times `feature_group_count`.
        kernel_size: taps per spatial axis of every kernel, one int for each axis.
        strides: pixels between outputs, one int or one per axis.
        kind: "basic", "interactive1", "interactive2", "recurrent1" or "recurrent2".
        steps: the number T of steps of the recurrent kinds, at least 1; must be 2 for other kinds.
        share_paths: whether K3 is K2. The basic kind does not support it: its K2 has twice K3's input channels. With
            "interactive1" the second and third part of the output are then equal.
        inner: "bnrelu" adds a batch normalisation and a ReLU after each application of K1, K2 and K3. Every
            application has a separate normalisation, since the statistics differ. None, the default, follows the
            paper's equations, where the network's normalisation follows the operator.
        rngs: for the initial values.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`. The bias is added to the output.

    Attributes:
        k1: K1, ``in_features -> C / 2``.
        k2: K2, ``C / 4 -> C / 4``, or ``C / 2 -> C / 4`` for "basic".
        k3: K3, ``C / 4 -> C / 4``, or None with `share_paths`.
        bn1: the normalisation after K1, or None.
        bn2: the normalisations after K2, one per application on the first path, or None.
        bn3: the normalisations of the second path, or None.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Source: Eqs. (2) to (24) and Fig. 1 of the paper.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax.operators.sis import SISConv
        >>> conv = SISConv(64, 64, (3, 3), strides=2, padding=1, kind="interactive2", rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 15, 15, 64))).shape
        (1, 8, 8, 64)
        >>> conv.num_parameters / (64 * 64 * 9), conv.macs((8, 8)) / (64 * 64 * 9 * 8 * 8)
        (0.625, 0.75)
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        kind: Kind = "basic",
        steps: int = 2,
        share_paths: bool = False,
        inner: Inner | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        super().__init__(in_features, out_features, kernel_size, strides, **options)
        self.kind = kind
        self.steps = _check_kind(kind, steps, share_paths)
        self.share_paths = bool(share_paths)
        if inner is not None and inner not in get_args(Inner):
            raise ValueError(f"inner={inner!r}: expected None or 'bnrelu'.")
        groups = self.feature_group_count
        if out_features % (4 * groups):
            raise ValueError(
                f"out_features={out_features} with feature_group_count={groups}: SISConv's smallest part has a quarter "
                f"of the channels, which the groups divide; take a multiple of {4 * groups} or fewer groups."
            )
        half, quarter = out_features // 2, out_features // 4
        size, later = self.kernel_size, half if kind == "basic" else quarter
        keeping = _size_keeping(self.padding)
        self.k1 = self.inner(in_features, half, size, strides, options, rngs=rngs)
        self.k2 = self.inner(later, quarter, size, 1, options, rngs=rngs, padding=keeping)
        self.k3: GroupedConv | None = nnx.data(None)
        if not share_paths:
            self.k3 = self.inner(quarter, quarter, size, 1, options, rngs=rngs, padding=keeping)
        self.bn1: nnx.BatchNorm | None = nnx.data(None)
        self.bn2: nnx.List[nnx.BatchNorm] | None = nnx.data(None)
        self.bn3: nnx.List[nnx.BatchNorm] | None = nnx.data(None)
        if inner is not None:
            times = self._applications
            self.bn1 = self._normalisation(half, rngs)
            self.bn2 = nnx.List([self._normalisation(quarter, rngs) for _ in range(times)])
            self.bn3 = nnx.List([self._normalisation(quarter, rngs) for _ in range(times)])
        self.make_bias(options, rngs)

    def __call__(self, inputs: ArrayLike, out_sharding: None = None) -> jax.Array:
        """Convolves.

        Args:
            inputs: ``(*batch, *spatial, in_features)``, any number of batch axes.
            out_sharding: as in ``nnx.Conv``, must be None.

        Returns:
            ``(*batch, *output_spatial, out_features)``.

        Raises:
            ValueError: if the inputs do not fit.
        """
        x = self.check_input(inputs, out_sharding)
        third_kernel = self.k2 if self.k3 is None else self.k3

        def second(time: int, z: jax.Array) -> jax.Array:
            return _finish(self.k2(z), None if self.bn2 is None else self.bn2[time])

        def third(time: int, z: jax.Array) -> jax.Array:
            return _finish(third_kernel(z), None if self.bn3 is None else self.bn3[time])

        y1 = _finish(self.k1(x), self.bn1)
        return self.add_bias(_scales(y1, second, third, self.kind, self.steps))

    @property
    def num_parameters(self) -> int:
        """Number of kernel weights (no bias, no normalisation)."""
        return sum(kernel.lattice.num_parameters for kernel in (self.k1, self.k2, self.k3) if kernel is not None)

    def macs_per_image(self, output_size: Shape) -> int:
        """Multiply-accumulates for one image whose output has this spatial size."""
        third = self.k2 if self.k3 is None else self.k3
        later = self.k2.lattice.macs(output_size) + third.lattice.macs(output_size)
        return self.k1.lattice.macs(output_size) + self._applications * later

    @property
    def _applications(self) -> int:
        """Number of applications of K2 on the first path, and of K3 on the second."""
        return 1 if self.kind == "basic" else self.steps  # two for the interactive kinds

    def _normalisation(self, features: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
        return BatchNorm(features, momentum=0.9, epsilon=1e-5, param_dtype=self.param_dtype, rngs=rngs)


def _size_keeping(padding: Padding) -> str:
    """The size-keeping padding of K2 and K3: K1's border mode, if it has one, else "SAME"."""
    named = padding.upper() if isinstance(padding, str) else ""
    return named if named in (*BORDERS, "CAUSAL") else "SAME"


def _scales(y1: jax.Array, second: Application, third: Application, kind: str, steps: int) -> jax.Array:
    """Applies the operator's equations to Y1: concatenates Y1 and the results of K2 and K3."""
    if kind == "basic":
        y2 = second(0, y1)
        return jnp.concatenate([y1, y2, third(0, y2)], axis=-1)
    y11, y12 = jnp.split(y1, 2, axis=-1)
    if kind == "interactive1":
        both = second(0, y11) + third(0, y12)
        parts = [second(1, both), third(1, both)]
    elif kind == "interactive2":
        parts = [second(1, second(0, y11) + y12), third(1, y11 + third(0, y12))]
    else:
        fuse = kind == "recurrent2"
        parts = [_recur(y11, second, steps, fuse), _recur(y12, third, steps, fuse)]
    return jnp.concatenate([y1, *parts], axis=-1)


def _recur(z: jax.Array, apply: Application, steps: int, fuse: bool) -> jax.Array:
    """The last h_t of ``h_t = K * (h_{t-1} + z)``, or with `fuse` the sum of all."""
    total = h = apply(0, z)
    for time in range(1, steps):
        h = apply(time, h + z)
        total = total + h
    return total if fuse else h


def _finish(y: jax.Array, norm: nnx.BatchNorm | None) -> jax.Array:
    """Normalisation and ReLU in the dtype of `y`; the identity if `norm` is None."""
    return y if norm is None else nnx.relu(norm(y)).astype(y.dtype)


def _check_kind(kind: str, steps: int, share_paths: bool) -> int:
    """`steps` as an int; raises ValueError for a combination that the kind does not allow."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(get_args(Kind))}.")
    try:
        number = 0 if isinstance(steps, bool) else operator.index(steps)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"steps={steps!r}: expected an int of at least 1; the paper's is 2.")
    if number != 2 and not kind.startswith("recurrent"):
        raise ValueError(f"steps={steps} with kind={kind!r}: only the recurrent kinds have steps; leave it at 2.")
    if share_paths and kind == "basic":
        raise ValueError(
            "share_paths=True (k3=None) with kind='basic': its K2 turns C/2 channels into C/4 and its K3 C/4 into C/4, "
            "so they cannot be one kernel; leave share_paths=False, or take an interactive or recurrent kind."
        )
    return number
