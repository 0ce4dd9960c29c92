"""IC-Conv: the public module is a list of convolutions, one for each dilation that occurs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from msconv_jax.operators.icconv import ICConv
from msconv_jax.torch_weights.conversion import Arrays, Conversion, converts
from msconv_jax.torch_weights.layers import hwio, oihw, plain_weights


@converts(ICConv)
def icconv(module: ICConv) -> tuple[Conversion, ...]:
    """``conv_list.{j}.weight`` for the filters of the j-th dilation that occurs, or a plain convolution's ``weight``.

    The public output lists the filters dilation by dilation, :func:`public_order`; with a pattern in that order, as the
    published ones are, it is ours. In groups the public module gives every group an equal share of each dilation.
    """
    of_dilation = filters_of_dilations(module)
    shares = [np.bincount(np.array(own) * module.feature_group_count // module.out_features) for own in of_dilation]
    if any(len(share) < module.feature_group_count or len(set(share)) > 1 for share in shares):
        return (plain_weights(module),)  # not a form that the public code has
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
    """The filters of each dilation, in the order in which the dilations first occur."""
    found: dict[tuple[int, ...], list[int]] = {}
    for number, dilation in enumerate(module.pattern):
        found.setdefault(dilation, []).append(number)
    return list(found.values())


def public_order(module: ICConv) -> list[int]:
    """Our number of each output channel of the public module."""
    return [number for own in filters_of_dilations(module) for number in own]
