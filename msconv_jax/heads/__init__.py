"""Former name of `msconv_jax.segmentation`."""

from msconv_jax.segmentation import AuxiliaryHead, MapClassifier, PyConvHead, PyConvSegNet, pyconv_segnet

__all__ = ["AuxiliaryHead", "MapClassifier", "PyConvHead", "PyConvSegNet", "pyconv_segnet"]
