"""SIS: the paper's equations; there is no public code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from msconv_jax.operators.sis import SISConv
from tests.families.family import Family


def build(ctor: Mapping[str, Any]) -> SISConv:
    """With padding k // 2; `variant` is our `kind` with an underscore."""
    size = ctor.get("kernel_size", 3)
    channels = ctor.get("channels")
    return SISConv(
        ctor.get("in_channels", channels),
        ctor.get("out_channels", channels),
        (size, size),
        ctor.get("stride", 1),
        padding=size // 2,
        kind=ctor["variant"].replace("_", ""),
        steps=ctor.get("steps", 2),
        share_paths=ctor.get("share_paths", False),
        feature_group_count=ctor.get("groups", 1),
        use_bias=ctor.get("bias", False),
        rngs=nnx.Rngs(0),
    )


FAMILIES = {"SIS": Family(build)}
