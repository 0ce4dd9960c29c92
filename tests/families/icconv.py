"""ICConv2d: one convolution for each dilation, with concatenated outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from msconv_jax import ICConv
from msconv_jax.operators.icconv import dilations_of_filters
from msconv_jax.torch_weights.icconv import public_order
from tests.families.family import CannotBuildError, Family


def build(ctor: Mapping[str, Any]) -> ICConv:
    """With the public module's padding, (k + 2 (d - 1)) // 2, which is symmetric for 3x3 kernels only."""
    size, features, groups = ctor.get("kernel_size", 3), ctor["planes"], ctor.get("groups", 1)
    dilations = dilations_of_filters(ctor["pattern_dist"], features)
    # Our module adds (k - 1) (d - 1) / 2 to the padding of a dilated kernel.
    paddings = {
        tuple((size + 2 * (d - 1)) // 2 - (size - 1) * (d - 1) // 2 for d in dilation) for dilation in set(dilations)
    }
    if len(paddings) > 1:
        raise CannotBuildError(f"kernel_size={size}: the public paddings give maps of different sizes")
    if any(dilations.count(dilation) % groups for dilation in dilations):
        raise CannotBuildError(f"groups={groups} does not divide the filters of every dilation")
    own = [dilation for dilation in dict.fromkeys(dilations) for _ in range(dilations.count(dilation) // groups)]
    return ICConv(
        ctor["inplanes"],
        features,
        (size, size),
        ctor.get("stride", 1),
        padding=paddings.pop(),
        pattern=own * groups,
        feature_group_count=groups,
        use_bias=ctor.get("bias", False),
        rngs=nnx.Rngs(0),
    )


def call(module: ICConv, x: jax.Array) -> tuple[jax.Array, ...]:
    """The outputs in the public module's order, dilation by dilation."""
    return (module(x)[..., np.array(public_order(module))],)


FAMILIES = {"ICConv2d": Family(build, call)}
