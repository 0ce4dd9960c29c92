"""Names of segmentation networks: the public code has sequences for the stem and the layers of the heads."""

from __future__ import annotations

from msconv_jax.segmentation import AuxiliaryHead, MapClassifier, PyConvHead, PyConvSegNet, SegBaseline
from msconv_jax.torch_weights.conversion import rename_children

_BACKBONE = {"backbone.model.conv1": "layer0.0", "backbone.model.bn1": "layer0.1", "backbone": ""}

rename_children(PyConvHead, {"merge_context": "merge_context.features"})
rename_children(MapClassifier, {"conv": "1"})  # the dropout is 0
rename_children(AuxiliaryHead, {"features": "", "classifier": "", "classifier.conv": "4"})
rename_children(PyConvSegNet, {**_BACKBONE, "head": "pyconvhead", "classifier": "cls", "auxiliary": "aux"})
rename_children(
    SegBaseline, {**_BACKBONE, "head": "cls", "classifier": "cls", "classifier.conv": "4", "auxiliary": "aux"}
)
