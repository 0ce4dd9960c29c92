"""What a kind of fixture needs to be run by this library: how its module is made, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

__all__ = ["CannotBuildError", "Family"]


class CannotBuildError(Exception):
    """The fixture asks for something that the library does not offer."""


def call_directly(module: Any, *inputs: Any) -> tuple[Any, ...]:
    """The module's one output."""
    return (module(*inputs),)


class Family(NamedTuple):
    """A kind of operator fixture.

    Attributes:
        build: from the constructor arguments of the public class to our module.
        call: from the module and the channels-last inputs to the tuple of channels-last outputs.
    """

    build: Callable[[Mapping[str, Any]], nnx.Module]
    call: Callable[..., tuple[Any, ...]] = call_directly
