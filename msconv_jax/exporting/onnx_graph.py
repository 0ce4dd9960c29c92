"""Collects the nodes and constants of an ONNX graph.

:mod:`msconv_jax.exporting.onnx_operations` adds the nodes of each primitive of JAX to a :class:`Graph`, and
:func:`msconv_jax.export_onnx` writes it. Values that do not depend on the input are computed during export, so kernels
are stored in ONNX's order of axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

Shape = tuple[Any, ...]  # ints, and multiples of the symbolic batch size

OPSET, IR_VERSION = 19, 9  # supported by run-times since 2023


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes:
        name: name in the graph.
        shape: shape of the tensor in the graph. It has the rank of the JAX value, but an axis of size 1 may still have
            to be broadcast; ONNX's elementwise operations do that.
        dtype: type as in NumPy.
        constant: the array, if it does not depend on the input.
    """

    name: str
    shape: Shape
    dtype: np.dtype
    constant: np.ndarray | None = None


class Graph:
    """The nodes and constants of one ONNX graph.

    Args:
        images: shape of the input; its first axis is an int or a symbolic dimension of JAX.
        dtype: type of the input.
    """

    def __init__(self, images: Shape, dtype: np.dtype):
        from onnx import helper  # type: ignore[import-not-found]  # an optional dependency

        self._helper = helper
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names = 0
        self.input = Value("images", images, dtype)
        self._batch: str | None = None

    def node(self, kind: str, inputs: Sequence[Value | str], shape: Shape, dtype: Any, **attributes: Any) -> Value:
        """Adds a node with one output; in `inputs` the name "" omits an optional input."""
        value = Value(self._name(kind.lower()), shape, np.dtype(dtype))
        names = [item if isinstance(item, str) else item.name for item in inputs]
        self.nodes.append(self._helper.make_node(kind, names, [value.name], **attributes))
        return value

    def constant(self, array: Any) -> Value:
        """Adds a constant; it is stored in the file if a node reads it."""
        array = np.asarray(array)
        name = self._name("constant")
        self.constants[name] = array
        return Value(name, array.shape, array.dtype, array)

    def ints(self, numbers: Sequence[int]) -> Value:
        """A constant vector of int64, ONNX's type for shapes, axes and pads."""
        return self.constant(np.asarray(numbers, np.int64))

    def sizes(self, shape: Shape) -> Value:
        """A shape as a vector of int64; it may hold multiples of the symbolic batch size."""
        if all(isinstance(size, int) for size in shape):
            return self.ints(shape)
        batch = self.input.shape[0]
        if self._batch is None:
            self._batch = self.node("Shape", [self.input], (1,), np.int64, start=0, end=1).name
        parts = []
        for size in shape:
            if isinstance(size, int):
                parts.append(self.ints([size]))
                continue
            factor = size // batch
            if not isinstance(factor, int) or factor * batch != size:
                raise ValueError(
                    f"an axis of size {size}: export_onnx supports only multiples of the batch here; give a batch_size."
                )
            parts.append(self.node("Mul", [self._batch, self.ints([factor])], (1,), np.int64))
        return self.node("Concat", parts, (len(shape),), np.int64, axis=0)

    def model(self, outputs: Sequence[Value], name: str) -> Any:
        """Builds the ONNX model; its outputs are named output, or output_0, output_1 and so on."""
        from onnx import numpy_helper  # type: ignore[import-not-found]

        names = ["output"] if len(outputs) == 1 else [f"output_{number}" for number in range(len(outputs))]
        nodes = list(self.nodes)
        for value, output in zip(outputs, names, strict=True):
            nodes.append(self._helper.make_node("Identity", [value.name], [output]))
        read = {name for node in nodes for name in node.input}
        graph = self._helper.make_graph(
            nodes,
            name,
            [self._info("images", self.input)],
            [self._info(output, value) for output, value in zip(names, outputs, strict=True)],
            [numpy_helper.from_array(array, key) for key, array in self.constants.items() if key in read],
        )
        opset = self._helper.make_opsetid("", OPSET)
        return self._helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="msconv_jax")

    def element_type(self, dtype: np.dtype) -> int:
        """ONNX's number of a type; raises ValueError if ONNX lacks the type."""
        try:
            return self._helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        except (KeyError, ValueError) as error:
            raise ValueError(f"ONNX has no type for {dtype}.") from error

    def _info(self, name: str, value: Value) -> Any:
        dims = [size if isinstance(size, int) else str(size) for size in value.shape]
        return self._helper.make_tensor_value_info(name, self.element_type(value.dtype), dims)

    def _name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}_{self._names}"
