"""Weights of PyConv: one per level, by the names of the public blocks or of the generic module."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from msconv_jax.models.families.pyconv import MaxPoolShortcut
from msconv_jax.operators.pyconv import PyConv
from msconv_jax.segmentation.pyconv_parsing import GlobalPyConvBlock, LocalPyConvBlock
from msconv_jax.torch_weights.conversion import Arrays, Conversion, converts, rename_children
from msconv_jax.torch_weights.layers import hwio, oihw


@converts(PyConv)
def pyconv(module: PyConv) -> tuple[Conversion, ...]:
    """``conv2_1``, ... of PyConv2 to PyConv4, ``pyconv_levels.0``, ... of PyConv2d, or ``weight`` for one level."""
    levels = range(len(module.kernels))
    namings = [[f"conv2_{n + 1}." for n in levels], [f"pyconv_levels.{n}." for n in levels]]
    if len(module.kernels) == 1:
        namings.insert(0, [""])
    return tuple(_form(module, prefixes) for prefixes in namings)


def _form(module: PyConv, prefixes: list[str]) -> Conversion:
    shapes: dict[str, tuple[int, ...]] = {}
    for prefix, kernel, features in zip(prefixes, module.kernels, module.level_features, strict=True):
        shapes[f"{prefix}weight"] = oihw(kernel.shape)
        if module.use_bias:
            shapes[f"{prefix}bias"] = (features,)

    def convert(tensors: Arrays) -> dict[str, Any]:
        values = {f"kernels.{n}": hwio(tensors[f"{prefix}weight"]) for n, prefix in enumerate(prefixes)}
        if module.use_bias:
            values["bias"] = jnp.concatenate([tensors[f"{prefix}bias"] for prefix in prefixes])
        return values

    return Conversion(shapes, convert)


def _shortcut_names(module: MaxPoolShortcut) -> dict[str, str]:
    """The indices in the public shortcut's sequence, which starts with the pooling if there is one."""
    first = 0 if module.strides == 1 else 1
    return {"conv": str(first), "bn": str(first + 1)}


rename_children(MaxPoolShortcut, _shortcut_names)
_HEAD = ("conv1", "bn1", "pyconv", "bn2", "conv2", "bn3")
rename_children(LocalPyConvBlock, {name: f"layers.{n}" for name, n in zip(_HEAD, (0, 1, 3, 4, 6, 7), strict=True)})
rename_children(GlobalPyConvBlock, {name: f"features.{n}" for name, n in zip(_HEAD, (1, 2, 4, 5, 7, 8), strict=True)})
