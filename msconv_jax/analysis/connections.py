"""The weights that an adaptively connected network has learnt for its local, pointwise and global terms.

G. Wang, K. Wang, L. Lin: "Adaptively Connected Neural Networks", CVPR 2019. Its Fig. 3 shows positions with global
inference in yellow and positions with local inference in black. The equations are in :mod:`msconv_jax.operators.acnet`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from msconv_jax.analysis.figures import panels
from msconv_jax.analysis.maps import check_images, merge_network, split_network
from msconv_jax.operators.acgraph import ACGraph
from msconv_jax.operators.acnet import ACConv
from msconv_jax.recording import recorded_calls

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["connection_maps", "plot_connection_maps"]

Connections = dict[str, dict[str, np.ndarray]]


def connection_maps(model: nnx.Module, images: ArrayLike | None = None) -> Connections:
    """The weights of the local, pointwise and global terms of each adaptively connected layer.

    Args:
        model: any NNX model with :class:`msconv_jax.ACConv` or :class:`msconv_jax.ACGraph`; it stays unchanged.
        images: (N, H, W, C), the model's input. Only layers of the kind "pixel" need them, because their gates depend
            on the image. The model is evaluated in evaluation mode.

    Returns:
        A dictionary from the path of each layer to its terms and their weights:

        * kind "dataset": the softmax of the learnt logits (Eq. 2) over "local", "point" and "global". Its shape is ()
          for one weight per layer, (C,) per channel, (Ho, Wo) per position of the output;
        * kind "pixel": only "global", the gate (N, Ho, Wo, C) from 0 to 1 (Eq. 3); the local term has weight 1;
        * ``ACGraph``: "point" (the node itself), "local" (its neighbours) and "global", each of shape ().

    Raises:
        ValueError: if the model has no such layer, or `images` is missing for layers that need them.

    Source: Eqs. (1) to (3) and Fig. 3 of the paper.

    Example:
        >>> model = nnx.Sequential(
        ...     ACConv(3, 4, (3, 3), rngs=nnx.Rngs(0)), ACConv(4, 4, (3, 3), kind="pixel", rngs=nnx.Rngs(1))
        ... )
        >>> found = connection_maps(model, jnp.ones((1, 9, 7, 3)))
        >>> [round(float(weight), 3) for weight in found["layers.0"].values()], found["layers.1"]["global"].shape
        ([0.333, 0.333, 0.333], (1, 9, 7, 4))
    """
    layers = {".".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, ACConv | ACGraph)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no adaptively connected layer: give a network such as ac_resnet50, or one "
            "built with conv=ACConv."
        )
    gates: dict[str, jax.Array] = {}
    if any(_gated(layer) for layer in layers.values()):
        if images is None:
            raise ValueError("images=None: the gates of layers of the kind 'pixel' depend on the image; give images.")
        gates = _gates(*split_network(model), check_images(images))
    return {
        path: {"global": np.asarray(gates[path], np.float32)} if path in gates else _learnt(layer)
        for path, layer in layers.items()
        if path in gates or not _gated(layer)
    }


def _gated(layer: Any) -> bool:
    return isinstance(layer, ACConv) and layer.kind == "pixel"


def _learnt(layer: ACConv | ACGraph) -> dict[str, np.ndarray]:
    """The mixing weights of one layer by its terms."""
    terms = ("point", "local", "global") if isinstance(layer, ACGraph) else layer.use
    if layer.mix_logits is None:
        return {term: np.float32(1 / len(terms)) * np.ones((), np.float32) for term in terms}
    weights = np.asarray(jax.nn.softmax(layer.mix_logits[...].astype(jnp.float32), axis=0))
    if isinstance(layer, ACConv) and layer.mix == "position":
        weights = weights[..., 0]  # all channels share them
    return dict(zip(terms, weights, strict=True))


@partial(jax.jit, static_argnames=("static",))
def _gates(static: Any, values: Any, images: jax.Array) -> dict[str, jax.Array]:
    """The gate of each layer of the kind "pixel"; the mean over several calls of one layer."""
    model = merge_network(static, values)
    layers = {".".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, ACConv)}
    gates = [layer.gate2 for layer in layers.values()]
    with recorded_calls(model, lambda module: any(module is gate for gate in gates)) as calls:
        model(images)
    found: dict[str, jax.Array] = {}
    for path in layers:
        seen = [nnx.sigmoid(call.outputs) for call in calls if call.path == f"{path}.gate2".removeprefix(".")]
        if seen:
            found[path] = jnp.stack(seen).mean(axis=0)
    return found


def plot_connection_maps(
    connections: Mapping[str, Mapping[str, np.ndarray]],
    axes: Sequence[Axes] | np.ndarray | None = None,
    *,
    term: str = "global",
    image: int = 0,
) -> Any:
    """Draws the weight of one term for each layer, from black (small) to yellow (large).

    Weights per position are drawn as a picture. Weights per layer or per channel are drawn as bars, for all terms.
    Gates (N, Ho, Wo, C) are drawn for one image, as their mean over the channels.

    Args:
        connections: result of :func:`connection_maps`, or some of its layers.
        axes: an array or sequence with an Axes per layer; None creates a figure.
        term: "local", "point" or "global".
        image: number of the image, for gates.

    Returns:
        `axes`, or the ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if there is no layer, a layer has no such term, or there is no such image or too few Axes.
        ImportError: if matplotlib is missing.

    Source: Fig. 3 of the paper.

    Example:
        >>> figure = plot_connection_maps({"conv2": {"local": np.zeros((7, 7)), "global": np.ones((7, 7))}})
        >>> figure.axes[0].get_title()
        'conv2'
    """
    if not connections:
        raise ValueError("connections is empty: expected at least one layer, from connection_maps.")
    for path, terms in connections.items():
        if term not in terms:
            raise ValueError(f"term={term!r}: {path} has {', '.join(terms)}; take one of these, or omit it.")
        if terms[term].ndim == 4 and not 0 <= image < len(terms[term]):
            raise ValueError(f"image={image}: {path} has the gates of {len(terms[term])} images; count from 0.")
    places, result = panels(axes, len(connections), 6, 2.1, 2.2)
    from matplotlib.cm import ScalarMappable  # panels() has checked that matplotlib is installed
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("black to yellow", ["black", "yellow"])
    pictures = {
        path: weights[image].mean(axis=-1) if weights.ndim == 4 else weights
        for path, weights in ((path, terms[term]) for path, terms in connections.items())
        if weights.ndim != 1 and weights.ndim != 0
    }
    values = [float(end) for picture in pictures.values() for end in (picture.min(), picture.max())]
    norm = Normalize(min(values), max(max(values), min(values) + 1e-6)) if values else None
    for own, (path, terms) in zip(places, connections.items(), strict=True):
        own.set_title(path, fontsize=9)
        if path in pictures:
            own.imshow(pictures[path], cmap=colours, norm=norm)
            own.set(xticks=[], yticks=[])
            continue
        for number, (name, weights) in enumerate(terms.items()):  # a bar for the mean, a dot per channel
            own.bar(number, weights.mean(), color="gold" if name == term else "dimgrey")
            if weights.ndim:
                own.plot(np.full(weights.size, number), weights, ".", color="black", markersize=3)
        own.set_xticks(range(len(terms)), list(terms), fontsize=8)
        own.set_ylim(0, 1)
    if axes is None and norm is not None:
        result.colorbar(ScalarMappable(norm, colours), ax=places, label=f"{term} term", shrink=0.8)
    return result
