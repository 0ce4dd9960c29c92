"""How PyTorch's names and layouts become a module's parameters: the mechanism, without any operator's own rules.

A :class:`Conversion` says which PyTorch tensors a module is made from and computes the module's values from them by
differentiable operations alone, so that gradients can be compared in PyTorch's layouts as well. Each operator's rule is
a function from a module to its conversion, registered by :func:`converts`; a module without a rule of its own is
converted child by child, under the children's names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from msconv_jax.signatures import check_module, explains_arguments
from msconv_jax.torch_weights.records import plain

Arrays = Mapping[str, Any]
Shape = tuple[int, ...]
_MOST_SHOWN = 20  # problems of a kind in a message


def _no_problems(tensors: Arrays) -> list[str]:
    del tensors
    return []


@dataclasses.dataclass(frozen=True)
class Conversion:
    """From PyTorch tensors to the values of one module.

    Attributes:
        shapes: name and shape of every PyTorch tensor that is needed.
        convert: from these tensors (NumPy's or JAX's) to the module's values under dotted names, such as
            ``conv.kernel`` or ``convs.0.kernel``; differentiable.
        check: what is wrong with tensors of the right shapes, a sentence for each problem; sees NumPy arrays only.
    """

    shapes: Mapping[str, Shape]
    convert: Callable[[Arrays], dict[str, Any]]
    check: Callable[[Arrays], list[str]] = _no_problems


Rule = Callable[[Any], tuple[Conversion, ...]]
_RULES: dict[type, Rule] = {}
_NAMES: dict[type, Callable[[Any], dict[str, str]]] = {}


def converts(*kinds: type) -> Callable[[Rule], Rule]:
    """Registers the decorated function as the rule for modules of these classes and their subclasses.

    A rule returns one conversion for each form in which the weights may be published, the usual one first.
    """

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def rename_children(kind: type, names: dict[str, str] | Callable[[Any], dict[str, str]]) -> None:
    """For a class that is converted child by child: PyTorch's names of its children where they differ from ours.

    Args:
        kind: the class.
        names: from our names to PyTorch's, or a function that tells them for a module. The empty name puts a child's
            tensors beside the module's own. A dotted name is a child's child: its name there, in place of the one that
            the child's class gives it.
    """
    _NAMES[kind] = names if callable(names) else lambda module: names


def conversion_of(
    module: nnx.Module, given: Collection[str] | None = None, names: Mapping[str, str] = MappingProxyType({})
) -> Conversion:
    """The conversion for a module: by its class's rule, else joined from its children's.

    Args:
        module: the module.
        given: the names that there are; of several published forms the first that finds all its names is taken, or
            else the first.
        names: PyTorch's names of children that go before those of `rename_children`.

    Raises:
        ValueError: if the module holds a parameter that no rule knows.
    """
    for kind in type(module).__mro__:
        if kind in _RULES:
            forms = _RULES[kind](module)
            return next((form for form in forms if given is not None and form.shapes.keys() <= set(given)), forms[0])
    names = {**_names_of(module), **names}
    parts: list[tuple[str, str, Conversion]] = []
    for name, child in _children(module):
        theirs = names.get(name, name)
        prefix = f"{theirs}." if theirs else ""
        own = None if given is None else {key.removeprefix(prefix) for key in given if key.startswith(prefix)}
        deeper = {key.removeprefix(f"{name}."): value for key, value in names.items() if key.startswith(f"{name}.")}
        parts.append((prefix, f"{name}.", conversion_of(child, own, deeper)))
    return _join(parts)


def _names_of(module: nnx.Module) -> dict[str, str]:
    """PyTorch's names of a module's children where they differ from ours."""
    return next((_NAMES[kind](module) for kind in type(module).__mro__ if kind in _NAMES), {})


def _children(module: nnx.Module) -> list[tuple[str, nnx.Module]]:
    """The submodules by attribute name, those of a list as ``name.number``."""
    found: list[tuple[str, nnx.Module]] = []
    for name, value in vars(module).items():
        if isinstance(value, nnx.List):
            for number, item in enumerate(value):
                if isinstance(item, nnx.Module):
                    found.append((f"{name}.{number}", item))
        elif isinstance(value, nnx.Module):
            found.append((name, value))
        elif isinstance(value, nnx.Param | nnx.BatchStat):
            raise ValueError(f"{type(module).__name__}.{name}: no rule converts it from PyTorch's weights.")
    return found


def _join(parts: list[tuple[str, str, Conversion]]) -> Conversion:
    """Several conversions as one; each has its prefix among PyTorch's names and among ours."""
    shapes = {theirs + name: shape for theirs, _, part in parts for name, shape in part.shapes.items()}

    def convert(tensors: Arrays) -> dict[str, Any]:
        values = {}
        for theirs, ours, part in parts:
            own = {name: tensors[theirs + name] for name in part.shapes}
            values |= {ours + name: value for name, value in part.convert(own).items()}
        return values

    def check(tensors: Arrays) -> list[str]:
        return [
            theirs + problem
            for theirs, _, part in parts
            for problem in part.check({name: tensors[theirs + name] for name in part.shapes})
        ]

    return Conversion(shapes, convert, check)


@explains_arguments
def load_state_dict(module: nnx.Module, state_dict: Mapping[str, Any], *, strict: bool = True) -> nnx.Module:
    """Loads a published PyTorch ``state_dict`` into a module, in place.

    Args:
        module: an operator of this library, or a module made of them.
        state_dict: PyTorch's names and arrays (NumPy's, or anything that NumPy takes). ``num_batches_tracked`` is
            left out of account.
        strict: whether names that the module does not know are an error. Without it, they are left out of account, and
            a network's classifier that is missing or of another shape, as for another number of classes, keeps the
            module's values. All other names must be there in any case.

    Returns:
        The module.

    Raises:
        ValueError: naming tensors that are missing, unexpected or of another shape, at most 20 of each; the module is
            then unchanged.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> import msconv_jax
        >>> conv = msconv_jax.GroupedConv(4, 8, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
        >>> _ = msconv_jax.load_state_dict(conv, {"weight": np.ones((8, 4, 3, 3), np.float32)})
        >>> float(conv.kernel[...].sum())
        288.0
    """
    check_module("module", module)
    given = {name: np.asarray(value) for name, value in state_dict.items() if not _is_counter(name)}
    conversion = conversion_of(module, given)
    kept = () if strict else _unfit_classifier(module, conversion, given)
    given |= {name: np.zeros(conversion.shapes[name], np.float32) for name in kept}
    kinds = [[f"missing: {name} {shape}" for name, shape in conversion.shapes.items() if name not in given]]
    if strict:
        unexpected = [name for name in given if name not in conversion.shapes]
        kinds.append([f"unexpected: {plain(name)} {given[name].shape}" for name in unexpected])
    kinds.append(
        [
            f"wrong shape: {name} is {given[name].shape}, expected {shape}"
            for name, shape in conversion.shapes.items()
            if name in given and given[name].shape != tuple(shape)
        ]
    )
    if not any(kinds):
        kinds = [conversion.check({name: given[name] for name in conversion.shapes})]
    if any(kinds):
        count, lines = sum(map(len, kinds)), [line for problems in kinds for line in _first(problems)]
        raise ValueError(f"the weights do not fit {type(module).__name__} ({count} problems):\n  " + "\n  ".join(lines))
    values = conversion.convert({name: given[name] for name in conversion.shapes})
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    for path, variable in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        if kept and name.startswith(f"{module.classifier_name}."):  # type: ignore[attr-defined]
            continue
        if variable.shape != np.shape(values[name]):
            raise ValueError(f"{name}: made {np.shape(values[name])} where the module has {variable.shape}.")
        variable[...] = jnp.asarray(values[name], variable.dtype)
    nnx.update(module, state)
    return module


def _first(problems: list[str]) -> list[str]:
    """The first problems of a kind, and the number of the others."""
    more = len(problems) - _MOST_SHOWN
    return [*problems[:_MOST_SHOWN], f"... and {more} more like this"] if more > 0 else problems


def _unfit_classifier(module: nnx.Module, conversion: Conversion, given: Arrays) -> tuple[str, ...]:
    """The published names of the module's classifier, if one is missing or of another shape."""
    prefix = _published_classifier(module)
    names = tuple(name for name in conversion.shapes if prefix is not None and name.startswith(prefix))
    fit = all(name in given and given[name].shape == tuple(conversion.shapes[name]) for name in names)
    return () if fit else names


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _published_classifier(module: Any) -> str | None:
    """How the published names of a network's classifier begin; None without one."""
    told = getattr(module, "published_classifier", None)
    if told is not None:
        return told
    theirs: list[str] = []
    for own in getattr(module, "classifier_name", "").split("."):
        theirs.append(_names_of(module).get(own, own))
        module = getattr(module, own, None)
        if module is None:
            return None
    return ".".join(theirs) + "."
