"""HetConv: y = gwc(x) + pwc(x)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from msconv_jax import HetConv
from tests.families.family import Family


def build(ctor: Mapping[str, Any]) -> HetConv:
    """With masked blocks in the pointwise kernel by default."""
    return HetConv(
        ctor["in_channels"],
        ctor["out_channels"],
        (3, 3),
        padding=1,
        parts=ctor.get("p", 4),
        masked=ctor.get("masked", True),
        use_bias=False,
        rngs=nnx.Rngs(0),
    )


FAMILIES = {"HetConv": Family(build)}
