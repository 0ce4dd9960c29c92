"""Class activation maps: which regions of an image increase the logit of a class.

R. R. Selvaraju et al.: "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017
(arXiv 1610.02391); the Res2Net paper shows it in Fig. 5. For a map A with channels k and the logit y_c of a class,

    a_k = mean over i, j of d y_c / d A_ijk,    L_ij = max(0, sum_k a_k A_ijk).

For a network that averages its last map and classifies by one linear layer, this is, up to a factor, the positive part
of the class activation map of B. Zhou et al. (arXiv 1512.04150).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.typing import ArrayLike

from msconv_jax.analysis.figures import panels
from msconv_jax.analysis.maps import check_images, merge_network, split_network

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["class_activation_maps", "plot_class_activation_maps"]


def class_activation_maps(
    model: nnx.Module, images: ArrayLike, labels: ArrayLike | None = None, index: int = -1
) -> np.ndarray:
    """Computes class activation maps by Grad-CAM.

    Args:
        model: a network with `feature_maps` and `forward_head`, such as those of ``create_model``. It is evaluated in
            evaluation mode and stays unchanged.
        images: (N, H, W, C), the network's input.
        labels: the class of each image, (N,); None uses the predicted classes.
        index: number of the map among those of `feature_maps`; -1 is the last.

    Returns:
        Array (N, H, W) from 0 to 1: the map of each image, resized linearly to the image's size and divided by its
        largest value. It is zero if no region increases the logit.

    Raises:
        ValueError: if an argument does not fit, the network has no classes, or the logits do not depend on the map (as
            for the earlier maps of Oct-ResNets with two resolutions, which only `feature_maps` computes).

    Source: Eqs. (1) and (2) of Selvaraju et al.; Fig. 5 of the Res2Net paper (arXiv 1904.01169).

    Example:
        >>> from msconv_jax.models import create_model
        >>> model = create_model("ps_resnet8", width=4, rngs=nnx.Rngs(0))
        >>> maps = class_activation_maps(model, jax.random.normal(jax.random.key(0), (2, 17, 15, 3)), [3, 8])
        >>> maps.shape, bool(maps.min() >= 0 and maps.max() <= 1)
        ((2, 17, 15), True)
    """
    array = check_images(images)
    if not isinstance(model, nnx.Module) or not hasattr(model, "feature_maps") or not hasattr(model, "forward_head"):
        raise ValueError(
            f"{type(model).__name__} has no feature_maps and forward_head: expected a network of create_model."
        )
    static, values = split_network(model)
    maps, logits = jax.eval_shape(partial(_forward, static), values, array)
    if not -len(maps) <= index < len(maps):
        raise ValueError(f"index={index}: there are {len(maps)} maps; take {-len(maps)} to {len(maps) - 1}.")
    if logits.ndim != 2 or not getattr(model, "num_classes", 1):
        raise ValueError(
            f"the network gives an array of shape {logits.shape}, no logits: build it with num_classes, or give it "
            "a classifier with reset_classifier."
        )
    chosen = None if labels is None else _checked_labels(labels, *logits.shape)
    found, gradients = (
        np.asarray(part, np.float64) for part in _map_and_gradient(static, values, array, chosen, index % len(maps))
    )
    weights = gradients.mean(axis=(1, 2), keepdims=True)
    small = np.maximum((weights * found).sum(axis=-1), 0)
    if not np.isfinite(small).all():
        raise ValueError("the map or its gradient is not finite: give finite images and weights.")
    large = np.asarray(jax.image.resize(jnp.asarray(small, jnp.float32), array.shape[:3], "linear"))
    most = large.max(axis=(1, 2), keepdims=True)
    return np.divide(large, most, out=np.zeros_like(large), where=most > 0)


def _checked_labels(labels: ArrayLike, count: int, classes: int) -> jax.Array:
    array = np.asarray(labels)
    fits = array.shape == (count,) and np.issubdtype(array.dtype, np.integer)
    if not fits or array.min() < 0 or array.max() >= classes:
        raise ValueError(f"labels={labels!r}: expected {count} whole numbers from 0 to {classes - 1}.")
    return jnp.asarray(array)


def _forward(static: Any, values: Any, images: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """All maps, and the logits that the head computes from the last."""
    model = merge_network(static, values)
    maps = tuple(model.feature_maps(images))
    return maps, model.forward_head(maps[-1])


@partial(jax.jit, static_argnames=("static", "index"))
def _map_and_gradient(
    static: Any, values: Any, images: jax.Array, labels: jax.Array | None, index: int
) -> tuple[jax.Array, jax.Array]:
    """A map, and the gradient of each image's logit with respect to it.

    The traced network is split at the map, so any operations may lie between the map and the logits.
    """

    def forward(values: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        maps, logits = _forward(static, values, images)
        return maps[index], logits

    traced = jax.make_jaxpr(forward)(values, images)
    target = traced.jaxpr.outvars[0]
    readers = {id(v) for equation in traced.jaxpr.eqns for v in equation.invars}
    if id(target) not in readers and traced.jaxpr.outvars[1] is not target:
        raise ValueError(
            f"index={index}: only feature_maps computes this map, and the logits do not depend on it; take another, "
            "such as the last, -1."
        )
    # The same operations, with the map as an additional argument instead of the operation that computes it.
    from_map = jaxpr_as_fun(
        ClosedJaxpr(
            traced.jaxpr.replace(
                invars=[*traced.jaxpr.invars, target],
                outvars=[traced.jaxpr.outvars[1]],
                eqns=[e for e in traced.jaxpr.eqns if all(variable is not target for variable in e.outvars)],
            ),
            traced.consts,
        )
    )
    found, logits = forward(values, images)
    classes = logits.argmax(axis=-1) if labels is None else labels

    def logit(found: jax.Array) -> jax.Array:
        (logits,) = from_map(*jax.tree.leaves((values, images)), found)
        return jnp.take_along_axis(logits.astype(jnp.float32), classes[:, None], axis=-1).sum()

    return found.astype(jnp.float32), jax.grad(logit)(found).astype(jnp.float32)


def plot_class_activation_maps(
    images: ArrayLike,
    maps: ArrayLike,
    axes: Sequence[Axes] | np.ndarray | None = None,
    *,
    titles: Sequence[str] | None = None,
) -> Any:
    """Draws the map of each image over the image, from blue (no effect on the class) to red (largest effect).

    Args:
        images: (N, H, W, 1 or 3). Images with values outside 0 to 1 are scaled to this range.
        maps: (N, H, W) from 0 to 1, from :func:`class_activation_maps`.
        axes: an array or sequence with an Axes per image; None creates a figure.
        titles: a title for each image.

    Returns:
        `axes`, or the ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if images, maps and titles do not fit together, or there are too few Axes.
        ImportError: if matplotlib is missing.

    Source: Fig. 5 of the Res2Net paper.

    Example:
        >>> figure = plot_class_activation_maps(np.zeros((2, 8, 8, 3)), np.ones((2, 8, 8)), titles=["cat", "dog"])
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['cat', 'dog']
    """
    pictures, shares = np.asarray(images, np.float64), np.asarray(maps, np.float64)
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3) or shares.shape != pictures.shape[:3] or not len(shares):
        raise ValueError(
            f"images of shape {pictures.shape} and maps of shape {shares.shape}: expected (N, H, W, 1 or 3), (N, H, W)."
        )
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"{len(titles)} titles for {len(pictures)} images: give one for each, or none.")
    panes, result = panels(axes, len(pictures), 4, 2.6, 2.7)
    for number, pane in enumerate(panes):
        picture = pictures[number]
        if picture.min() < 0 or picture.max() > 1:
            picture = (picture - picture.min()) / np.ptp(picture)
        pane.imshow(np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture)
        drawn = pane.imshow(shares[number], cmap="jet", vmin=0, vmax=1, alpha=0.5)
        pane.set(xticks=[], yticks=[], title="" if titles is None else titles[number])
        if axes is None and number == len(panes) - 1:
            result.colorbar(drawn, ax=panes, label="share of the largest", shrink=0.8)
    return result
