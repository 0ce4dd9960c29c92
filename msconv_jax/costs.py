# pyright: strict
"""Computes the cost of one call of a layer in multiply-accumulates.

The protocol: a layer that can be counted has a method ``macs(input_shapes, output_shapes)``. The shapes are those of
one call with all their axes, so the cost of a batch is that of its images together. There is one shape for each array
among the arguments, in the order of the call's signature, and None for each argument that is None or no array, such as
an optional one that was left out; likewise for the outputs. A pair such as the maps of an octave convolution counts as
two arrays. Layers of Flax, which have no such method, are counted here.

Products with zeros of the padding are counted. Biases, normalisations, activations and pooling are not.
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
    """A layer whose cost is known; any class with this method is one."""

    def macs(self, input_shapes: Shapes, output_shapes: Shapes, /) -> int:
        """Multiply-accumulates of one call, of the whole batch."""
        ...


class ConvCost:
    """The cost of an operator that replaces ``nnx.Conv``, by the size of its output or by the shapes of a call.

    A subclass has a kernel lattice, or defines :meth:`macs_per_image`. This class comes after Flax's among the bases:
    Python then lets surgery turn an ``nnx.Conv`` into the operator.
    """

    kernel_size: Any
    lattice: Any

    @overload
    def macs(self, output_size: int | Sequence[int]) -> int: ...

    @overload
    def macs(self, output_size: Shapes, output_shapes: Shapes) -> int: ...

    def macs(self, output_size: int | Sequence[int] | Shapes, output_shapes: Shapes | None = None) -> int:
        """Multiply-accumulates for one image by its output's size, or of a call by the shapes of inputs and outputs.

        Args:
            output_size: spatial size of the output in pixels, one int or one per axis; of an octave convolution that
                of the high output. With `output_shapes`, the shapes of the inputs instead.
            output_shapes: shapes of the outputs of one call: see :mod:`msconv_jax.costs`.

        Raises:
            ValueError: for a size or shapes that do not fit.

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
    """One of the shapes of a call, which has at least `ndim` axes.

    Raises:
        ValueError: if there is no such shape.
    """
    shape = shapes[index] if index < len(shapes) else None
    if shape is None or len(shape) < ndim:
        raise ValueError(f"{name}={shapes}: expected a shape of at least {ndim} axes at index {index}.")
    return shape


def is_costed(layer: Any) -> bool:
    """Whether `call_macs` knows what a call of this layer costs."""
    return _has_macs(layer) or _flax_cost(layer) is not None


def _has_macs(layer: object) -> bool:
    return callable(getattr(type(layer), "macs", None))


def _flax_cost(layer: Any) -> Callable[[Any, Shapes, Shapes], int] | None:
    """The cost of a layer of Flax; None of a subclass that computes something else."""
    return next(
        (cost for cls, cost in _COSTS.items() if isinstance(layer, cls) and type(layer).__call__ is cls.__call__), None
    )


def call_macs(layer: Any, input_shapes: Shapes, output_shapes: Shapes) -> int:
    """Multiply-accumulates of one call of a layer: what its `macs` gives, or those of a layer of Flax.

    Args:
        layer: a layer with a method ``macs(input_shapes, output_shapes)``, or ``nnx.Conv``, ``nnx.ConvTranspose``,
            ``nnx.Linear``, ``nnx.LinearGeneral`` or ``nnx.Einsum``.
        input_shapes: shapes of the arguments of the call: see :mod:`msconv_jax.costs`.
        output_shapes: shapes of its outputs.

    Raises:
        TypeError: if the layer is another one, or its `macs` does not take these two arguments.

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
    """Each output position takes the whole kernel, whose second last axis has the inputs of one group."""
    output = known_shape("output_shapes", output_shapes, 0, len(layer.kernel_size) + 1)
    return math.prod(layer.kernel.shape) * math.prod(output[:-1])


def _conv_transpose(layer: nnx.ConvTranspose, input_shapes: Shapes, output_shapes: Shapes) -> int:
    """Each input position takes the whole kernel, with the taps that fall outside the output."""
    ndim = len(layer.kernel_size)
    size = known_shape("input_shapes", input_shapes, 0, ndim + 1)[-ndim - 1 : -1]
    batch = known_shape("output_shapes", output_shapes, 0, ndim + 1)[: -ndim - 1]
    return math.prod(layer.kernel.shape) * math.prod(size) * math.prod(batch)


def _linear(layer: nnx.Linear, input_shapes: Shapes, output_shapes: Shapes) -> int:
    return layer.in_features * math.prod(known_shape("output_shapes", output_shapes, 0, 1))


def _linear_general(layer: nnx.LinearGeneral, input_shapes: Shapes, output_shapes: Shapes) -> int:
    return math.prod(layer.in_features) * math.prod(known_shape("output_shapes", output_shapes, 0, 0))


def _einsum(layer: nnx.Einsum, input_shapes: Shapes, output_shapes: Shapes) -> int:
    """Each output takes one product for each combination of the indices that input and kernel are summed over."""
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
