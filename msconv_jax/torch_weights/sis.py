"""Weights of SISConv by our names, in PyTorch's layouts; there are no published weights."""

from __future__ import annotations

from flax import nnx

from msconv_jax.operators.sis import SISConv
from msconv_jax.torch_weights.conversion import Arrays, Conversion, conversion_of, converts


@converts(SISConv)
def sis(module: SISConv) -> tuple[Conversion, ...]:
    """``k1``, ``k2``, ``k3``, the inner normalisations by their attribute names, and the output's ``bias``."""
    children: dict[str, nnx.Module | None] = {"k1": module.k1, "k2": module.k2, "k3": module.k3, "bn1": module.bn1}
    for name, norms in (("bn2", module.bn2), ("bn3", module.bn3)):
        children |= {f"{name}.{number}": norm for number, norm in enumerate(norms or ())}
    parts = {name: conversion_of(child) for name, child in children.items() if child is not None}
    shapes = {f"{name}.{tensor}": shape for name, part in parts.items() for tensor, shape in part.shapes.items()}
    if module.use_bias:
        shapes["bias"] = (module.out_features,)

    def convert(tensors: Arrays) -> dict[str, object]:
        values = {"bias": tensors["bias"]} if module.use_bias else {}
        for name, part in parts.items():
            own = part.convert({tensor: tensors[f"{name}.{tensor}"] for tensor in part.shapes})
            values |= {f"{name}.{ours}": value for ours, value in own.items()}
        return values

    return (Conversion(shapes, convert),)
