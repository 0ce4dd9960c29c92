"""Describes a kind of fixture: builds its module of this library, and calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

__all__ = ["CannotBuildError", "Family"]


class CannotBuildError(Exception):
    """The fixture needs something that the library does not support."""


def call_directly(module: Any, *inputs: Any) -> tuple[Any, ...]:
    """Returns the module's only output."""
    return (module(*inputs),)


class Family(NamedTuple):
    """A kind of operator fixture.

    Attributes:
        build: builds our module from the constructor arguments of the public class.
        call: maps the module and the channels-last inputs to the tuple of channels-last outputs.
    """

    build: Callable[[Mapping[str, Any]], nnx.Module]
    call: Callable[..., tuple[Any, ...]] = call_directly
