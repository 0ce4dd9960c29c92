"""Bottle2neck (also of the v1b networks), Bottle2neckX, and the Tree of dla.py with either of its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from flax import nnx

from msconv_jax.models.families.dla import Res2TreeBlock, Tree
from msconv_jax.models.families.res2net import AveragePoolShortcut, Res2Bottleneck
from msconv_jax.models.layers import ConvShortcut, Parts
from tests.families.family import CannotBuildError, Family


def build_block(ctor: Mapping[str, Any]) -> Res2Bottleneck:
    """With a projection if `downsample` is set, at any stride and number of channels."""
    parts = Parts(
        groups=ctor.get("cardinality", 1),
        base_width=ctor.get("baseWidth", 26),
        shortcut=AveragePoolShortcut if ctor.get("kind") == "v1b" else ConvShortcut,
    )
    features, planes, strides = ctor["inplanes"], ctor["planes"], ctor.get("stride", 1)
    block = Res2Bottleneck(
        features,
        planes,
        strides,
        parts=parts,
        name="block",
        scale=ctor.get("scale", 4),
        kind=ctor.get("stype", "normal"),
        rngs=nnx.Rngs(0),
    )
    if ctor.get("downsample") and block.downsample is None:
        projection = parts.shortcut(features, 4 * planes, strides, parts=parts, name="", rngs=nnx.Rngs(0))
        block.downsample = nnx.data(projection)
    return block


def build_tree(ctor: Mapping[str, Any]) -> Tree:
    """With Res2Net's block, or Res2NeXt's if the name of the `block` contains an X."""
    if ctor.get("root_kernel_size", 1) != 1:
        raise CannotBuildError("the public code's root pads its 1x1 convolution for any other root_kernel_size")
    if ctor.get("root_dim", 0) not in (0, 2 * ctor["out_channels"]):
        raise CannotBuildError("the fixture's root expects children from outside")
    options = {"base_width": 4, "groups": 8} if "x" in str(ctor.get("block", "")).lower() else {}
    return Tree(
        ctor["levels"],
        ctor["in_channels"],
        ctor["out_channels"],
        ctor.get("stride", 1),
        level_root=ctor.get("level_root", False),
        root_residual=ctor.get("root_residual", False),
        block=partial(Res2TreeBlock, kernel_dilation=ctor.get("dilation", 1), **options),
        parts=Parts(),
        name="tree",
        rngs=nnx.Rngs(0),
    )


FAMILIES = {"Bottle2neck": Family(build_block), "Bottle2neckX": Family(build_block), "DLA_Tree": Family(build_tree)}
