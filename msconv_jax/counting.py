"""Counts of a network's work: the multiply-accumulates of each layer, found by calling it on shapes alone."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

__all__ = ["count_parameters", "layer_macs"]


class _Recorder(nnx.Module):
    """Stands for a layer, calls it, and notes its multiply-accumulates."""

    def __init__(self, layer: nnx.Module, path: str, found: dict[str, int]):
        self.layer = layer
        self.note = _Note(path, found)  # no module and no array: plain static data

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        outputs = self.layer(*inputs, **options)  # type: ignore[operator]
        self.note(self.layer, outputs)
        return outputs


class _Note:
    def __init__(self, path: str, found: dict[str, int]):
        self.path, self.found = path, found

    def __call__(self, layer: Any, outputs: Any) -> None:
        first = next(y for y in (outputs if isinstance(outputs, tuple) else (outputs,)) if y is not None)
        if isinstance(layer, nnx.Linear):
            macs = layer.in_features * layer.out_features
        elif hasattr(layer, "macs"):
            macs = layer.macs(first.shape[-1 - len(layer.kernel_size) : -1])
        else:
            size = first.shape[-1 - len(layer.kernel_size) : -1]
            macs = math.prod(layer.kernel.shape) * math.prod(size)
        self.found[self.path] = self.found.get(self.path, 0) + macs


def layer_macs(model: nnx.Module, input_size: tuple[int, ...] = (224, 224, 3)) -> dict[str, int]:
    """The multiply-accumulates of each convolution and linear layer for one image, nothing else counted.

    Args:
        model: the network, called with images ``(1, *input_size)``; left as it is. It may be abstract, as
            `nnx.eval_shape` makes it.
        input_size: height, width and channels.

    Returns:
        For the path of each layer, in the order of the calls, its multiply-accumulates. An operator of this library is
        one layer, and zeros of its lattice are not counted. Layers that no call reaches are missing.

    Example:
        >>> from msconv_jax.models import create_model
        >>> model = nnx.eval_shape(lambda: create_model("ps_resnet8", rngs=nnx.Rngs(0)))
        >>> macs = layer_macs(model, (32, 32, 3))
        >>> macs["conv1"], macs["layer1.0.conv2"], sum(macs.values())
        (442368, 2359296, 12501632)
    """
    found: dict[str, int] = {}
    graphdef, state = nnx.split(model)
    abstract = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), state)

    def call(state: Any, images: jax.Array) -> Any:
        copy = nnx.merge(graphdef, state)
        copy.eval()
        _record(copy, "", found)
        return copy(images)

    jax.eval_shape(call, abstract, jax.ShapeDtypeStruct((1, *input_size), jnp.float32))
    return found


def _record(module: nnx.Module, path: str, found: dict[str, int]) -> None:
    """Puts recorders in the place of all layers below a module, the outermost ones."""
    for name, value in list(vars(module).items()):
        if isinstance(value, nnx.List):
            for number, item in enumerate(value):
                if isinstance(item, nnx.Module):
                    value[number] = _recording(item, f"{path}{name}.{number}", found)
        elif isinstance(value, nnx.Module):
            setattr(module, name, _recording(value, f"{path}{name}", found))


def _recording(module: nnx.Module, path: str, found: dict[str, int]) -> nnx.Module:
    if isinstance(module, nnx.Conv | nnx.Linear) or hasattr(module, "macs"):
        return _Recorder(module, path, found)
    _record(module, f"{path}.", found)
    return module


def count_parameters(module: nnx.Module) -> int:
    """The number of a module's parameters, statistics not counted.

    Example:
        >>> count_parameters(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        8
    """
    return sum(math.prod(variable.shape) for _, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)))
