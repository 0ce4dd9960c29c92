"""Weights of IC-Conv: the public module is a list of convolutions, one per dilation in the pattern."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from msconv_jax.operators.icconv import ICConv
from msconv_jax.torch_weights.conversion import Arrays, Conversion, converts
from msconv_jax.torch_weights.layers import hwio, oihw, plain_weights


@converts(ICConv)
def icconv(module: ICConv) -> tuple[Conversion, ...]:
    """``conv_list.{j}.weight`` for the filters of the pattern's j-th dilation, or a plain convolution's ``weight``.

    The public output sorts the filters by dilation, :func:`public_order`. The published patterns have this order, and
    then the output order is ours. With groups, every group of the public module has an equal share of each dilation.
    """
    of_dilation = filters_of_dilations(module)
    shares = [np.bincount(np.array(own) * module.feature_group_count // module.out_features) for own in of_dilation]
    if any(len(share) < module.feature_group_count or len(set(share)) > 1 for share in shares):
        return (plain_weights(module),)  # the public code has no such form
    _, *rest = oihw(module.kernel_shape)
    shapes: dict[str, tuple[int, ...]] = {}
    for number, own in enumerate(of_dilation):
        shapes[f"conv_list.{number}.weight"] = (len(own), *rest)
        if module.use_bias:
            shapes[f"conv_list.{number}.bias"] = (len(own),)
    inverse = np.argsort(public_order(module))

    def joined(tensors: Arrays, name: str) -> Any:
        numbers = range(len(of_dilation))
        return jnp.concatenate([jnp.asarray(tensors[f"conv_list.{n}.{name}"]) for n in numbers])[inverse]

    def convert(tensors: Arrays) -> dict[str, Any]:
        values = {"kernel": hwio(joined(tensors, "weight"))}
        return {**values, "bias": joined(tensors, "bias")} if module.use_bias else values

    return Conversion(shapes, convert), plain_weights(module)


def filters_of_dilations(module: ICConv) -> list[list[int]]:
    """The filters of each dilation, in the order of the dilations' first occurrence."""
    found: dict[tuple[int, ...], list[int]] = {}
    for number, dilation in enumerate(module.pattern):
        found.setdefault(dilation, []).append(number)
    return list(found.values())


def public_order(module: ICConv) -> list[int]:
    """Our index of each output channel of the public module."""
    return [number for own in filters_of_dilations(module) for number in own]
