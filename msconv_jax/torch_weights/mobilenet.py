"""Names of MobileNetV2 in torchvision."""

from __future__ import annotations

from msconv_jax.models.families.mobilenet import InvertedResidual, MobileNetV2
from msconv_jax.torch_weights.conversion import rename_children


def _block_names(module: InvertedResidual) -> dict[str, str]:
    """The indices in a block's sequence, which may start with the expanding 1x1 convolution."""
    first = 0 if module.conv1 is None else 1
    return {
        "conv1": "conv.0.0",
        "bn1": "conv.0.1",
        "conv2": f"conv.{first}.0",
        "bn2": f"conv.{first}.1",
        "conv3": f"conv.{first + 1}",
        "bn3": f"conv.{first + 2}",
    }


rename_children(InvertedResidual, _block_names)
rename_children(MobileNetV2, {"fc": "classifier.1"})
