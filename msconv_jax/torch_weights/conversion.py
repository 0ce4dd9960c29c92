"""Converts PyTorch's names and layouts to a module's parameters; the rules of each class are in other files.

A :class:`Conversion` lists the PyTorch tensors that a module needs and computes the module's values from them. It uses
differentiable operations only, so tests can also compare gradients in PyTorch's layouts. A rule is a function from a
module to its conversions, registered by :func:`converts`. A module without a rule is converted child by child, under
the names of its children, some of which :func:`rename_children` changes.

The rules and names of each class are in one file of ``msconv_jax/torch_weights``:

=====================================================================  ===================
Class                                                                  File
=====================================================================  ===================
``nnx.Conv``, ``GroupedConv``, ``nnx.Linear``, ``nnx.BatchNorm``       ``layers.py``
``FeatureBackbone``                                                    ``layers.py``
``PSConv``                                                             ``psconv.py``
``PyConv`` and the blocks of PyConvResNet                              ``pyconv.py``
``ICConv``                                                             ``icconv.py``
``HetConv``                                                            ``hetconv.py``
``OctConv`` and the blocks of Oct-ResNet and Oct-MobileNet             ``octconv.py``
``Res2Bottleneck``, ``ConvNormAct``, the shortcuts and stems           ``res2net.py``
``SISConv``                                                            ``sis.py``
``ACConv``, ``ACResNet``                                               ``acnet.py``
``PACConv``, ``PACConvTranspose``, ``PACPool``                         ``pac.py``
``MobileNetV2``                                                        ``mobilenet.py``
``VGG``                                                                ``vgg.py``
``PyConvSegNet``, ``SegBaseline`` and their heads                      ``segmentation.py``
=====================================================================  ===================
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
from msconv_jax.torch_weights.records import printable

Arrays = Mapping[str, Any]
Shape = tuple[int, ...]
_MAX_LINES = 20  # of each kind of problem in a message


def _no_problems(tensors: Arrays) -> list[str]:
    del tensors
    return []


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Computes the values of one module from PyTorch tensors.

    Attributes:
        shapes: name and shape of every PyTorch tensor that the module needs.
        convert: differentiable function from these tensors (NumPy's or JAX's) to the module's values under dotted
            names, such as ``conv.kernel`` or ``convs.0.kernel``.
        check: function from tensors of the right shapes, as NumPy arrays, to a list of problems, one sentence each.
    """

    shapes: Mapping[str, Shape]
    convert: Callable[[Arrays], dict[str, Any]]
    check: Callable[[Arrays], list[str]] = _no_problems


Rule = Callable[[Any], tuple[Conversion, ...]]
_RULES: dict[type, Rule] = {}
_NAMES: dict[type, Callable[[Any], dict[str, str]]] = {}


def converts(*kinds: type) -> Callable[[Rule], Rule]:
    """Registers the decorated function as the rule for modules of these classes and their subclasses.

    A rule returns one conversion for each form in which weights are published, the usual one first.
    """

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def rename_children(kind: type, names: dict[str, str] | Callable[[Any], dict[str, str]]) -> None:
    """Sets PyTorch's names of the children of a class that is converted child by child.

    Args:
        kind: the class.
        names: mapping from our names to PyTorch's where they differ, or a function from a module to such a mapping.
            Under the empty name, the child's tensors have no prefix. A dotted name renames a child of a child and
            overrides the name that the child's class sets.
    """
    _NAMES[kind] = names if callable(names) else lambda module: names


def conversion_of(
    module: nnx.Module, given: Collection[str] | None = None, names: Mapping[str, str] = MappingProxyType({})
) -> Conversion:
    """The conversion of a module: by the rule of its class, or joined from those of its children.

    Args:
        module: the module.
        given: the names in the file. They select among several published forms: the first whose names are all
            given, or the first of all if there is none.
        names: PyTorch's names of children; they override those of `rename_children`.

    Raises:
        ValueError: if the module holds a parameter that no rule converts.
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
        below = None if given is None else {key.removeprefix(prefix) for key in given if key.startswith(prefix)}
        deeper = {key.removeprefix(f"{name}."): value for key, value in names.items() if key.startswith(f"{name}.")}
        parts.append((prefix, f"{name}.", conversion_of(child, below, deeper)))
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
    """Joins conversions, each given with the prefix of PyTorch's names and the prefix of ours."""
    shapes = {theirs + name: shape for theirs, _, part in parts for name, shape in part.shapes.items()}

    def convert(tensors: Arrays) -> dict[str, Any]:
        values = {}
        for theirs, ours, part in parts:
            converted = part.convert({name: tensors[theirs + name] for name in part.shapes})
            values |= {ours + name: value for name, value in converted.items()}
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
            ignored.
        strict: if True, names that the module does not have are an error. If False, they are ignored, and the network
            keeps its classifier if that of the file is missing or has another shape, as for another number of classes.
            All other names of the module must be given in both cases.

    Returns:
        The module.

    Raises:
        ValueError: if tensors are missing, unexpected or of another shape; it lists at most 20 of each. The module is
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
        kinds.append([f"unexpected: {printable(name)} {given[name].shape}" for name in unexpected])
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
        count, lines = sum(map(len, kinds)), [line for problems in kinds for line in _limit_lines(problems)]
        raise ValueError(f"the weights do not fit {type(module).__name__} ({count} problems):\n  " + "\n  ".join(lines))
    values = conversion.convert({name: given[name] for name in conversion.shapes})
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    for path, variable in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        if kept and name.startswith(f"{module.classifier_name}."):  # type: ignore[attr-defined]
            continue
        if variable.shape != np.shape(values[name]):
            raise ValueError(f"{name}: the rule gives {np.shape(values[name])}, the module has {variable.shape}.")
        variable[...] = jnp.asarray(values[name], variable.dtype)
    nnx.update(module, state)
    return module


def _limit_lines(problems: list[str]) -> list[str]:
    """The first problems, and a line with the number of the others."""
    more = len(problems) - _MAX_LINES
    return [*problems[:_MAX_LINES], f"... and {more} more like this"] if more > 0 else problems


def _unfit_classifier(module: nnx.Module, conversion: Conversion, given: Arrays) -> tuple[str, ...]:
    """The published names of the module's classifier, if one is missing or of another shape."""
    prefix = _published_classifier(module)
    names = tuple(name for name in conversion.shapes if prefix is not None and name.startswith(prefix))
    fit = all(name in given and given[name].shape == tuple(conversion.shapes[name]) for name in names)
    return () if fit else names


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _published_classifier(module: Any) -> str | None:
    """The prefix of the published names of a network's classifier; None if the network has no classifier."""
    prefix = getattr(module, "published_classifier", None)
    if prefix is not None:
        return prefix
    theirs: list[str] = []
    for name in getattr(module, "classifier_name", "").split("."):
        theirs.append(_names_of(module).get(name, name))
        module = getattr(module, name, None)
        if module is None:
            return None
    return ".".join(theirs) + "."
