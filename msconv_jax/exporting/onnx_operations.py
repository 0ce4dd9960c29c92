"""Translates the primitives of JAX that convolution networks use to ONNX.

ONNX has channels before the spatial axes, JAX's networks after them. So each convolution and each pooling is put
between two transpositions; run-times merge or remove most of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from msconv_jax.exporting.onnx_graph import Graph, Shape, Value

Rule = Callable[[Graph, Any, list[Value]], Value | list[Value]]

# For each primitive that contains a program: the parameter that holds the program.
INNER = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
ELEMENTWISE = {
    "add": "Add",
    "add_any": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "pow": "Pow",
    "neg": "Neg",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "erf": "Erf",
    "sqrt": "Sqrt",
    "sin": "Sin",
    "cos": "Cos",
    "and": "And",
    "or": "Or",
    "not": "Not",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}
# Primitives of constants that are not computed during export: broadcasting would enlarge the file, and the batch size
# is not a constant.
NOT_FOLDED = ("broadcast_in_dim", "dim_as_value")
IDENTITIES = ("copy", "copy_p", "stop_gradient", "reduce_precision", "optimization_barrier", "sharding_constraint")
REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
}


def add_program(graph: Graph, program: core.ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
    """Adds a traced program's nodes to a graph, and returns its outputs.

    Args:
        graph: the graph.
        program: the program, from `jax.make_jaxpr`.
        inputs: values of the program's inputs.

    Raises:
        ValueError: for an unsupported primitive or an unsupported form of one.
    """
    values: dict[Any, Value] = dict(zip(program.jaxpr.invars, inputs, strict=True))
    values |= {var: graph.constant(array) for var, array in zip(program.jaxpr.constvars, program.consts, strict=True)}

    def read(atom: Any) -> Value:
        if not isinstance(atom, core.Literal):
            return values[atom]
        literal: Any = atom
        return graph.constant(np.asarray(literal.val, literal.aval.dtype))

    for equation in program.jaxpr.eqns:
        results = _add(graph, equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [expand(graph, read(atom), atom.aval.shape) for atom in program.jaxpr.outvars]


def _add(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    name, params, outputs = equation.primitive.name, equation.params, [var.aval for var in equation.outvars]
    if name in INNER:
        inner = params[INNER[name]]
        closed = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
        return add_program(graph, closed, inputs)
    known = [
        np.broadcast_to(value.constant, atom.aval.shape)
        for value, atom in zip(inputs, equation.invars, strict=True)
        if value.constant is not None and all(isinstance(n, int) for n in atom.aval.shape)
    ]
    sizes = [math.prod(output.shape) for output in outputs if all(isinstance(n, int) for n in output.shape)]
    if len(known) == len(inputs) and len(sizes) == len(outputs) and name not in NOT_FOLDED:
        results = equation.primitive.bind(*known, **params)
        return [graph.constant(array) for array in (results if equation.primitive.multiple_results else [results])]
    if name in IDENTITIES:
        return inputs
    if name in ELEMENTWISE:
        return [_elementwise(graph, ELEMENTWISE[name], inputs, outputs[0])]
    full = [expand(graph, value, atom.aval.shape) for value, atom in zip(inputs, equation.invars, strict=True)]
    if name in REDUCTIONS:
        axes = graph.ints(params["axes"])
        return [graph.node(REDUCTIONS[name], [full[0], axes], outputs[0].shape, outputs[0].dtype, keepdims=0)]
    if name not in RULES:
        raise ValueError(
            f"the network uses {name!r}, which export_onnx does not support; export_stablehlo supports any network."
        )
    rule = RULES[name]
    result = rule(graph, equation, inputs if rule in BROADCAST_BY_ONNX else full)
    return result if isinstance(result, list) else [result]


def expand(graph: Graph, value: Value, shape: Shape) -> Value:
    """Broadcasts the value to the shape that it has in JAX."""
    if value.shape == tuple(shape):
        return value
    return graph.node("Expand", [value, graph.sizes(shape)], tuple(shape), value.dtype)


def _elementwise(graph: Graph, kind: str, inputs: Sequence[Value], output: Any, **attributes: Any) -> Value:
    if inputs[0].dtype != np.bool_ and kind in ("And", "Or", "Not"):
        raise ValueError(f"{kind} of {inputs[0].dtype}: export_onnx supports only bools.")
    shapes = [value.shape or (1,) * len(output.shape) for value in inputs]
    shape = tuple(next((n for n in axis if not isinstance(n, int) or n != 1), 1) for axis in zip(*shapes, strict=True))
    return graph.node(kind, inputs, shape, output.dtype, **attributes)


# --- rules: functions of the graph, an equation and its inputs that return the outputs ---


def _square(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    return _elementwise(graph, "Mul", [inputs[0], inputs[0]], equation.outvars[0].aval)


def _integer_pow(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    power = graph.constant(np.asarray(equation.params["y"], inputs[0].dtype))
    return _elementwise(graph, "Pow", [inputs[0], power], equation.outvars[0].aval)


def _rsqrt(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    root = _elementwise(graph, "Sqrt", inputs, equation.outvars[0].aval)
    return _elementwise(graph, "Reciprocal", [root], equation.outvars[0].aval)


def _log1p(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    one = graph.constant(np.ones((), inputs[0].dtype))
    return _elementwise(
        graph, "Log", [_elementwise(graph, "Add", [inputs[0], one], inputs[0])], equation.outvars[0].aval
    )


def _expm1(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    output, one = equation.outvars[0].aval, graph.constant(np.ones((), inputs[0].dtype))
    return _elementwise(graph, "Sub", [_elementwise(graph, "Exp", inputs, output), one], output)


def _erfc(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    output, one = equation.outvars[0].aval, graph.constant(np.ones((), inputs[0].dtype))
    return _elementwise(graph, "Sub", [one, _elementwise(graph, "Erf", inputs, output)], output)


def _not_equal(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    output = equation.outvars[0].aval
    return _elementwise(graph, "Not", [_elementwise(graph, "Equal", inputs, output)], output)


def _clamp(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    low, x, high = inputs
    output = equation.outvars[0].aval
    return _elementwise(graph, "Min", [_elementwise(graph, "Max", [x, low], output), high], output)


def _select(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    which, *cases = inputs
    if which.dtype != np.bool_ or len(cases) != 2:
        raise ValueError(f"a choice among {len(cases)} arrays by {which.dtype}: export_onnx supports only bools.")
    return _elementwise(graph, "Where", [which, cases[1], cases[0]], equation.outvars[0].aval)


def _convert(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    dtype = np.dtype(equation.params["new_dtype"])
    if dtype == inputs[0].dtype:
        return inputs[0]
    return _elementwise(graph, "Cast", inputs, equation.outvars[0].aval, to=graph.element_type(dtype))


def _broadcast(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    (value,), output = inputs, equation.outvars[0].aval
    sizes: list[Any] = [1] * len(output.shape)
    for size, axis in zip(value.shape, equation.params["broadcast_dimensions"], strict=True):
        sizes[axis] = size
    return reshape_value(graph, value, tuple(sizes))  # expanded where a node needs it


def reshape_value(graph: Graph, value: Value, shape: Shape) -> Value:
    """Reshapes the value."""
    if value.shape == tuple(shape):
        return value
    if value.constant is not None:
        return graph.constant(value.constant.reshape(shape))
    open_axes = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
    if len(open_axes) == 1 and 0 not in shape:
        sizes = graph.ints([-1 if axis in open_axes else size for axis, size in enumerate(shape)])
    else:
        sizes = graph.sizes(shape)
    return graph.node("Reshape", [value, sizes], tuple(shape), value.dtype, allowzero=int(0 in shape))


def _reshape(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    if equation.primitive.name == "reshape" and equation.params["dimensions"] is not None:
        raise ValueError("a reshape in another order of axes: export_onnx supports only row-major order.")
    return reshape_value(graph, inputs[0], equation.outvars[0].aval.shape)


def transpose_value(graph: Graph, value: Value, axes: Sequence[int]) -> Value:
    """Transposes the value to this order of axes."""
    axes = [int(axis) for axis in axes]
    if axes == sorted(axes):
        return value
    if value.constant is not None:
        return graph.constant(np.transpose(value.constant, axes))
    return graph.node("Transpose", [value], tuple(value.shape[axis] for axis in axes), value.dtype, perm=axes)


def _inverse(axes: Sequence[int]) -> list[int]:
    return sorted(range(len(axes)), key=lambda axis: axes[axis])


def _transpose(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    return transpose_value(graph, inputs[0], equation.params["permutation"])


def _concatenate(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    output = equation.outvars[0].aval
    inputs = [value for value in inputs if 0 not in value.shape]
    return graph.node("Concat", inputs, output.shape, output.dtype, axis=equation.params["dimension"])


def slice_value(
    graph: Graph, value: Value, starts: Sequence[int], stops: Shape, steps: Sequence[int], shape: Shape
) -> Value:
    """Slices the value; axes that are kept whole are omitted."""
    axes = [
        axis
        for axis, (start, stop, step) in enumerate(zip(starts, stops, steps, strict=True))
        if start != 0 or step != 1 or (isinstance(stop, int) and stop != value.shape[axis])
    ]
    if not axes:
        return value
    for axis in axes:
        if not isinstance(stops[axis], int):
            raise ValueError("a slice along the batch axis: export_onnx needs a batch_size for it.")
    bounds = [graph.ints([array[axis] for axis in axes]) for array in (starts, stops)]
    extra = [graph.ints(axes), graph.ints([steps[axis] for axis in axes])]
    return graph.node("Slice", [value, *bounds, *extra], tuple(shape), value.dtype)


def _slice(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    params = equation.params
    steps = params["strides"] or (1,) * len(params["start_indices"])
    shape = equation.outvars[0].aval.shape
    return slice_value(graph, inputs[0], params["start_indices"], params["limit_indices"], steps, shape)


def _dynamic_slice(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    value, *places = inputs
    sizes = equation.params["slice_sizes"]
    if any(place.constant is None for place in places):
        raise ValueError("a slice at an index that depends on the images: export_onnx does not support it.")
    starts = []
    for place, size, count in zip(places, sizes, value.shape, strict=True):
        assert place.constant is not None
        start = int(place.constant)
        starts.append(min(max(start, 0), count - size) if isinstance(size, int) else 0)
    stops = tuple(start + size for start, size in zip(starts, sizes, strict=True))
    return slice_value(graph, value, starts, stops, (1,) * len(sizes), equation.outvars[0].aval.shape)


def _split(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    sizes, axis, (value,) = equation.params["sizes"], equation.params["axis"], inputs
    parts, start = [], 0
    for size, var in zip(sizes, equation.outvars, strict=True):
        starts, stops = [0] * len(value.shape), list(value.shape)
        starts[axis], stops[axis] = start, start + int(size)
        parts.append(slice_value(graph, value, starts, tuple(stops), (1,) * len(starts), var.aval.shape))
        start += int(size)
    return parts


def _rev(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    (value,), axes = inputs, equation.params["dimensions"]
    ones, least = graph.ints([-1] * len(axes)), graph.ints([np.iinfo(np.int64).min] * len(axes))
    return graph.node("Slice", [value, ones, least, graph.ints(axes), ones], value.shape, value.dtype)


def pad_value(graph: Graph, value: Value, pads: Sequence[Sequence[int]], fill: Any) -> Value:
    """Pads the value by (before, after) elements `fill` along each axis; negative pads crop."""
    if any(before < 0 or after < 0 for before, after in pads):
        starts = [max(-before, 0) for before, _ in pads]
        stops = tuple(
            n if after >= 0 and not isinstance(n, int) else n + min(after, 0)
            for n, (_, after) in zip(value.shape, pads, strict=True)
        )
        shape = tuple(stop - start for start, stop in zip(starts, stops, strict=True))
        value = slice_value(graph, value, starts, stops, (1,) * len(pads), shape)
    pads = [(max(before, 0), max(after, 0)) for before, after in pads]
    if not any(map(any, pads)):
        return value
    shape = tuple(n + before + after for n, (before, after) in zip(value.shape, pads, strict=True))
    amounts = graph.ints([before for before, _ in pads] + [after for _, after in pads])
    filling = fill if isinstance(fill, Value) else graph.constant(np.asarray(fill, value.dtype))
    return graph.node("Pad", [value, amounts, filling], shape, value.dtype, mode="constant")


def _dilate(graph: Graph, value: Value, distances: Sequence[int], fill: Any) -> Value:
    """Dilates the value: puts ``distance - 1`` elements `fill` between its elements, along each axis."""
    for axis, (distance, n) in enumerate(zip(distances, value.shape, strict=True)):
        if distance == 1 or n == 1:
            continue
        before, after = value.shape[:axis], value.shape[axis + 1 :]
        value = reshape_value(graph, value, (*before, n, 1, *after))
        pads = [(0, 0)] * len(value.shape)
        pads[axis + 1] = (0, distance - 1)
        value = reshape_value(graph, pad_value(graph, value, pads, fill), (*before, n * distance, *after))
        crop = [(0, 0)] * len(value.shape)
        crop[axis] = (0, 1 - distance)
        value = pad_value(graph, value, crop, fill)
    return value


def _pad(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    value, fill = inputs
    config = equation.params["padding_config"]
    value = _dilate(graph, value, [between + 1 for _, _, between in config], fill)
    return pad_value(graph, value, [(before, after) for before, after, _ in config], fill)


def _gather(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    value, places = inputs
    output, numbers = equation.outvars[0].aval, equation.params["dimension_numbers"]
    sizes, axes = equation.params["slice_sizes"], list(numbers.start_index_map)
    others = [axis for axis in range(len(value.shape)) if axis not in axes]
    if places.constant is None or numbers.operand_batching_dims or any(sizes[n] != value.shape[n] for n in others):
        raise ValueError("a gather with indices that depend on the images: export_onnx does not support it.")
    indices = np.moveaxis(places.constant, -1, 0)
    limits = [value.shape[axis] - sizes[axis] for axis in axes]
    if any(np.any((index < 0) | (index > limit)) for index, limit in zip(indices, limits, strict=True)):
        raise ValueError(f"a gather outside of an array of shape {value.shape}: export_onnx does not support it.")
    if indices.ndim == 1:  # one slice
        starts = [int(indices[axes.index(axis)]) if axis in axes else 0 for axis in range(len(sizes))]
        stops = tuple(sizes[axis] + (starts[axis] if axis in axes else 0) for axis in range(len(sizes)))
        return reshape_value(
            graph, slice_value(graph, value, starts, stops, (1,) * len(sizes), tuple(sizes)), output.shape
        )
    if any(sizes[axis] != 1 for axis in axes):
        raise ValueError("a gather of several slices: export_onnx supports only gathers of single elements.")
    lengths = [value.shape[axis] for axis in axes]
    kept = [value.shape[axis] for axis in others]
    value = transpose_value(graph, value, [*others, *axes])
    value = reshape_value(graph, value, (*kept, math.prod(lengths)))
    flat = graph.constant(np.ravel_multi_index(tuple(indices), lengths).astype(np.int64))
    value = graph.node("Gather", [value, flat], (*kept, *flat.shape), value.dtype, axis=len(kept))
    # Axes of the indices fill the positions between those of the slice; the reshape adds uncollapsed axes of size 1.
    in_slice = [axis for axis in range(len(sizes)) if axis not in numbers.collapsed_slice_dims]
    of_slice, of_places = iter(in_slice), iter(range(len(kept), len(value.shape)))
    order = []
    for axis in range(len(output.shape)):
        if axis not in numbers.offset_dims:
            order.append(next(of_places))
        elif (axis_in_value := next(of_slice)) in others:
            order.append(others.index(axis_in_value))
    return reshape_value(graph, transpose_value(graph, value, order), output.shape)


def _dot(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    (left, right), output = inputs, equation.outvars[0].aval
    (over_left, over_right), (batch_left, batch_right) = equation.params["dimension_numbers"]
    if len(left.shape) == len(right.shape) == 2 and not batch_left and (over_left, over_right) == ((1,), (0,)):
        return graph.node("MatMul", [left, right], output.shape, output.dtype)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    first = [next(letters) for _ in left.shape]
    second: list[str] = [""] * len(right.shape)
    for left_axis, right_axis in (*zip(over_left, over_right, strict=True), *zip(batch_left, batch_right, strict=True)):
        second[right_axis] = first[left_axis]
    second = [letter or next(letters) for letter in second]
    result = [first[axis] for axis in batch_left]
    result += [first[axis] for axis in range(len(first)) if axis not in (*batch_left, *over_left)]
    result += [second[axis] for axis in range(len(second)) if axis not in (*batch_right, *over_right)]
    equation_text = f"{''.join(first)},{''.join(second)}->{''.join(result)}"
    return graph.node("Einsum", [left, right], output.shape, output.dtype, equation=equation_text)


def _convolution(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    params, output = equation.params, equation.outvars[0].aval
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] != 1:
        raise ValueError("a convolution that is grouped along the batch axis: export_onnx does not support it.")
    x, kernel = transpose_value(graph, inputs[0], numbers.lhs_spec), transpose_value(graph, inputs[1], numbers.rhs_spec)
    zero = np.zeros((), x.dtype)
    x = _dilate(graph, x, (1, 1, *params["lhs_dilation"]), zero)
    pads = [tuple(map(int, pad)) for pad in params["padding"]]
    if min(map(min, pads), default=0) < 0:
        x, pads = pad_value(graph, x, [(0, 0), (0, 0), *pads], zero), [(0, 0)] * len(pads)
    y = graph.node(
        "Conv",
        [x, kernel],
        tuple(output.shape[axis] for axis in numbers.out_spec),
        output.dtype,
        group=params["feature_group_count"],
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=[before for before, _ in pads] + [after for _, after in pads],
    )
    return transpose_value(graph, y, _inverse(numbers.out_spec))


def _pooling(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    params, output, (x,) = equation.params, equation.outvars[0].aval, inputs[:1]
    largest = equation.primitive.name == "reduce_window_max"
    window, strides = params["window_dimensions"], params["window_strides"]
    whole = [axis for axis, (n, s) in enumerate(zip(window, strides, strict=True)) if n == s == 1]
    if len(whole) < 2 or any(n != 1 for n in params["base_dilation"]):
        raise ValueError(f"pooling with windows {window}: export_onnx needs windows of 1 along batch and channels.")
    order = [whole[0], whole[-1], *(axis for axis in range(len(window)) if axis not in (whole[0], whole[-1]))]
    fill = -np.inf if largest else 0
    x = transpose_value(graph, pad_value(graph, x, params["padding"], fill), order)
    attributes = {
        "kernel_shape": [window[axis] for axis in order[2:]],
        "strides": [strides[axis] for axis in order[2:]],
        "dilations": [params["window_dilation"][axis] for axis in order[2:]],
    }
    shape = tuple(output.shape[axis] for axis in order)
    y = graph.node("MaxPool" if largest else "AveragePool", [x], shape, output.dtype, **attributes)
    if not largest:
        count = graph.constant(np.asarray(math.prod(window), output.dtype))
        y = graph.node("Mul", [y, count], shape, output.dtype)
    return transpose_value(graph, y, _inverse(order))


def _arg(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    kind = "ArgMax" if equation.primitive.name == "argmax" else "ArgMin"
    (axis,), output = equation.params["axes"], equation.outvars[0].aval
    y = graph.node(kind, inputs, output.shape, np.int64, axis=axis, keepdims=0)
    return graph.node("Cast", [y], output.shape, output.dtype, to=graph.element_type(output.dtype))


def _iota(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    del inputs
    output, axis = equation.outvars[0].aval, equation.params["dimension"]
    shape = [1] * len(output.shape)
    if not isinstance(output.shape[axis], int):
        raise ValueError("an iota along the batch axis: export_onnx needs a batch_size for it.")
    shape[axis] = output.shape[axis]
    return graph.constant(np.arange(output.shape[axis], dtype=output.dtype).reshape(shape))


def _tile(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    output = equation.outvars[0].aval
    return graph.node("Tile", [inputs[0], graph.ints(equation.params["reps"])], output.shape, output.dtype)


def _cumsum(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    params, (value,) = equation.params, inputs
    axis = graph.constant(np.asarray(params["axis"], np.int64))
    return graph.node("CumSum", [value, axis], value.shape, value.dtype, reverse=int(params["reverse"]))


def _dim(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
    del inputs
    output = equation.outvars[0].aval
    size = graph.node("Squeeze", [graph.sizes((equation.params["dim"],))], (), np.int64)
    return graph.node("Cast", [size], (), output.dtype, to=graph.element_type(output.dtype))


RULES: dict[str, Rule] = {
    "square": _square,
    "integer_pow": _integer_pow,
    "rsqrt": _rsqrt,
    "log1p": _log1p,
    "expm1": _expm1,
    "erfc": _erfc,
    "ne": _not_equal,
    "clamp": _clamp,
    "select_n": _select,
    "convert_element_type": _convert,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "rev": _rev,
    "pad": _pad,
    "gather": _gather,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _pooling,
    "reduce_window_sum": _pooling,
    "argmax": _arg,
    "argmin": _arg,
    "iota": _iota,
    "tile": _tile,
    "cumsum": _cumsum,
    "dim_as_value": _dim,
}
# ONNX broadcasts the inputs of these rules.
BROADCAST_BY_ONNX = {_square, _integer_pow, _rsqrt, _log1p, _expm1, _erfc, _not_equal, _clamp, _select, _convert}
BROADCAST_BY_ONNX |= {_broadcast}
