"""The stages of a network: their depths, strides, dilations and convolutions."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.layers import ConvFactory, Layer, first_names

__all__ = ["Convs", "StageGrid", "check_conv_paths", "check_stages", "conv_of_each_stage", "stage_grids"]

# The spatial convolutions of a network with stages: one factory, one for each path, or one for each stage.
Convs = ConvFactory | Sequence[Callable[..., Layer]]


def check_stages(layers: Sequence[int], strides: Sequence[int] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Checks the number of blocks and the stride of each stage.

    Args:
        layers: number of blocks of each stage.
        strides: stride of each stage; None is 1, 2, 2, ...

    Returns:
        Both as tuples of one length.

    Raises:
        ValueError: if a number is less than 1, or the lengths differ.

    Example:
        >>> check_stages([3, 4, 6], None)
        ((3, 4, 6), (1, 2, 2))
    """
    if not isinstance(layers, Sequence) or not layers:
        raise ValueError(f"layers={layers!r}: must be the numbers of blocks of the stages, such as (3, 4, 6, 3)")
    layers = tuple(layers)
    for depth in layers:
        check_positive("layers", depth, "give each stage at least one block, as (3, 4, 6, 3)")
    strides = (1,) + (2,) * (len(layers) - 1) if strides is None else tuple(strides)
    if len(strides) != len(layers):
        raise ValueError(
            f"strides={strides}: must have one stride for each of the {len(layers)} stages of layers={layers}; None is "
            "1, 2, 2, ..."
        )
    for stride in strides:
        check_positive("strides", stride, "None is 1, 2, 2, ...")
    return layers, strides


class StageGrid(NamedTuple):
    """The resolution of a stage's map.

    Attributes:
        reduction: pixels of the image, along each side, for one pixel of the map.
        dilation: dilation of the stage's spatial convolutions.
        strided: whether the stage takes its stride.
    """

    reduction: int
    dilation: int
    strided: bool


def stage_grids(strides: Sequence[int], reduction: int, output_stride: int) -> tuple[StageGrid, ...]:
    """Decides for each stage whether it strides or dilates.

    Args:
        strides: stride of each stage.
        reduction: pixels of the image, along each side, for one pixel of the stem's map.
        output_stride: the largest allowed reduction of a stage, 8, 16 or 32.

    Returns:
        The grid of each stage.

    Raises:
        ValueError: if `output_stride` is another number, or the stem exceeds it.

    Example:
        >>> stage_grids((1, 2, 2, 2), 4, 8)[2:]
        (StageGrid(reduction=8, dilation=2, strided=False), StageGrid(reduction=8, dilation=4, strided=False))
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride={output_stride!r}: must be 8, 16 or 32; the papers' classifiers have 32")
    if reduction > output_stride:
        raise ValueError(
            f"output_stride={output_stride}: the stem alone has an output stride of {reduction}; use a larger "
            "output_stride, or another stem"
        )
    grids, dilation = [], 1
    for stride in strides:
        strided = reduction * stride <= output_stride
        reduction *= stride if strided else 1
        dilation *= 1 if strided else stride
        grids.append(StageGrid(reduction, dilation, strided))
    return tuple(grids)


def conv_of_each_stage(conv: Convs, stages: int) -> tuple[ConvFactory, ...]:
    """Repeats one factory or mapping for every stage, or checks that a sequence has one factory for each stage."""
    if conv is None or callable(conv) or isinstance(conv, Mapping):
        return (conv,) * stages
    valid = isinstance(conv, Sequence) and len(conv) == stages and all(map(callable, conv))
    if not valid:
        raise ValueError(
            f"conv={conv!r}: must be one factory for all stages, a mapping with one for each path, or a sequence "
            f"with one for each of the {stages} stages"
        )
    return tuple(conv)


def check_conv_paths(model: nnx.Module, conv: Convs) -> None:
    """Raises `ValueError` if `conv` is a mapping with a path that the model does not have."""
    if isinstance(conv, Mapping):
        known = {".".join(map(str, path)) for path, _ in nnx.iter_modules(model)}
        unknown = [path for path in conv if path not in known]
        if unknown:
            raise ValueError(
                f"conv has factories for {first_names(unknown)}: {type(model).__name__} has no such convolution; leave "
                "them out, or build the network that they are for"
            )
