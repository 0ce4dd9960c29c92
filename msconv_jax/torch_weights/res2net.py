"""Names of Res2Net, Res2NeXt and their DLA networks: the slices' tensors are at the level of the block's tensors."""

from __future__ import annotations

from msconv_jax.models.families.res2net import AveragePoolShortcut, DeepStemConv, Res2Bottleneck
from msconv_jax.models.layers import ConvNormAct, ConvShortcut
from msconv_jax.torch_weights.conversion import rename_children

rename_children(ConvShortcut, {"conv": "0", "bn": "1"})
rename_children(ConvNormAct, {"conv": "0", "bn": "1"})
rename_children(AveragePoolShortcut, {"conv": "1", "bn": "2"})  # the pooling is 0
rename_children(Res2Bottleneck, {"conv2": ""})
rename_children(DeepStemConv, {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4", "conv3": "6"})
