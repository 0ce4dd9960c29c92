"""Explains plans in words: the steps of each convolution of a lattice, an operator or a network, and their cost."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from msconv_jax.arguments import Padding, base_pads, check_padding, output_size, per_axis
from msconv_jax.costs import is_costed
from msconv_jax.lattice import KernelLattice, Tile, causal_lattice
from msconv_jax.lowering.backend import current_backend, planning_for
from msconv_jax.lowering.choose import LOWERINGS, Lowering, check_lowering, choose_plan, layer_places
from msconv_jax.lowering.cost import COST_MODELS, Site
from msconv_jax.lowering.execute import recorded_plans
from msconv_jax.lowering.plan import Plan, Step, step_kernel_size
from msconv_jax.recording import Call, recorded_calls
from msconv_jax.signatures import explains_arguments

__all__ = ["ExplainedConvolution", "Explanation", "explain"]


@dataclasses.dataclass(frozen=True)
class ExplainedConvolution:
    """One convolution, its plan and the predicted costs of the plan and of its alternatives.

    Costs are in multiply-accumulates of a wide dense convolution on the same backend: compare them within one backend
    only.

    Attributes:
        operator: class of the layer that computes it; "KernelLattice" for a lattice.
        paths: the layers of the network that compute it, such as "layer1.0.conv2"; "" is the module itself.
        lattice: the kernel lattice.
        site: batch size, output size and strides.
        lowering: "auto", or the forced lowering.
        backend: the backend of the plan, a name of ``COST_MODELS``.
        plan: the steps.
    """

    operator: str
    paths: tuple[str, ...]
    lattice: KernelLattice
    site: Site
    lowering: Lowering
    backend: str
    plan: Plan

    @property
    def cost(self) -> float:
        """Predicted cost of the plan."""
        return COST_MODELS[self.backend](self.lattice, self.plan, self.site)

    @property
    def plans(self) -> Mapping[str, Plan]:
        """The plan that each backend gets, by backend."""
        others = {name: choose_plan(self.lattice, self.lowering, name, self.site) for name in COST_MODELS}
        return others | {self.backend: self.plan}

    @property
    def costs(self) -> Mapping[str, float]:
        """Predicted cost of each backend's plan, by backend."""
        return {name: COST_MODELS[name](self.lattice, plan, self.site) for name, plan in self.plans.items()}

    @property
    def alternatives(self) -> Mapping[str, float]:
        """Predicted cost of each forced lowering whose plan differs, by its name; the cheapest is first."""
        model, found = COST_MODELS[self.backend], {}
        for lowering in LOWERINGS:
            plan = choose_plan(self.lattice, lowering, self.backend, self.site)
            cost = model(self.lattice, plan, self.site)
            if set(plan) != set(self.plan) and math.isfinite(cost):
                found[lowering] = cost
        return dict(sorted(found.items(), key=lambda item: item[1]))

    @property
    def plain_cost(self) -> float:
        """Predicted cost of the plain convolution: the base kernel from all inputs to all outputs."""
        lattice = self.lattice
        tile = Tile(slice(0, lattice.out_features), slice(0, lattice.in_features), lattice.base_extent)
        plain = KernelLattice(lattice.in_features, lattice.out_features, (tile,))
        return COST_MODELS[self.backend](plain, choose_plan(plain, "auto", self.backend, self.site), self.site)

    def __str__(self) -> str:
        lattice, site, cost = self.lattice, self.site, self.cost
        where = f"{_listed(self.paths)}: " if any(self.paths) else ""
        size = f"batch {site.batch}, output {_by(site.output)}, strides {_by(site.strides)}"
        lines = [f"{where}{self.operator}, {lattice.in_features} -> {lattice.out_features} channels, {size}"]
        chosen = "chosen" if self.lowering == "auto" else f"forced by lowering={self.lowering!r}"
        lines.append(f"  plan for {self.backend}, {chosen}: predicted cost {_cost(cost)}")
        steps = collections.Counter(_describe(lattice, step) for step in self.plan)
        lines += [f"    {number} x {text}" for text, number in steps.items()]
        alternatives = self.alternatives
        if alternatives:
            lowering, other = next(iter(alternatives.items()))
            lines.append(f"  runner-up: lowering={lowering!r}, {_times(other, cost)}")
        lines.append(f"  plain {_by(lattice.base_extent)} convolution of all channels: {_times(self.plain_cost, cost)}")
        plans, costs = self.plans, self.costs
        backends = [f"{name} {_steps(len(plans[name]))}, {_cost(costs[name])}" for name in plans]
        return "\n".join([*lines, f"  by backend: {'; '.join(backends)}"])


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """The result of :func:`explain`; print it.

    Attributes:
        backend: the backend of the plans.
        convolutions: the convolutions; those of one lattice and one size are merged.
        unplanned: the number of other layers that multiply, such as ``nnx.Conv``, by class. XLA computes them.
    """

    backend: str
    convolutions: tuple[ExplainedConvolution, ...]
    unplanned: Mapping[str, int]

    def __repr__(self) -> str:
        parts = list(map(str, self.convolutions)) or [f"No convolution is planned by this library for {self.backend}."]
        if self.unplanned:
            layers = ", ".join(f"{number} {name}" for name, number in self.unplanned.items())
            parts.append(f"Without a plan, computed by XLA: {layers}")
        return "\n\n".join(parts)


@explains_arguments
def explain(
    module_or_lattice: nnx.Module | KernelLattice,
    input_shape: Sequence[int],
    backend: str | None = None,
    *,
    strides: int | Sequence[int] | None = None,
    padding: Padding | None = None,
    lowering: Lowering | None = None,
) -> Explanation:
    """Explains how convolutions are computed: the plan of each, its predicted cost, and the alternatives.

    The text lists, for each convolution, the steps of its plan; the runner-up, which is the cheapest forced lowering
    with another plan; the plain convolution of the base kernel; and the plan's size and cost on each backend. A packed
    convolution has zeros in its kernel, a dense one has none. A module is called on shapes alone, in evaluation mode,
    so the plans are those that its calls execute. Costs are in million multiply-accumulates of a wide dense convolution
    on the same backend.

    Args:
        module_or_lattice: a kernel lattice, an operator such as :class:`msconv_jax.PSConv`, or a whole network. It may
            be abstract, as ``nnx.eval_shape`` makes it.
        input_shape: shape of the input, with all its axes: ``(*batch, *spatial, in_features)``.
        backend: "cpu", "gpu", "tpu" or "onnx"; None is JAX's default backend.
        strides: of a lattice, as in :func:`msconv_jax.lattice_convolve`; None is 1. Not for a module.
        padding: of a lattice, likewise; None is "SAME".
        lowering: of a lattice, likewise; None is "auto".

    Returns:
        The explanation: print it, or read its attributes.

    Raises:
        ValueError: if an argument is not one of the above, or the input does not fit.

    Example:
        >>> from flax import nnx
        >>> from msconv_jax import PSConv, explain
        >>> conv = PSConv(64, 64, (3, 3), rngs=nnx.Rngs(0))
        >>> explain(conv, (8, 56, 56, 64), backend="gpu")
        PSConv, 64 -> 64 channels, batch 8, output 56x56, strides 1x1
          plan for gpu, chosen: predicted cost 4,270 M
            1 x packed convolution, 64 -> 64 channels, kernel 3x3, dilation 1x1
            1 x packed convolution, 64 -> 64 channels, kernel 3x3, dilation 2x2
            1 x packed convolution, 64 -> 64 channels, kernel 3x3, dilation 4x4
          runner-up: lowering='columns', 7,770 M, 1.82 times the plan's cost
          plain 3x3 convolution of all channels: 1,420 M, 0.33 times the plan's cost
          by backend: cpu 10 steps, 1,310 M; gpu 3 steps, 4,270 M; tpu 3 steps, 11,700 M; onnx 10 steps, 985 M
    """
    if backend is not None and backend not in COST_MODELS:
        raise ValueError(
            f"backend={backend!r}: expected one of {', '.join(COST_MODELS)}, or None for JAX's default backend."
        )
    shape = per_axis("input_shape", input_shape)
    backend = current_backend() if backend is None else backend
    if isinstance(module_or_lattice, KernelLattice):
        padding = "SAME" if padding is None else padding
        lowering = "auto" if lowering is None else lowering
        return _explain_lattice(module_or_lattice, shape, backend, strides, padding, lowering)
    if not isinstance(module_or_lattice, nnx.Module):
        raise ValueError(
            f"module_or_lattice is a {type(module_or_lattice).__name__} but must be a flax.nnx.Module or a "
            "KernelLattice."
        )
    for name, value in (("strides", strides), ("padding", padding), ("lowering", lowering)):
        if value is not None:
            raise ValueError(
                f"{name}={value!r}: a module has this attribute; leave it out, or explain a KernelLattice."
            )
    return _explain_module(module_or_lattice, shape, backend)


def _explain_lattice(
    lattice: KernelLattice,
    shape: tuple[int, ...],
    backend: str,
    strides: int | Sequence[int] | None,
    padding: Padding,
    lowering: Lowering,
) -> Explanation:
    check_lowering(lowering)
    ndim = lattice.ndim
    if len(shape) < ndim + 1 or shape[-1] != lattice.in_features:
        raise ValueError(
            f"input_shape={shape}: expected (*batch, {ndim} spatial axes, {lattice.in_features} channels)."
        )
    strides = per_axis("strides", strides, ndim)
    spatial = shape[-ndim - 1 : -1]
    pads = base_pads(padding, spatial, lattice.base_extent, strides)
    if check_padding(padding, ndim) == "CAUSAL":
        lattice = causal_lattice(lattice)
    output = output_size(spatial, pads, lattice.base_extent, strides)
    if 0 in output:
        raise ValueError(
            f"input_shape={shape} with padding={padding!r}: there is no output; pad the image to at least the size of "
            f"the base kernel, {_by(lattice.base_extent)}."
        )
    site = Site(math.prod(shape[: -ndim - 1]), output, strides)
    plan = choose_plan(lattice, lowering, backend, site)
    return Explanation(
        backend, (ExplainedConvolution("KernelLattice", ("",), lattice, site, lowering, backend, plan),), {}
    )


def _explain_module(module: nnx.Module, shape: tuple[int, ...], backend: str) -> Explanation:
    graphdef, state = nnx.split(module)
    abstract = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), state)
    calls: list[Call] = []
    paths_of: dict[tuple[Any, ...], list[str]] = {}

    def call(state: Any, x: jax.Array) -> None:
        copy: Any = nnx.merge(graphdef, state, copy=True)
        copy.eval()
        with planning_for(backend), recorded_calls(copy, _is_layer) as found, recorded_plans() as planned:
            copy(x)
        calls.extend(found)
        operators = {layer.path: type(layer.module).__name__ for layer in found}
        for one in planned:
            path = one.path or ""
            key = (operators.get(path, type(module).__name__), one.convolution.lattice, one.site)
            paths_of.setdefault((*key, one.convolution.lowering, one.plan), []).append(path)

    jax.eval_shape(call, abstract, jax.ShapeDtypeStruct(shape, jnp.float32))
    convolutions = tuple(
        ExplainedConvolution(operator, tuple(dict.fromkeys(paths)), lattice, site, lowering, backend, plan)
        for (operator, lattice, site, lowering, plan), paths in paths_of.items()
    )
    planned_paths = {path for paths in paths_of.values() for path in paths}
    unplanned = collections.Counter(type(one.module).__name__ for one in calls if one.path not in planned_paths)
    return Explanation(backend, convolutions, dict(unplanned))


def _is_layer(module: nnx.Module) -> bool:
    """Whether a module's convolutions are listed under its path: an operator, or any other layer that multiplies."""
    return is_costed(module) or hasattr(type(module), "lattice") or "lattice" in vars(module)


# --- words ---


def _describe(lattice: KernelLattice, step: Step) -> str:
    inputs, outputs = len(step.inputs), len(step.outputs)
    sizes = {_by(lattice.banks[bank].kernel_size): None for bank, _ in step.layers}
    dilations = {_by(dilation): None for _, dilation in step.layers}
    text = f"{_kind(lattice, step)}, {inputs} -> {outputs} channels"
    if step.groups > 1:
        text += f" in {step.groups} groups"
    text += f", kernel {' and '.join(sizes)}, dilation {' and '.join(dilations)}"
    if len(step.layers) > 1 and step.way == "convolve":
        text += f", as one kernel {_by(step_kernel_size(lattice, step))}"
    if step.columns > 1:
        text += f", {step.columns} columns at a time"
    return text


def _kind(lattice: KernelLattice, step: Step) -> str:
    if step.way != "convolve":
        return {"shift": "sum of shifted inputs", "scatter": "scatter of products"}[step.way]
    if step.groups > 1:
        return "grouped convolution"
    rows = lattice.row_of_output[list(step.outputs)]
    filled = [layer_places(lattice, layer)[rows][:, list(step.inputs)] >= 0 for layer in step.layers]
    is_full = len(step.layers) == 1 and bool(np.all(filled))
    return "dense convolution" if is_full else "packed convolution"


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(path or "the module" for path in paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def _cost(cost: float) -> str:
    """A cost in millions, with three digits."""
    return "impossible" if math.isinf(cost) else f"{float(f'{cost / 1e6:.3g}'):,g} M"


def _times(other: float, cost: float) -> str:
    return f"{_cost(other)}" + (f", {other / cost:.2f} times the plan's cost" if math.isfinite(cost) else "")
