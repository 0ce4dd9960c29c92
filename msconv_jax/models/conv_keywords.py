"""Builders of networks whose convolution is chosen by keywords of its own family, such as `sis="recurrent1"`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from msconv_jax.models.image_model import ImageModel
from msconv_jax.models.resnet import Convs, ResNet

__all__ = ["with_conv_keywords"]


def with_conv_keywords(
    make_conv: Callable[..., Convs], network: type[ImageModel] = ResNet
) -> Callable[..., ImageModel]:
    """A builder that takes the network's keywords, with those of `make_conv` in the place of `conv`.

    Its signature names them all, so that `ModelEntry.keywords` lists them and a misspelt one is noticed.

    Args:
        make_conv: makes the network's `conv` from keywords, all of which have defaults.
        network: class of the network, with an argument `conv`.

    Returns:
        The builder.

    Raises:
        ValueError: if both have an argument of the same name, or the network has no `conv`.

    Example:
        >>> from functools import partial
        >>> from flax import nnx
        >>> from msconv_jax.operators import HetConv
        >>> def het(parts: int = 4):
        ...     return partial(HetConv, parts=parts)
        >>> build = with_conv_keywords(het)
        >>> build(layers=(1,), width=8, parts=2, rngs=nnx.Rngs(0)).layer1[0].conv2.parts
        2
    """
    own = inspect.signature(make_conv).parameters
    theirs = list(inspect.signature(network.__init__).parameters.values())[1:]  # without self
    names = [parameter.name for parameter in theirs]
    make_network: Any = network  # its class is not known to take a `conv`
    twice = sorted(set(own) & set(names))
    if "conv" not in names or twice:
        raise ValueError(f"{network.__name__} must have an argument 'conv' and none of {sorted(own)}; it has {names}")

    def build(**arguments: Any) -> ImageModel:
        chosen = {name: arguments.pop(name) for name in own if name in arguments}
        return make_network(conv=make_conv(**chosen), **arguments)

    place = names.index("conv")
    all_parameters = [*theirs[:place], *own.values(), *theirs[place + 1 :]]
    build.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in all_parameters])  # type: ignore[attr-defined]
    build.__name__ = f"{network.__name__} with {make_conv.__name__}"
    return build
