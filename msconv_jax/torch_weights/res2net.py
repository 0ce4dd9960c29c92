"""Res2Net, Res2NeXt and the trees of their DLA networks: the slices' tensors lie beside the block's own."""

from __future__ import annotations

from msconv_jax.models.parts import ConvShortcut
from msconv_jax.models.res2net import AveragePoolShortcut, Res2Bottleneck
from msconv_jax.torch_weights.conversion import rename_children

rename_children(ConvShortcut, {"conv": "0", "bn": "1"})
rename_children(AveragePoolShortcut, {"conv": "1", "bn": "2"})  # the pooling is 0
rename_children(Res2Bottleneck, {"conv2": ""})
