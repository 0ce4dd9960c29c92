"""Heads that turn a backbone's maps into more than one label an image, and the networks of the two."""

from msconv_jax.heads.pyconv_seg import AuxiliaryHead, MapClassifier, PyConvHead, PyConvSegNet, pyconv_segnet

__all__ = ["AuxiliaryHead", "MapClassifier", "PyConvHead", "PyConvSegNet", "pyconv_segnet"]
