"""OctaveConv, and OctConv_BN_ACT with normalisation and activation: maps of high and low frequency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from msconv_jax.models.families.octave.blocks import OctConvNormAct
from msconv_jax.operators.octave.octconv import OctConv
from tests.families.family import CannotBuildError, Family


def per_axis(value: Any) -> tuple[int, int]:
    """Converts an int or a pair to a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def arguments(ctor: Mapping[str, Any]) -> dict[str, Any]:
    """OctConv's arguments; the public code rounds odd sizes down."""
    kernel_size, padding = per_axis(ctor["kernel_size"]), per_axis(ctor.get("padding", 0))
    dilation = per_axis(ctor.get("dilation", 1))
    if any(2 * p != d * (k - 1) for k, p, d in zip(kernel_size, padding, dilation, strict=True)):
        raise CannotBuildError(f"padding {padding} changes the size under kernels {kernel_size} of dilation {dilation}")
    return {
        "in_features": ctor["in_channels"],
        "out_features": ctor["out_channels"],
        "kernel_size": kernel_size,
        "strides": ctor.get("stride", 1),
        "alpha_in": ctor.get("alpha_in", 0.5),
        "alpha_out": ctor.get("alpha_out", 0.5),
        "odd": "floor",
        "group_rule": "pytorch",
        "padding": padding,
        "kernel_dilation": dilation,
        "feature_group_count": ctor.get("groups", 1),
        "use_bias": ctor.get("bias", False),
        "rngs": nnx.Rngs(0),
    }


def call(module: OctConv | OctConvNormAct, *inputs: Any) -> tuple[Any, ...]:
    """Calls the module with one input, or with the high and the low one."""
    outputs = module(inputs[0] if len(inputs) == 1 else inputs)
    return tuple(y for y in outputs if y is not None) if isinstance(outputs, tuple) else (outputs,)


FAMILIES = {
    "OctaveConv": Family(lambda ctor: OctConv(**arguments(ctor)), call),
    "OctConv_BN_ACT": Family(lambda ctor: OctConvNormAct(**arguments(ctor)), call),
}
