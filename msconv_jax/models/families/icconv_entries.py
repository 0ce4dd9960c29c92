"""The registered IC-Conv networks, with the dilations that the authors' search found and published, or with others.

For ResNet-50 and -101 the paper's code has patterns, but for other tasks than classification; the one for detection is
the default. The library has none for ResNet-18, ResNeXt-101 and MobileNetV2: without `patterns` of one's own their
filters have all dilations of the paper's search space evenly, which is not what the paper's table 1 reports.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from msconv_jax.models.blocks import BasicBlock
from msconv_jax.models.conv_keywords import with_conv_keywords
from msconv_jax.models.families.mobilenet import MobileNetV2
from msconv_jax.models.image_model import ImageModel
from msconv_jax.models.registry import IMAGENET, ModelEntry, register_model
from msconv_jax.models.resnet import LAYERS, Convs, ResNet
from msconv_jax.operators import ICConv
from msconv_jax.operators.icconv import Pattern

__all__ = ["evenly_dilated", "ic_convs", "list_ic_patterns", "published_ic_convs"]

_PAPER = "Liu et al., Inception Convolution with Efficient Dilation Search, arXiv 2012.13587"
_FOLDER = "ic_patterns"
_MOST_DILATION = 4


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
    patterns = {path: tuple(map(tuple, pattern)) for path, pattern in json.loads(text).items()}
    return MappingProxyType({path: partial(ICConv, pattern=pattern) for path, pattern in patterns.items()})


def evenly_dilated(in_features: int, out_features: int, **arguments: Any) -> ICConv:
    """An `ICConv` that has each pair of dilations from 1 to 4, the paper's search space, on as many filters.

    It stands where the library has no searched pattern.

    Args:
        in_features: input channels.
        out_features: output channels.
        **arguments: the other arguments of `ICConv`, which refuses unknown ones, without `pattern`.

    Returns:
        The convolution; of fewer than 16 filters each has another pair, the first ones first.

    Example:
        >>> from flax import nnx
        >>> evenly_dilated(8, 32, kernel_size=(3, 3), rngs=nnx.Rngs(0)).pattern[:3]
        ((1, 1), (1, 1), (1, 2))
    """
    places = [number * _MOST_DILATION**2 // max(out_features, _MOST_DILATION**2) for number in range(out_features)]
    pattern = tuple((place // _MOST_DILATION + 1, place % _MOST_DILATION + 1) for place in places)
    return ICConv(in_features, out_features, pattern=pattern, **arguments)


def ic_convs(patterns: str | Mapping[str, Pattern] = "even") -> Convs:
    """The spatial convolutions of the IC networks, whose builders take this argument.

    Args:
        patterns: one of `list_ic_patterns()`; or for the path of each 3x3 convolution of the network, such as
            ``layer1.0.conv2``, its pattern in any form that `ICConv` takes, such as ``((d_h, d_w, count), ...)``, as a
            search with `msconv_jax.edo` finds them; or "even" for `evenly_dilated` ones.

    Returns:
        For each path its factory; the one of all for "even".

    Raises:
        ValueError: if it is none of these. A network refuses patterns for other paths, or other numbers of filters,
            than its own.

    Example:
        >>> from flax import nnx
        >>> from msconv_jax.models import create_model
        >>> patterns = {f"layer1.0.conv{n}": ((1, 1, 5), (2, 1, 3)) for n in (1, 2)}
        >>> model = create_model("ic_resnet18", layers=(1,), width=8, patterns=patterns, rngs=nnx.Rngs(0))
        >>> model.layer1[0].conv2.pattern[4:6]
        ((1, 1), (2, 1))
    """
    if patterns == "even":
        return evenly_dilated
    if isinstance(patterns, str):
        return published_ic_convs(patterns)
    if not isinstance(patterns, Mapping):
        raise ValueError(
            f"patterns={patterns!r}: must be 'even', a published one, {', '.join(list_ic_patterns())}, or a mapping "
            "from the path of each 3x3 convolution to its pattern"
        )
    return {path: partial(ICConv, pattern=pattern) for path, pattern in patterns.items()}


# Name, network, and arguments of the builder.
_NETWORKS: tuple[tuple[str, type[ImageModel], dict[str, Any]], ...] = (
    *((f"ic_resnet{d}", ResNet, {"layers": LAYERS[d], "patterns": f"ic_resnet{d}_k9_det"}) for d in (50, 101)),
    ("ic_resnet18", ResNet, {"layers": LAYERS[18], "block": BasicBlock, "patterns": "even"}),
    (
        "ic_resnext101_32x4d",
        ResNet,
        {"layers": LAYERS[101], "groups": 32, "base_width": 4, "patterns": "even"},
    ),
    ("ic_mobilenetv2", MobileNetV2, {"patterns": "even"}),
)

for _name, _network, _config in _NETWORKS:
    register_model(
        ModelEntry(
            name=_name,
            builder=with_conv_keywords(ic_convs, _network),
            config={**_config, "zero_init_last": False},
            paper=_PAPER,
            **IMAGENET,
        )
    )
