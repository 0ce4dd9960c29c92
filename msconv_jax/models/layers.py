"""Small parts that every network shares: initialisers, squeeze-and-excitation, drop path, classifier."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from msconv_jax.arguments import check_positive
from msconv_jax.modes.dtypes import wide_dtype
from msconv_jax.modes.normalization import BatchNorm

__all__ = [
    "PaddingRule",
    "SqueezeExcite",
    "average_pool",
    "batch_norm",
    "check_drop_path_rate",
    "check_padding_rule",
    "check_positive",
    "classifier",
    "drop_path",
    "kaiming_normal",
    "max_pool",
    "naming_layer",
]

# How a network pads: evenly, by half of each kernel, or by TensorFlow's "SAME", which at a stride of 2 and an even
# size pads less before than after. Both give maps of ceil(size / stride), shifted against each other.
PaddingRule = Literal["torch", "tf"]

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


def check_drop_path_rate(rate: float, name: str = "drop_path_rate") -> None:
    """Raises `ValueError` unless `rate` is a probability less than 1; `name` is the argument's, for the message.

    Example:
        >>> check_drop_path_rate(1.0)
        Traceback (most recent call last):
        ValueError: drop_path_rate=1.0: must be in [0, 1); 0 turns it off
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name}={rate!r}: must be in [0, 1); 0 turns it off")


def check_padding_rule(padding: str) -> None:
    """Raises `ValueError` unless `padding` is a `PaddingRule`.

    Example:
        >>> check_padding_rule("SAME")
        Traceback (most recent call last):
        ValueError: padding='SAME': must be 'torch' (half of each kernel on either side) or 'tf' (TensorFlow's SAME)
    """
    if padding not in get_args(PaddingRule):
        raise ValueError(
            f"padding={padding!r}: must be 'torch' (half of each kernel on either side) or 'tf' (TensorFlow's SAME)"
        )


def max_pool(
    x: jax.Array, strides: int, padding: PaddingRule | Sequence[tuple[int, int]] = "torch", *, window: int = 3
) -> jax.Array:
    """Maximum over windows, in which pixels beyond the edge do not count.

    Args:
        x: maps (N, H, W, C).
        strides: pixels between windows.
        padding: where the windows lie: "torch" centres the first one on pixel 0, "tf" is TensorFlow's "SAME"; or for
            either axis how far they reach beyond the edges.
        window: side of the windows.

    Returns:
        Maps (N, ceil(H / strides), ceil(W / strides), C), unless the reach is given.

    Example:
        >>> x = jnp.arange(36.0).reshape(1, 6, 6, 1)
        >>> max_pool(x, 2)[0, 0, :, 0].tolist(), max_pool(x, 2, "tf")[0, 0, :, 0].tolist()
        ([7.0, 9.0, 11.0], [14.0, 16.0, 17.0])
    """
    if padding == "torch":
        pairs = [(window // 2, window // 2)] * 2
    elif padding == "tf":
        pairs = lax.padtype_to_pads(x.shape[1:3], (window, window), (strides, strides), "SAME")
    else:
        pairs = padding
    # Padded here, which XLA makes part of the pooling.
    padded = jnp.pad(x, [(0, 0), *pairs, (0, 0)], constant_values=-jnp.inf)
    return nnx.max_pool(padded, window_shape=(window, window), strides=(strides, strides), padding="VALID")


def average_pool(x: jax.Array, window: int, strides: int) -> jax.Array:
    """Mean over windows from the first pixel on; of those that reach beyond the last, the mean of the pixels there are.

    Args:
        x: maps (N, H, W, C).
        window: side of the windows.
        strides: pixels between windows; the last window begins before the edge.

    Returns:
        Maps (N, ceil(H / strides), ceil(W / strides), C), of the same type.

    Example:
        >>> average_pool(jnp.arange(3.0).reshape(1, 1, 3, 1), 2, 2).ravel().tolist()
        [0.5, 2.0]
    """
    pairs, counts = [(0, 0)], []
    for size in x.shape[1:3]:
        starts = np.arange(0, size, strides)
        pairs.append((0, int(starts[-1]) + window - size))
        counts.append(np.minimum(starts + window, size) - starts)
    wide = jnp.pad(x.astype(wide_dtype(x.dtype)), [*pairs, (0, 0)])
    with jax.numpy_dtype_promotion("standard"):  # flax divides by an integer
        means = nnx.avg_pool(wide, window_shape=(window, window), strides=(strides, strides), padding="VALID")
    return (means * jnp.asarray(window**2 / np.outer(*counts)[None, :, :, None], wide.dtype)).astype(x.dtype)


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


def drop_path(rate: float, rngs: nnx.Rngs) -> nnx.Dropout:
    """Stochastic depth: drops a whole residual branch, independently for each sample.

    In training a branch is kept with probability `1 - rate` and then divided by it; after
    `model.eval()` it is the identity. With `rate=0` no random state is held at all.

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

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(
                inputs,
                outputs,
                kernel_init=kaiming_normal,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.fc1 = linear(features, hidden)
        self.fc2 = linear(hidden, features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Gates maps (N, H, W, C); the result has the same shape and type."""
        gate = nnx.sigmoid(self.fc2(nnx.relu(self.fc1(x.mean(axis=(1, 2))))))
        return x * gate[:, None, None, :].astype(x.dtype)


def classifier(features: int, num_classes: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> nnx.Linear:
    """Builds the last linear layer with PyTorch's default initialisation.

    Weights and bias are uniform within `1 / sqrt(features)`. No compute type is set: the layer
    computes in the wider of the maps' type and `param_dtype`, so a bfloat16 network with float32
    parameters gives float32 logits, which the softmax wants, at the cost of one small product.

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

    return nnx.Linear(
        features,
        num_classes,
        kernel_init=uniform,
        bias_init=uniform,
        param_dtype=param_dtype,
        rngs=rngs,
    )
