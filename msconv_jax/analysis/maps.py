"""Calls a network as a pure function from images to one of its feature maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

__all__ = ["Network", "check_images", "check_unit", "one_map", "split_network"]

Network = nnx.Module | Callable[[jax.Array], Any]
"""An NNX module with `feature_maps`, or a callable from images to a feature map or several."""


def split_network(model: Network) -> tuple[Any, Any]:
    """Splits a network into a static part, by which ``jax.jit`` caches programs, and its values.

    Networks built with equal arguments have equal static parts. A callable that is not a module is static as a whole.
    """
    return nnx.split(model) if isinstance(model, nnx.Module) else (model, ())


def merge_network(static: Any, values: Any) -> Any:
    """Merges what :func:`split_network` gave into a copy in evaluation mode, or returns the callable."""
    if not isinstance(static, nnx.GraphDef):
        return static
    model = nnx.merge(static, values)
    model.eval()
    return model


def one_map(static: Any, values: Any, images: jax.Array, index: int) -> jax.Array:
    """One of the feature maps of a network for images.

    Args:
        static: see :func:`split_network`.
        values: see :func:`split_network`.
        images: (N, H, W, C).
        index: number of the map among several.

    Returns:
        The map (N, H', W', C').

    Raises:
        ValueError: if there is no such map, or the result is not a map.
    """
    model = merge_network(static, values)
    maps = model.feature_maps(images) if hasattr(model, "feature_maps") else model(images)
    if isinstance(maps, tuple | list):
        if not -len(maps) <= index < len(maps):
            raise ValueError(f"index={index}: there are {len(maps)} maps; take {-len(maps)} to {len(maps) - 1}.")
        maps = maps[index]
    elif index not in (0, -1):
        raise ValueError(f"index={index}: the network gives a single map; omit index.")
    shape = getattr(maps, "shape", None)
    if shape is None or len(shape) != 4 or shape[0] != images.shape[0] or 0 in shape:
        found = type(maps).__name__ if shape is None else f"an array of shape {tuple(shape)}"
        raise ValueError(
            f"the network gives {found} for images of shape {images.shape}: expected a map (N, H, W, C) that is not "
            "empty; give a module with feature_maps, or a function of the images that returns a map."
        )
    return maps


def check_images(images: Any) -> jax.Array:
    """Converts images to an array of floats.

    Raises:
        ValueError: if the shape is not (N, H, W, C).
    """
    array = jnp.asarray(images)
    if array.ndim != 4 or 0 in array.shape:
        raise ValueError(f"images of shape {array.shape}: expected (N, H, W, C); give one image as images[None].")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.float32)


def check_unit(unit: tuple[int, int] | None, size: tuple[int, int]) -> tuple[int, int]:
    """Checks the row and column of a unit of a map; None gives the middle unit, the later one of an even number.

    Raises:
        ValueError: if the unit is not in the map.
    """
    if unit is None:
        return size[0] // 2, size[1] // 2
    row, column = unit
    if not (0 <= row < size[0] and 0 <= column < size[1]):
        raise ValueError(f"unit={unit}: the map has {size[0]} rows and {size[1]} columns; count from 0.")
    return int(row), int(column)
