"""The former names of what `msconv_jax.segmentation` has."""

from msconv_jax.segmentation import AuxiliaryHead, MapClassifier, PyConvHead, PyConvSegNet, pyconv_segnet

__all__ = ["AuxiliaryHead", "MapClassifier", "PyConvHead", "PyConvSegNet", "pyconv_segnet"]
