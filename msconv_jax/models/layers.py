"""The layers that the networks share, and `Parts`, which builds a network's convolutions and normalisations."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.pooling import PaddingRule
from msconv_jax.modes.normalization import BatchNorm
from msconv_jax.modes.picklable import Picklable
from msconv_jax.operators import GroupedConv

__all__ = [
    "ConvFactory",
    "ConvNormAct",
    "ConvShortcut",
    "Layer",
    "Parts",
    "SqueezeExcite",
    "batch_norm",
    "check_drop_path_rate",
    "classifier",
    "drop_path",
    "first_names",
    "kaiming_normal",
    "naming_layer",
]

Layer = Any  # a module that is called with one array

# The spatial convolutions of a network: one factory, or one for the path of each convolution.
ConvFactory = Callable[..., Layer] | Mapping[str, Callable[..., Layer]] | None

# He et al. (arXiv 1502.01852) with the fan of the outputs. For an HWIO kernel the fan is k*k*out,
# whatever the groups, so every kernel of a lattice gets the plain convolution's scale.
kaiming_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def batch_norm(features: int, **kwargs: Any) -> nnx.BatchNorm:
    """Builds the papers' batch normalisation: epsilon 1e-5, running average 0.9 (PyTorch's 0.1).

    Args:
        features: number of channels.
        **kwargs: any other argument of `nnx.BatchNorm`, which refuses unknown ones.

    Returns:
        The module.

    Example:
        >>> norm = batch_norm(8, rngs=nnx.Rngs(0))
        >>> norm.epsilon, norm.momentum
        (1e-05, 0.9)
    """
    return BatchNorm(features, **{"momentum": 0.9, "epsilon": 1e-5, **kwargs})


def drop_path(rate: float, rngs: nnx.Rngs) -> nnx.Dropout:
    """Builds stochastic depth, which drops a whole residual branch, independently for each sample.

    In training a branch is kept with probability `1 - rate` and then divided by it; after
    `model.eval()` it is the identity. With `rate=0` there is no random state.

    Args:
        rate: probability of dropping, in [0, 1).
        rngs: source of the `dropout` stream.

    Returns:
        The module, called with maps of shape (N, H, W, C).

    Source:
        Huang et al., Deep Networks with Stochastic Depth, arXiv 1603.09382.

    Example:
        >>> branch = jnp.ones((2, 4, 4, 8))
        >>> kept = drop_path(0.5, nnx.Rngs(0))(branch)
        >>> all(float(jnp.ptp(sample)) == 0.0 for sample in kept)  # all of a sample or nothing
        True
    """
    return nnx.Dropout(rate, broadcast_dims=(1, 2, 3), rngs=rngs if rate > 0 else None)


def check_drop_path_rate(rate: float, name: str = "drop_path_rate") -> None:
    """Raises `ValueError` unless `rate` is a probability less than 1; `name` is the argument's name.

    Example:
        >>> check_drop_path_rate(1.0)
        Traceback (most recent call last):
        ValueError: drop_path_rate=1.0: must be in [0, 1); 0 turns it off
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name}={rate!r}: must be in [0, 1); 0 turns it off")


@contextlib.contextmanager
def naming_layer(name: str) -> Iterator[None]:
    """Puts the layer's name in front of any `ValueError` that its construction raises.

    Args:
        name: path of the layer in the model, such as `"layer1.0.conv2"`.

    Raises:
        ValueError: the one raised inside, with the name in front.

    Example:
        >>> with naming_layer("layer1.0.conv2"):
        ...     raise ValueError("6 channels do not divide by 4")
        Traceback (most recent call last):
        ValueError: layer1.0.conv2: 6 channels do not divide by 4
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def first_names(names: Iterable[str]) -> str:
    """Lists the first five of many names, for an error message."""
    first = list(itertools.islice(names, 5))
    return ", ".join(first) + (", ..." if len(first) == 5 else "")


class SqueezeExcite(nnx.Module):
    """Channel gate: `x * sigmoid(fc2(relu(fc1(mean of x over H and W))))`, both layers with bias.

    Args:
        features: number of channels C.
        reduction: the hidden layer has `C // reduction` channels (16 in the paper).
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.
        rngs: source of the `params` stream.

    Raises:
        ValueError: if `reduction` leaves no hidden channel.

    Source:
        Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507, section 3, equations 2 to 4.

    Example:
        >>> gate = SqueezeExcite(32, reduction=16, rngs=nnx.Rngs(0))
        >>> gate(jnp.ones((2, 7, 7, 32))).shape, gate.fc1.kernel.shape
        ((2, 7, 7, 32), (32, 2))
    """

    def __init__(
        self,
        features: int,
        *,
        reduction: int = 16,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive("se_reduction", reduction, "the paper uses 16; None leaves the gate out")
        hidden = features // reduction
        if hidden < 1:
            raise ValueError(
                f"se_reduction={reduction}: {features} channels leave no hidden channel; use at most {features}"
            )
        common: dict[str, Any] = {"kernel_init": kaiming_normal, "dtype": dtype, "param_dtype": param_dtype}
        self.fc1 = nnx.Linear(features, hidden, rngs=rngs, **common)
        self.fc2 = nnx.Linear(hidden, features, rngs=rngs, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Gates maps (N, H, W, C); the result has the same shape and type."""
        gate = nnx.sigmoid(self.fc2(nnx.relu(self.fc1(x.mean(axis=(1, 2))))))
        return x * gate[:, None, None, :].astype(x.dtype)


def classifier(features: int, num_classes: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> nnx.Linear:
    """Builds the last linear layer with PyTorch's default initialisation.

    Weights and bias are uniform within `1 / sqrt(features)`. The compute type stays unset: the layer computes in the
    wider of the maps' type and `param_dtype`, so a bfloat16 network with float32 parameters has float32 logits.

    Args:
        features: number of input channels.
        num_classes: number of logits.
        param_dtype: type of the parameters.
        rngs: source of the `params` stream.

    Returns:
        The module, (N, features) -> (N, num_classes).

    Example:
        >>> fc = classifier(64, 10, rngs=nnx.Rngs(0))
        >>> bool(abs(fc.kernel[...]).max() <= 1 / 8)
        True
    """
    bound = features**-0.5

    def uniform(key: jax.Array, shape: Any, dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(features, num_classes, kernel_init=uniform, bias_init=uniform, param_dtype=param_dtype, rngs=rngs)


class ConvShortcut(nnx.Module):
    """Projection on the shortcut: 1x1 convolution with the block's stride, then normalisation.

    A replacement takes the same arguments. A block builds it only if the stride or the number of channels changes;
    other shortcuts are the identity.

    Args:
        in_features: input channels.
        out_features: output channels.
        strides: the block's stride.
        parts: the network's parts.
        name: path of the shortcut in the model, for error messages.
        rngs: source of the `params` stream.

    Source:
        He et al., Deep Residual Learning, arXiv 1512.03385, section 3.3, option B.

    Example:
        >>> shortcut = ConvShortcut(8, 16, 2, parts=Parts(), name="downsample", rngs=nnx.Rngs(0))
        >>> shortcut(jnp.ones((1, 7, 7, 8))).shape
        (1, 4, 4, 16)
    """

    def __init__(self, in_features: int, out_features: int, strides: int, *, parts: "Parts", name: str, rngs: nnx.Rngs):
        self.conv = parts.dense(f"{name}.conv", in_features, out_features, 1, strides, rngs)
        self.bn = parts.normalise(f"{name}.bn", out_features, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Projects maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), out_features)."""
        return self.bn(self.conv(x))


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the blocks of one network, or of one stage, are made of.

    Networks use it while they are built and do not store it: factories such as `functools.partial` compare unequal from
    one build to the next, so `jax.jit` would compile again.

    Attributes:
        conv: factory of the blocks' spatial convolutions, with the arguments of `nnx.Conv`; or a mapping from the path
            of each convolution, such as `layer1.0.conv2`, to its factory. None is `nnx.Conv`, or `GroupedConv` when
            `groups > 1`.
        norm: factory with the arguments of `nnx.BatchNorm`.
        act: activation function. Modules store it, so use a named function rather than a lambda.
        shortcut: factory with the arguments of `ConvShortcut`.
        groups: groups of the spatial convolution.
        base_width: width of one group when `planes` is 64.
        se_reduction: reduction of the squeeze-and-excitation; None leaves it out.
        zero_init_last: start the scale of each block's last normalisation at zero, so that every
            block starts as its shortcut.
        dilation: factor on the dilations of the spatial convolutions.
        strided: False replaces every stride by 1. The blocks keep what depends on their stride: projections, and the
            windows of poolings.
        padding: "torch" pads by half of each kernel on either side; "tf" is TensorFlow's "SAME".
        dtype: compute type; None infers it from the input and the parameters.
        param_dtype: type of the parameters.

    Example:
        >>> conv = Parts(groups=4).spatial("conv2", 8, 8, 1, nnx.Rngs(0))
        >>> type(conv).__name__, conv.kernel.shape
        ('GroupedConv', (3, 3, 2, 8))
    """

    conv: ConvFactory = None
    norm: Callable[..., Layer] = batch_norm
    act: Callable[[jax.Array], jax.Array] = nnx.relu
    shortcut: Callable[..., Layer] = ConvShortcut
    groups: int = 1
    base_width: int = 64
    se_reduction: int | None = None
    zero_init_last: bool = True
    dilation: int = 1
    strided: bool = True
    padding: PaddingRule = "torch"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def step(self, strides: int) -> int:
        """Returns the stride that a layer of a block with these strides takes: 1 without `strided`."""
        return strides if self.strided else 1

    def dense(
        self,
        name: str,
        in_features: int,
        out_features: int,
        kernel_size: int,
        strides: int,
        rngs: nnx.Rngs,
        *,
        use_bias: bool = False,
    ) -> nnx.Conv:
        """Builds a plain convolution (stem, 1x1), padded by the network's rule, not dilated."""
        options = self._options(kernel_size, strides, 1, rngs)
        with naming_layer(name):
            return nnx.Conv(in_features, out_features, use_bias=use_bias, **options)

    def spatial(
        self, name: str, in_features: int, out_features: int, strides: int, rngs: nnx.Rngs, *, use_bias: bool = False
    ) -> Layer:
        """Builds the 3x3 convolution of a block with the network's factory, groups and dilation."""
        options = self._options(3, strides, self.dilation, rngs)
        factory = self.spatial_conv(name)
        with naming_layer(name):
            return factory(in_features, out_features, feature_group_count=self.groups, use_bias=use_bias, **options)

    def spatial_conv(self, name: str) -> Callable[..., Layer]:
        """Returns the factory of the spatial convolution at a path.

        Raises:
            ValueError: if `conv` is a mapping without the path.
        """
        if isinstance(self.conv, Mapping):
            if name not in self.conv:
                raise ValueError(f"conv has no factory for {name}: it has {first_names(self.conv)}")
            return self.conv[name]
        return self.conv or (nnx.Conv if self.groups == 1 else GroupedConv)

    def _options(self, kernel_size: int, strides: int, dilation: int, rngs: nnx.Rngs) -> dict[str, Any]:
        return {
            # By name, because the third argument of some operators is not the kernel's size.
            "kernel_size": (kernel_size, kernel_size),
            "strides": self.step(strides),
            # 'SAME' pads unevenly at stride 2 and would shift the maps of PyTorch's weights.
            "padding": "SAME" if self.padding == "tf" else kernel_size // 2 * dilation,
            "kernel_dilation": dilation,
            "kernel_init": kaiming_normal,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "rngs": rngs,
        }

    def normalise(self, name: str, features: int, rngs: nnx.Rngs, *, last_of_block: bool = False) -> Layer:
        """Builds a normalisation; the last of a block starts at zero if `zero_init_last`."""
        zero = last_of_block and self.zero_init_last
        scale_init = {"scale_init": nnx.initializers.zeros_init()} if zero else {}
        with naming_layer(name):
            return self.norm(features, dtype=self.dtype, param_dtype=self.param_dtype, rngs=rngs, **scale_init)

    def gate(self, name: str, features: int, rngs: nnx.Rngs) -> SqueezeExcite | None:
        """Builds the squeeze-and-excitation, or None without `se_reduction`."""
        if self.se_reduction is None:
            return None
        options: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": rngs}
        with naming_layer(name):
            return SqueezeExcite(features, reduction=self.se_reduction, **options)


class ConvNormAct(Picklable):
    """Convolution, normalisation, activation.

    Args:
        in_features: input channels.
        out_features: output channels.
        kernel_size: side of the kernel, padded by half of it.
        strides: stride of the convolution.
        parts: the network's parts.
        name: path of the layer in the model, for error messages.
        rngs: source of the `params` stream.

    Example:
        >>> layer = ConvNormAct(3, 8, 3, 2, parts=Parts(), name="level1", rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((1, 7, 7, 3))).shape
        (1, 4, 4, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        strides: int,
        *,
        parts: Parts,
        name: str,
        rngs: nnx.Rngs,
    ):
        self.conv = parts.dense(f"{name}.conv", in_features, out_features, kernel_size, strides, rngs)
        self.bn = parts.normalise(f"{name}.bn", out_features, rngs)
        self.act = parts.act

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), out_features)."""
        return self.act(self.bn(self.conv(x)))
