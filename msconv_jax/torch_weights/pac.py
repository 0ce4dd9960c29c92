"""Weights of PAC: the public layers' parameters, and the constants of their adapting kernels in the same files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from msconv_jax.operators.pac.kernel import KernelType, smoothing_kernel
from msconv_jax.operators.pac.modules import PACConv, PACConvTranspose, PACPool
from msconv_jax.torch_weights.conversion import Arrays, Conversion, converts
from msconv_jax.torch_weights.layers import hwio, oihw


@converts(PACConv)
def convolution(module: PACConv) -> tuple[Conversion, ...]:
    """``weight`` (out, in, *spatial), ``bias``, and the adapting kernel's tensors."""
    return _forms(module, {"weight": oihw(module.kernel_shape)}, hwio)


@converts(PACConvTranspose)
def transpose(module: PACConvTranspose) -> tuple[Conversion, ...]:
    """``weight`` (in, out, *spatial), not flipped, ``bias``, and the adapting kernel's tensors."""
    *size, inputs, outputs = module.kernel_shape
    return _forms(
        module, {"weight": (inputs, outputs, *size)}, lambda weight: weight.transpose(*range(2, weight.ndim), 0, 1)
    )


@converts(PACPool)
def pool(module: PACPool) -> tuple[Conversion, ...]:
    """Only the adapting kernel's tensors."""
    return _forms(module, {}, None)


def _forms(module: Any, shapes: dict[str, tuple[int, ...]], layout: Any) -> tuple[Conversion, ...]:
    """The forms with the constants of the adapting kernel, which the public layers save, and without them.

    The constants are not parameters of our modules; they are compared with the values of the module's kernel types.
    """
    names = {"weight": "kernel"} if shapes else {}
    if getattr(module, "bias", None) is not None:
        shapes["bias"] = (module.out_features,)
        names["bias"] = "bias"
    kind = KernelType.parse(module.kernel_type)
    constants: dict[str, Any] = {}
    for name, value in (("inv_alpha", kind.alpha), ("inv_lambda", kind.power)):
        learnt = getattr(module, name)
        if learnt is not None:
            shapes[name] = learnt.shape
            names[name] = name
        elif kind.inverse:
            constants[name] = np.float32(value)
    ndim = len(module.kernel_size)
    smooth = smoothing_kernel(module.smooth_kernel_type, ndim)
    if module.smooth_kernel is not None:
        shapes["smooth_kernel"] = (1, 1, *module.smooth_kernel.shape)
        names["smooth_kernel"] = "smooth_kernel"
    elif smooth is not None:
        constants["smooth_kernel"] = smooth[None, None]

    def convert(tensors: Arrays) -> dict[str, Any]:
        values = {ours: tensors[theirs] for theirs, ours in names.items()}
        if "kernel" in values:
            values["kernel"] = layout(values["kernel"])
        if "smooth_kernel" in values:
            values["smooth_kernel"] = values["smooth_kernel"][0, 0]
        return values

    plain = Conversion(shapes, convert)
    if not constants:
        return (plain,)
    published = {**shapes, **{name: np.shape(value) for name, value in constants.items()}}
    return dataclasses.replace(plain, shapes=published, check=lambda tensors: _differences(tensors, constants)), plain


def _differences(tensors: Arrays, constants: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {np.asarray(tensors[name]).tolist()} where the module's kernel types say {value.tolist()}; build it "
        "with the types that the weights were trained with"
        for name, value in constants.items()
        if not np.allclose(tensors[name], value, rtol=1e-5, atol=0)
    ]
