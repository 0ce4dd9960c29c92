"""The registered SIS networks: ResNet, ResNeXt, Res2Net and Res2NeXt with `SISConv` for the 3x3 convolutions.

In the Res2Net networks it takes the place of every slice's convolution. SISConv needs channels that four times the
groups divide; so the slices are 28 channels wide in the place of 26, and 24 in the place of 25.
"""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

from msconv_jax.models.conv_keywords import with_conv_keywords
from msconv_jax.models.families.res2net import Res2Bottleneck
from msconv_jax.models.registry import CIFAR_100, IMAGENET, ModelEntry, register_model
from msconv_jax.models.resnet import CIFAR_STEM, LAYERS
from msconv_jax.operators import SISConv
from msconv_jax.operators.sis import Inner, Kind

__all__ = ["sis_conv"]


def sis_conv(
    sis: Kind = "basic", steps: int = 2, share_paths: bool = False, inner: Inner | None = None
) -> partial[SISConv]:
    """The spatial convolution of the SIS networks, whose builders take these arguments.

    Args:
        sis: "basic", "interactive1", "interactive2", "recurrent1" or "recurrent2", the operator's `kind`.
        steps: steps of the recurrent kinds.
        share_paths: whether the two paths of the interactive and recurrent kinds have one kernel.
        inner: "bnrelu" normalises and activates inside the operator; None does not.

    Returns:
        The factory.

    Raises:
        ValueError: if `sis` is no kind. The operator refuses what does not fit otherwise.

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

# Name, arguments, images. The paper has them in the tables of detection (2), segmentation (3) and
# pose (4); those of classification (1) list parameters that fit none exactly.
_NETWORKS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    *((f"sis_resnet{depth}", {"layers": LAYERS[depth]}, IMAGENET) for depth in (50, 101)),
    *((f"sis_res2net{d}", {"layers": LAYERS[d], "base_width": 28, **_SLICES}, IMAGENET) for d in (50, 101)),
    ("sis_resnext29", _CIFAR, CIFAR_100),
    ("sis_res2next29", {**_CIFAR, "base_width": 24, **_SLICES}, CIFAR_100),
)

for _name, _config, _images in _NETWORKS:
    register_model(
        ModelEntry(
            name=_name,
            builder=with_conv_keywords(sis_conv),
            config=_config,
            paper="SIS: A new multi-scale convolutional operator, JUSTC 2022",
            **_images,
        )
    )
