"""Folds batch normalisations into the convolutions before them, for inference."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.models.families.octave.blocks import OctBatchNorm
from msconv_jax.models.families.res2net import DeepStemConv
from msconv_jax.operators import ACConv, HetConv, OctConv, PyConv
from msconv_jax.operators.octave.octconv import PATHS
from msconv_jax.signatures import check_module, explains_arguments

__all__ = ["Folded", "fold_batch_norm"]

Module = TypeVar("Module", bound=nnx.Module)


class Folded(nnx.Module):
    """The identity, which replaces a normalisation after folding.

    Example:
        >>> Folded()(jnp.ones(2)).tolist()
        [1.0, 1.0]
    """

    def __call__(self, x: Any) -> Any:
        """Returns its argument."""
        return x


@explains_arguments
def fold_batch_norm(model: Module) -> Module:
    """Copies a network for inference, without the batch normalisations that follow convolutions.

    It multiplies each kernel by the normalisation's scale over its standard deviation; the shift becomes a bias. The
    copy's outputs equal those of the network in evaluation mode up to rounding. A class declares its pairs in a class
    variable, such as ``norm_follows = {"conv1": "bn1"}``; the library's networks and blocks do. Folding supports plain
    convolutions, lattice operators of one kernel, PyConv, HetConv, OctConv, Res2Conv and dataset-aware ACConv; other
    operators keep their normalisation.

    Args:
        model: a network or block, which does not change.

    Returns:
        The copy, in evaluation mode. It is not for training, and published weights do not fit it.

    Raises:
        ValueError: if the network has nothing to fold.

    Example:
        >>> from msconv_jax.models import create_model
        >>> model = create_model("ps_resnet8", rngs=nnx.Rngs(0))
        >>> fold_batch_norm(model).layer1[0].bn1
        Folded()
    """
    check_module("model", model)
    model = nnx.clone(model)
    model.eval()
    count = 0
    for _, module in list(nnx.iter_modules(model)):
        # The class declares the pairs: a block that normalises before it convolves has layers of the same names.
        for conv, norm in getattr(type(module), "norm_follows", {}).items():
            convs, norms = getattr(module, conv), getattr(module, norm)
            if isinstance(convs, nnx.List) and norms is not None:
                for number in range(len(norms)):
                    if _fold(convs[number], norms[number]):
                        norms[number] = Folded()
                        count += 1
            elif _fold(convs, norms):
                setattr(module, norm, Folded())
                count += 1
    if not count:
        raise ValueError(
            f"{type(model).__name__} has no batch normalisation that can be folded: fold_batch_norm knows the "
            "library's networks and blocks, and each only once"
        )
    return model


def _fold(conv: Any, norm: Any) -> bool:
    """Folds the normalisation into the convolution; returns False if this is impossible."""
    if isinstance(conv, DeepStemConv):
        return _fold(conv.conv3, norm)
    if isinstance(conv, OctConv) and isinstance(norm, OctBatchNorm):
        factors = [None if own is None else _affine(own) for own in (norm.bn_h, norm.bn_l)]
        for path, (_, target) in PATHS.items():
            own, factor = getattr(conv, path), factors[target]
            if own is not None and factor is not None:
                _scale(own.kernel, factor[0])
        for name, factor in zip(("high_bias", "low_bias"), factors, strict=True):
            if factor is not None:
                setattr(conv, name, _new_bias(getattr(conv, name), *factor, conv.param_dtype))
        conv.use_bias = True
        return True
    kinds = (nnx.Conv, nnx.Linear, PyConv, HetConv, ACConv)
    if not isinstance(norm, nnx.BatchNorm) or not isinstance(conv, kinds):
        return False
    if isinstance(conv, ACConv) and conv.kind == "pixel":
        return False  # its gate reads terms that folding would scale
    scale, shift = _affine(norm)
    if isinstance(conv, PyConv):
        first = 0
        for kernel, features in zip(conv.kernels, conv.level_features, strict=True):
            _scale(kernel, scale[first : first + features])
            first += features
    elif isinstance(conv, ACConv):  # a weighted sum of three terms, each scaled
        for term in (conv.local, conv.point, conv.fc2):
            if term is not None:
                _scale(term.kernel, scale)
        if conv.fc2 is not None and conv.fc2.bias is not None:
            _scale(conv.fc2.bias, scale)
    else:
        for name in ("kernel", "overlap_kernel", "pointwise_kernel"):
            if getattr(conv, name, None) is not None:
                _scale(getattr(conv, name), scale)
    conv.bias = _new_bias(conv.bias, scale, shift, conv.param_dtype)
    conv.use_bias = True
    return True


def _affine(norm: nnx.BatchNorm) -> tuple[jax.Array, jax.Array]:
    """The scale and the shift per channel in evaluation mode, in float32."""
    scale = jax.lax.rsqrt(norm.var[...].astype(jnp.float32) + norm.epsilon)
    if norm.scale is not None:
        scale *= norm.scale[...].astype(jnp.float32)
    shift = -norm.mean[...].astype(jnp.float32) * scale
    return scale, shift if norm.bias is None else shift + norm.bias[...].astype(jnp.float32)


def _scale(kernel: nnx.Param[jax.Array], scale: jax.Array) -> None:
    factors = jnp.expand_dims(scale, range(kernel[...].ndim - 1))
    kernel[...] = (kernel[...].astype(factors.dtype) * factors).astype(kernel.dtype)


def _new_bias(
    bias: nnx.Param[jax.Array] | None, scale: jax.Array, shift: jax.Array, dtype: Any
) -> nnx.Param[jax.Array]:
    return nnx.Param((shift if bias is None else bias[...].astype(scale.dtype) * scale + shift).astype(dtype))
