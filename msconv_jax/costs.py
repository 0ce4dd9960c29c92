# pyright: strict
"""Computes the cost of one call of a layer in multiply-accumulates.

The protocol: a countable layer has a method ``macs(input_shapes, output_shapes)``. The shapes are those of one call,
with batch axes, so the cost is that of the whole batch. They contain one shape for each array among the arguments, in
the order of the signature, and None for each argument that is not an array, such as an omitted optional one; likewise
for the outputs. A pair, such as the maps of an octave convolution, is two arrays. Flax layers, which have no such
method, are counted here.

Products with padded zeros count. Biases, normalisations, activations and pooling do not.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast, overload

from flax import nnx

from msconv_jax.arguments import per_axis

__all__ = ["ConvCost", "Costed", "Shapes", "call_macs", "is_costed", "known_shape"]

Shape = tuple[int, ...]
Shapes = Sequence[Shape | None]


class Costed(Protocol):
    """A layer with a known cost: any class with this method."""

    def macs(self, input_shapes: Shapes, output_shapes: Shapes, /) -> int:
        """Multiply-accumulates of one call for the whole batch."""
        ...


class ConvCost:
    """The cost of a replacement for ``nnx.Conv``, from its output size or from the shapes of a call.

    A subclass has a kernel lattice or defines :meth:`macs_per_image`. List this class after the Flax base class:
    surgery can then turn an ``nnx.Conv`` into the operator.
    """

    kernel_size: Any
    lattice: Any

    @overload
    def macs(self, output_size: int | Sequence[int]) -> int: ...

    @overload
    def macs(self, output_size: Shapes, output_shapes: Shapes) -> int: ...

    def macs(self, output_size: int | Sequence[int] | Shapes, output_shapes: Shapes | None = None) -> int:
        """Multiply-accumulates for one image from its output size, or of a call from its input and output shapes.

        Args:
            output_size: spatial size of the output in pixels, one int or one per axis; for an octave convolution, of
                the high-frequency output. With `output_shapes`, this argument is the input shapes.
            output_shapes: output shapes of one call: see :mod:`msconv_jax.costs`.

        Raises:
            ValueError: for an invalid size or invalid shapes.

        Example:
            >>> from msconv_jax import GroupedConv
            >>> conv = GroupedConv(3, 5, (3, 3), padding="VALID", rngs=nnx.Rngs(0))
            >>> conv.macs((8, 8)), conv.macs([(2, 10, 10, 3)], [(2, 8, 8, 5)])
            (8640, 17280)
        """
        ndim = len(self.kernel_size)
        if output_shapes is None:
            return self.macs_per_image(per_axis("output_size", cast("int | Sequence[int]", output_size), ndim))
        batch, size = self._batch_and_size(output_shapes)
        return math.prod(batch) * self.macs_per_image(size)

    def macs_per_image(self, output_size: Shape) -> int:
        """Multiply-accumulates for one image whose output has this spatial size."""
        return self.lattice.macs(output_size)

    def _batch_and_size(self, output_shapes: Shapes) -> tuple[Shape, Shape]:
        """The batch axes of a call and the spatial size of its output."""
        ndim = len(self.kernel_size)
        shape = known_shape("output_shapes", output_shapes, 0, ndim + 1)
        return shape[: -ndim - 1], shape[-ndim - 1 : -1]


def known_shape(name: str, shapes: Shapes, index: int, ndim: int) -> Shape:
    """The shape at `index` among those of a call, with at least `ndim` axes.

    Raises:
        ValueError: if the shape is missing or has fewer axes.
    """
    shape = shapes[index] if index < len(shapes) else None
    if shape is None or len(shape) < ndim:
        raise ValueError(f"{name}={shapes}: expected a shape of at least {ndim} axes at index {index}.")
    return shape


def is_costed(layer: Any) -> bool:
    """Whether `call_macs` knows the cost of this layer."""
    return _has_macs(layer) or _flax_cost(layer) is not None


def _has_macs(layer: object) -> bool:
    return callable(getattr(type(layer), "macs", None))


def _flax_cost(layer: Any) -> Callable[[Any, Shapes, Shapes], int] | None:
    """The cost function of a Flax layer; None for other layers and for subclasses with another ``__call__``."""
    return next(
        (cost for cls, cost in _COSTS.items() if isinstance(layer, cls) and type(layer).__call__ is cls.__call__), None
    )


def call_macs(layer: Any, input_shapes: Shapes, output_shapes: Shapes) -> int:
    """Multiply-accumulates of one call of a layer, from its `macs` or for a known Flax layer.

    Args:
        layer: a layer with a method ``macs(input_shapes, output_shapes)``, or ``nnx.Conv``, ``nnx.ConvTranspose``,
            ``nnx.Linear``, ``nnx.LinearGeneral`` or ``nnx.Einsum``.
        input_shapes: shapes of the arguments of the call: see :mod:`msconv_jax.costs`.
        output_shapes: shapes of its outputs.

    Raises:
        TypeError: for any other layer, or if its `macs` does not take these two arguments.

    Example:
        >>> call_macs(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), [(1, 8, 8, 3)], [(1, 8, 8, 5)])
        960
    """
    name, flax_cost = type(layer).__name__, _flax_cost(layer)
    if not _has_macs(layer):
        if flax_cost is not None:
            return flax_cost(layer, input_shapes, output_shapes)
        raise TypeError(
            f"{name} has no macs(input_shapes, output_shapes): its multiply-accumulates are not known; give it this "
            "method."
        )
    try:
        inspect.signature(layer.macs).bind(input_shapes, output_shapes)
    except TypeError:
        raise TypeError(
            f"{name}.macs{inspect.signature(layer.macs)} does not take (input_shapes, output_shapes), the shapes of a "
            "call: give it these two arguments."
        ) from None
    return layer.macs(input_shapes, output_shapes)


def _conv(layer: nnx.Conv, input_shapes: Shapes, output_shapes: Shapes) -> int:
    """Each output position uses the whole kernel; its second last axis is the inputs of one group."""
    output = known_shape("output_shapes", output_shapes, 0, len(layer.kernel_size) + 1)
    return math.prod(layer.kernel.shape) * math.prod(output[:-1])


def _conv_transpose(layer: nnx.ConvTranspose, input_shapes: Shapes, output_shapes: Shapes) -> int:
    """Each input position uses the whole kernel, including taps outside the output."""
    ndim = len(layer.kernel_size)
    size = known_shape("input_shapes", input_shapes, 0, ndim + 1)[-ndim - 1 : -1]
    batch = known_shape("output_shapes", output_shapes, 0, ndim + 1)[: -ndim - 1]
    return math.prod(layer.kernel.shape) * math.prod(size) * math.prod(batch)


def _linear(layer: nnx.Linear, input_shapes: Shapes, output_shapes: Shapes) -> int:
    return layer.in_features * math.prod(known_shape("output_shapes", output_shapes, 0, 1))


def _linear_general(layer: nnx.LinearGeneral, input_shapes: Shapes, output_shapes: Shapes) -> int:
    return math.prod(layer.in_features) * math.prod(known_shape("output_shapes", output_shapes, 0, 0))


def _einsum(layer: nnx.Einsum, input_shapes: Shapes, output_shapes: Shapes) -> int:
    """Each output takes one product per combination of the contracted indices."""
    operands, result = layer.einsum_str.split("->")
    of_input, of_kernel = operands.split(",")
    before, _, after = of_kernel.partition("...")
    shape = layer.kernel.shape
    sizes = dict(zip(before, shape, strict=False)) | dict(zip(after[::-1], shape[::-1], strict=False))
    summed = [size for label, size in sizes.items() if label in of_input and label not in result]
    return math.prod(summed) * math.prod(known_shape("output_shapes", output_shapes, 0, 0))


_COSTS: dict[type[Any], Callable[[Any, Shapes, Shapes], int]] = {
    nnx.Conv: _conv,
    nnx.ConvTranspose: _conv_transpose,
    nnx.Linear: _linear,
    nnx.LinearGeneral: _linear_general,
    nnx.Einsum: _einsum,
}
