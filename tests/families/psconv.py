"""PSConv2d and PSGConv2d: y = gwconv(x) + gwconv_shift(x, halves swapped) + conv(x)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from msconv_jax import PSConv
from tests.families.family import CannotBuildError, Family


def build(ctor: Mapping[str, Any]) -> PSConv:
    """With the mask of the public code, or the paper's if `paper_mask` is set."""
    groups, parts, dilation = ctor.get("groups", 1), ctor.get("parts", 4), ctor.get("dilation", 1)
    size = ctor.get("kernel_size", 3)
    if size != 3 or ctor.get("padding", 1) != 1:
        raise CannotBuildError("the public code's paddings agree for 3x3 kernels with padding 1 only")
    return PSConv(
        ctor["in_channels"],
        ctor["out_channels"],
        (size, size),
        ctor.get("stride", 1),
        padding=1,
        pattern=[{0: dilation, parts // 2: 2 * dilation}.get(n, 1) for n in range(parts)],
        phase=0,
        feature_group_count=groups,
        use_bias=ctor.get("bias", False),
        official_compat=groups > 1 and not ctor.get("paper_mask", False),
        rngs=nnx.Rngs(0),
    )


FAMILIES = {"PSConv2d": Family(build), "PSGConv2d": Family(build), "PSGConv2d (paper_mask)": Family(build)}
