"""Records the inputs of a supernet's searched convolutions: their shapes, or their means over data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from msconv_jax.edo.supernet import SupernetConv, supernet_convs
from msconv_jax.recording import recorded_calls

__all__ = ["expected_inputs", "input_shapes"]


def _means(model: Any, images: jax.Array) -> dict[str, jax.Array]:
    """The mean input of each searched convolution over a batch. Sets the model to evaluation mode."""
    convs = supernet_convs(model)
    model.eval()
    with recorded_calls(model, lambda module: isinstance(module, SupernetConv)) as calls:
        model(images)
    means = {}
    for path, conv in convs.items():
        seen = [_mean(call.inputs[0], len(conv.kernel_size)) for call in calls if call.path == path]
        shapes = sorted({mean.shape for mean in seen})
        if len(shapes) != 1:
            raise ValueError(
                f"{path} is called with inputs of {len(shapes)} sizes {shapes}: an expected input needs a single size; "
                "use objective='sum' or 'abs', which need no expected input."
            )
        means[path] = jnp.stack(seen).mean(axis=0)
    return means


def _mean(inputs: ArrayLike, ndim: int) -> jax.Array:
    """The mean over all batch axes of maps with `ndim` spatial axes."""
    x = jnp.asarray(inputs)
    return x.reshape(-1, *x.shape[-ndim - 1 :]).mean(axis=0, dtype=jnp.float32)


def expected_inputs(supernet: nnx.Module, batches: Iterable[ArrayLike]) -> dict[str, np.ndarray]:
    """Measures the expected input E[X] of each searched convolution: the mean over images, in evaluation mode.

    Args:
        supernet: a trained supernet, called with one array; it stays unchanged.
        batches: input arrays ``(batch, *spatial, channels)`` of the supernet, all of one image shape.

    Returns:
        A dictionary from the path of each searched convolution to a float32 array ``(*spatial, in_features)``.

    Raises:
        ValueError: if there are no batches, or a convolution has inputs of several sizes.

    Source: Eq. (3) of the paper, before the assumption that E[X] is constant.

    Example:
        >>> from msconv_jax import edo
        >>> supernet = edo.supernet(nnx.Conv(1, 2, (3, 3), rngs=nnx.Rngs(0)), d_max=2)
        >>> edo.expected_inputs(supernet, [np.ones((4, 8, 8, 1))])[""].shape  # the path of the model itself
        (8, 8, 1)
    """
    graphdef, state = nnx.split(supernet)
    step = jax.jit(lambda state, images: _means(nnx.merge(graphdef, state, copy=True), images))
    totals: dict[str, np.ndarray] = {}
    count = 0
    for batch in batches:
        images = jnp.asarray(batch)
        for path, mean in step(state, images).items():
            share = np.asarray(mean, np.float64) * len(images)
            if path in totals and totals[path].shape != share.shape:
                raise ValueError(
                    f"a batch of shape {images.shape} after others of another image shape: all must have one."
                )
            totals[path] = totals.get(path, 0.0) + share
        count += len(images)
    if not count:
        raise ValueError("batches is empty: give at least one batch of images.")
    return {path: (total / count).astype(np.float32) for path, total in totals.items()}


def input_shapes(supernet: nnx.Module, input_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The input shape ``(*spatial, in_features)`` of each searched convolution for an image of a given shape.

    Example:
        >>> from msconv_jax import edo
        >>> convs = [nnx.Conv(4, 4, (3, 3), strides=2, rngs=nnx.Rngs(0)) for _ in range(2)]
        >>> input_shapes(edo.supernet(nnx.Sequential(*convs), d_max=2), (9, 9, 4))["layers.1"]
        (5, 5, 4)
    """
    graphdef, state = nnx.split(supernet)
    image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    means = jax.eval_shape(lambda state, images: _means(nnx.merge(graphdef, state, copy=True), images), state, image)
    return {path: mean.shape for path, mean in means.items()}
