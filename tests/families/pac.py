"""PacConv2d, PacConvTranspose2d and PacPool2d, called with the signal, the guide and an optional mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from msconv_jax.operators.pac.modules import PACConv, PACConvTranspose, PACPool
from tests.families.family import Family


def pair(value: Any) -> tuple[int, ...]:
    """Converts an int for both axes to a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def adapting(ctor: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the adapting kernel, without the initialisation of weights."""
    return {
        "kernel_type": ctor.get("kernel_type", "gaussian"),
        "smooth_kernel_type": ctor.get("smooth_kernel_type", "none"),
        "normalize_kernel": ctor.get("normalize_kernel", False),
    }


def common(ctor: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of both convolutions; the public padding is 0 by default, not "SAME"."""
    return {
        "in_features": ctor["in_channels"],
        "out_features": ctor["out_channels"],
        "kernel_size": pair(ctor["kernel_size"]),
        "strides": pair(ctor.get("stride", 1)),
        "padding": pair(ctor.get("padding", 0)),
        "kernel_dilation": pair(ctor.get("dilation", 1)),
        "use_bias": ctor.get("bias", True),
        "shared_filters": ctor.get("shared_filters", False),
        "rngs": nnx.Rngs(0),
        **adapting(ctor),
    }


def build_conv(ctor: Mapping[str, Any]) -> PACConv:
    """PacConv2d."""
    return PACConv(**common(ctor))


def build_transpose(ctor: Mapping[str, Any]) -> PACConvTranspose:
    """PacConvTranspose2d."""
    return PACConvTranspose(**common(ctor), output_padding=pair(ctor.get("output_padding", 0)))


def build_pool(ctor: Mapping[str, Any]) -> PACPool:
    """PacPool2d; `out_channels` is -1 if it is not needed."""
    channels = ctor.get("out_channels", -1)
    return PACPool(
        pair(ctor["kernel_size"]),
        pair(ctor.get("stride", 1)),
        padding=pair(ctor.get("padding", 0)),
        kernel_dilation=pair(ctor.get("dilation", 1)),
        channel_wise=ctor.get("channel_wise", False),
        features=channels if channels is not None and channels > 0 else None,
        **adapting(ctor),
    )


def call(module: Any, signal: Any, guide: Any, mask: Any = None) -> tuple[Any, ...]:
    """Returns the output and, with a mask, the output's mask."""
    if mask is None:
        return (module(signal, guide),)
    y, valid = module(signal, guide, mask=mask)
    return y, valid.astype(y.dtype)


FAMILIES = {
    "PacConv2d": Family(build_conv, call),
    "PacConvTranspose2d": Family(build_transpose, call),
    "PacPool2d": Family(build_pool, call),
}
