"""Weights of HetConv: the public module adds a grouped convolution and a pointwise one with zero grouped blocks."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from msconv_jax.operators.hetconv import HetConv, small_inputs
from msconv_jax.torch_weights.conversion import Arrays, Conversion, converts
from msconv_jax.torch_weights.layers import hwio, oihw


@converts(HetConv)
def hetconv(module: HetConv) -> tuple[Conversion, ...]:
    """``gwc.weight``, ``pwc.weight`` and, for a bias, ``gwc.bias``, which the public module does not have."""
    small = (1,) * len(module.kernel_size)
    fan_in = module.in_features // module.feature_group_count
    shapes = {
        "gwc.weight": oihw(module.kernel.shape),
        "pwc.weight": (module.out_features, fan_in, *small),
    }
    if module.use_bias:
        shapes["gwc.bias"] = (module.out_features,)
    outputs = np.arange(module.out_features)[:, None]

    def convert(tensors: Arrays) -> dict[str, Any]:
        values = {"kernel": hwio(tensors["gwc.weight"])}
        if module.pointwise_kernel is not None:
            pointwise = jnp.asarray(tensors["pwc.weight"])
            if module.masked:
                pointwise = pointwise[outputs, small_inputs(module.large_inputs, fan_in)]
            values["pointwise_kernel"] = hwio(pointwise)
        return {**values, "bias": tensors["gwc.bias"]} if module.use_bias else values

    def check(tensors: Arrays) -> list[str]:
        if not module.masked:
            return []
        extra = np.asarray(tensors["pwc.weight"])[outputs, module.large_inputs]
        if not extra.any():
            return []
        return [
            f"pwc.weight: {np.count_nonzero(extra)} of {extra.size} 1x1 weights beside a large kernel are not zero; "
            "build the HetConv with masked=False to keep them"
        ]

    return (Conversion(shapes, convert, check),)
