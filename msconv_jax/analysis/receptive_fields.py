"""Theoretical and effective receptive fields of a unit of a feature map.

The theoretical field follows the operations back from the unit. The effective field is the gradient of the unit with
respect to the image, averaged over images: W. Luo, Y. Li, R. Urtasun, R. Zemel: "Understanding the Effective Receptive
Field in Deep Convolutional Neural Networks", NIPS 2016 (arXiv 1701.04128). It is nearly Gaussian, and much smaller than
the theoretical field.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from msconv_jax.analysis.dependence import input_boxes
from msconv_jax.analysis.figures import single
from msconv_jax.analysis.maps import Network, check_images, check_unit, one_map, split_network
from msconv_jax.arguments import check_positive
from msconv_jax.convolution import planning_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ReceptiveField",
    "effective_receptive_field",
    "plot_receptive_field",
    "receptive_field_radius",
    "receptive_field_size",
    "theoretical_receptive_field",
]

Channels = Literal["ones", "random"]
Measure = Literal["absolute", "squared"]


class ReceptiveField(NamedTuple):
    """The box of pixels that a unit can depend on.

    Attributes:
        rows: the first and the last row, both included.
        columns: the first and the last column.
        image: height and width of the image.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    image: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rows[1] - self.rows[0] + 1, self.columns[1] - self.columns[0] + 1

    @property
    def cut(self) -> bool:
        """Whether the field touches an edge of the image; it may then be larger in a larger image."""
        ends = ((*self.rows, self.image[0]), (*self.columns, self.image[1]))
        return any(first == 0 or last == size - 1 for first, last, size in ends)


def theoretical_receptive_field(
    model: Network, input_size: Sequence[int], index: int = -1, *, unit: tuple[int, int] | None = None
) -> ReceptiveField:
    """The box of image pixels that a unit of a map can depend on, for any weights.

    The network is traced, not run: large images cost nothing, and weights need no values. Residual branches, chains and
    resolutions are followed separately. A mean over the whole map (squeeze-and-excitation, adaptively connected
    convolutions) makes the box the whole image. The box is exact for convolutions, pooling and elementwise operations;
    gaps of dilated kernels count as inside. It is too large where a matrix product resizes maps, since a product
    depends on everything, and for layers with a forced ``lowering="columns"``.

    Args:
        model: an NNX module with `feature_maps`, or any callable from images (N, H, W, C) to a map (N, H', W', C') or a
            tuple of maps. A module is traced in evaluation mode and not modified; it may be abstract, as from
            ``nnx.eval_shape``.
        input_size: height, width and channels of the image. The field is clipped to the image.
        index: index of the map; -1 is the last.
        unit: row and column of the unit, with all of its channels; None is the middle one.

    Returns:
        The box.

    Raises:
        ValueError: for an invalid argument, a unit that does not depend on the image, or an operation with unknown
            dependence.

    Example:
        >>> from flax import nnx
        >>> from msconv_jax.models import create_model
        >>> model = nnx.eval_shape(lambda: create_model("resnet50", rngs=nnx.Rngs(0)))
        >>> field = theoretical_receptive_field(model, (1024, 1024, 3))
        >>> field.size, field.cut
        ((427, 427), False)
        >>> theoretical_receptive_field(model, (224, 224, 3)).cut
        True
    """
    if len(input_size) != 3:
        raise ValueError(f"input_size={input_size}: expected height, width and channels, such as (224, 224, 3).")
    for number in input_size:
        check_positive("input_size", number, "give height, width and channels, such as (224, 224, 3)")
    static, values = split_network(model)
    image = jax.ShapeDtypeStruct((1, *input_size), jnp.float32)
    with planning_for("onnx"):  # this plan computes with the lattices' own kernels
        traced = jax.make_jaxpr(lambda values, image: one_map(static, values, image, index))(values, image)
    _, height, width, channels = traced.out_avals[0].shape
    row, column = check_unit(unit, (height, width))
    box = input_boxes(traced.jaxpr, [((0, 0), (row, row), (column, column), (0, channels - 1))])[-1]
    if box is None:
        raise ValueError(f"the unit {(row, column)} of the map does not depend on the image.")
    (top, bottom), (left, right) = box[1:3]
    return ReceptiveField((int(top), int(bottom)), (int(left), int(right)), (input_size[0], input_size[1]))


def effective_receptive_field(
    model: Network,
    images: ArrayLike,
    index: int = -1,
    *,
    unit: tuple[int, int] | None = None,
    channels: Channels = "ones",
    measure: Measure = "squared",
    seed: int = 0,
) -> np.ndarray:
    """The gradient of a unit of a map with respect to each pixel of the image, averaged over images.

    The output gradient is 1 in each channel of the unit, or a normal random number per image and channel, and 0 in all
    other units. The gradient at a pixel is squared (or its absolute value taken), summed over the image's channels, and
    averaged over the images.

    The network runs in evaluation mode. In a newly initialised network the normalisations then do nothing; if that
    matters, run it on images in training mode first. Residual branches that start at zero leave only the shortcuts:
    build the network with ``zero_init_last=False``.

    Args:
        model: see :func:`theoretical_receptive_field`; with values.
        images: (N, H, W, C). The middle unit is in the middle of the image if the sides are one more than an even
            multiple of the map's reduction, such as 321 for 32.
        index: index of the map; -1 is the last.
        unit: row and column of the unit; None is the middle one.
        channels: the output gradient of the unit's channels, "ones" or "random".
        measure: "squared" or "absolute".
        seed: seed of the random numbers.

    Returns:
        Array (H, W) of non-negative numbers that sum to 1.

    Raises:
        ValueError: for an invalid argument, or if the gradient is zero or not finite.

    Source: Sec. 3 and Fig. 1 of Luo et al.

    Example:
        >>> import msconv_jax
        >>> from flax import nnx
        >>> conv = msconv_jax.PSConv(4, 4, (3, 3), padding=1, rngs=nnx.Rngs(0))
        >>> field = effective_receptive_field(conv, np.ones((1, 15, 15, 4)))
        >>> field.shape, [int(row) for row in np.flatnonzero(field.sum(axis=1))]  # dilations 1, 2 and 4
        ((15, 15), [3, 5, 6, 7, 8, 9, 11])
    """
    for name, value, known in (("channels", channels, get_args(Channels)), ("measure", measure, get_args(Measure))):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}.")
    array = check_images(images)
    static, values = split_network(model)
    shape = jax.eval_shape(partial(one_map, static, index=index), values, array).shape
    place = check_unit(unit, shape[1:3])
    if channels == "ones":
        signal = jnp.ones((shape[0], shape[-1]), jnp.float32)
    else:
        signal = jax.random.normal(jax.random.key(seed), (shape[0], shape[-1]), jnp.float32)
    gradients = np.asarray(_image_gradients(static, values, array, index, jnp.asarray(place), signal), np.float64)
    amounts = np.abs(gradients) if measure == "absolute" else gradients**2
    field = amounts.sum(axis=-1).mean(axis=0)
    total = field.sum()
    if not np.isfinite(total) or total == 0:
        raise ValueError(
            f"the gradient of unit {place} has the sum {total}: expected a positive number; give other images, such as "
            "random ones, or weights that are finite and not all zero."
        )
    return field / total


@partial(jax.jit, static_argnames=("static", "index"))
def _image_gradients(
    static: Any, values: Any, images: jax.Array, index: int, place: jax.Array, signal: jax.Array
) -> jax.Array:
    """The gradient of one unit with respect to each image; `signal` (N, C) weights the unit's channels."""

    def unit(images: jax.Array) -> jax.Array:
        found = one_map(static, values, images, index)[:, place[0], place[1]]
        return (found.astype(jnp.float32) * signal).sum()  # images are independent in evaluation mode

    return jax.grad(unit)(images)


def receptive_field_size(field: np.ndarray, share: float = 0.95, centre: tuple[int, int] | None = None) -> int:
    """The side in pixels of the smallest centred square that contains a share of a field; an odd number.

    Args:
        field: (H, W), not negative, as :func:`effective_receptive_field` returns it.
        share: share of the field's sum, above 0 and at most 1.
        centre: row and column of the square's middle; None is the field's centre of mass, rounded.

    Returns:
        The side. A square may extend beyond the image, where the field is 0.

    Raises:
        ValueError: for an invalid argument.

    Example:
        >>> field = np.zeros((9, 9))
        >>> field[4, 4], field[4, 2] = 0.9, 0.1
        >>> receptive_field_size(field, 0.9), receptive_field_size(field, 0.95)
        (1, 5)
    """
    values = _checked_field(field)
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r}: expected a number above 0 and at most 1, such as 0.95.")
    row, column = (round(place) for place in _centre(values)) if centre is None else check_unit(centre, values.shape)
    rows, columns = np.indices(values.shape)
    distance = np.maximum(abs(rows - row), abs(columns - column))
    inside = np.cumsum(np.bincount(distance.ravel(), values.ravel()))
    return 2 * int(np.searchsorted(inside, share * inside[-1] * (1 - 1e-12))) + 1


def receptive_field_radius(field: np.ndarray) -> float:
    """The root mean square distance of a field from its centre of mass in pixels: a Gaussian's standard deviation.

    Args:
        field: (H, W), not negative, as :func:`effective_receptive_field` returns it.

    Returns:
        The distance along one axis: the square root of the mean of both axes' variances.

    Raises:
        ValueError: for an invalid `field`.

    Example:
        >>> round(receptive_field_radius(np.eye(3)), 6)  # variance 2 / 3 along either axis
        0.816497
    """
    values = _checked_field(field)
    row, column = _centre(values)
    rows, columns = np.indices(values.shape)
    squares = ((rows - row) ** 2 + (columns - column) ** 2) / 2
    return float(np.sqrt((squares * values).sum() / values.sum()))


def _checked_field(field: np.ndarray) -> np.ndarray:
    values = np.asarray(field, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all() or not (values >= 0).all() or not values.any():
        raise ValueError(
            f"field of shape {values.shape}: expected (H, W) of numbers that are finite, not negative and not all "
            "zero, as effective_receptive_field gives it."
        )
    return values


def _centre(field: np.ndarray) -> tuple[float, float]:
    rows, columns = np.indices(field.shape)
    return float((rows * field).sum() / field.sum()), float((columns * field).sum() / field.sum())


def plot_receptive_field(
    field: np.ndarray,
    axes: Axes | None = None,
    *,
    share: float = 0.95,
    theoretical: ReceptiveField | None = None,
    title: str = "",
) -> Any:
    """Draws an effective receptive field, and the square that contains a share of it.

    The brightness is the square root of the field over its maximum, which makes the tails visible.

    Args:
        field: (H, W), as :func:`effective_receptive_field` returns it.
        axes: the axes to draw on; None creates a figure.
        share: share of the field inside the square; see :func:`receptive_field_size`.
        theoretical: the theoretical field, drawn as a second box.
        title: title of the axes.

    Returns:
        `axes`, or the ``matplotlib.figure.Figure``.

    Raises:
        ValueError: for an invalid `field` or `share`.
        ImportError: if matplotlib is missing.

    Source: Fig. 1 of Luo et al.

    Example:
        >>> figure = plot_receptive_field(np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]))
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['95 % in 5 x 5 pixels']
    """
    values = _checked_field(field)
    side = receptive_field_size(values, share)
    row, column = (round(place) for place in _centre(values))
    own, result = single(axes, 5.0, 4.4)
    from matplotlib.patches import Rectangle  # imported late, since matplotlib is optional

    image = own.imshow(np.sqrt(values / values.max()), cmap="inferno", vmin=0, vmax=1)
    corner = (column - side / 2, row - side / 2)
    label = f"{100 * share:g} % in {side} x {side} pixels"
    own.add_patch(Rectangle(corner, side, side, fill=False, color="deepskyblue", linewidth=1.5, label=label))
    if theoretical is not None:
        height, width = theoretical.size
        corner = (theoretical.columns[0] - 0.5, theoretical.rows[0] - 0.5)
        label = f"theoretical, {height} x {width}" + (" in this image" if theoretical.cut else "")
        own.add_patch(Rectangle(corner, width, height, fill=False, color="white", ls="--", label=label))
    own.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=True, facecolor="dimgrey", labelcolor="white")
    own.set(title=title, xlabel="column of the image", ylabel="row", xlim=(-0.5, values.shape[1] - 0.5))
    own.set_ylim(values.shape[0] - 0.5, -0.5)
    own.figure.colorbar(image, ax=own, label="root of the share of the largest", shrink=0.85)
    return result
