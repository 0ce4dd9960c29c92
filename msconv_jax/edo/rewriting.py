"""Builds the network of inception convolutions from the dilations of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from msconv_jax.edo.objective import sampled_taps
from msconv_jax.edo.patterns import by_path, rearranged
from msconv_jax.edo.supernet import SEARCHED, SupernetConv, large_kernel_size, supernet_convs
from msconv_jax.operators import ICConv
from msconv_jax.operators.icconv import Dilations, Pattern
from msconv_jax.surgery import PLAIN, Predicate, Where, convolutions, replace_convs, selected_convolutions

__all__ = ["rewrite", "sampled_kernel"]

Model = TypeVar("Model", bound=nnx.Module)


def rewrite(
    model: Model,
    patterns: Mapping[str, Pattern] | Sequence[Pattern],
    where: Where | Predicate | str | None = None,
    *,
    init_from: nnx.Module | None = None,
    rearrange: bool | None = None,
    rngs: nnx.Rngs | None = None,
) -> Model:
    """Copies a model and replaces its convolutions by inception convolutions with the dilations of a search.

    Filters are rearranged so that filters with equal dilations are adjacent, within each group of channels. The
    dilations then move to other filters than in the search, which is harmless if the network is trained from scratch,
    as in the paper. Filters initialised from the supernet (`init_from`) keep their order, because the following layers
    depend on it; the operator still computes equal dilations together.

    Args:
        model: the network that was searched, with plain convolutions, or its supernet; it stays unchanged.
        patterns: result of :func:`msconv_jax.edo.select`, or a published list with one entry per convolution in the
            order of construction. Each pattern may have any form that :class:`msconv_jax.ICConv` takes.
        where: selects the convolutions of a published list. None selects those of the supernet, or in a plain network
            those with 3 taps along each axis. Ignored for a dictionary, whose paths select them.
        init_from: a supernet, which may be `model` itself, whose kernels are sampled at the chosen dilations for the
            initial values (an extension; the paper trains from scratch). None keeps the kernels and biases of a plain
            model, whose shapes fit, and initialises those of a supernet.
        rearrange: see above; None rearranges unless `init_from` is given.
        rngs: for initial values; None uses ``nnx.Rngs(0)``.

    Returns:
        The copy.

    Raises:
        ValueError: if the patterns do not fit the model, or `init_from` lacks a convolution that has one.

    Source: Sec. 3.2 of the paper and its public code's `ICConv2d`.

    Example:
        >>> from msconv_jax import edo
        >>> model = nnx.Sequential(nnx.Conv(4, 3, (3, 3), rngs=nnx.Rngs(0)), nnx.relu)
        >>> edo.rewrite(model, {"layers.0": [[4, 1], [1, 1], [4, 1]]}).layers[0].pattern
        ((1, 1), (4, 1), (4, 1))
        >>> edo.rewrite(model, [{"(0, 0)": 1, "(3, 0)": 2}]).layers[0].pattern  # an entry of a published file
        ((1, 1), (4, 1), (4, 1))
    """
    types = (*PLAIN, SupernetConv)
    searched = {path: conv for path, conv in convolutions(model).items() if isinstance(conv, SupernetConv)}
    if isinstance(patterns, Mapping):
        candidates = selected_convolutions(model, _anywhere, types)
    elif where is None and searched:
        candidates = searched
    else:
        candidates = selected_convolutions(model, SEARCHED if where is None else where, types)
    filters = {path: (conv.out_features, len(conv.kernel_size)) for path, conv in candidates.items()}
    dilations = by_path(patterns, filters)
    if rearrange is None:
        rearrange = init_from is None
    order = {
        path: rearranged(own, candidates[path].feature_group_count) if rearrange else list(range(len(own)))
        for path, own in dilations.items()
    }
    factories = {
        path: partial(ICConv, pattern=tuple(own[number] for number in order[path])) for path, own in dilations.items()
    }
    result, _ = replace_convs(model, factories, types=types, strict=True, rngs=rngs)
    if init_from is not None:
        _sample(result, init_from, dilations, order)
    return result


def sampled_kernel(kernel: jax.Array, kernel_size: Sequence[int], dilations: Dilations) -> jax.Array:
    """Samples a supernet's kernel at the dilations of each filter.

    Args:
        kernel: ``(*large sizes, inputs of a group, out_features)``.
        kernel_size: taps of the dilated kernel along each axis.
        dilations: for each filter one int per axis.

    Returns:
        ``(*kernel_size, inputs of a group, out_features)``.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = jnp.arange(9.0).reshape(9, 1, 1).repeat(2, axis=2)
        >>> sampled_kernel(kernel, (3,), ((1,), (4,)))[:, 0].T.tolist()
        [[3.0, 4.0, 5.0], [0.0, 4.0, 8.0]]
    """
    large, ndim = kernel.shape[:-2], kernel.ndim - 2
    taps = [sampled_taps(large, kernel_size, own) for own in dilations]
    places: list[Any] = []
    for axis in range(ndim):
        along = np.stack([own[axis] for own in taps], axis=-1)  # (k, out_features)
        places.append(along.reshape(*(len(along) if a == axis else 1 for a in range(ndim)), 1, len(taps)))
    places += [np.arange(kernel.shape[-2])[:, None], np.arange(kernel.shape[-1])]
    return kernel[tuple(places)]


def _anywhere(path: str, conv: nnx.Conv) -> bool:
    return True


def _sample(
    result: nnx.Module, source: nnx.Module, dilations: Mapping[str, Dilations], order: Mapping[str, Any]
) -> None:
    convs, targets = supernet_convs(source), convolutions(result)
    for path, own in dilations.items():
        if path not in convs:
            raise ValueError(f"init_from has no searched convolution at {path!r}: it has {', '.join(convs)}.")
        conv, target = convs[path], targets[path]
        if large_kernel_size(target.kernel_size, conv.d_max) != conv.kernel_size:
            raise ValueError(f"{path}: a kernel of {conv.kernel_size} taps cannot be sampled for {target.kernel_size}.")
        places = np.asarray(order[path])
        target.kernel[...] = sampled_kernel(conv.kernel[...], target.kernel_size, own)[..., places]
        if target.bias is not None and conv.bias is not None:
            target.bias[...] = conv.bias[...][places]
