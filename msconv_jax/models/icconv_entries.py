"""The registered IC-Conv networks, with the dilations that the authors' search found and published."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from msconv_jax.models.registry import ModelEntry, register_model
from msconv_jax.models.resnet import LAYERS, ResNet
from msconv_jax.operators import ICConv

__all__ = ["list_ic_patterns", "published_ic_convs"]

_PAPER = "Liu et al., Inception Convolution with Efficient Dilation Search, arXiv 2012.13587"
_FOLDER = "ic_patterns"


def list_ic_patterns() -> list[str]:
    """The names of the published patterns: network, size of the supernet's kernels, task.

    Example:
        >>> list_ic_patterns()[-2:]
        ['ic_resnet50_k9_det', 'ic_resnet50_k9_seg']
    """
    files = importlib.resources.files("msconv_jax.models").joinpath(_FOLDER).iterdir()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


@functools.cache
def published_ic_convs(name: str) -> Mapping[str, partial[ICConv]]:
    """The spatial convolutions of a published IC-ResNet, for `ResNet(conv=...)`.

    Args:
        name: one of `list_ic_patterns()`.

    Returns:
        For the path of each 3x3 convolution, such as ``layer1.0.conv2``, its factory.

    Raises:
        ValueError: if the name is unknown.

    Source:
        The pattern files of the IC-Conv paper's public code; k9 and k13 are its supernets with dilations up to 4 and 6.

    Example:
        >>> convs = published_ic_convs("ic_resnet50_k9_det")
        >>> len(convs), convs["layer1.0.conv2"].keywords["pattern"][:2]
        (16, ((1, 1, 42), (1, 2, 5)))
    """
    if name not in list_ic_patterns():
        raise ValueError(f"no published pattern {name!r}: the names are {', '.join(list_ic_patterns())}")
    text = importlib.resources.files("msconv_jax.models").joinpath(_FOLDER, f"{name}.json").read_text()
    return MappingProxyType(
        {path: partial(ICConv, pattern=tuple(map(tuple, pattern))) for path, pattern in json.loads(text).items()}
    )


for _depth in (50, 101):
    register_model(
        ModelEntry(
            name=f"ic_resnet{_depth}",
            builder=ResNet,
            config={
                "layers": LAYERS[_depth],
                "conv": published_ic_convs(f"ic_resnet{_depth}_k9_det"),
                "zero_init_last": False,
            },
            num_classes=1000,
            input_size=(224, 224, 3),
            paper=_PAPER,
        )
    )
