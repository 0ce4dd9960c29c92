"""Finds the input elements that given output elements of a function can depend on, without computing anything.

The function is traced to JAX's primitive operations. A box of elements, an interval of indices along each axis, is
followed from the outputs back to the inputs. A convolution widens the box by its kernel, a sum over an axis needs the
whole axis, an activation keeps the box. Values do not matter: zero weights, inactive activations and sums that cancel
still count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from msconv_jax.arguments import dilated_extent

__all__ = ["Box", "input_boxes"]

Box = tuple[tuple[int, int], ...]
"""The first and the last index along each axis, both included."""

Boxes = list[Box | None]
Shape = tuple[int, ...]
Shapes = list[Shape]
Parameters = Mapping[str, Any]

# Each result element depends on the same element of the operands.
_ELEMENTWISE = frozenset(
    """
    abs add and asin atan2 cbrt ceil clamp convert_element_type copy copy_p cos div eq erf erf_inv erfc exp exp2 expm1
    floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or pow reduce_precision
    rem round rsqrt select_n sharding_constraint sign sin sqrt square stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905
)
_REDUCTIONS = frozenset(
    {"argmax", "argmin", *(f"reduce_{name}" for name in ("and", "max", "min", "or", "prod", "sum", "xor"))}
)
_WINDOWS = frozenset(["reduce_window_max", "reduce_window_min", "reduce_window_sum"])
_CUMULATIVE = frozenset(["cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"])


def input_boxes(jaxpr: Jaxpr, outputs: Sequence[Box | None]) -> list[Box | None]:
    """The boxes of input elements that boxes of output elements can depend on.

    A box also contains unused elements where a reshape, a gather, a slice at computed offsets or a dilated kernel does
    not fill it. A matrix product needs the whole contracted axis, for any matrix.

    Args:
        jaxpr: the traced function.
        outputs: a box of elements for each output, or None for none.

    Returns:
        A box for each input, or None if nothing depends on it.

    Raises:
        ValueError: for an operation without a rule here.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> traced = jax.make_jaxpr(lambda x: jnp.maximum(x[2:] + x[:-2], 0))(jnp.ones(10))
        >>> input_boxes(traced.jaxpr, [((3, 4),)])
        [((3, 6),)]
    """
    boxes: dict[Var, Box | None] = {}

    def widen(variable: Any, box: Box | None) -> None:
        if box is not None and not isinstance(variable, Literal):
            boxes[variable] = _union(boxes.get(variable), box)

    for variable, box in zip(jaxpr.outvars, outputs, strict=True):
        widen(variable, box)
    for equation in reversed(jaxpr.eqns):
        wanted = [boxes.get(variable) for variable in equation.outvars]
        if any(box is not None for box in wanted):
            for variable, box in zip(equation.invars, _operand_boxes(equation, wanted), strict=True):
                widen(variable, box)
    return [boxes.get(variable) for variable in jaxpr.invars]


def _operand_boxes(equation: Any, wanted: Boxes) -> Boxes:
    """A box for each operand of one operation: the elements that the wanted results depend on."""
    name, parameters = equation.primitive.name, equation.params
    shapes = [tuple(variable.aval.shape) for variable in equation.invars]
    results = [tuple(variable.aval.shape) for variable in equation.outvars]
    if name == "cond":
        branches = [input_boxes(branch.jaxpr, wanted) for branch in parameters["branches"]]
        return [_whole(shapes[0]), *(_union(*boxes) for boxes in zip(*branches, strict=True))]
    inner = [value for value in parameters.values() if isinstance(value, ClosedJaxpr | Jaxpr)]
    if len(inner) == 1 and name not in ("scan", "while"):
        jaxpr = inner[0].jaxpr if isinstance(inner[0], ClosedJaxpr) else inner[0]
        if len(jaxpr.invars) == len(shapes):
            return input_boxes(jaxpr, wanted)
    if name == "optimization_barrier":
        return wanted
    if name == "split":
        return [_split(parameters, wanted)]
    box = wanted[0]  # all other operations have one result
    if box is None:
        return [None] * len(shapes)
    if name in _ELEMENTWISE:
        return [_elementwise(box, shape) for shape in shapes]
    if name in _REDUCTIONS:
        return [_reduction(parameters, box, shape) for shape in shapes]
    if name in _CUMULATIVE:
        return [_with_whole_axes(box, [parameters["axis"]], shapes[0])]
    if name in _WINDOWS:
        return [_window(parameters, box, shapes[0])]
    if name in _RULES:
        return _RULES[name](parameters, box, shapes, results[0])
    if not shapes:  # iota and the like
        return []
    raise ValueError(
        f"the function has the operation {name!r}, whose reach is not known here: give a part of the network without "
        "it, or measure with effective_receptive_field."
    )


# --- boxes ---


def _whole(shape: Sequence[int]) -> Box | None:
    """The box of all elements, or None for an empty array."""
    return tuple((0, size - 1) for size in shape) if all(shape) else None


def _union(*boxes: Box | None) -> Box | None:
    """The smallest box that contains all boxes; None is empty."""
    found = [box for box in boxes if box is not None]
    if not found:
        return None
    return tuple((min(a for a, _ in sides), max(b for _, b in sides)) for sides in zip(*found, strict=True))


def _with_whole_axes(box: Box, axes: Sequence[int], shape: Sequence[int]) -> Box:
    return tuple((0, n - 1) if axis in axes else side for axis, (side, n) in enumerate(zip(box, shape, strict=True)))


def _clipped(sides: Sequence[tuple[int, int]], shape: Sequence[int]) -> Box | None:
    """The part of a box inside an array, or None if there is none."""
    inside = tuple((max(a, 0), min(b, n - 1)) for (a, b), n in zip(sides, shape, strict=True))
    return inside if all(a <= b for a, b in inside) else None


def _window_side(side: tuple[int, int], stride: int, before: int, extent: int, base_dilation: int) -> tuple[int, int]:
    """The elements in the windows of a range of results; `base_dilation` - 1 holes separate the elements."""
    first, last = side[0] * stride - int(before), side[1] * stride - int(before) + extent - 1
    return -(-first // base_dilation), last // base_dilation


# --- the rules ---


def _elementwise(box: Box, shape: Shape) -> Box | None:
    """Scalars and axes of size 1 are broadcast."""
    return tuple(side if n > 1 else (0, 0) for side, n in zip(box, shape, strict=True)) if shape else ()


def _reduction(parameters: Parameters, box: Box, shape: Shape) -> Box | None:
    kept = iter(box)
    return tuple((0, n - 1) if axis in parameters["axes"] else next(kept) for axis, n in enumerate(shape))


def _window(parameters: Parameters, box: Box, shape: Shape) -> Box | None:
    sizes, gaps = parameters["window_dimensions"], parameters["window_dilation"]
    extents = dilated_extent(sizes, gaps)
    sides = [
        _window_side(side, stride, pads[0], extent, dilation)
        for side, stride, pads, extent, dilation in zip(
            box, parameters["window_strides"], parameters["padding"], extents, parameters["base_dilation"], strict=True
        )
    ]
    return _clipped(sides, shape)


def _convolution(parameters: Parameters, box: Box, shapes: Shapes, result: Shape) -> Boxes:
    numbers, (images, kernel) = parameters["dimension_numbers"], shapes
    sides = list(_whole(images) or ())
    if not sides:
        return [None, _whole(kernel)]
    if parameters["batch_group_count"] == 1:
        sides[numbers.lhs_spec[0]] = box[numbers.out_spec[0]]
    groups, features = parameters["feature_group_count"], numbers.out_spec[1]
    of_group = result[features] // groups
    inputs = images[numbers.lhs_spec[1]] // groups
    first, last = (end // of_group for end in box[features])
    sides[numbers.lhs_spec[1]] = (first * inputs, (last + 1) * inputs - 1)
    for axis, (stride, pads, base, gap) in enumerate(
        zip(*(parameters[n] for n in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")), strict=True)
    ):
        extent = (kernel[numbers.rhs_spec[2 + axis]] - 1) * gap + 1
        side = box[numbers.out_spec[2 + axis]]
        sides[numbers.lhs_spec[2 + axis]] = _window_side(side, stride, pads[0], extent, base)
    return [_clipped(sides, images), _whole(kernel)]


def _product(parameters: Parameters, box: Box, shapes: Shapes, result: Shape) -> Boxes:
    contracted, batch = parameters["dimension_numbers"]
    boxes, place = [], len(batch[0])
    for own, of_batch, shape in zip(contracted, batch, shapes, strict=True):
        sides = []
        for axis, n in enumerate(shape):
            if axis in own:
                sides.append((0, n - 1))
            elif axis in of_batch:
                sides.append(box[list(of_batch).index(axis)])
            else:
                sides.append(box[place])
                place += 1
        boxes.append(tuple(sides))
    return boxes


def _broadcast(parameters: Parameters, box: Box, shapes: Shapes, result: Shape) -> Boxes:
    axes = parameters["broadcast_dimensions"]
    return [tuple(box[axis] if n > 1 else (0, 0) for axis, n in zip(axes, shapes[0], strict=True))]


def _reshape(parameters: Parameters, box: Box, shapes: Shapes, result: Shape) -> Boxes:
    """Splits the axes into groups with equal sizes on both sides and converts each group."""
    shape, sides, old, new = shapes[0], [], 0, 0
    while old < len(shape) or new < len(result):
        old_end, new_end = min(old + 1, len(shape)), min(new + 1, len(result))
        while (before := math.prod(shape[old:old_end])) != (after := math.prod(result[new:new_end])):
            if before < after:
                old_end += 1
            else:
                new_end += 1
        sides += _regrouped(box[new:new_end], result[new:new_end], shape[old:old_end])
        old, new = old_end, new_end
    return [tuple(sides)]


def _regrouped(box: Box, shape: Sequence[int], new: Sequence[int]) -> list[tuple[int, int]]:
    """The box in a new shape that contains all elements from the first to the last of a box."""
    first = last = 0
    for (a, b), n in zip(box, shape, strict=True):
        first, last = first * n + a, last * n + b
    sides = []
    for axis in range(len(new)):
        step = math.prod(new[axis + 1 :])
        a, b = first // step, last // step
        sides.append((a, b))
        if a != b:
            return sides + [(0, n - 1) for n in new[axis + 1 :]]
        first, last = first - a * step, last - b * step
    return sides


def _transpose(parameters: Parameters, box: Box, shapes: Shapes, result: Shape) -> Boxes:
    order = list(parameters["permutation"])
    return [tuple(box[order.index(axis)] for axis in range(len(order)))]


def _slice(parameters: Parameters, box: Box, shapes: Shapes, result: Shape) -> Boxes:
    strides = parameters["strides"] or (1,) * len(box)
    starts = parameters["start_indices"]
    return [tuple((n + a * step, n + b * step) for (a, b), n, step in zip(box, starts, strides, strict=True))]


def _reverse(parameters: Parameters, box: Box, shapes: Shapes, result: Shape) -> Boxes:
    turned = parameters["dimensions"]
    pairs = zip(box, result, strict=True)
    return [tuple((n - 1 - b, n - 1 - a) if axis in turned else (a, b) for axis, ((a, b), n) in enumerate(pairs))]


def _pad(parameters: Parameters, box: Box, shapes: Shapes, result: Shape) -> Boxes:
    sides = [
        (-(-(a - low) // (inner + 1)), (b - low) // (inner + 1))
        for (a, b), (low, _, inner) in zip(box, parameters["padding_config"], strict=True)
    ]
    return [_clipped(sides, shapes[0]), ()]


def _concatenate(parameters: Parameters, box: Box, shapes: Shapes, result: Shape) -> Boxes:
    axis, first, boxes = parameters["dimension"], 0, []
    for shape in shapes:
        a, b = box[axis]
        boxes.append(_clipped((*box[:axis], (a - first, b - first), *box[axis + 1 :]), shape))
        first += shape[axis]
    return boxes


def _stack(parameters: Parameters, box: Box, shapes: Shapes, result: Shape) -> Boxes:
    axis = parameters["axis"] % len(box)
    a, b = box[axis]
    return [(*box[:axis], *box[axis + 1 :]) if a <= number <= b else None for number in range(len(shapes))]


def _split(parameters: Parameters, wanted: Boxes) -> Box | None:
    axis, first, parts = parameters["axis"], 0, []
    for size, box in zip(parameters["sizes"], wanted, strict=True):
        if box is not None:
            a, b = box[axis]
            parts.append((*box[:axis], (a + first, b + first), *box[axis + 1 :]))
        first += int(size)
    return _union(*parts)


def _gather(parameters: Parameters, box: Box, shapes: Shapes, result: Shape) -> Boxes:
    """Follows the axes with full slices; along the others, any offset is possible."""
    numbers, sizes = parameters["dimension_numbers"], parameters["slice_sizes"]
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    offsets = iter(numbers.offset_dims)
    sides = []
    for axis, (n, size) in enumerate(zip(shapes[0], sizes, strict=True)):
        place = None if axis in dropped else next(offsets)
        sides.append(box[place] if place is not None and size == n else (0, n - 1))
    return [tuple(sides), _whole(shapes[1])]


def _dynamic_slice(parameters: Parameters, box: Box, shapes: Shapes, result: Shape) -> Boxes:
    sides = tuple(
        side if size == n else (0, n - 1)
        for side, size, n in zip(box, parameters["slice_sizes"], shapes[0], strict=True)
    )
    return [sides, *(() for _ in shapes[1:])]


_RULES: dict[str, Callable[[Parameters, Box, Shapes, Shape], Boxes]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "dynamic_slice": _dynamic_slice,
    "expand_dims": _reshape,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
}
