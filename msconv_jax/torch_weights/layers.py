"""PyTorch's weights of plain layers (convolution, linear, batch normalisation) and of a network as a backbone."""

from __future__ import annotations

from typing import Any

from flax import nnx

from msconv_jax.models.backbone import FeatureBackbone
from msconv_jax.operators import GroupedConv
from msconv_jax.torch_weights.conversion import Arrays, Conversion, converts, rename_children

rename_children(FeatureBackbone, {"model": ""})  # a backbone's names are its network's


def hwio(weight: Any) -> Any:
    """Transposes PyTorch's convolution kernel (out, in, *spatial) to ours, (*spatial, in, out)."""
    spatial = range(2, weight.ndim)
    return weight.transpose(*spatial, 1, 0)


def oihw(shape: tuple[int, ...]) -> tuple[int, ...]:
    """PyTorch's kernel shape for our shape (*spatial, in, out)."""
    return (shape[-1], shape[-2], *shape[:-2])


def plain_weights(module: nnx.Conv) -> Conversion:
    """A plain convolution's tensors for any operator with one kernel: ``weight`` and, if there is a bias, ``bias``."""
    shapes = {"weight": oihw(module.kernel_shape)}
    if module.use_bias:
        shapes["bias"] = (module.out_features,)

    def convert(tensors: Arrays) -> dict[str, Any]:
        values = {"kernel": hwio(tensors["weight"])}
        return {**values, "bias": tensors["bias"]} if module.use_bias else values

    return Conversion(shapes, convert)


@converts(nnx.Conv, GroupedConv)
def convolution(module: nnx.Conv) -> tuple[Conversion, ...]:
    """A plain convolution, grouped or not."""
    return (plain_weights(module),)


@converts(nnx.Linear)
def linear(module: nnx.Linear) -> tuple[Conversion, ...]:
    """``weight`` (out, in) and, if there is a bias, ``bias``."""
    shapes: dict[str, tuple[int, ...]] = {"weight": (module.out_features, module.in_features)}
    if module.use_bias:
        shapes["bias"] = (module.out_features,)

    def convert(tensors: Arrays) -> dict[str, Any]:
        values = {"kernel": tensors["weight"].T}
        return {**values, "bias": tensors["bias"]} if module.use_bias else values

    return (Conversion(shapes, convert),)


@converts(nnx.BatchNorm)
def batch_norm(module: nnx.BatchNorm) -> tuple[Conversion, ...]:
    """``weight``, ``bias``, ``running_mean`` and ``running_var``."""
    names = {"running_mean": "mean", "running_var": "var"}
    names |= {"weight": "scale"} if module.use_scale else {}
    names |= {"bias": "bias"} if module.use_bias else {}
    shapes = dict.fromkeys(names, (module.num_features,))
    return (Conversion(shapes, lambda tensors: {ours: tensors[theirs] for theirs, ours in names.items()}),)
