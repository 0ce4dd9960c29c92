"""What every image network has: feature maps, pooled features, and a classifier."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import jax
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.layers import classifier
from msconv_jax.modes.dtypes import wide_dtype
from msconv_jax.signatures import explains_arguments

__all__ = ["ImageModel"]


class ImageModel(nnx.Module):
    """Base of the networks: a subclass computes `feature_maps` and describes them in `_outputs`.

    A call maps images (N, H, W, in_channels) to logits (N, num_classes). With `num_classes=0` there is no classifier
    and a call returns pooled features (N, C); with `global_pool=""` as well it returns the last map.

    Attributes:
        classifier_name: path of the layer whose outputs are the logits.
        in_channels: channels of the images.
        num_classes: number of logits, 0 without a classifier.
        num_features: channels of the last map.
        global_pool: "avg", or "" for none.
        fc: the classifier, or None.
    """

    classifier_name: ClassVar[str] = "fc"
    # Prefix of the classifier's names in published weights, if it differs from the layer's name.
    published_classifier: ClassVar[str | None] = None
    # Path, channels and reduction of each map. Tuples, because Flax would take a dictionary for a module.
    _outputs: tuple[tuple[str, int, int], ...]
    in_channels: int
    num_classes: int
    num_features: int
    global_pool: str
    fc: Any

    def _make_head(self, features: int, num_classes: int, global_pool: str, param_dtype: Any, rngs: nnx.Rngs) -> None:
        """Checks the head's arguments and builds the classifier."""
        if global_pool not in ("avg", ""):
            raise ValueError(f"global_pool={global_pool!r}: must be 'avg', or '' for the last map without pooling")
        self.num_features = features
        self.global_pool = global_pool
        self._param_dtype = param_dtype
        self.reset_classifier(num_classes, rngs=rngs)

    def _make_classifier(self, num_classes: int, rngs: nnx.Rngs) -> Any:
        return classifier(self.num_features, num_classes, param_dtype=self._param_dtype, rngs=rngs)

    @explains_arguments
    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replaces the classifier by a new one, or removes it.

        Args:
            num_classes: number of logits; 0 removes the classifier.
            rngs: source of the `params` stream.

        Raises:
            ValueError: if `num_classes` is negative, or not 0 with `global_pool=""`.

        Example:
            >>> import jax.numpy as jnp
            >>> from msconv_jax.models import create_model
            >>> model = create_model("resnet8", rngs=nnx.Rngs(0))
            >>> model.reset_classifier(7, rngs=nnx.Rngs(1))
            >>> model(jnp.ones((1, 8, 8, 3))).shape
            (1, 7)
        """
        if num_classes != 0:
            check_positive("num_classes", num_classes, "0 leaves the classifier out")
            if not self.global_pool:
                raise ValueError(
                    f"num_classes={num_classes} with global_pool='': the classifier needs pooled features; use "
                    "num_classes=0"
                )
        self.num_classes = num_classes
        self.fc = self._make_classifier(num_classes, rngs) if num_classes else nnx.data(None)

    @property
    def feature_info(self) -> tuple[dict[str, Any], ...]:
        """Describes the maps that `feature_maps` returns, with timm's keys.

        Each entry has `module`, `num_chs` and `reduction`: the map of an H x W image has ceil(H / reduction) rows.
        """
        return tuple(
            {"num_chs": features, "reduction": reduction, "module": module}
            for module, features, reduction in self._outputs
        )

    def check_images(self, x: jax.Array) -> None:
        """Raises ValueError unless `x` is (N, H, W, in_channels)."""
        if x.ndim != 4 or x.shape[-1] != self.in_channels:
            raise ValueError(
                f"images of shape {x.shape}: must be (N, H, W, {self.in_channels}); transpose NCHW "
                "images, or build the model with another in_channels"
            )

    @abc.abstractmethod
    def feature_maps(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Computes one NHWC map for each entry of `feature_info`."""

    def forward_features(self, x: jax.Array) -> jax.Array:
        """Computes the last map (N, H', W', C) of images (N, H, W, in_channels)."""
        return self.feature_maps(x)[-1]

    def forward_head(self, maps: jax.Array, *, pre_logits: bool = False) -> jax.Array:
        """Averages the last map over space and classifies.

        Args:
            maps: the last map (N, H', W', C).
            pre_logits: whether to stop before the classifier.

        Returns:
            Logits (N, num_classes); features (N, C) without a classifier or with `pre_logits`; the map itself with
            `global_pool=""`.
        """
        if not self.global_pool:
            return maps
        pooled = maps.mean(axis=(1, 2), dtype=wide_dtype(maps.dtype))
        if self.fc is None or pre_logits:
            return pooled
        with jax.numpy_dtype_promotion("standard"):  # the classifier computes in the wider of the two dtypes
            return self.fc(pooled)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Classifies images (N, H, W, in_channels): logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))
