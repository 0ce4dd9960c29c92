"""Losses of dense tasks as values and weights: callers sum both over batches and devices, and divide once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from msconv_jax.modes.dtypes import wide_dtype

__all__ = ["segmentation_cross_entropy"]


def segmentation_cross_entropy(
    logits: jax.Array, labels: jax.Array, ignore_label: int = 255
) -> tuple[jax.Array, jax.Array]:
    """Computes the cross entropy of each pixel, and a mask of the pixels that are not ignored.

    The mean over these pixels is ``losses.sum() / weights.sum()``. If all pixels of a batch may be ignored, divide by
    ``jnp.maximum(weights.sum(), 1)``.

    Args:
        logits: (..., C) of any floating type; half precision is converted to float32 first.
        labels: (...) integers: a class from 0 to C - 1, or `ignore_label`.
        ignore_label: label of the ignored pixels.

    Returns:
        Losses and weights, both (...) float32, or of the logits' wider type. Ignored pixels have loss, weight and
        gradient 0. Pixels with any other label that is no class have loss NaN and weight 1, because compiled code
        cannot raise.

    Raises:
        ValueError: if the labels are no integers, or not of the logits' shape without the last axis.

    Source:
        PyTorch's ``CrossEntropyLoss(ignore_index=255, reduction="none")``.

    Example:
        >>> losses, weights = segmentation_cross_entropy(jnp.zeros((1, 3, 2)), jnp.array([[0, 255, 1]]))
        >>> weights.tolist(), [round(value, 4) for value in losses[0].tolist()]
        ([[1.0, 0.0, 1.0]], [0.6931, 0.0, 0.6931])
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels of type {labels.dtype}: must be integers; convert them with astype(int)")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels of shape {labels.shape} for logits of shape {logits.shape}: must be {logits.shape[:-1]}; "
            "resize one of them"
        )
    classes = logits.shape[-1]
    is_ignored = labels == ignore_label
    is_class = (labels >= 0) & (labels < classes)
    index = jnp.where(is_class & ~is_ignored, labels, 0).astype(jnp.int32)  # the gather would clamp other labels
    log_probabilities = jax.nn.log_softmax(logits.astype(wide_dtype(logits.dtype)))
    losses = -jnp.take_along_axis(log_probabilities, index[..., None], axis=-1)[..., 0]
    losses = jnp.where(is_ignored, 0.0, jnp.where(is_class, losses, jnp.nan))
    return losses, (~is_ignored).astype(losses.dtype)
