"""Pickling of modules that hold an activation function."""

from __future__ import annotations

import dataclasses
import functools
import pkgutil
import types
from collections.abc import Callable
from typing import Any

from flax import nnx


class Picklable(nnx.Module):
    """Base of the modules that hold a function of the caller's choice.

    Functions that JAX decorates, such as ``jax.nn.relu``, cannot be pickled: pickle finds the decorated function under
    the name of the plain one. These modules pickle such a function by its name, as pickle does with plain functions, so
    that they can be sent to other processes and copied by ``copy.deepcopy``.

    Example:
        >>> import pickle
        >>> from flax import nnx
        >>> class Layer(Picklable):
        ...     def __init__(self, act):
        ...         self.act = act
        >>> state = Layer(nnx.relu).__getstate__()
        >>> pickle.loads(pickle.dumps(state))["act"] is nnx.relu
        True
    """

    def __getstate__(self) -> dict[str, Any]:
        return {name: _by_name(value) for name, value in super().__getstate__().items()}


@dataclasses.dataclass(frozen=True)
class _ByName:
    """A function that is pickled as its name and unpickled as the function."""

    function: Callable[..., Any]
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self):
        return pkgutil.resolve_name, (self.name,)


def _by_name(value: Any) -> Any:
    """Replaces decorated functions that can be found by name; returns any other value unchanged."""
    if type(value) is tuple:
        return tuple(map(_by_name, value))
    if isinstance(value, functools.partial):
        return functools.partial(_by_name(value.func), *value.args, **value.keywords)
    plain = isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | nnx.Module)
    module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if plain or not callable(value) or not module or not qualname:
        return value
    name = f"{module}:{qualname}"
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return value
    return _ByName(value, name) if found is value else value
