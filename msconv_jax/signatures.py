"""Explains failed calls: names the argument that has the wrong name or type."""

from __future__ import annotations

import collections.abc
import contextlib
import difflib
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

__all__ = ["SYMPTOMS", "check_arguments", "check_module", "explains_arguments"]

P = ParamSpec("P")
R = TypeVar("R")

# The errors that Python raises inside a function when an argument has a wrong type.
SYMPTOMS = (TypeError, AttributeError, IndexError, KeyError)
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    types.NoneType: "None",
}


def check_module(name: str, value: object) -> None:
    """Raises `ValueError` unless `value` is a Flax NNX module.

    Example:
        >>> check_module("model", linen.Dense(3))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: model is a Linen Dense but must be a flax.nnx.Module; build the network with NNX, or ...
    """
    if isinstance(value, nnx.Module):
        return
    if isinstance(value, linen.Module):
        raise ValueError(
            f"{name} is a Linen {type(value).__name__} but must be a flax.nnx.Module; build the network with NNX, or "
            "use msconv_jax.linen, whose params_of carries parameters over"
        )
    raise ValueError(f"{name} is {_shown(value)} but must be a flax.nnx.Module; build the network first")


def explains_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function: an error that a wrong type causes becomes one that names the argument.

    Arguments are compared with the annotations only after the function has failed, so calls that work still work.

    Example:
        >>> @explains_arguments
        ... def total(numbers: list[int]) -> int:
        ...     return sum(numbers)
        >>> total([1, 2])
        3
        >>> total(3)
        Traceback (most recent call last):
        ValueError: numbers is 3 but must be a list of whole numbers; help(total) describes it
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except SYMPTOMS as error:
            name = type(args[0]).__name__ if function.__name__ == "__init__" else function.__name__
            _check_names(function, name, kwargs, error)
            try:
                arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            except TypeError:  # too many, too few or unknown arguments, which Python names
                raise error from None
            check_arguments(function, arguments, name, cause=error)
            raise

    return call


def check_arguments(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    owner: str | None = None,
    cause: BaseException | None = None,
) -> None:
    """Raises `ValueError` for the first argument whose type differs from its annotation.

    Args:
        function: the function, or a class; of a class, its ``__init__``.
        arguments: by their names.
        owner: name of the function in the message; None is its ``__name__``.
        cause: the original error, if there is one.
    """
    target = function.__init__ if inspect.isclass(function) else function
    hints = {name: parameter.annotation for name, parameter in inspect.signature(target).parameters.items()}
    with contextlib.suppress(NameError):  # names that are imported for type checkers only
        hints |= typing.get_type_hints(target)
    for hint in [*hints.values()]:
        if get_origin(hint) is typing.Unpack:  # keywords that a TypedDict names
            hints |= typing.get_type_hints(get_args(hint)[0])
    for name, value in arguments.items():
        if name in ("dtype", "param_dtype") and not _is_dtype(value):
            raise ValueError(f"{name} is {_shown(value)} but must be a type of numbers, as jnp.bfloat16") from cause
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            raise ValueError(
                f"{name} is {_shown(value)} but must be {_words(hint)}; help({owner or function.__name__}) describes it"
            ) from cause


def _check_names(function: Callable[..., Any], owner: str, names: Iterable[str], cause: BaseException) -> None:
    """Raises `TypeError` for an unknown argument name, with the nearest known name."""
    known: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            known.append(name)
            continue
        hint = typing.get_type_hints(function).get(name)
        if get_origin(hint) is not typing.Unpack:  # it may take any name
            return
        known += get_args(hint)[0].__annotations__
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"help({owner}) lists them"
            raise TypeError(f"{owner} got an unexpected keyword argument {name!r}; {meant}") from cause


def _is_dtype(value: Any) -> bool:
    try:
        return value is None or jnp.issubdtype(jnp.dtype(value), jnp.number)
    except TypeError:
        return False


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has an annotated type; True where that cannot be decided."""
    if isinstance(hint, str) or hint is inspect.Parameter.empty:  # an annotation with unknown names, or none
        return True
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if hint is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if hint is bool:
        return isinstance(value, bool | np.bool_) or (isinstance(value, int) and value in (0, 1))
    if hint is None:
        return value is None
    if origin is collections.abc.Callable:
        return callable(value)
    if inspect.isclass(origin):
        return _fits_container(value, origin, parts)
    if isinstance(hint, TypeVar):
        return hint.__bound__ is None or _fits(value, hint.__bound__)
    return not inspect.isclass(hint) or typing.is_typeddict(hint) or _is_instance(value, hint)


def _fits_container(value: Any, origin: type, parts: tuple[Any, ...]) -> bool:
    if not _is_instance(value, origin) or type(value) in (str, bytes):  # a string is not a list of strings
        return False
    if issubclass(origin, tuple) and parts[-1:] != (...,):
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if issubclass(origin, collections.abc.Mapping):
        return all(_fits(key, parts[0]) and _fits(item, parts[1]) for key, item in value.items())
    if issubclass(origin, collections.abc.Sequence):
        return all(_fits(item, parts[0]) for item in value)
    return True


def _is_instance(value: Any, kind: type) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that does not support isinstance
        return True


def _words(hint: Any) -> str:
    """The description of an annotated type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        *first, last = dict.fromkeys(map(_words, parts))
        return f"{', '.join(first)} or {last}" if first else last
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is collections.abc.Callable:
        return "a function or class to call"
    if origin is type:
        return "a class"
    if origin is os.PathLike:
        return "a path"
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Mapping):
        return f"a dictionary from {_many(parts[0])} to {_many(parts[1])}"
    if inspect.isclass(origin):
        kind = "tuple" if issubclass(origin, tuple) else "list"
        return f"a {kind} of {_many(parts[0])}"
    if isinstance(hint, TypeVar) and hint.__bound__ is not None:
        return _words(hint.__bound__)
    return f"of the type {getattr(hint, '__qualname__', hint)}"


def _many(hint: Any) -> str:
    plain = {int: "whole numbers", float: "numbers", str: "strings", bool: "switches"}
    return plain.get(hint, f"items that are each {_words(hint)}" if hint is not Any else "anything")


def _shown(value: object) -> str:
    """A value as text on one line, shortened to 80 characters and its type."""
    if isinstance(value, nnx.Module | linen.Module):
        return f"a {type(value).__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}... ({type(value).__name__})"
