"""The view of a network as a backbone: its feature maps without its head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from msconv_jax.models.image_model import ImageModel

__all__ = ["FeatureBackbone"]


class FeatureBackbone(nnx.Module):
    """A network without its head, whose calls return some of its maps: `create_model(..., features_only=True)`.

    Args:
        model: the network, whose classifier is removed.
        out_indices: indices of the maps in its `feature_info`; negative ones count from the end. None is all.

    Attributes:
        model: the network.
        feature_info: the chosen entries of its `feature_info`.

    Raises:
        ValueError: if an index is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax.models import create_model
        >>> backbone = create_model("resnet8", features_only=True, out_indices=(1, -1), rngs=nnx.Rngs(0))
        >>> [m.shape for m in backbone(jnp.ones((1, 32, 32, 3)))]
        [(1, 32, 32, 16), (1, 8, 8, 64)]
        >>> [f["reduction"] for f in backbone.feature_info]
        [1, 4]
    """

    def __init__(self, model: ImageModel, out_indices: Sequence[int] | None = None):
        count = len(model.feature_info)
        chosen = range(count) if out_indices is None else out_indices
        valid = isinstance(chosen, Sequence) and all(isinstance(i, int) and -count <= i < count for i in chosen)
        if not valid or not chosen:
            raise ValueError(
                f"out_indices={out_indices!r}: must be indices of the {count} maps, integers from {-count} to "
                f"{count - 1}"
            )
        self.out_indices = tuple(index % count for index in chosen)
        model.num_classes, model.fc = 0, nnx.data(None)
        self.model = model

    @property
    def feature_info(self) -> tuple[dict[str, Any], ...]:
        """The entries of the maps that a call returns."""
        return tuple(self.model.feature_info[index] for index in self.out_indices)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Maps images (N, H, W, in_channels) to one NHWC map for each entry of `feature_info`."""
        maps = self.model.feature_maps(x)
        return tuple(maps[index] for index in self.out_indices)
