"""PyConvSegNet: the public code keeps the stem in a sequence of its own, and the head's layers by number."""

from __future__ import annotations

from msconv_jax.heads.pyconv_seg import AuxiliaryHead, MapClassifier, PyConvHead, PyConvSegNet
from msconv_jax.torch_weights.conversion import rename_children

rename_children(PyConvHead, {"merge_context": "merge_context.features"})
rename_children(MapClassifier, {"conv": "1"})  # the dropout is 0
rename_children(AuxiliaryHead, {"features": "", "classifier": "", "classifier.conv": "4"})
rename_children(
    PyConvSegNet,
    {
        "backbone.model.conv1": "layer0.0",
        "backbone.model.bn1": "layer0.1",
        "backbone": "",
        "head": "pyconvhead",
        "classifier": "cls",
        "auxiliary": "aux",
    },
)
