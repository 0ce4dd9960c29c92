"""Array functions of dense tasks: pure, with fixed shapes, without modules."""

from msconv_jax.vision.losses import segmentation_cross_entropy
from msconv_jax.vision.resize import adaptive_average_pool, resize_bilinear

__all__ = ["adaptive_average_pool", "resize_bilinear", "segmentation_cross_entropy"]
