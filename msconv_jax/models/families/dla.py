"""The trees of deep layer aggregation (DLA) with the blocks of Res2Net and Res2NeXt."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.arguments import check_positive
from msconv_jax.models.families.res2net import Res2Bottleneck
from msconv_jax.models.layers import ConvShortcut, Layer, Parts
from msconv_jax.models.pooling import max_pool
from msconv_jax.modes.picklable import Picklable
from msconv_jax.operators.res2net import LastSlice

__all__ = ["Res2TreeBlock", "Root", "Tree"]


def _no_shortcut(*_: Any, **__: Any) -> None:
    """In the place of a projection: the tree hands the block its shortcut."""


class Res2TreeBlock(Res2Bottleneck):
    """The Res2Net block in a `Tree`, which gives it the map on the shortcut.

    A slice has `floor(planes * base_width / 128) * groups` channels, and the output `planes`. The defaults are those
    of Res2Net-DLA; Res2NeXt-DLA has `base_width=4, groups=8`. (Its public code has `floor(planes * 8 / 32)` channels
    and 8 groups, which is the same wherever the groups divide the channels.) The block is a "stage" block if its
    stride is not 1; a change of channels alone does not make it one.

    Args:
        in_features: input channels.
        planes: output channels.
        strides: stride of the block.
        parts: the network's parts; its shortcut, width and groups are left out of account.
        name: path of the block in the model, for error messages.
        drop_path_rate: probability of dropping the branch in training.
        scale: number of slices.
        base_width: channels of one slice of one group when `planes` is 128.
        groups: groups of each slice's convolution.
        last_slice: see `Res2Bottleneck`.
        kernel_dilation: dilation of the slices' convolutions; None takes the parts'.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Raises:
        ValueError: if a slice would have no channels, or if a layer refuses its arguments.

    Source:
        Gao et al., Res2Net, arXiv 1904.01169, section 4.2, table 1; the widths are those of the public code.

    Example:
        >>> block = Res2TreeBlock(32, 128, 2, parts=Parts(), name="tree1", rngs=nnx.Rngs(0))
        >>> block.conv2.in_features, block.conv2.kind, block.downsample
        (112, 'stage', None)
        >>> block(jnp.ones((1, 8, 8, 32)), jnp.ones((1, 4, 4, 128))).shape
        (1, 4, 4, 128)
    """

    expansion: ClassVar[int] = 1
    reference_planes: ClassVar[int] = 128

    def __init__(
        self,
        in_features: int,
        planes: int,
        strides: int = 1,
        *,
        parts: Parts,
        name: str,
        drop_path_rate: float = 0.0,
        scale: int = 4,
        base_width: int = 28,
        groups: int = 1,
        last_slice: LastSlice = "pool",
        kernel_dilation: int | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_features,
            planes,
            strides,
            parts=dataclasses.replace(parts, shortcut=_no_shortcut),
            name=name,
            drop_path_rate=drop_path_rate,
            scale=scale,
            base_width=base_width,
            groups=groups,
            kind="normal" if strides == 1 else "stage",
            last_slice=last_slice,
            kernel_dilation=kernel_dilation,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, shortcut: jax.Array | None = None) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), planes).

        Args:
            x: the input.
            shortcut: the map that is added to the branch's, of its shape; None takes the input.

        Raises:
            ValueError: if the shortcut has another shape than the branch.
        """
        branch = self.branch(x)
        shortcut = x if shortcut is None else shortcut
        if shortcut.shape != branch.shape:
            raise ValueError(
                f"shortcut of shape {shortcut.shape} beside a branch of shape {branch.shape}: pass a map of the "
                "branch's shape, as Tree does"
            )
        return self.join(shortcut, branch)


class Root(Picklable):
    """Joins the maps of a tree: 1x1 convolution over all their channels, normalisation, activation.

    Args:
        in_features: channels of all maps together.
        out_features: output channels.
        residual: whether the first map is added before the activation.
        parts: the network's parts.
        name: path of the root in the model, for error messages.
        rngs: source of the `params` stream.

    Source:
        Yu et al., Deep Layer Aggregation, arXiv 1707.06484, section 3, equation 3.

    Example:
        >>> root = Root(12, 4, parts=Parts(), name="root", rngs=nnx.Rngs(0))
        >>> root(jnp.ones((1, 3, 3, 4)), jnp.ones((1, 3, 3, 8))).shape
        (1, 3, 3, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        residual: bool = False,
        parts: Parts,
        name: str,
        rngs: nnx.Rngs,
    ):
        self.residual = residual
        self.act = parts.act
        self.conv = parts.dense(f"{name}.conv", in_features, out_features, 1, 1, rngs)
        self.bn = parts.normalise(f"{name}.bn", out_features, rngs)

    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Joins maps (N, H, W, C_i), with the C_i adding up to in_features, to (N, H, W, out_features)."""
        y = self.bn(self.conv(jnp.concatenate(maps, axis=-1)))
        return self.act(y + maps[0] if self.residual else y)


class Tree(nnx.Module):
    """A tree of `2**levels` blocks whose maps are joined by roots, one for each pair of blocks.

    With one level, and `bottom` the input after a max-pooling by the stride:

        x1 = tree1(input, shortcut = project(bottom))
        x2 = tree2(x1, shortcut = x1)
        output = root(x2, x1, *children)

    where `project` is a 1x1 convolution with normalisation if the channels change, and else the identity. With more
    levels `tree1` and `tree2` are trees of one level less, the first without children, and the second has the first's
    output as a further child: `output = tree2(x1, children=(*children, x1))`. With `level_root` the first child of all
    is `bottom`.

    A tree of more than one level whose channels change has a `project` whose map nothing reads: published weights have
    it, it is counted, and its gradient is zero. It runs only so that its statistics are recorded in training.

    Args:
        levels: depth, at least 1.
        in_features: input channels.
        out_features: output channels.
        strides: stride of the tree's first block and of the max-pooling.
        level_root: whether the tree's pooled input is a child.
        root_residual: whether the roots add their first map.
        children_features: channels of all `children` together that calls will pass.
        block: factory of the blocks, called as `Res2TreeBlock` is, such as
            `partial(Res2TreeBlock, base_width=4, groups=8)` for Res2NeXt.
        parts: the network's parts.
        name: path of the tree in the model, for error messages.
        drop_path_rate: probability of dropping a block's branch in training.
        rngs: source of the `params` and, with drop path, `dropout` streams.

    Raises:
        ValueError: if `levels` or `strides` is less than 1, or if a layer refuses its arguments.

    Source:
        Yu et al., Deep Layer Aggregation, arXiv 1707.06484, section 3.2, figure 2f; the order of the maps is that of
        the public code.

    Example:
        >>> tree = Tree(2, 16, 32, 2, level_root=True, parts=Parts(), name="level3", rngs=nnx.Rngs(0))
        >>> tree(jnp.ones((1, 8, 12, 16))).shape
        (1, 4, 6, 32)
        >>> tree.tree2.root.conv.in_features  # x2, x1, the pooled input and the first tree's output
        112
    """

    def __init__(
        self,
        levels: int,
        in_features: int,
        out_features: int,
        strides: int = 1,
        *,
        level_root: bool = False,
        root_residual: bool = False,
        children_features: int = 0,
        block: Callable[..., Layer] = Res2TreeBlock,
        parts: Parts,
        name: str,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_positive(f"{name}: levels", levels, "a tree of one level has two blocks")
        check_positive(f"{name}: strides", strides, "the papers use 2 or 1")
        self.strides = strides
        self.levels = levels
        self.level_root = level_root
        children_features += in_features if level_root else 0
        common: dict[str, Any] = {"parts": parts, "drop_path_rate": drop_path_rate, "rngs": rngs}
        if levels == 1:
            self.tree1: Layer = block(in_features, out_features, strides, name=f"{name}.tree1", **common)
            self.tree2: Layer = block(out_features, out_features, 1, name=f"{name}.tree2", **common)
            self.root = Root(
                2 * out_features + children_features,
                out_features,
                residual=root_residual,
                parts=parts,
                name=f"{name}.root",
                rngs=rngs,
            )
        else:
            common |= {"root_residual": root_residual, "block": block}
            self.tree1 = Tree(levels - 1, in_features, out_features, strides, name=f"{name}.tree1", **common)
            self.tree2 = Tree(
                levels - 1,
                out_features,
                out_features,
                children_features=children_features + out_features,
                name=f"{name}.tree2",
                **common,
            )
        self.project = (
            ConvShortcut(in_features, out_features, 1, parts=parts, name=f"{name}.project", rngs=rngs)
            if in_features != out_features
            else None
        )

    def __call__(self, x: jax.Array, children: Sequence[jax.Array] = ()) -> jax.Array:
        """Maps (N, H, W, in_features) to (N, ceil(H/s), ceil(W/s), out_features).

        Args:
            x: the input.
            children: further maps (N, ceil(H/s), ceil(W/s), C_i) for the last root.
        """
        bottom = x
        if self.strides > 1:
            # As many rows and columns as the convolutions keep: the last windows may reach beyond the map.
            beyond = [(0, -size % self.strides) for size in x.shape[1:3]]
            bottom = max_pool(x, self.strides, beyond, window=self.strides)
        shortcut = bottom if self.project is None else self.project(bottom)
        if self.level_root:
            children = (*children, bottom)
        if self.levels > 1:
            x1 = self.tree1(x)
            return self.tree2(x1, (*children, x1))
        x1 = self.tree1(x, shortcut)
        return self.root(self.tree2(x1), x1, *children)
