"""Weights of PSConv: the public code stores one poly-scale kernel in three weights."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from msconv_jax.operators.psconv import PSConv, official_blocks
from msconv_jax.torch_weights.conversion import Arrays, Conversion, converts
from msconv_jax.torch_weights.layers import hwio, oihw, plain_weights

_NAMES = ("gwconv", "gwconv_shift", "conv")


@converts(PSConv)
def psconv(module: PSConv) -> tuple[Conversion, ...]:
    """The three weights of PSConv2d and PSGConv2d, or a plain convolution's weight."""
    t, groups = len(module.pattern), module.feature_group_count
    d = module.pattern[module.phase % t]
    published = [2 * d if n == t // 2 else 1 for n in range(t)]
    published[0] = d
    turned = [module.pattern[(n + module.phase) % t] for n in range(t)]
    if t % 2 or turned != published or (module.layout, module.vary) != ("block", "both"):
        return (plain_weights(module),)  # the public code has no such form
    outputs, fan_in, *size = oihw(module.kernel_shape)
    shapes = {
        "gwconv.weight": (outputs, fan_in // t, *size),
        "gwconv_shift.weight": (outputs, fan_in // t, *size),
        "conv.weight": (outputs, fan_in, *size),
    }
    if module.use_bias:
        shapes |= {f"{name}.bias": (outputs,) for name in _NAMES}

    def convert(tensors: Arrays) -> dict[str, Any]:
        values = {"kernel": psconv_kernel(tensors, groups, t, official=module.overlap_kernel is not None)}
        if module.overlap_kernel is not None:
            overlap = np.expand_dims(module.official_overlap(), tuple(range(len(size))))
            values["overlap_kernel"] = jnp.where(overlap, hwio(tensors["conv.weight"]), 0)
        if module.use_bias:  # the public code adds three biases
            values["bias"] = sum(tensors[f"{name}.bias"] for name in _NAMES)
        return values

    def check(tensors: Arrays) -> list[str]:
        served, zeroed = official_blocks(groups, t)
        dropped = served if module.overlap_kernel is None else zeroed
        extra = np.asarray(tensors["conv.weight"])[
            np.kron(dropped, np.ones((outputs // groups // t, fan_in // t), bool))
        ]
        if not extra.any():
            return []
        count = f"conv.weight: {np.count_nonzero(extra)} of {extra.size} weights"
        if module.overlap_kernel is None:
            return [
                f"{count} beside the dilated ones are not zero, a slip of the public code that the paper does not "
                "have; build the PSConv with official_compat=True to keep them"
            ]
        return [
            f"{count} that the public constructor sets to zero are not zero, and official_compat=True has no kernel "
            "for them; set them to zero if they are not to be kept"
        ]

    return Conversion(shapes, convert, check), plain_weights(module)


def psconv_kernel(tensors: Arrays, groups: int, parts: int, *, official: bool = False) -> Any:
    """Merges PSConv2d's three weights into one HWIO kernel, without the dense kernel on dilated blocks.

    With `official`, it also drops the blocks that the public constructor zeroes by mistake: for an odd number of groups
    some of these have only the dense kernel.
    """
    diagonal, swapped, dense = (jnp.asarray(tensors[f"{name}.weight"]) for name in _NAMES)
    outputs, fan_in = dense.shape[0] // (parts * groups), dense.shape[1] // parts  # of a part
    _, zeroed = official_blocks(groups, parts)
    columns = []
    for block in range(groups * parts):
        rows, p = slice(block * outputs, (block + 1) * outputs), block % parts
        of_part = [
            jnp.zeros_like(dense[rows, :fan_in])
            if official and zeroed[block, q]
            else dense[rows, q * fan_in : (q + 1) * fan_in]
            for q in range(parts)
        ]
        of_part[p], of_part[(p + parts // 2) % parts] = diagonal[rows], swapped[rows]
        columns.append(jnp.concatenate(of_part, axis=1))
    return hwio(jnp.concatenate(columns, axis=0))
