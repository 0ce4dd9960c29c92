"""Counts the multiply-accumulates of each layer of a network from shapes only, and its parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from msconv_jax.costs import call_macs, is_costed
from msconv_jax.recording import Call, recorded_calls
from msconv_jax.signatures import check_module, explains_arguments

__all__ = ["count_parameters", "layer_macs"]

Input = Sequence[int] | jax.ShapeDtypeStruct | jax.Array
"""A size without the batch axis, an array, or an array's shape and type."""

# Layers with products outside their child layers.
_UNKNOWN = (nnx.MultiHeadAttention, nnx.LoRA, nnx.LoRALinear)


@explains_arguments
def layer_macs(model: nnx.Module, input_size: Input = (224, 224, 3), *more_inputs: Input) -> dict[str, int]:
    """The multiply-accumulates of each convolution and linear layer for one image; nothing else is counted.

    The model is called in evaluation mode on shapes only, and each call of a layer is counted by its shapes.
    :mod:`msconv_jax.costs` describes what is counted, and how to count a custom layer. Products outside layer calls are
    missing: those of functions, of methods other than ``__call__`` such as ``nnx.Embed.attend`` or
    ``PACConv.adapting_kernel``, and of a network that multiplies by parameters next to its layers.

    Args:
        model: the network, not modified. It may be abstract, as from `nnx.eval_shape`.
        input_size: height, width and channels of one image, or any size without the batch axis: the model is called
            with float32 ``(1, *input_size)``. An array or a ``jax.ShapeDtypeStruct`` includes its batch axes, and the
            result is the cost of the whole batch.
        *more_inputs: likewise, further arguments of the network.

    Returns:
        The multiply-accumulates of each layer by its path, in the order of the calls, summed over several calls. An
        operator of this library is one layer, without the zeros of its lattice. Layers that are not called are missing.

    Raises:
        ValueError: if a called layer multiplies by parameters and its cost is unknown; or for a bad size.

    Example:
        >>> from msconv_jax.models import create_model
        >>> model = nnx.eval_shape(lambda: create_model("ps_resnet8", rngs=nnx.Rngs(0)))
        >>> macs = layer_macs(model, (32, 32, 3))
        >>> macs["conv1"], macs["layer1.0.conv2"], sum(macs.values())
        (442368, 2359296, 12501632)
    """
    check_module("model", model)
    graphdef, state = nnx.split(model)
    abstract = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), state)
    calls: list[Call] = []

    def call(state: Any, inputs: list[jax.Array]) -> None:
        copy: Any = nnx.merge(graphdef, state, copy=True)
        copy.eval()
        with recorded_calls(copy, _multiplies) as found:
            copy(*inputs)
        calls.extend(found)

    jax.eval_shape(call, abstract, [_abstract_input(given) for given in (input_size, *more_inputs)])
    macs: dict[str, int] = {}
    for call_of_layer in calls:
        macs[call_of_layer.path] = macs.get(call_of_layer.path, 0) + _macs_of(call_of_layer)
    return macs


def _abstract_input(given: Input) -> jax.ShapeDtypeStruct:
    if isinstance(given, jax.ShapeDtypeStruct | jax.Array | np.ndarray):
        return jax.ShapeDtypeStruct(given.shape, given.dtype)
    if not isinstance(given, Sequence) or not all(isinstance(n, int | np.integer) and n > 0 for n in given):
        raise ValueError(f"input {given!r}: expected a size such as (224, 224, 3), an array or a jax.ShapeDtypeStruct.")
    return jax.ShapeDtypeStruct((1, *given), jnp.float32)


def _macs_of(call: Call) -> int:
    try:
        if isinstance(call.module, _UNKNOWN) and not is_costed(call.module):
            raise TypeError(
                f"{type(call.module).__name__} multiplies more than its layers; give a subclass of it macs."
            )
        return call_macs(call.module, call.input_shapes, call.output_shapes)
    except TypeError as error:
        raise ValueError(f"{call.path or 'the model itself'} cannot be counted: {error}") from error


def _multiplies(module: nnx.Module) -> bool:
    """Whether to count a module: its cost is known, or it is unknown and skipping it would be wrong."""
    if is_costed(module) or isinstance(module, _UNKNOWN):
        return True
    if isinstance(module, nnx.Embed):  # a call only looks rows up
        return False
    if any(is_costed(part) for _, part in nnx.iter_modules(module)):
        return False  # a network; its own parameters are, for instance, position embeddings
    return _has_matrix(module)


def _has_matrix(module: nnx.Module) -> bool:
    """Whether a module itself, not one of its submodules, has a parameter of two or more axes."""
    parts = [path for path, part in nnx.iter_modules(module) if path and not isinstance(part, nnx.List | nnx.Dict)]
    return any(
        len(variable.shape) >= 2 and not any(path[: len(part)] == part for part in parts)
        for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param))
    )


@explains_arguments
def count_parameters(module: nnx.Module) -> int:
    """The number of a module's parameters, without statistics.

    Example:
        >>> count_parameters(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        8
    """
    check_module("module", module)
    return sum(math.prod(variable.shape) for _, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)))
