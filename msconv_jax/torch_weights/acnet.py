"""ACConv under the names of the public TensorFlow code, in PyTorch's layouts."""

from __future__ import annotations

from flax import nnx

from msconv_jax.operators.acnet import ACConv
from msconv_jax.torch_weights.conversion import Arrays, Conversion, conversion_of, converts

_DATASET = {"local": "z3", "point": "z1", "fc1": "fc1", "fc2": "fc3"}
_PIXEL = {"local": "conv2", "fc1": "fc1", "fc2": "fc2", "gate1": "conv_c1", "gate2": "conv_c2"}


@converts(ACConv)
def acnet(module: ACConv) -> tuple[Conversion, ...]:
    """The convolutions and linear layers, the logits ``PPP`` and the one ``bias``, which the public code lacks.

    ``PPP`` is channels first: (terms, 1, *spatial) by position, as published, (terms, C, 1, ...) by channel and
    (terms, 1, 1, ...) for scalars.
    """
    names = _DATASET if module.kind == "dataset" else _PIXEL
    children: dict[str, nnx.Module | None] = {name: getattr(module, name) for name in names}
    parts = {name: conversion_of(child) for name, child in children.items() if child is not None}
    shapes = {f"{names[name]}.{tensor}": shape for name, part in parts.items() for tensor, shape in part.shapes.items()}
    logits = None if module.mix_logits is None else module.mix_logits.shape
    if logits is not None:
        ones = (1,) * len(module.kernel_size)
        channels = module.out_features if module.mix == "channel" else 1
        shapes["PPP"] = (logits[0], channels, *(module.spatial_shape or ones))
    if module.use_bias:
        shapes["bias"] = (module.out_features,)

    def convert(tensors: Arrays) -> dict[str, object]:
        values = {"bias": tensors["bias"]} if module.use_bias else {}
        if logits is not None:  # of the axes of channels and of positions one has size 1: the order does not matter
            values["mix_logits"] = tensors["PPP"].reshape(logits)
        for name, part in parts.items():
            own = part.convert({tensor: tensors[f"{names[name]}.{tensor}"] for tensor in part.shapes})
            values |= {f"{name}.{ours}": value for ours, value in own.items()}
        return values

    return (Conversion(shapes, convert),)
