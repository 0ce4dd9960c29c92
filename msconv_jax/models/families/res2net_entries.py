"""The registered Res2Net and Res2NeXt networks. None of them starts its blocks at zero, as in the public code."""

from __future__ import annotations

from functools import partial
from typing import Any

from msconv_jax.models.families.res2net import DEEP_STEM, AveragePoolShortcut, Res2Bottleneck
from msconv_jax.models.registry import CIFAR_100, IMAGENET, ModelEntry, register_model
from msconv_jax.models.resnet import CIFAR_STEM, LAYERS, ResNet

__all__: list[str] = []

_PAPER = "Gao et al., Res2Net, arXiv 1904.01169"
_V1B: dict[str, Any] = {"stem": DEEP_STEM, "shortcut": AveragePoolShortcut, "base_width": 26}

# ImageNet: name, depth, slices of a block, further arguments.
_NETWORKS: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
    ("res2net50_48w_2s", 50, 2, {"base_width": 48}),
    ("res2net50_26w_4s", 50, 4, {"base_width": 26}),
    ("res2net50_14w_8s", 50, 8, {"base_width": 14}),
    ("res2net50_26w_6s", 50, 6, {"base_width": 26}),
    ("res2net50_26w_8s", 50, 8, {"base_width": 26}),
    ("res2net101_26w_4s", 101, 4, {"base_width": 26}),
    ("res2next50", 50, 4, {"base_width": 4, "groups": 8}),
    ("se_res2net50", 50, 4, {"base_width": 26, "se_reduction": 16}),
    ("res2net50_v1b", 50, 4, _V1B),
    ("res2net101_v1b", 101, 4, _V1B),
    ("res2net152_v1b", 152, 4, _V1B),
)


def _register(name: str, config: dict[str, Any], images: dict[str, Any]) -> None:
    register_model(
        ModelEntry(
            name=name,
            builder=ResNet,
            config={"zero_init_last": False, **config},
            paper=_PAPER,
            **images,
        )
    )


for _name, _depth, _scale, _extra in _NETWORKS:
    _block = partial(Res2Bottleneck, scale=_scale)
    _register(_name, {"layers": LAYERS[_depth], "block": _block, **_extra}, IMAGENET)

_register(
    "res2next29_8cx25wx4s",
    # Its 25 channels are those of 64 planes and one group, as in the public ResNeXt-29.
    {"layers": (3, 3, 3), "block": Res2Bottleneck, "stem": CIFAR_STEM, "groups": 8, "base_width": 25},
    CIFAR_100,
)
