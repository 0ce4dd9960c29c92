"""Finds the convolutions of a model and selects some of them by their properties."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import jax
from flax import nnx

from msconv_jax.operators import GroupedConv
from msconv_jax.signatures import check_arguments, check_module, explains_arguments

__all__ = [
    "PLAIN",
    "Found",
    "Predicate",
    "Where",
    "condition",
    "convolutions",
    "filter_convolutions",
    "find_convolutions",
    "kernel_size_of",
    "list_paths",
    "selected_convolutions",
]

PLAIN: tuple[type[nnx.Conv], ...] = (nnx.Conv, GroupedConv)
"""The classes of plain convolutions."""

Predicate = Callable[[str, nnx.Conv], bool]


@dataclasses.dataclass(frozen=True)
class Where:
    """Selects the convolutions that meet all given conditions.

    Attributes:
        path: one or several glob patterns; one of them must match the convolution's path in the model, such as
            ``layer1.0.conv2``. ``*`` also matches dots.
        kernel_size: taps, one int for every axis or a tuple.
        feature_group_count: number of groups, or "depthwise" for groups of one input channel.
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
        size = kernel_size_of(conv)
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
class Found:
    """A convolution of a model and all its paths, sorted, so that the first path is the same in every copy."""

    module: nnx.Conv
    paths: tuple[str, ...]


@explains_arguments
def convolutions(model: nnx.Module) -> dict[str, nnx.Conv]:
    """The convolutions of a model by their paths, in the order of construction.

    Includes subclasses of ``nnx.Conv``, such as most operators of this library. A convolution in several places is
    listed once, under the first of its sorted paths. A model that was split and merged, or cloned, has sorted
    attributes, so the order of construction is lost except in lists.

    Example:
        >>> list(convolutions(nnx.Sequential(nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.relu)))
        ['layers.0']
    """
    check_module("model", model)
    return {conv.paths[0]: conv.module for conv in find_convolutions(model)}


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
    plain = [conv for conv in find_convolutions(model) if type(conv.module) in types]
    return {conv.paths[0]: conv.module for conv in filter_convolutions(plain, condition(where))}


def find_convolutions(model: nnx.Module) -> list[Found]:
    """The convolutions of a model in the order of construction."""
    paths: dict[int, list[str]] = {}
    modules: dict[int, nnx.Conv] = {}
    for path, module in _walk(model, "", ()):
        if isinstance(module, nnx.Conv):
            modules[id(module)] = module
            paths.setdefault(id(module), []).append(path)
    return [Found(module, tuple(sorted(paths[key]))) for key, module in modules.items()]


def _walk(node: Any, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """Yields every module below a node, once for each of its paths without a cycle.

    A module's set of paths then does not depend on the order of attributes, which copies of a model do not keep.
    """
    yield path, node
    if id(node) in above:
        return
    items = enumerate(node) if isinstance(node, nnx.List) else vars(node).items()
    for name, value in items:
        for keys, leaf in jax.tree_util.tree_leaves_with_path(value, is_leaf=_is_node):
            if isinstance(leaf, nnx.Pytree):
                below = [str(name), *(jax.tree_util.keystr((key,), simple=True) for key in keys)]
                yield from _walk(leaf, ".".join(filter(None, [path, *below])), (*above, id(node)))


def _is_node(value: Any) -> bool:
    return isinstance(value, nnx.Pytree | nnx.Variable)


def kernel_size_of(conv: nnx.Conv) -> tuple[int, ...]:
    """Taps along each axis; ``nnx.Conv`` keeps an int as it was given."""
    size = conv.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)


def filter_convolutions(found: list[Found], is_selected: Predicate) -> list[Found]:
    """The convolutions that a predicate selects under any of their paths."""
    return [conv for conv in found if any(is_selected(path, conv.module) for path in conv.paths)]


def condition(where: Where | Predicate | str | None) -> Predicate:
    """The predicate for a `where` argument; None selects every kernel of more than one tap.

    Raises:
        ValueError: if `where` has another type.
    """
    if where is None:
        return lambda path, conv: any(taps > 1 for taps in kernel_size_of(conv))
    if isinstance(where, str):
        return Where(path=where)
    if not callable(where):
        raise ValueError(f"where={where!r}: expected a surgery.Where, a glob pattern, or a function of path and conv")
    return where


def list_paths(paths: Sequence[str]) -> str:
    """The first paths for a message, and the number of the others."""
    return ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "") if paths else "none"
