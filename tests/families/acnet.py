"""ACNet's two operators, each with batch normalisation and ReLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from msconv_jax.operators.acnet import ACConv
from msconv_jax.torch_weights.conversion import rename_children
from tests.families.family import Family


class Normalised(nnx.Module):
    """An operator and its batch normalisation."""

    def __init__(self, conv: ACConv):
        self.conv = conv
        self.bn = nnx.BatchNorm(conv.out_features, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))


rename_children(Normalised, {"conv": ""})


def build_dataset_aware(ctor: Mapping[str, Any]) -> Normalised:
    """With mixing by position and TensorFlow's SAME padding: the output has ceil(size / stride) pixels."""
    stride = ctor.get("stride", 1)
    conv = ACConv(
        ctor["in_channels"],
        ctor["filters"],
        (3, 3),
        stride,
        mix="position",
        spatial_shape=tuple(-(-size // stride) for size in ctor["in_hw"]),
        use_bias=False,
        rngs=nnx.Rngs(0),
    )
    return Normalised(conv)


def build_pixel_aware(ctor: Mapping[str, Any]) -> Normalised:
    """With TensorFlow's SAME padding."""
    stride, features = ctor.get("stride", 1), (ctor["ch_in"], ctor["ch_out"])
    return Normalised(ACConv(*features, (3, 3), stride, kind="pixel", use_bias=False, rngs=nnx.Rngs(0)))


def call(module: Normalised, x: jax.Array) -> tuple[jax.Array, ...]:
    """The operator's output z, and z after normalisation and ReLU."""
    z = module.conv(x)
    return z, nnx.relu(module.bn(z))


FAMILIES = {
    "ACNetDatasetAware": Family(build_dataset_aware, call),
    "ACNetPixelAware": Family(build_pixel_aware, call),
}
