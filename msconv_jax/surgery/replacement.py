"""Replaces convolutions of a model by other modules that give outputs of the same shapes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes
from jax import lax

from msconv_jax.arguments import per_axis
from msconv_jax.operators import GroupedConv
from msconv_jax.signatures import check_arguments, check_module, explains_arguments
from msconv_jax.surgery.selection import (
    PLAIN,
    Found,
    Predicate,
    Where,
    condition,
    filter_convolutions,
    find_convolutions,
    kernel_size_of,
    list_paths,
)

__all__ = ["Entry", "Report", "replace_convs"]

Model = TypeVar("Model", bound=nnx.Module)
Factory = Callable[..., nnx.Module]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a report.

    Attributes:
        path: the convolution's path in the model, the first of several in sorted order.
        convolution: description of the convolution.
        reason: why it was kept or skipped, or a description of its replacement.
    """

    path: str
    convolution: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Lists what was done with each convolution of a model, in the order of construction.

    Attributes:
        replaced: replaced convolutions.
        kept: convolutions that were not selected.
        skipped: selected convolutions for which the factory gives no equivalent replacement.
    """

    replaced: tuple[Entry, ...]
    kept: tuple[Entry, ...]
    skipped: tuple[Entry, ...]

    def __str__(self) -> str:
        """One line for each convolution."""
        lines = []
        for name in ("replaced", "kept", "skipped"):
            entries: tuple[Entry, ...] = getattr(self, name)
            lines.append(f"{name}: {len(entries)}")
            lines += [f"  {entry.path or '(the model)'}: {entry.convolution}; {entry.reason}" for entry in entries]
        return "\n".join(lines)


@explains_arguments
def replace_convs(
    model: Model,
    factory: Factory | Mapping[str, Factory],
    where: Where | Predicate | str | None = None,
    *,
    types: tuple[type[nnx.Conv], ...] = PLAIN,
    carry_kernels: bool = True,
    strict: bool = False,
    rngs: nnx.Rngs | None = None,
) -> tuple[Model, Report]:
    """Copies an NNX model and replaces its ``nnx.Conv`` by other convolutions.

    Modules may be nested in any way: attributes, ``nnx.List``, ``nnx.Dict``, ``nnx.Sequential``, tuples. The copy
    shares convolutions and parameters in the same places as the model, and keeps everything else, such as batch
    statistics and the metadata of variables. Under ``nnx.eval_shape``, or for an abstract model, nothing is allocated.

    A convolution is replaced only if the new one gives outputs of the same shapes and supports all its arguments.
    Otherwise it stays and the report lists it as skipped with the reason, such as a kernel mask, a dilated input or
    channels that an operator cannot divide.

    Args:
        model: the model, which stays unchanged.
        factory: an operator such as :class:`msconv_jax.PSConv`, a ``functools.partial`` of one, or any callable with
            ``nnx.Conv``'s arguments; it gets the channels by position and the others by name, except those that a
            partial binds. A mapping from paths to factories also selects the paths.
        where: selects convolutions: a :class:`Where`, a glob pattern for paths, or a function of path and convolution.
            None selects every kernel of more than one tap.
        types: the classes that are replaced: ``nnx.Conv`` and :class:`msconv_jax.GroupedConv`. Subclasses are not,
            since they may compute something else.
        carry_kernels: if True, the new convolution gets the old kernel and the old bias where the shapes agree; other
            parameters are initialised. If False, all are initialised.
        strict: if True, raise an error for a selected convolution that cannot be replaced, instead of listing it.
        rngs: for initial values; None uses ``nnx.Rngs(0)``.

    Returns:
        The new model, of the same class, and the :class:`Report`. New modules are in training mode, so call
        ``model.eval()`` again if needed.

    Raises:
        ValueError: if `where` or the paths of the mapping select nothing, or, with `strict`, if a selected convolution
            cannot be replaced.
        TypeError: if the factory cannot be called like ``nnx.Conv``.

    Example:
        >>> import msconv_jax
        >>> sizes = ((3, 8, 5), (8, 8, 1), (8, 8, 3))
        >>> model = nnx.Sequential(*(nnx.Conv(i, o, (k, k), rngs=nnx.Rngs(0)) for i, o, k in sizes))
        >>> new, report = replace_convs(model, functools.partial(msconv_jax.HetConv, parts=4))
        >>> print(report)  # doctest: +ELLIPSIS
        replaced: 1
          layers.2: 3x3 convolution of 8 to 8 channels; HetConv, bias carried over, the rest newly initialised
        kept: 1
          layers.1: 1x1 convolution of 8 to 8 channels; not selected
        skipped: 1
          layers.0: 5x5 convolution of 3 to 8 channels; parts=4 does not divide the 3 inputs and 8 outputs ...
    """
    check_module("model", model)
    check_arguments(replace_convs, {"types": types, "rngs": rngs})
    copy = nnx.clone(model)
    found = find_convolutions(model)
    choose = _factory_chooser(factory, where, [conv for conv in found if type(conv.module) in types])
    # The copy's attributes are sorted, so the order of construction is the original's.
    in_copy = {path: conv.module for conv in find_convolutions(copy) for path in conv.paths}
    surgeon = _Replacer(carry_kernels, rngs)
    replaced, kept, skipped = [], [], []
    for original in found:
        path, conv = original.paths[0], in_copy[original.paths[0]]
        words = _describe(conv)
        chosen = choose(original)
        if chosen is None:
            reason = "not selected" if type(conv) in types else f"a {type(conv).__name__}, not a plain convolution"
            kept.append(Entry(path, words, reason))
            continue
        try:
            replaced.append(Entry(path, words, surgeon.replace(conv, chosen)))
        except _CannotReplaceError as error:
            skipped.append(Entry(path, words, str(error)))
    if strict and skipped:
        raise ValueError(
            f"{len(skipped)} of the selected convolutions cannot be replaced: "
            + "; ".join(f"{entry.path}, {entry.convolution}: {entry.reason}" for entry in skipped)
            + ". Leave them out by where=..., or list and keep them with strict=False."
        )
    return copy, Report(tuple(replaced), tuple(kept), tuple(skipped))


class _CannotReplaceError(Exception):
    """The reason why a convolution is not replaced, a sentence without its full stop."""


def _describe(conv: nnx.Conv) -> str:
    groups = "" if conv.feature_group_count == 1 else f" in {conv.feature_group_count} groups"
    size = "x".join(map(str, kernel_size_of(conv)))
    return f"{size} convolution of {conv.in_features} to {conv.out_features} channels{groups}"


def _factory_chooser(
    factory: Factory | Mapping[str, Factory], where: Where | Predicate | str | None, plain: list[Found]
) -> Callable[[Found], Factory | None]:
    """A function from a convolution to its factory, or to None if it is not selected."""
    if isinstance(factory, Mapping):
        factories: Mapping[str, Factory] = factory
        known = {path for conv in plain for path in conv.paths}
        unknown = sorted(set(factories) - known)
        if unknown:
            raise ValueError(
                f"factory has the path {unknown[0]!r}, where the model has no plain convolution; it has "
                f"{list_paths(sorted(known))}"
            )
        selected = condition(where) if where is not None else lambda path, conv: True
        paths_of = {id(conv.module): conv.paths for conv in plain}
        return lambda conv: next(
            (
                factories[path]
                for path in paths_of.get(id(conv.module), ())
                if path in factories and selected(path, conv.module)
            ),
            None,
        )
    chosen = {id(conv.module) for conv in filter_convolutions(plain, condition(where))}
    if where is not None and not chosen:
        raise ValueError(
            f"where={where!r} selects none of the model's {len(plain)} plain convolutions: "
            f"{list_paths([conv.paths[0] for conv in plain])}"
        )
    single: Factory = factory
    return lambda conv: single if id(conv.module) in chosen else None


# A factory gets the first arguments always, and the optional ones only if they differ from nnx.Conv's defaults, so
# that a user's callable need not support, for example, kernel masks.
_CONV_ARGUMENTS = (
    "strides",
    "padding",
    "kernel_dilation",
    "feature_group_count",
    "use_bias",
    "dtype",
    "param_dtype",
    "precision",
)
_OPTIONAL_ARGUMENTS = {
    "mask": None,
    "conv_general_dilated": lax.conv_general_dilated,
    "promote_dtype": dtypes.promote_dtype,
    "preferred_element_type": None,
}


def _arguments(conv: nnx.Conv) -> dict[str, Any]:
    """The keyword arguments that a convolution was built with, except its initialisers, which it does not store."""
    size = kernel_size_of(conv)
    arguments: dict[str, Any] = {"kernel_size": size, **{name: getattr(conv, name) for name in _CONV_ARGUMENTS}}
    arguments |= {
        name: getattr(conv, name) for name, default in _OPTIONAL_ARGUMENTS.items() if getattr(conv, name) is not default
    }
    if any(factor != 1 for factor in per_axis("input_dilation", conv.input_dilation, len(size))):
        arguments["input_dilation"] = conv.input_dilation
    for name in ("kernel", "bias"):
        variable = getattr(conv, name)
        default = nnx.Param(jnp.zeros(())).get_metadata() if variable is not None else {}
        metadata = {} if variable is None else variable.get_metadata()
        changed = {key: value for key, value in metadata.items() if key not in default or default[key] != value}
        if changed:
            arguments[f"{name}_metadata"] = changed
    if isinstance(conv, GroupedConv) and conv.lowering != "auto":
        arguments["lowering"] = conv.lowering
    # Classes whose attributes differ from the arguments that they were built with have base_arguments.
    return arguments | getattr(conv, "base_arguments", {})


class _Replacer:
    """Replaces convolutions of one model, and keeps shared parameters shared."""

    def __init__(self, carry_kernels: bool, rngs: nnx.Rngs | None):
        self._carry = carry_kernels
        self._rngs = nnx.Rngs(0) if rngs is None else rngs
        # By the id of the old variable, which is stored too: a freed one could pass its id on.
        self._new_variables: dict[int, tuple[nnx.Variable, nnx.Variable]] = {}

    def replace(self, conv: nnx.Conv, factory: Factory) -> str:
        """Replaces a convolution in place by what the factory builds, and returns a description of it.

        Raises:
            _CannotReplaceError: if the factory gives no equivalent module.
        """
        expected = (*kernel_size_of(conv), conv.in_features // conv.feature_group_count, conv.out_features)
        if conv.kernel.shape != expected:
            raise _CannotReplaceError(
                f"its kernel has the shape {conv.kernel.shape} instead of {expected}, as nnx.vmap and nnx.scan stack it"
            )
        build = functools.partial(_call, factory, conv)
        try:
            shapes = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
        except ValueError as error:
            raise _CannotReplaceError(str(error).rstrip(".")) from error
        _check_output(shapes, conv)
        carried = [name for name in ("kernel", "bias") if self._carry and _fits(shapes, conv, name)]
        fresh = {path for path, _ in nnx.to_flat_state(nnx.state(shapes))} - {(name,) for name in carried}
        is_abstract = isinstance(conv.kernel.get_value(), jax.ShapeDtypeStruct)
        new = build(self._rngs) if fresh and not is_abstract else shapes  # without values, which are not needed
        for name in ("kernel", "bias"):
            old: Any = getattr(conv, name)
            fresh_variable: Any = getattr(new, name, None)
            if name in carried and old.dtype == fresh_variable.dtype:
                setattr(new, name, old)
            elif name in carried and not is_abstract:
                setattr(new, name, fresh_variable.replace(old[...].astype(fresh_variable.dtype)))
            elif _fits(shapes, conv, name):
                _, new_variable = self._new_variables.setdefault(id(old), (old, fresh_variable))
                setattr(new, name, new_variable)
        words = [" and ".join(carried) + " carried over"] if carried else []
        words += ["the rest newly initialised" if carried else "newly initialised"] if fresh else []
        words += ["without the bias"] if conv.bias is not None and getattr(new, "bias", None) is None else []
        _replace_in_place(conv, new)
        return ", ".join([type(new).__name__, *words])


def _call(factory: Factory, conv: nnx.Conv, rngs: nnx.Rngs) -> nnx.Module:
    """Calls a factory with a convolution's arguments, except those that a partial binds."""
    bound: dict[str, Any] = {}
    inner: Any = factory
    while isinstance(inner, functools.partial):
        bound = {**inner.keywords, **bound}
        inner = inner.func
    arguments = {name: value for name, value in _arguments(conv).items() if name not in bound}
    _check_call(inner, bound, arguments)
    new = factory(conv.in_features, conv.out_features, **arguments, rngs=rngs)
    if not isinstance(new, nnx.Module):
        raise TypeError(f"factory gave a {type(new).__name__}: expected a Flax NNX module from one array to one array.")
    return new


def _check_call(factory: Callable[..., Any], bound: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    try:
        # Flax's metaclass hides the arguments of a class.
        signature = inspect.signature(factory.__init__ if isinstance(factory, type) else factory)
    except ValueError:  # a builtin without a signature
        return
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    for name in arguments:
        if not takes_all and name not in signature.parameters and name not in ("kernel_size", *_CONV_ARGUMENTS):
            raise _CannotReplaceError(f"the factory takes no {name!r}, which this convolution has")
    positional = (None,) * (3 if isinstance(factory, type) else 2)
    try:
        signature.bind(*positional, **{**bound, **arguments, "rngs": None})
    except TypeError as error:
        raise TypeError(
            f"factory cannot be called like nnx.Conv, with the channels and then {', '.join(arguments)} and rngs by "
            f"name: {error}; bind its other arguments with functools.partial"
        ) from None


def _check_output(new: nnx.Module, conv: nnx.Conv) -> None:
    """Compares the shapes of the outputs for an input of even and one of odd size."""
    size = kernel_size_of(conv)
    dilation = per_axis("kernel_dilation", conv.kernel_dilation, len(size))
    strides = per_axis("strides", conv.strides, len(size))
    for more in (0, 1):
        spatial = tuple((k - 1) * d + 2 * s + 2 + more for k, d, s in zip(size, dilation, strides, strict=True))
        images = jax.ShapeDtypeStruct((1, *spatial, conv.in_features), jnp.float32)
        try:
            shapes = _output_shapes(new, images)
        except ValueError as error:
            raise _CannotReplaceError(str(error).rstrip(".")) from error
        expected = _output_shapes(conv, images)
        if shapes != expected:
            raise _CannotReplaceError(
                f"{type(new).__name__} gives outputs of shape {shapes} for inputs of {images.shape}, where the "
                f"convolution gives {expected}"
            )


def _output_shapes(module: Any, images: jax.ShapeDtypeStruct) -> Any:
    graphdef, state = nnx.split(module)

    def apply(state: nnx.State, x: jax.Array) -> Any:
        copy: Any = nnx.merge(graphdef, state, copy=True)
        for _, part in nnx.iter_modules(copy):
            if hasattr(part, "lowering"):
                # The shapes do not depend on it, and choosing a plan takes time.
                setattr(part, "lowering", "dense")  # noqa: B010
        return copy(x)

    outputs = jax.eval_shape(apply, state, images)
    return outputs.shape if hasattr(outputs, "shape") else jax.tree.map(np.shape, outputs)


def _fits(new: Any, conv: nnx.Conv, name: str) -> bool:
    """Whether both modules have this parameter, with the same shape."""
    variable, old = getattr(new, name, None), getattr(conv, name)
    return isinstance(variable, nnx.Variable) and old is not None and variable.shape == old.shape


def _replace_in_place(module: nnx.Module, other: nnx.Module) -> None:
    """Gives a module the class and the attributes of another one.

    So all references to it see the new module. They could not all be assigned to: a model may hold a convolution in a
    tuple, or under several names.
    """
    object.__setattr__(module, "__class__", type(other))
    vars(module).clear()
    vars(module).update(vars(other))
