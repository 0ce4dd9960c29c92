"""Surgery: the convolutions of a network that somebody else wrote, exchanged for multi-scale ones."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes
from jax import lax

from msconv_jax.arguments import per_axis
from msconv_jax.operators import GroupedConv
from msconv_jax.signatures import check_arguments, check_module, explains_arguments

__all__ = ["PLAIN", "Entry", "Report", "Where", "convolutions", "replace_convs", "selected_convolutions"]

PLAIN: tuple[type[nnx.Conv], ...] = (nnx.Conv, GroupedConv)
"""The classes of plain convolutions."""

Model = TypeVar("Model", bound=nnx.Module)
Factory = Callable[..., nnx.Module]
Predicate = Callable[[str, nnx.Conv], bool]


@dataclasses.dataclass(frozen=True)
class Where:
    """Selects convolutions: those that meet every condition given.

    Attributes:
        path: glob pattern, or several, one of which must match the convolution's path in the model, such as
            ``layer1.0.conv2``; ``*`` matches dots too.
        kernel_size: taps, one int for every axis or a tuple.
        feature_group_count: number of groups, or "depthwise" for one input channel to a group.
        predicate: called with the path and the convolution.

    Raises:
        ValueError: if a condition is of another type.

    Example:
        >>> conv = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=nnx.Rngs(0))
        >>> Where(path="layer*", kernel_size=3)("layer1.0.conv2", conv)
        True
        >>> Where(feature_group_count=1)("layer1.0.conv2", conv)
        False
    """

    path: str | Sequence[str] | None = None
    kernel_size: int | Sequence[int] | None = None
    feature_group_count: int | Literal["depthwise"] | None = None
    predicate: Predicate | None = None

    def __post_init__(self) -> None:
        check_arguments(Where, vars(self))

    def __call__(self, path: str, conv: nnx.Conv) -> bool:
        """Whether the convolution at a path of the model is selected."""
        if self.path is not None:
            patterns = (self.path,) if isinstance(self.path, str) else self.path
            if not any(fnmatchcase(path, pattern) for pattern in patterns):
                return False
        size = _kernel_size(conv)
        if self.kernel_size is not None:
            wanted = (self.kernel_size,) * len(size) if isinstance(self.kernel_size, int) else tuple(self.kernel_size)
            if size != wanted:
                return False
        if self.feature_group_count is not None:
            groups = conv.in_features if self.feature_group_count == "depthwise" else self.feature_group_count
            if conv.feature_group_count != groups or (self.feature_group_count == "depthwise" and groups == 1):
                return False
        return self.predicate is None or bool(self.predicate(path, conv))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a report.

    Attributes:
        path: the convolution's path in the model; of one in several places, the first by the alphabet.
        convolution: what it is, in words.
        reason: why it was kept or skipped; of a replaced one, what stands there now.
    """

    path: str
    convolution: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of each convolution of a model, in the order of its construction.

    Attributes:
        replaced: exchanged.
        kept: not selected.
        skipped: selected, but the replacement cannot do what they do.
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
    """A copy of any NNX model with other convolutions in the place of its ``nnx.Conv``.

    Modules may be nested in any way: attributes, ``nnx.List``, ``nnx.Dict``, ``nnx.Sequential``, tuples. A convolution
    or a parameter that the model uses in several places is shared in the copy as well, and everything else (batch
    normalisations, their statistics, metadata of variables) is as it was. Under ``nnx.eval_shape``, or for a model
    of shapes, nothing is allocated.

    A convolution is exchanged only if its replacement gives outputs of the same shapes and can honour all its
    arguments. Otherwise it stays and is listed as skipped with the reason: kernel masks, dilated inputs,
    channels that an operator cannot divide.

    Args:
        model: the model; it is left as it is.
        factory: an operator such as :class:`msconv_jax.PSConv`, a ``functools.partial`` of one, or any callable with
            ``nnx.Conv``'s arguments, which it gets by name but for the channels. Of these, the ones that a partial
            binds are its own. Or a mapping with one for each path, which selects the paths as well.
        where: which convolutions: a :class:`Where`, a glob pattern for paths, or a function of path and convolution.
            None takes every kernel of more than one tap.
        types: the classes that are replaced, not their subclasses, which may compute something else: ``nnx.Conv`` and
            :class:`msconv_jax.GroupedConv`.
        carry_kernels: take over kernel and bias, trained or not, where the new ones have the old shapes; what does not
            fit is initialised. False initialises all of them.
        strict: raise, rather than list, if a selected convolution cannot be replaced.
        rngs: for initial values; None takes ``nnx.Rngs(0)``.

    Returns:
        The new model, of the same class, and the :class:`Report`. New modules are in training mode, so call
        ``model.eval()`` again where that matters.

    Raises:
        ValueError: if the factory cannot be called as ``nnx.Conv``, if `where` or the mapping's paths select nothing,
            and with `strict` for each convolution that cannot be replaced.

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
    found = _convolutions(model)
    choose = _chooser(factory, where, [conv for conv in found if type(conv.module) in types])
    # The copy's attributes are sorted, so the order of construction is the original's.
    in_copy = {path: conv.module for conv in _convolutions(copy) for path in conv.paths}
    surgeon = _Surgeon(carry_kernels, rngs)
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
    """Why a convolution stays; a sentence without its full stop."""


@dataclasses.dataclass(frozen=True)
class _Found:
    """A convolution of a model and all its paths, in alphabetical order: the first one names it, in every copy."""

    module: nnx.Conv
    paths: tuple[str, ...]


@explains_arguments
def convolutions(model: nnx.Module) -> dict[str, nnx.Conv]:
    """The convolutions of a model by their paths, in the order of construction.

    ``nnx.Conv`` and its subclasses, so most operators of this library too; one in several places comes once, under
    the first of its paths by the alphabet. A model that has been split and merged, or cloned, has forgotten in which
    order its attributes were made: they are sorted then, but for those of lists.

    Example:
        >>> list(convolutions(nnx.Sequential(nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.relu)))
        ['layers.0']
    """
    check_module("model", model)
    return {conv.paths[0]: conv.module for conv in _convolutions(model)}


@explains_arguments
def selected_convolutions(
    model: nnx.Module, where: Where | Predicate | str | None, types: tuple[type[nnx.Conv], ...] = PLAIN
) -> dict[str, nnx.Conv]:
    """The convolutions that :func:`replace_convs` would select, by their paths, in the order of construction.

    Example:
        >>> convs = [nnx.Conv(4, 4, (size, size), rngs=nnx.Rngs(0)) for size in (1, 3)]
        >>> list(selected_convolutions(nnx.Sequential(*convs), Where(kernel_size=3)))
        ['layers.1']
    """
    check_module("model", model)
    plain = [conv for conv in _convolutions(model) if type(conv.module) in types]
    return {conv.paths[0]: conv.module for conv in _selected(plain, _condition(where))}


def _convolutions(model: nnx.Module) -> list[_Found]:
    paths: dict[int, list[str]] = {}
    modules: dict[int, nnx.Conv] = {}
    for path, module in _walk(model, "", ()):
        if isinstance(module, nnx.Conv):
            modules[id(module)] = module
            paths.setdefault(id(module), []).append(path)
    return [_Found(module, tuple(sorted(paths[key]))) for key, module in modules.items()]


def _walk(node: Any, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """Every module below a node with its path, once for each path that goes in no circle.

    So a module's paths do not depend on the order of attributes, which a copy of the model does not keep.
    """
    yield path, node
    if id(node) in above:
        return
    own = enumerate(node) if isinstance(node, nnx.List) else vars(node).items()
    for name, value in own:
        for keys, leaf in jax.tree_util.tree_leaves_with_path(value, is_leaf=_is_node):
            if isinstance(leaf, nnx.Pytree):
                below = [str(name), *(jax.tree_util.keystr((key,), simple=True) for key in keys)]
                yield from _walk(leaf, ".".join(filter(None, [path, *below])), (*above, id(node)))


def _is_node(value: Any) -> bool:
    return isinstance(value, nnx.Pytree | nnx.Variable)


def _kernel_size(conv: nnx.Conv) -> tuple[int, ...]:
    size = conv.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)


def _describe(conv: nnx.Conv) -> str:
    groups = "" if conv.feature_group_count == 1 else f" in {conv.feature_group_count} groups"
    size = "x".join(map(str, _kernel_size(conv)))
    return f"{size} convolution of {conv.in_features} to {conv.out_features} channels{groups}"


def _chooser(
    factory: Factory | Mapping[str, Factory], where: Where | Predicate | str | None, plain: list[_Found]
) -> Callable[[_Found], Factory | None]:
    """Which factory a convolution gets, or None if it is not selected."""
    if isinstance(factory, Mapping):
        factories: Mapping[str, Factory] = factory
        known = {path for conv in plain for path in conv.paths}
        unknown = sorted(set(factories) - known)
        if unknown:
            raise ValueError(
                f"factory has the path {unknown[0]!r}, where the model has no plain convolution; it has "
                f"{_some(sorted(known))}"
            )
        selected = _condition(where) if where is not None else lambda path, conv: True
        own = {id(conv.module): conv.paths for conv in plain}
        return lambda conv: next(
            (
                factories[path]
                for path in own.get(id(conv.module), ())
                if path in factories and selected(path, conv.module)
            ),
            None,
        )
    chosen = {id(conv.module) for conv in _selected(plain, _condition(where))}
    if where is not None and not chosen:
        raise ValueError(
            f"where={where!r} selects none of the model's {len(plain)} plain convolutions: "
            f"{_some([conv.paths[0] for conv in plain])}"
        )
    single: Factory = factory
    return lambda conv: single if id(conv.module) in chosen else None


def _selected(plain: list[_Found], condition: Predicate) -> list[_Found]:
    return [conv for conv in plain if any(condition(path, conv.module) for path in conv.paths)]


def _condition(where: Where | Predicate | str | None) -> Predicate:
    if where is None:
        return lambda path, conv: any(taps > 1 for taps in _kernel_size(conv))
    if isinstance(where, str):
        return Where(path=where)
    if not callable(where):
        raise ValueError(f"where={where!r}: expected a surgery.Where, a glob pattern, or a function of path and conv")
    return where


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "") if paths else "none"


# What a replacement must be told in any case, and what only where it is not nnx.Conv's default: a callable of the
# user's own need not know of kernel masks while the model has none.
_ALWAYS = (
    "strides",
    "padding",
    "kernel_dilation",
    "feature_group_count",
    "use_bias",
    "dtype",
    "param_dtype",
    "precision",
)
_SELDOM = {
    "mask": None,
    "conv_general_dilated": lax.conv_general_dilated,
    "promote_dtype": dtypes.promote_dtype,
    "preferred_element_type": None,
}


def _arguments(conv: nnx.Conv) -> dict[str, Any]:
    """The keyword arguments that would build a convolution again, without the initialisers, which it does not keep."""
    size = _kernel_size(conv)
    arguments: dict[str, Any] = {"kernel_size": size, **{name: getattr(conv, name) for name in _ALWAYS}}
    arguments |= {name: getattr(conv, name) for name, usual in _SELDOM.items() if getattr(conv, name) is not usual}
    if any(factor != 1 for factor in per_axis("input_dilation", conv.input_dilation, len(size))):
        arguments["input_dilation"] = conv.input_dilation
    for name in ("kernel", "bias"):
        variable = getattr(conv, name)
        usual = nnx.Param(jnp.zeros(())).get_metadata() if variable is not None else {}
        metadata = {} if variable is None else variable.get_metadata()
        own = {key: value for key, value in metadata.items() if key not in usual or usual[key] != value}
        if own:
            arguments[f"{name}_metadata"] = own
    if isinstance(conv, GroupedConv) and conv.lowering != "auto":
        arguments["lowering"] = conv.lowering
    # A class whose attributes are not the arguments it was built with tells them here.
    return arguments | getattr(conv, "base_arguments", {})


class _Surgeon:
    """Builds the replacements of one model; parameters that convolutions share stay shared."""

    def __init__(self, carry_kernels: bool, rngs: nnx.Rngs | None):
        self._carry = carry_kernels
        self._rngs = nnx.Rngs(0) if rngs is None else rngs
        self._twins: dict[int, tuple[nnx.Variable, nnx.Variable]] = {}  # the old variable is kept, so its id is too

    def replace(self, conv: nnx.Conv, factory: Factory) -> str:
        """Turns a convolution into what the factory makes in its place; says in words what that is.

        Raises:
            _CannotReplaceError: if it is no equal.
        """
        usual = (*_kernel_size(conv), conv.in_features // conv.feature_group_count, conv.out_features)
        if conv.kernel.shape != usual:
            raise _CannotReplaceError(
                f"its kernel has the shape {conv.kernel.shape} in place of {usual}, as nnx.vmap and nnx.scan stack them"
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
        new = build(self._rngs) if fresh and not is_abstract else shapes  # whose values are never computed
        for name in ("kernel", "bias"):
            old: Any = getattr(conv, name)
            own: Any = getattr(new, name, None)
            if name in carried and old.dtype == own.dtype:
                setattr(new, name, old)
            elif name in carried and not is_abstract:
                setattr(new, name, own.replace(old[...].astype(own.dtype)))
            elif _fits(shapes, conv, name):
                _, twin = self._twins.setdefault(id(old), (old, own))
                setattr(new, name, twin)
        words = [" and ".join(carried) + " carried over"] if carried else []
        words += ["the rest newly initialised" if carried else "newly initialised"] if fresh else []
        words += ["without the bias"] if conv.bias is not None and getattr(new, "bias", None) is None else []
        _become(conv, new)
        return ", ".join([type(new).__name__, *words])


def _call(factory: Factory, conv: nnx.Conv, rngs: nnx.Rngs) -> nnx.Module:
    """Calls a factory with a convolution's arguments, but for those that it has bound itself."""
    bound: dict[str, Any] = {}
    inner: Any = factory
    while isinstance(inner, functools.partial):
        bound = {**inner.keywords, **bound}
        inner = inner.func
    arguments = {name: value for name, value in _arguments(conv).items() if name not in bound}
    _check_call(inner, bound, arguments)
    new = factory(conv.in_features, conv.out_features, **arguments, rngs=rngs)
    if not isinstance(new, nnx.Module):
        raise TypeError(f"factory gave a {type(new).__name__}: expected a Flax NNX module that maps one array to one.")
    return new


def _check_call(factory: Callable[..., Any], bound: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    try:
        # Flax's metaclass hides the arguments of a class.
        signature = inspect.signature(factory.__init__ if isinstance(factory, type) else factory)
    except ValueError:  # a builtin that does not tell
        return
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    for name in arguments:
        if not takes_all and name not in signature.parameters and name not in ("kernel_size", *_ALWAYS):
            raise _CannotReplaceError(f"the factory takes no {name!r}, which this convolution has")
    positional = (None,) * (3 if isinstance(factory, type) else 2)
    try:
        signature.bind(*positional, **{**bound, **arguments, "rngs": None})
    except TypeError as error:
        raise TypeError(
            f"factory cannot be called as nnx.Conv is, with the channels and then {', '.join(arguments)} and rngs by "
            f"name: {error}; bind what it needs besides with functools.partial"
        ) from None


def _check_output(new: nnx.Module, conv: nnx.Conv) -> None:
    """Compares the shapes of the outputs for an even and an odd size."""
    size = _kernel_size(conv)
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
                # Shapes do not depend on it, and the choice of the best one takes time.
                setattr(part, "lowering", "dense")  # noqa: B010
        return copy(x)

    outputs = jax.eval_shape(apply, state, images)
    return outputs.shape if hasattr(outputs, "shape") else jax.tree.map(np.shape, outputs)


def _fits(new: Any, conv: nnx.Conv, name: str) -> bool:
    """Whether both have this parameter, in one shape."""
    own, old = getattr(new, name, None), getattr(conv, name)
    return isinstance(own, nnx.Variable) and old is not None and own.shape == old.shape


def _become(module: nnx.Module, other: nnx.Module) -> None:
    """Turns one module into another, in every place where it stands.

    Places cannot all be written to: a model may hold a convolution in a tuple, or under several names. The object
    itself can be given another class and other attributes.
    """
    object.__setattr__(module, "__class__", type(other))
    vars(module).clear()
    vars(module).update(vars(other))
