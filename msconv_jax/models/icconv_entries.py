"""The registered IC-Conv networks, with the dilations that the authors' search found and published, or with others.

For ResNet-50 and -101 the paper's code has patterns, but for other tasks than classification; the one for detection is
the default. For ResNet-18 and ResNeXt-101 there are none, and `patterns` must be given.
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
from msconv_jax.models.registry import ModelEntry, register_model
from msconv_jax.models.resnet import LAYERS
from msconv_jax.operators import ICConv
from msconv_jax.operators.icconv import Pattern

__all__ = ["ic_convs", "list_ic_patterns", "published_ic_convs"]

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
    return MappingProxyType(ic_convs({path: tuple(map(tuple, pattern)) for path, pattern in json.loads(text).items()}))


def ic_convs(patterns: str | Mapping[str, Pattern]) -> Mapping[str, partial[ICConv]]:
    """The spatial convolutions of the IC networks, whose builders take this argument.

    Args:
        patterns: one of `list_ic_patterns()`, or for the path of each 3x3 convolution of the network, such as
            ``layer1.0.conv2``, its pattern in any form that `ICConv` takes, such as ``((d_h, d_w, count), ...)``.

    Returns:
        For each path its factory.

    Raises:
        ValueError: if it is neither. A network refuses patterns for other paths, or other numbers of filters, than its
            own.

    Example:
        >>> from flax import nnx
        >>> from msconv_jax.models import create_model
        >>> patterns = {f"layer1.0.conv{n}": ((1, 1, 5), (2, 1, 3)) for n in (1, 2)}
        >>> model = create_model("ic_resnet18", layers=(1,), width=8, patterns=patterns, rngs=nnx.Rngs(0))
        >>> model.layer1[0].conv2.pattern[4:6]
        ((1, 1), (2, 1))
    """
    if isinstance(patterns, str):
        return published_ic_convs(patterns)
    if not isinstance(patterns, Mapping):
        raise ValueError(
            f"patterns={patterns!r}: must be a published one, {', '.join(list_ic_patterns())}, or a mapping from the "
            "path of each 3x3 convolution to its pattern"
        )
    return {path: partial(ICConv, pattern=pattern) for path, pattern in patterns.items()}


_build = with_conv_keywords(
    ic_convs,
    if_missing=(
        "no dilations are published for this network. Give patterns={'layer1.0.conv2': ((d_h, d_w, count), ...), ...} "
        "with every 3x3 convolution's, as a search with msconv_jax.edo finds them; the same network with dilation 1 "
        "everywhere is the one without 'ic_' in its name"
    ),
)

# Name, and arguments of the builder.
_NETWORKS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((f"ic_resnet{d}", {"layers": LAYERS[d], "patterns": f"ic_resnet{d}_k9_det"}) for d in (50, 101)),
    ("ic_resnet18", {"layers": LAYERS[18], "block": BasicBlock}),
    ("ic_resnext101_32x4d", {"layers": LAYERS[101], "groups": 32, "base_width": 4}),
)

for _name, _config in _NETWORKS:
    register_model(
        ModelEntry(
            name=_name,
            builder=_build,
            config={**_config, "zero_init_last": False},
            num_classes=1000,
            input_size=(224, 224, 3),
            paper=_PAPER,
        )
    )
