"""Weights of OctConv by the PyTorch port's names, with a bias for each path."""

from __future__ import annotations

from typing import Any

from msconv_jax.models.families.octave.blocks import OctConvNormAct
from msconv_jax.models.families.octave.mobilenet import OctSeparableConv
from msconv_jax.models.families.octave.resnet import OctBasicBlock, OctBottleneck
from msconv_jax.operators.octave.octconv import PATHS, OctConv
from msconv_jax.torch_weights.conversion import Arrays, Conversion, converts, rename_children
from msconv_jax.torch_weights.layers import hwio, oihw

# Conv_BN and Conv_BN_ACT have bn_h and bn_l as direct attributes.
rename_children(OctConvNormAct, {"norm": ""})
for _block in (OctBasicBlock, OctBottleneck):
    rename_children(_block, {"downsample": "downsample.0"})
rename_children(OctSeparableConv, {"conv1": "0", "conv2": "1"})


@converts(OctConv)
def octconv(module: OctConv) -> tuple[Conversion, ...]:
    """``conv_h2h.weight`` and so on; with biases, each path has one, and the output's bias is their sum."""
    paths = {path: getattr(module, path) for path in PATHS if getattr(module, path) is not None}
    shapes = {f"conv_{path}.weight": oihw(conv.kernel_shape) for path, conv in paths.items()}
    if module.use_bias:
        shapes |= {f"conv_{path}.bias": (conv.out_features,) for path, conv in paths.items()}

    def convert(tensors: Arrays) -> dict[str, Any]:
        values = {f"{path}.kernel": hwio(tensors[f"conv_{path}.weight"]) for path in paths}
        if module.use_bias:
            for place, name in enumerate(("high_bias", "low_bias")):
                biases = [tensors[f"conv_{path}.bias"] for path in paths if PATHS[path][1] == place]
                values |= {name: sum(biases)} if biases else {}
        return values

    return (Conversion(shapes, convert),)
