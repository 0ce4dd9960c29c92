"""Exports networks to files that run without this library: StableHLO for JAX, ONNX for other run-times."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from msconv_jax.convolution import planning_for
from msconv_jax.exporting.onnx_graph import Graph
from msconv_jax.exporting.onnx_operations import add_program
from msconv_jax.signatures import check_module, explains_arguments
from msconv_jax.whole_files import atomic_write

__all__ = ["PLATFORMS", "export_onnx", "export_stablehlo"]

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@explains_arguments
def export_stablehlo(
    model: nnx.Module,
    file: str | os.PathLike[str] | None = None,
    *,
    input_size: Sequence[int],
    batch_size: int | None = None,
    dtype: DTypeLike = jnp.float32,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Any:
    """Exports a module in evaluation mode, with its weights, as StableHLO.

    The file needs only JAX, no code of this library or of the model::

        exported = jax.export.deserialize(open("model.stablehlo", "rb").read())
        logits = exported.call(images)

    Args:
        model: the network, or any module that is called with one array; it stays unchanged.
        file: path to write to; None writes nothing. An existing file is replaced once the new one is complete.
        input_size: height, width and channels of an image.
        batch_size: number of images; None allows any number.
        dtype: type of the images.
        platforms: platforms on which the program will run. Its convolutions are correct on all of them and planned for
            the speed of the first.

    Returns:
        The `jax.export.Exported`.

    Raises:
        ValueError: if an argument is out of range, or the model is abstract (built by `nnx.eval_shape`).
        ImportError: if `file` is given and the package flatbuffers, which JAX writes with, is missing.

    Example:
        >>> from msconv_jax.models import create_model
        >>> model = create_model("ps_resnet8", rngs=nnx.Rngs(0))
        >>> exported = export_stablehlo(model, input_size=(32, 32, 3))
        >>> exported.in_avals, exported.platforms
        ((ShapedArray(float32[batch,32,32,3]),), ('cpu', 'cuda', 'tpu'))
    """
    wrong = [name for name in platforms if name not in PLATFORMS]
    if isinstance(platforms, str) or not platforms or wrong:
        raise ValueError(f"platforms={platforms!r}: must be some of {', '.join(PLATFORMS)}")
    batch = jax.export.symbolic_shape("batch")[0] if batch_size is None else batch_size
    images = jax.ShapeDtypeStruct((batch, *_check_sizes(input_size, batch_size)), dtype)
    with planning_for(platforms[0]):
        exported = jax.export.export(jax.jit(_evaluation_call(model)), platforms=tuple(platforms))(images)
    if file is not None:
        with atomic_write(file) as path:
            path.write_bytes(exported.serialize())
    return exported


@explains_arguments
def export_onnx(
    model: nnx.Module,
    file: str | os.PathLike[str],
    *,
    input_size: Sequence[int],
    batch_size: int | None = None,
) -> None:
    """Exports a module in evaluation mode, with its weights, as ONNX (operators of version 19).

    The network in the file takes float32 images (N, H, W, C) named "images", and gives "output", or "output_0",
    "output_1" and so on. All forms of convolution, normalisation, pooling, resizing and dense layers are supported.
    Loops, as in pixel-adaptive convolution, are not.

    Args:
        model: the network, or any module that is called with one array; it stays unchanged.
        file: path to write to. An existing file is replaced once the new one is complete.
        input_size: height, width and channels of an image.
        batch_size: number of images; None allows any number.

    Raises:
        ValueError: if an argument is out of range, the model is abstract, or it uses an unsupported operation.
        ImportError: if the package onnx is missing: ``pip install 'msconv_jax[onnx]'``.

    Example:
        >>> export_onnx(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), "conv.onnx", input_size=(32, 32))
        Traceback (most recent call last):
        ValueError: input_size=(32, 32): must be height, width and channels, each at least 1, as (224, 224, 3)
    """
    size, function = _check_sizes(input_size, batch_size), _evaluation_call(model)
    if importlib.util.find_spec("onnx") is None:
        raise ImportError("export_onnx needs the package onnx: pip install 'msconv_jax[onnx]'")
    batch = jax.export.symbolic_shape("batch")[0] if batch_size is None else batch_size
    images = jax.ShapeDtypeStruct((batch, *size), jnp.float32)
    with planning_for("onnx"):
        program = jax.make_jaxpr(function)(images)
    graph = Graph(images.shape, np.dtype(images.dtype))
    outputs = add_program(graph, program, [graph.input])
    with atomic_write(file) as path:
        path.write_bytes(graph.model(outputs, type(model).__name__).SerializeToString())


def _check_sizes(input_size: Sequence[int], batch_size: int | None) -> tuple[int, ...]:
    """The input size as a tuple; raises ValueError if it or the batch size is out of range."""
    size = tuple(input_size)
    if len(size) != 3 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in size):
        raise ValueError(
            f"input_size={input_size!r}: must be height, width and channels, each at least 1, as (224, 224, 3)"
        )
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size={batch_size!r}: must be a number of images, or None for any number")
    return size


def _evaluation_call(model: nnx.Module) -> Callable[[jax.Array], Any]:
    """A function of images that calls the model in evaluation mode."""
    check_module("model", model)
    graphdef, state = nnx.split(model)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
        raise ValueError(f"{type(model).__name__} has shapes without values: build it, and load weights, before export")

    def call(images: jax.Array) -> Any:
        copy: Any = nnx.merge(graphdef, state)
        copy.eval()
        return copy(images)

    return call
