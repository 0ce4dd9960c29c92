"""Weights of ACConv by the public TensorFlow code's names, in PyTorch's layouts, and the networks' saved arrays."""

from __future__ import annotations

from typing import Any

from flax import nnx

from msconv_jax.models.families.acnet import ACResNet
from msconv_jax.operators.acnet import ACConv, Kind
from msconv_jax.torch_weights.conversion import Arrays, Conversion, conversion_of, converts

_DATASET = {"local": "z3", "point": "z1", "fc1": "fc1", "fc2": "fc3"}
_PIXEL = {"local": "conv2", "fc1": "fc1", "fc2": "fc2", "gate1": "conv_c1", "gate2": "conv_c2"}


def _published_logits(module: ACConv) -> tuple[int, ...]:
    """The shape of ``PPP``."""
    channels = module.out_features if module.mix == "channel" else 1
    return (len(module.use), channels, *(module.spatial_shape or (1,) * len(module.kernel_size)))


@converts(ACConv)
def acnet(module: ACConv) -> tuple[Conversion, ...]:
    """The convolutions and linear layers, the logits ``PPP`` and the ``bias``, which the public code lacks.

    ``PPP`` is channels first: (terms, 1, *spatial) by position (the published form), (terms, C, 1, ...) by channel and
    (terms, 1, 1, ...) for scalars.
    """
    names = _DATASET if module.kind == "dataset" else _PIXEL
    children: dict[str, nnx.Module | None] = {name: getattr(module, name) for name in names}
    parts = {name: conversion_of(child) for name, child in children.items() if child is not None}
    shapes = {f"{names[name]}.{tensor}": shape for name, part in parts.items() for tensor, shape in part.shapes.items()}
    logits = None if module.mix_logits is None else module.mix_logits.shape
    if logits is not None:
        shapes["PPP"] = _published_logits(module)
    if module.use_bias:
        shapes["bias"] = (module.out_features,)

    def convert(tensors: Arrays) -> dict[str, object]:
        values = {"bias": tensors["bias"]} if module.use_bias else {}
        if logits is not None:  # either the channel axis or the position axes have size 1: any order is equal
            values["mix_logits"] = tensors["PPP"].reshape(logits)
        for name, part in parts.items():
            own = part.convert({tensor: tensors[f"{names[name]}.{tensor}"] for tensor in part.shapes})
            values |= {f"{name}.{ours}": value for ours, value in own.items()}
        return values

    return (Conversion(shapes, convert),)


# --- the networks in tensorpack's format ---

_LAYER = {"kernel": "W", "bias": "b"}
_NORM = {"scale": "gamma", "bias": "beta", "mean": "mean/EMA", "var": "variance/EMA"}


@converts(ACResNet)
def ac_resnet(module: ACResNet) -> tuple[Conversion, ...]:
    """The arrays of a released ``.npz``, such as ``group0/block0/conv2/z3/W``: in our layouts, except ``PPP``."""
    names: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    logits: dict[str, tuple[int, ...]] = {}
    for path, variable in nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat))):
        ours, theirs = ".".join(map(str, path)), _published_name(path, module.kind)
        names[ours], shapes[theirs] = theirs, variable.shape
        if path[-1] == "mix_logits":
            logits[ours] = variable.shape
            stage, number, *_ = path
            shapes[theirs] = _published_logits(getattr(module, str(stage))[number].conv2)

    def convert(tensors: Arrays) -> dict[str, Any]:
        values = {ours: tensors[theirs] for ours, theirs in names.items()}
        return values | {ours: values[ours].reshape(shape) for ours, shape in logits.items()}

    return (Conversion(shapes, convert),)


def _published_name(path: tuple[Any, ...], kind: Kind) -> str:
    """The public code's name of the network's variable at this path."""
    *layer, value = path
    block = ""
    if len(layer) > 2:
        stage, number, *layer = layer
        block = f"group{int(stage.removeprefix('layer')) - 1}/block{number}/"
    match layer:
        case ["fc"]:
            return f"linear/{_LAYER[value]}"
        case ["conv2"]:  # the logits, a variable of ACConv itself
            return f"{block}conv2/PPP"
        case ["conv2", part]:
            own = f"conv2/{_DATASET[part]}" if kind == "dataset" else _PIXEL[part]
            return f"{block}{own}/{_LAYER[value]}"
        case ["bn2"]:
            return f"{block}conv2/{'sum/' if kind == 'dataset' else ''}bn/{_NORM[value]}"
        case ["downsample", "conv"]:
            return f"{block}convshortcut/{_LAYER[value]}"
        case ["downsample", "bn"]:
            return f"{block}convshortcut/bn/{_NORM[value]}"
        case [("conv1" | "conv3") as conv]:
            return f"{block}{conv if block else 'conv0'}/{_LAYER[value]}"
        case [("bn1" | "bn3") as norm]:
            return f"{block}{f'conv{norm[-1]}' if block else 'conv0'}/bn/{_NORM[value]}"
    raise ValueError(f"{'.'.join(map(str, path))}: the public networks have no such layer, and no name for it.")
