"""Checks arrays against the shapes and dtypes of the annotations, while the tests run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray

Function = TypeVar("Function", bound=Callable[..., Any])
_ROOT = Path(__file__).parent.parent


def check_arrays(function: Function) -> Function:
    """The type checker that jaxtyping's import hook applies to every function: beartype, for arrays only.

    jaxtyping checks twice: the arguments before a call, then the arguments and the result together. The first check is
    left out, so that a function that refuses a shape by itself raises the error that users see.
    """
    annotations = function.__annotations__
    if annotations.get("return", Any) is Any or not any(map(_has_array, annotations.values())):
        return function
    function.__annotations__ = {name: kind if _has_array(kind) else Any for name, kind in annotations.items()}
    return beartype(function)


def annotated_modules() -> list[str]:
    """The modules that annotate arrays; the hook would slow every function of the others down."""
    return [
        ".".join(path.relative_to(_ROOT).with_suffix("").parts)
        for folder in ("msconv_jax", "train")
        for path in (_ROOT / folder).rglob("*.py")
        if "from jaxtyping import" in path.read_text()
    ]


def _has_array(annotation: Any) -> bool:
    is_array = isinstance(annotation, type) and issubclass(annotation, AbstractArray)
    return is_array or any(map(_has_array, get_args(annotation)))
