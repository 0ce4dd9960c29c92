"""The SIS networks: ResNet, ResNeXt, Res2Net and Res2NeXt with `SISConv` as the 3x3 convolutions.

In the Res2Net networks it replaces every slice's convolution. SISConv's channels must be divisible by four times the
groups; so slices have 28 channels instead of 26, and 24 instead of 25.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, get_args

from msconv_jax.models.families.res2net import Res2Bottleneck
from msconv_jax.models.registry import CIFAR_100, IMAGENET, ModelEntry
from msconv_jax.models.resnet import CIFAR_STEM, LAYERS, ResNet
from msconv_jax.operators import SISConv
from msconv_jax.operators.sis import Inner, Kind

__all__ = ["MODELS", "sis_conv"]


def sis_conv(
    sis: Kind = "basic", steps: int = 2, share_paths: bool = False, inner: Inner | None = None
) -> partial[SISConv]:
    """Makes the spatial convolution of the SIS networks, which have these arguments.

    Args:
        sis: "basic", "interactive1", "interactive2", "recurrent1" or "recurrent2", the operator's `kind`.
        steps: steps of the recurrent kinds.
        share_paths: whether the two paths of the interactive and recurrent kinds share one kernel.
        inner: "bnrelu" normalises and activates inside the operator; None does not.

    Returns:
        The factory.

    Raises:
        ValueError: if `sis` is no kind. The operator checks the other arguments.

    Example:
        >>> from flax import nnx
        >>> from msconv_jax.models import create_model
        >>> options = {"layers": (1,), "width": 8, "sis": "recurrent1", "rngs": nnx.Rngs(0)}
        >>> create_model("sis_resnet50", **options).layer1[0].conv2.kind
        'recurrent1'
    """
    if sis not in get_args(Kind):
        raise ValueError(f"sis={sis!r}: must be one of {', '.join(get_args(Kind))}")
    return partial(SISConv, kind=sis, steps=steps, share_paths=share_paths, inner=inner)


_SLICES: dict[str, Any] = {"block": Res2Bottleneck, "zero_init_last": False}
_CIFAR: dict[str, Any] = {"layers": (3, 3, 3), "stem": CIFAR_STEM, "groups": 8}


def _entry(name: str, images: Mapping[str, Any] = IMAGENET, **config: Any) -> ModelEntry:
    paper = "SIS: A new multi-scale convolutional operator, JUSTC 2022"
    return ModelEntry(name, ResNet, config, paper=paper, make_conv=sis_conv, **images)


# The paper has these networks in its tables of detection (2), segmentation (3) and pose (4). The parameters in its
# table of classification (1) fit none of them exactly, so no results are listed.
MODELS = (
    _entry("sis_resnet50", layers=LAYERS[50]),
    _entry("sis_resnet101", layers=LAYERS[101]),
    _entry("sis_res2net50", layers=LAYERS[50], base_width=28, **_SLICES),
    _entry("sis_res2net101", layers=LAYERS[101], base_width=28, **_SLICES),
    _entry("sis_resnext29", CIFAR_100, **_CIFAR),
    _entry("sis_res2next29", CIFAR_100, base_width=24, **_CIFAR, **_SLICES),
)
