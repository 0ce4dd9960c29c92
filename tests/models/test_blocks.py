"""Blocks against a reference written from the specification in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax.models import BasicBlock, Bottleneck, ConvShortcut, Parts, SqueezeExcite
from msconv_jax.models.pooling import average_pool
from msconv_jax.operators import GroupedConv


def quick_rngs():
    """Keys whose draws compile four times faster than the default ones."""
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


forward = nnx.jit(lambda block, x: block(x))


def conv(x, kernel, stride=1, groups=1):
    """Correlation with zero padding k//2: one output channel and position at a time."""
    k, _, per_group, outputs = kernel.shape
    n, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    result = np.zeros((n, (height - 1) // stride + 1, (width - 1) // stride + 1, outputs))
    for c in range(outputs):
        first = c // (outputs // groups) * per_group
        for i in range(result.shape[1]):
            for j in range(result.shape[2]):
                window = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
                window = window[..., first : first + per_group]
                result[:, i, j, c] = (window * kernel[..., c]).sum(axis=(1, 2, 3))
    return result


def norm(x, layer, training):
    scale, bias = np.asarray(layer.scale[...]), np.asarray(layer.bias[...])
    mean, var = np.asarray(layer.mean[...]), np.asarray(layer.var[...])
    if training:
        mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def relu(x):
    return np.maximum(x, 0)


def squeeze_excite(x, gate):
    hidden = relu(x.mean(axis=(1, 2)) @ np.asarray(gate.fc1.kernel[...]) + np.asarray(gate.fc1.bias[...]))
    logits = hidden @ np.asarray(gate.fc2.kernel[...]) + np.asarray(gate.fc2.bias[...])
    return x * (1 / (1 + np.exp(-logits)))[:, None, None]


def scramble(module):
    """Gives every parameter and statistic a random value; variances stay positive."""
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat))):
        value = rng.normal(size=variable.shape)
        if path[-1] == "var":
            value = np.abs(value) + 0.5
        variable.set_value(jnp.asarray(value, jnp.float32))
        nnx.update(module, nnx.from_flat_state([(path, variable)]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 6, 8), (3, 4, 4, 8)])
def test_bottleneck(training, shape):
    parts = Parts(groups=2, base_width=32, se_reduction=4)
    block = Bottleneck(8, 4, 2, parts=parts, name="block", rngs=quick_rngs())
    scramble(block)
    block.train() if training else block.eval()
    x = np.random.default_rng(1).normal(size=shape)
    # The expectation first: a call in training changes the running statistics.
    kernel = {n: np.asarray(getattr(block, n).kernel[...]) for n in ("conv1", "conv2", "conv3")}
    y = relu(norm(conv(x, kernel["conv1"]), block.bn1, training))
    y = relu(norm(conv(y, kernel["conv2"], stride=2, groups=2), block.bn2, training))
    y = squeeze_excite(norm(conv(y, kernel["conv3"]), block.bn3, training), block.se)
    projected = conv(x, np.asarray(block.downsample.conv.kernel[...]), stride=2)
    expected = relu(y + norm(projected, block.downsample.bn, training))
    assert type(block.conv2) is GroupedConv
    assert kernel["conv2"].shape == (3, 3, 2, 4)
    np.testing.assert_allclose(forward(block, jnp.asarray(x, jnp.float32)), expected, rtol=2e-4, atol=2e-4)


def test_basic_block_with_identity_shortcut():
    block = BasicBlock(6, 6, parts=Parts(), name="block", rngs=quick_rngs())
    scramble(block)
    x = np.random.default_rng(1).normal(size=(2, 5, 4, 6))
    y = relu(norm(conv(x, np.asarray(block.conv1.kernel[...])), block.bn1, training=True))
    y = norm(conv(y, np.asarray(block.conv2.kernel[...])), block.bn2, training=True)
    assert block.downsample is None
    np.testing.assert_allclose(forward(block, jnp.asarray(x, jnp.float32)), relu(x + y), rtol=2e-4, atol=2e-4)


def test_shortcut_is_an_argument():
    class Pooled(ConvShortcut):
        def __call__(self, x):
            return super().__call__(average_pool(x, 1, 1))

    block = BasicBlock(4, 8, 2, parts=Parts(shortcut=Pooled), name="block", rngs=quick_rngs())
    assert type(block.downsample) is Pooled
    assert forward(block, jnp.ones((1, 5, 5, 4))).shape == (1, 3, 3, 8)


@pytest.mark.parametrize(
    ("parts", "planes", "message"),
    [
        (Parts(groups=2), 4, r"^b: groups=2, base_width=64: .*use block=Bottleneck"),
        (Parts(base_width=4), 4, r"^b: groups=1, base_width=4: .*use block=Bottleneck"),
        (Parts(se_reduction=16), 8, r"^b\.se: se_reduction=16: 8 channels .* use at most 8"),
        (Parts(se_reduction=0), 8, r"^b\.se: se_reduction=0: must be an integer of at least 1"),
    ],
)
def test_basic_block_refuses(parts, planes, message):
    with pytest.raises(ValueError, match=message):
        BasicBlock(8, planes, parts=parts, name="b", rngs=quick_rngs())


def test_bottleneck_without_channels_is_refused():
    with pytest.raises(ValueError, match=r"^b: planes=8, base_width=4: .* larger base_width"):
        Bottleneck(8, 8, parts=Parts(base_width=4), name="b", rngs=quick_rngs())


def test_squeeze_excite_keeps_the_type_of_the_maps():
    gate = SqueezeExcite(16, reduction=4, rngs=quick_rngs())
    with jax.numpy_dtype_promotion("standard"):  # an nnx.Linear without a dtype needs it
        assert gate(jnp.ones((1, 2, 2, 16), jnp.bfloat16)).dtype == jnp.bfloat16
