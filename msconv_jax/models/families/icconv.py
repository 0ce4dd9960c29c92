"""The IC-Conv networks, with the dilations that the authors' search found and published, or with others.

The paper's code has patterns of ResNet-50 and -101, but for other tasks than classification; the pattern for detection
is the default. No patterns of ResNet-18, ResNeXt-101 and MobileNetV2 are published: without the argument `patterns`
their filters have all dilations of the paper's search space evenly, unlike the networks of the paper's table 1.
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
from msconv_jax.models.families.mobilenet import MobileNetV2
from msconv_jax.models.image_model import ImageModel
from msconv_jax.models.registry import IMAGENET, ModelEntry, Published
from msconv_jax.models.resnet import LAYERS, ResNet
from msconv_jax.models.stages import Convs
from msconv_jax.operators import ICConv
from msconv_jax.operators.icconv import Pattern

__all__ = ["MODELS", "evenly_dilated", "ic_convs", "list_ic_patterns", "published_ic_convs"]

_FOLDER = "ic_patterns"
_MOST_DILATION = 4


def list_ic_patterns() -> list[str]:
    """Lists the published patterns, named by network, size of the supernet's kernels and task.

    Example:
        >>> list_ic_patterns()[-2:]
        ['ic_resnet50_k9_det', 'ic_resnet50_k9_seg']
    """
    files = importlib.resources.files("msconv_jax.models").joinpath(_FOLDER).iterdir()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


@functools.cache
def published_ic_convs(name: str) -> Mapping[str, partial[ICConv]]:
    """Loads the spatial convolutions of a published IC-ResNet, for `ResNet(conv=...)`.

    Args:
        name: one of `list_ic_patterns()`.

    Returns:
        A factory for the path of each 3x3 convolution, such as ``layer1.0.conv2``.

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
    """Builds an `ICConv` whose filters are shared evenly by the 16 pairs of dilations from 1 to 4.

    These pairs are the paper's search space. The networks without a published pattern use it.

    Args:
        in_features: input channels.
        out_features: output channels.
        **arguments: the other arguments of `ICConv`, which refuses unknown ones, without `pattern`.

    Returns:
        The convolution. With fewer than 16 filters, each has its own pair, from the first pair on.

    Example:
        >>> from flax import nnx
        >>> evenly_dilated(8, 32, kernel_size=(3, 3), rngs=nnx.Rngs(0)).pattern[:3]
        ((1, 1), (1, 1), (1, 2))
    """
    places = [number * _MOST_DILATION**2 // max(out_features, _MOST_DILATION**2) for number in range(out_features)]
    pattern = tuple((place // _MOST_DILATION + 1, place % _MOST_DILATION + 1) for place in places)
    return ICConv(in_features, out_features, pattern=pattern, **arguments)


def ic_convs(patterns: str | Mapping[str, Pattern] = "even") -> Convs:
    """Makes the spatial convolutions of the IC networks, which have this argument.

    Args:
        patterns: one of `list_ic_patterns()`; "even" for `evenly_dilated`; or a mapping from the path of each 3x3
            convolution, such as ``layer1.0.conv2``, to its pattern in any form that `ICConv` takes, such as
            ``((d_h, d_w, count), ...)``: the result of a search with `msconv_jax.edo`.

    Returns:
        A factory for each path, or one for all paths.

    Raises:
        ValueError: if `patterns` is none of these. The network refuses patterns with other paths or numbers of filters.

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


def _entry(name: str, network: type[ImageModel], results: Published, **config: Any) -> ModelEntry:
    paper = "Liu et al., Inception Convolution with Efficient Dilation Search, arXiv 2012.13587"
    config = {**config, "zero_init_last": False}
    return ModelEntry(name, network, config, paper=paper, published=results, make_conv=ic_convs, **IMAGENET)


_IC1 = "IC-Conv paper, table 1, with dilations that were not published"
_NONE = "not stated"  # the weights are the backbones of the public detectors

MODELS = (
    _entry(
        "ic_resnet50",
        ResNet,
        Published(_IC1, top1=77.30, top5=93.58, weights=_NONE),
        layers=LAYERS[50],
        patterns="ic_resnet50_k9_det",
    ),
    _entry("ic_resnet101", ResNet, Published(weights=_NONE), layers=LAYERS[101], patterns="ic_resnet101_k9_det"),
    _entry(
        "ic_resnet18",
        ResNet,
        Published(_IC1, top1=71.74, top5=90.91),
        layers=LAYERS[18],
        block=BasicBlock,
        patterns="even",
    ),
    _entry(
        "ic_resnext101_32x4d",
        ResNet,
        Published(_IC1, top1=79.33, top5=94.74),
        layers=LAYERS[101],
        groups=32,
        base_width=4,
        patterns="even",
    ),
    _entry("ic_mobilenetv2", MobileNetV2, Published(_IC1, top1=71.92, top5=90.54), patterns="even"),
)
