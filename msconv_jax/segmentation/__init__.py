"""Semantic segmentation: networks that classify every pixel, on the registered networks as backbones."""

from msconv_jax.models.registry import register_model
from msconv_jax.segmentation import baseline, pyconv_parsing
from msconv_jax.segmentation.baseline import SegBaseline, seg_baseline
from msconv_jax.segmentation.pyconv_parsing import PyConvHead, PyConvSegNet, pyconv_segnet
from msconv_jax.segmentation.segmenter import AuxiliaryHead, MapClassifier, Segmenter

__all__ = [
    "AuxiliaryHead",
    "MapClassifier",
    "PyConvHead",
    "PyConvSegNet",
    "SegBaseline",
    "Segmenter",
    "pyconv_segnet",
    "seg_baseline",
]

for _entry in (*baseline.MODELS, *pyconv_parsing.MODELS):
    register_model(_entry)
