"""Octave convolution (OctConv): feature maps in two frequencies, the low frequency at half the resolution.

Y. Chen, H. Fan, B. Xu, Z. Yan, Y. Kalantidis, M. Rohrbach, S. Yan, J. Feng: "Drop an Octave: Reducing Spatial
Redundancy in Convolutional Neural Networks with Octave Convolution", ICCV 2019. Eqs. (1), (3) and (4), where f is a
convolution of stride 1, pool2 the mean of 2x2 pixels and up2 the repetition of each pixel 2x2 times:

    Y_H = f(X_H; W_HH) + up2(f(X_L; W_LH)),
    Y_L = f(X_L; W_LL) + f(pool2(X_H); W_HL).

Maps of two frequencies are a pair ``(high, low)``, where a part without channels is None; maps without a low part are
one array. The paper covers even sizes only. Here the low maps have half the high size rounded up, so that every size
works; even sizes give the outputs of the public code.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, Unpack, get_args

import jax
from flax import nnx

from msconv_jax.arguments import BORDERS, Padding, Pads, base_pads, check_padding, dilated_extent, per_axis
from msconv_jax.costs import Shape, Shapes
from msconv_jax.operators.composite import CompositeConv
from msconv_jax.operators.grouped import GroupedConv
from msconv_jax.operators.lattice_conv import ConvOptions, refuse_out_sharding
from msconv_jax.operators.octave.maps import (
    FREQUENCIES,
    Maps,
    OctArrays,
    Odd,
    halved_size,
    high_and_low,
    joined_maps,
    oct_channels,
    oct_pool,
    oct_upsample,
)
from msconv_jax.signatures import explains_arguments

Exchange = Literal["l2h", "h2l"]
Down = Literal["avg", "stride"]
GroupRule = Literal["gluon", "symbol", "pytorch"]

# For each path, the index of its input and of its output in a pair (high, low).
PATHS = {"h2h": (0, 0), "h2l": (0, 1), "l2h": (1, 0), "l2l": (1, 1)}


class OctConv(CompositeConv):
    """Octave convolution, a drop-in for ``nnx.Conv`` on maps of two frequencies.

    Of C channels, ``int(alpha * C)`` are low and the others high. ``alpha_in=0`` gives the first octave convolution of
    a network, ``alpha_out=0`` the last, both 0 an ordinary convolution (after pooling, with strides 2).

    Sizes. High maps of n pixels have low maps of ``ceil(n / 2)`` along every spatial axis. The mean of a pooled pixel
    excludes cells outside the image, as in the gluon code, and upsampling crops to the high size. With ``odd="floor"``
    low maps have ``floor(n / 2)`` pixels, as in the PyTorch port: pooling drops an odd last row and column, and an odd
    high size at strides 1 is an error, since upsampled low maps have even sizes. Without high input, the high output at
    strides 1 has twice the low size.

    Strides 2 (both public codes): X_H is pooled first, and all convolutions have stride 1. They map the pooled X_H to
    Y_H, the twice pooled X_H and the pooled X_L to Y_L, and X_L to Y_H without upsampling. The high output has half the
    high input's size, rounded as above. The second pooling uses the first one's result; for odd sizes this can differ
    from the gluon code's single mean over 4x4 pixels.

    ``down="stride"``, an ablation of the paper's Table 3, replaces each pooling by a stride in the following
    convolution: 2, or 4 from X_H to Y_L at strides 2.

    Groups. The public codes differ in the number of groups of a path for g = `feature_group_count`; `group_rule`
    chooses one:

    * "gluon": g, which keeps the parameters of the plain grouped convolution (the published networks);
    * "symbol": the smaller of g and the path's number of outputs;
    * "pytorch": ``ceil(alpha_in * g)`` from low to low, ``ceil(g - alpha_in * g)`` from high to high, g across.

    The depthwise form, ``feature_group_count == in_features > 1``, convolves each frequency separately, without
    exchange.

    Bias. There is one for each output frequency, as in the gluon code. `bias`, ``nnx.Conv``'s attribute, is None.

    Args:
        in_features: number of input channels, high and low together.
        out_features: number of output channels, high and low together.
        kernel_size: taps per spatial axis, one int for each axis.
        strides: 1 or 2, the same along every axis.
        alpha_in: share of the input channels that are low, in [0, 1].
        alpha_out: share of the output channels that are low, in [0, 1].
        exchange: the paths between the frequencies, a subset of "l2h" and "h2l" (Table 3). An input frequency without
            any path does not influence the output.
        down: "avg" for pooling, "stride" for strided convolutions.
        odd: "ceil" or "floor": the rounding of the low maps' size.
        group_rule: "gluon", "symbol" or "pytorch".
        rngs: for the initial values.
        **options: the other arguments of ``nnx.Conv``: :class:`ConvOptions`. `padding` must keep the size at stride 1,
            such as "SAME" (half of the dilated kernel on either side, for all strides) or this number of pixels.

    Attributes:
        h2h, h2l, l2h, l2l: the convolutions from each input to each output frequency, or None.
        high_bias: ``(high output channels,)``, or None.
        low_bias: ``(low output channels,)``, or None.
        in_split: numbers of high and low input channels.
        out_split: numbers of high and low output channels.

    Raises:
        ValueError: for arguments that do not fit, at construction.

    Source: Eqs. (1), (3), (4), Sec. 3 and Tables 1 and 3 of the paper.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from msconv_jax.operators.octave.octconv import OctConv
        >>> first = OctConv(3, 32, (3, 3), alpha_in=0, alpha_out=0.25, rngs=nnx.Rngs(0))
        >>> last = OctConv(32, 64, (3, 3), 2, alpha_in=0.25, alpha_out=0, rngs=nnx.Rngs(0))
        >>> high, low = first(jnp.ones((1, 15, 15, 3)))
        >>> high.shape, low.shape
        ((1, 15, 15, 24), (1, 8, 8, 8))
        >>> last((high, low)).shape
        (1, 8, 8, 64)
    """

    @explains_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        alpha_in: float,
        alpha_out: float,
        exchange: Collection[Exchange] = ("l2h", "h2l"),
        down: Down = "avg",
        odd: Odd = "ceil",
        group_rule: GroupRule = "gluon",
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        super().__init__(in_features, out_features, kernel_size, strides, **options)
        self.in_split = oct_channels(in_features, alpha_in, "alpha_in")
        self.out_split = oct_channels(out_features, alpha_out, "alpha_out")
        self.alpha_in, self.alpha_out = float(alpha_in), float(alpha_out)
        self.exchange = _check_exchange(exchange)
        _check_down_and_odd(down, odd)
        if group_rule not in get_args(GroupRule):
            raise ValueError(f"group_rule={group_rule!r}: expected one of {', '.join(get_args(GroupRule))}.")
        self.down: Down = down
        self.odd: Odd = odd
        self.group_rule: GroupRule = group_rule
        step = _check_strides(strides, len(self.kernel_size))
        pads = same_pads(self.padding, self.kernel_size, self.kernel_dilation)
        groups = self._path_groups()

        def convolution(path: str) -> GroupedConv | None:
            if path not in groups:
                return nnx.data(None)
            source, target = PATHS[path]
            return self.inner(
                self.in_split[source],
                self.out_split[target],
                self.kernel_size,
                _path_stride(path, step, down),
                options,
                rngs=rngs,
                padding=pads,
                feature_group_count=groups[path],
            )

        self.h2h: GroupedConv | None = convolution("h2h")
        self.h2l: GroupedConv | None = convolution("h2l")
        self.l2h: GroupedConv | None = convolution("l2h")
        self.l2l: GroupedConv | None = convolution("l2l")

        def bias(channels: int) -> nnx.Param[jax.Array] | None:
            if not self.use_bias or not channels:
                return nnx.data(None)
            init = options.get("bias_init", nnx.initializers.zeros_init())
            value = init(rngs.params(), (channels,), self.param_dtype)
            return nnx.Param(value, **options.get("bias_metadata", {}))

        self.high_bias: nnx.Param[jax.Array] | None = bias(self.out_split[0])
        self.low_bias: nnx.Param[jax.Array] | None = bias(self.out_split[1])

    def _path_groups(self) -> dict[str, int]:
        """The number of groups of each existing path."""
        groups = self.feature_group_count
        splits = (
            f"{self.in_split[0]} high and {self.in_split[1]} low input channels (alpha_in={self.alpha_in}) and "
            f"{self.out_split[0]} and {self.out_split[1]} output channels (alpha_out={self.alpha_out})"
        )
        wanted = ("h2h", "l2l", *self.exchange)
        if depthwise := groups == self.in_features > 1:
            if self.in_split[1] * self.out_features != self.out_split[1] * self.in_features:
                raise ValueError(
                    f"a depthwise OctConv keeps the frequencies apart, but has {splits}: make the two alphas equal."
                )
            wanted = ("h2h", "l2l")
        found = {}
        for path, (source, target) in PATHS.items():
            inputs, outputs = self.in_split[source], self.out_split[target]
            if path not in wanted or not inputs or not outputs:
                continue
            own = inputs if depthwise else self._groups_of(path, outputs)
            if inputs % own or outputs % own:
                raise ValueError(
                    f"feature_group_count={groups} makes {own} groups, which do not divide the {inputs} inputs and "
                    f"{outputs} outputs of path {path}: OctConv has {splits}; change alphas, rule or groups."
                )
            found[path] = own
        for place, name in enumerate(FREQUENCIES):
            if self.out_split[place] and not any(PATHS[path][1] == place for path in found):
                raise ValueError(
                    f"exchange={self.exchange} leaves the {name} output without input: OctConv has {splits}; "
                    f"add {'l2h' if place == 0 else 'h2l'!r} to exchange, or change alpha_out."
                )
        return found

    def _groups_of(self, path: str, outputs: int) -> int:
        """The number of groups of a path that is not depthwise, by `group_rule`."""
        groups = self.feature_group_count
        if self.group_rule == "symbol":
            return min(outputs, groups)
        if self.group_rule == "pytorch" and path in ("h2h", "l2l"):
            return math.ceil(self.alpha_in * groups if path == "l2l" else groups - self.alpha_in * groups)
        return groups

    def __call__(self, inputs: Maps, out_sharding: None = None) -> OctArrays:
        """Convolves.

        Args:
            inputs: ``(high, low)``, each ``(*batch, *spatial, channels)`` with any number of batch axes, low at half
                the high size (see the class). With only one input frequency: this array alone, or a pair with None for
                the other frequency.
            out_sharding: as in ``nnx.Conv``, must be None: the output has the input's sharding.

        Returns:
            ``(high, low)``; only the high array without low outputs; ``(None, low)`` without high outputs. At strides 1
            the high output has the high input's size.

        Raises:
            ValueError: if the inputs do not fit.
        """
        refuse_out_sharding(type(self).__name__, out_sharding)
        ndim = len(self.kernel_size)
        parts = high_and_low(inputs, self.in_split, ndim, type(self).__name__)
        strides = per_axis("strides", self.strides, ndim)[0]
        outputs = _octave(parts, self._convolutions, ndim=ndim, strides=strides, down=self.down, odd=self.odd)
        biases = (self.high_bias, self.low_bias)
        high, low = (
            y if y is None or bias is None else y + bias[...].astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
            for y, bias in zip(outputs, biases, strict=True)
        )
        return joined_maps(high, low)

    @property
    def _convolutions(self) -> dict[str, GroupedConv]:
        convolutions = {"h2h": self.h2h, "h2l": self.h2l, "l2h": self.l2h, "l2l": self.l2l}
        return {path: convolution for path, convolution in convolutions.items() if convolution is not None}

    @property
    def num_parameters(self) -> int:
        """Number of weights of all paths, without biases; with all four paths, that of a plain convolution."""
        return sum(math.prod(convolution.kernel_shape) for convolution in self._convolutions.values())

    def macs_per_image(self, output_size: Shape) -> int:
        """Multiply-accumulates of the convolutions for one image.

        With ``alpha_in = alpha_out = a``, strides 1 and even sizes, ``1 - 3/4 a (2 - a)`` times a plain convolution's
        (Table 1).

        Args:
            output_size: spatial size of the high output in pixels, which is a plain convolution's output size.
        """
        high = output_size
        low = halved_size(high, self.odd)
        doubled = per_axis("strides", self.strides, len(high))[0] == 1  # l2h then convolves before the upsampling
        total = 0
        for path, convolution in self._convolutions.items():
            size = high if path == "h2h" or (path == "l2h" and not doubled) else low
            total += math.prod(convolution.kernel_shape) * math.prod(size)
        return total

    def _batch_and_size(self, output_shapes: Shapes) -> tuple[Shape, Shape]:
        """The batch axes of a call and the high output's size; without high output, twice the low output's size."""
        if output_shapes and output_shapes[0] is None:
            batch, low = super()._batch_and_size(output_shapes[1:])
            return batch, tuple(2 * n for n in low)
        return super()._batch_and_size(output_shapes)


# --- the equations ---


def _octave(
    inputs: tuple[jax.Array | None, jax.Array | None],
    paths: Mapping[str, Callable[[jax.Array], jax.Array]],
    *,
    ndim: int,
    strides: int,
    down: Down,
    odd: Odd,
) -> tuple[jax.Array | None, jax.Array | None]:
    """Eqs. (1), (3) and (4) for the convolutions in `paths`, which are strided with down="stride"."""
    high, low = inputs
    high_size = () if high is None else high.shape[-ndim - 1 : -1]
    low_size = () if low is None else low.shape[-ndim - 1 : -1]
    if high is not None and low is not None:
        if low_size != halved_size(high_size, odd) or high.shape[: -ndim - 1] != low.shape[: -ndim - 1]:
            raise ValueError(
                f"the high input has shape {high.shape} and the low one {low.shape}: for high maps of size {high_size} "
                f"low maps of size {halved_size(high_size, odd)} are expected (odd={odd!r}), with equal batch axes."
            )
    elif high is None:
        high_size = tuple(2 * n for n in low_size)

    def halved(x: jax.Array) -> jax.Array:
        return oct_pool(x, ndim, odd) if down == "avg" else x

    to_high, to_low = [], []
    if high is not None:
        own = halved(high) if strides == 2 else high
        if "h2h" in paths:
            to_high.append(paths["h2h"](own))
        if "h2l" in paths:
            to_low.append(paths["h2l"](halved(own)))
    if low is not None:
        if "l2h" in paths:
            y = paths["l2h"](low)
            to_high.append(y if strides == 2 else oct_upsample(y, high_size))
        if "l2l" in paths:
            to_low.append(paths["l2l"](halved(low) if strides == 2 else low))
    high, low = (functools.reduce(operator.add, terms) if terms else None for terms in (to_high, to_low))
    return high, low


def _path_stride(path: str, strides: int, down: Down) -> int:
    """The stride of a path's convolution: 1 with pooling, else the path's reduction of the resolution."""
    if down == "avg":
        return 1
    return {"h2h": strides, "h2l": 2 * strides, "l2h": 1, "l2l": strides}[path]


# --- arguments ---


def same_pads(padding: Padding, kernel_size: Sequence[int], kernel_dilation: int | Sequence[int] | None) -> Pads | str:
    """`padding` as a pair of ints for each axis, or the name of a border mode; it must keep the size at stride 1.

    Raises:
        ValueError: if the padding changes the size.
    """
    ones = (1,) * len(kernel_size)
    extent = dilated_extent(kernel_size, per_axis("kernel_dilation", kernel_dilation, len(kernel_size)))
    pads = base_pads(padding, ones, extent, ones)
    if any(before + after != reach - 1 for (before, after), reach in zip(pads, extent, strict=True)):
        half = base_pads("SAME", ones, extent, ones)
        raise ValueError(
            f"padding={padding!r} changes the size of maps under a kernel that spans {extent} pixels, and high and low "
            f"maps would no longer fit each other: take padding='SAME' or {half}, and crop or pad the maps outside."
        )
    named = check_padding(padding, len(ones))
    return named if named in (*BORDERS, "CAUSAL") else pads


def _check_strides(strides: int | Sequence[int] | None, ndim: int) -> int:
    steps = set(per_axis("strides", strides, ndim))
    if steps not in ({1}, {2}):
        raise ValueError(
            f"strides={strides!r}: an octave convolution has strides 1 or 2, the same along every axis; for others, "
            "pool its input before."
        )
    return steps.pop()


def _check_exchange(exchange: Collection[str]) -> tuple[str, ...]:
    known = get_args(Exchange)
    if isinstance(exchange, str) or not isinstance(exchange, Collection) or not set(exchange) <= set(known):
        raise ValueError(f"exchange={exchange!r}: expected a tuple of some of {known}, such as ('l2h',); () for none.")
    return tuple(path for path in known if path in exchange)


def _check_down_and_odd(down: str, odd: str) -> None:
    for name, value, known in (("down", down, get_args(Down)), ("odd", odd, get_args(Odd))):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}.")
    if down == "stride" and odd == "floor":
        raise ValueError(
            "down='stride' with odd='floor': strided convolutions round odd sizes up; take odd='ceil', or down='avg'."
        )
