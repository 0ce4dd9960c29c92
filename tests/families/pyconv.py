"""PyConv2 to PyConv4, the generic PyConv2d, the bottleneck PyConvBlock and the blocks of the parsing head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from flax import nnx

from msconv_jax import PyConv
from msconv_jax.models import Bottleneck, Parts
from msconv_jax.models.families.pyconv import MaxPoolShortcut, WideBottleneck
from msconv_jax.segmentation import PyConvHead
from msconv_jax.segmentation.pyconv_parsing import GlobalPyConvBlock, LocalPyConvBlock
from tests.families.family import CannotBuildError, Family

KERNELS = (3, 5, 7, 9)
GROUPS = (1, 4, 8, 16)


def build_levels(levels: int, ctor: Mapping[str, Any]) -> PyConv:
    """PyConv2, PyConv3 or PyConv4."""
    return PyConv(
        ctor["inplans"],
        ctor["planes"],
        ctor.get("pyconv_kernels", KERNELS[:levels]),
        ctor.get("stride", 1),
        groups=ctor.get("pyconv_groups", GROUPS[:levels]),
        padding=min(ctor.get("pyconv_kernels", KERNELS[:levels])) // 2,
        use_bias=False,
        rngs=nnx.Rngs(0),
    )


def build_generic(ctor: Mapping[str, Any]) -> PyConv:
    """PyConv2d, which pads k // 2 for any dilation."""
    kernels = ctor.get("pyconv_kernels", KERNELS)
    dilation = ctor.get("dilation", 1)
    if dilation != 1 and len(set(kernels)) > 1:
        raise CannotBuildError("the public module pads dilated levels to different sizes")
    return PyConv(
        ctor["in_channels"],
        sum(ctor["out_channels"]),
        kernels,
        ctor.get("stride", 1),
        groups=ctor.get("pyconv_groups", GROUPS),
        level_features=ctor["out_channels"],
        padding=min(kernels) // 2,
        kernel_dilation=dilation,
        use_bias=ctor.get("bias", False),
        rngs=nnx.Rngs(0),
    )


def build_block(ctor: Mapping[str, Any]) -> Bottleneck:
    """PyConvBlock of PyConvResNet or, with `hg`, of PyConvHGResNet."""
    kernels, groups = ctor.get("kernels", (3,)), ctor.get("groups", (1,))
    kind = WideBottleneck if ctor.get("hg", False) else Bottleneck
    return kind(
        ctor["inplanes"],
        ctor["planes"],
        ctor.get("stride", 1),
        parts=Parts(conv=partial(PyConv, kernel_sizes=kernels, groups=groups), shortcut=MaxPoolShortcut),
        name="block",
        rngs=nnx.Rngs(0),
    )


def build_local(ctor: Mapping[str, Any]) -> LocalPyConvBlock:
    """The parsing head's local branch."""
    reduction = ctor.get("reduction1", 4)
    return LocalPyConvBlock(
        ctor["inplanes"],
        ctor["planes"],
        reduced_features=ctor["inplanes"] // reduction,
        kernel_sizes=ctor.get("pyconv_kernels", KERNELS),
        groups=ctor.get("pyconv_groups", GROUPS),
        rngs=nnx.Rngs(0),
    )


def build_global(ctor: Mapping[str, Any]) -> GlobalPyConvBlock:
    """The parsing head's global branch."""
    return GlobalPyConvBlock(ctor["in_dim"], ctor["reduction_dim"], bins=ctor.get("bins", 9), rngs=nnx.Rngs(0))


def build_head(ctor: Mapping[str, Any]) -> PyConvHead:
    """The parsing head; its contexts have 512 channels."""
    return PyConvHead(ctor["inplanes"], merged_features=ctor["planes"], rngs=nnx.Rngs(0))


FAMILIES = {
    "PyConv2": Family(partial(build_levels, 2)),
    "PyConv3": Family(partial(build_levels, 3)),
    "PyConv4": Family(partial(build_levels, 4)),
    "PyConv2d": Family(build_generic),
    "PyConvBlock": Family(build_block),
    "LocalPyConvBlock": Family(build_local),
    "GlobalPyConvBlock": Family(build_global),
    "PyConvHead": Family(build_head),
}
