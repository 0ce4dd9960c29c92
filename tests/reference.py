"""Independent references for the tests: convolutions as plain NumPy loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from msconv_jax import KernelLattice


def naive_lattice_convolve(
    x: np.ndarray,
    tile_kernels: Sequence[np.ndarray],
    lattice: KernelLattice,
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> np.ndarray:
    """Two-dimensional convolution, cell by cell and tap by tap, in float64.

    `pads` are those of the base kernel. Half of a tile's extra extent is before the base kernel's first tap.
    """
    batch, height, width, _ = x.shape
    size = [
        max(0, (n + sum(pad) - extent) // stride + 1)
        for n, pad, extent, stride in zip((height, width), pads, lattice.base_extent, strides, strict=True)
    ]
    y = np.zeros((batch, *size, lattice.out_features))
    for tile, kernel in zip(lattice.tiles, tile_kernels, strict=True):
        outputs = range(tile.outputs.start, tile.outputs.stop, tile.outputs.step)
        inputs = range(tile.inputs.start, tile.inputs.stop, tile.inputs.step)
        offset = [(e - b) // 2 for e, b in zip(tile.extent, lattice.base_extent, strict=True)]
        for row in range(size[0]):
            for column in range(size[1]):
                for tap in np.ndindex(*tile.kernel_size):
                    i = row * strides[0] - pads[0][0] - offset[0] + tap[0] * tile.dilation[0]
                    j = column * strides[1] - pads[1][0] - offset[1] + tap[1] * tile.dilation[1]
                    if 0 <= i < height and 0 <= j < width:
                        picked = x[:, i, j, list(inputs)].astype(np.float64)
                        y[:, row, column, list(outputs)] += picked @ kernel[tap].astype(np.float64)
    return y


def naive_psconv(x: np.ndarray, kernel: np.ndarray, dilation: Callable[[int, int], int], stride: int) -> np.ndarray:
    """Eq. (3) of the PSConv paper as loops, for one image (H, W, C_in) with zero padding.

    `dilation(c, k)` is the matrix D.
    """
    height, width, _ = x.shape
    K, _, in_features, out_features = kernel.shape
    half = (K - 1) // 2
    y = np.zeros(((height - 1) // stride + 1, (width - 1) // stride + 1, out_features))
    for c in range(out_features):
        for k in range(in_features):
            D = dilation(c, k)
            for row in range(y.shape[0]):
                for column in range(y.shape[1]):
                    for i in range(-half, half + 1):
                        for j in range(-half, half + 1):
                            u, v = row * stride + i * D, column * stride + j * D
                            if 0 <= u < height and 0 <= v < width:
                                y[row, column, c] += kernel[i + half, j + half, k, c] * x[u, v, k]
    return y


def naive_convolve(x: np.ndarray, kernel: np.ndarray, strides: int | Sequence[int], pads: Sequence[int]) -> np.ndarray:
    """A dense convolution of (N, *spatial, C), position by position, with symmetric zero padding."""
    ndim = kernel.ndim - 2
    steps = (strides,) * ndim if isinstance(strides, int) else tuple(strides)
    padded = np.pad(x.astype(np.float64), [(0, 0), *((p, p) for p in pads), (0, 0)])
    size = [(n - k) // s + 1 for n, k, s in zip(padded.shape[1:-1], kernel.shape, steps, strict=False)]
    y = np.zeros((len(x), *size, kernel.shape[-1]))
    for place in np.ndindex(*size):
        window = tuple(slice(p * s, p * s + k) for p, s, k in zip(place, steps, kernel.shape, strict=False))
        y[(slice(None), *place)] = np.tensordot(padded[(slice(None), *window)], kernel, ndim + 1)
    return y


def by_taps(x, kernel, strides, pads, dilation, groups=1):
    """A convolution as a sum over taps of shifted images times weights; JAX can differentiate it."""
    x = lax.pad(x, 0.0, [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])
    extent = [(taps - 1) * gap + 1 for taps, gap in zip(kernel.shape, dilation, strict=False)]
    counts = [(n - e) // s + 1 for n, e, s in zip(x.shape[1:], extent, strides, strict=False)]
    total = 0
    for tap in np.ndindex(*kernel.shape[:-2]):
        seen = x[
            (
                slice(None),
                *(
                    slice(t * g, t * g + (n - 1) * s + 1, s)
                    for t, g, n, s in zip(tap, dilation, counts, strides, strict=True)
                ),
            )
        ]
        seen = seen.reshape(*seen.shape[:-1], groups, -1)
        weights = kernel[tap].reshape(kernel.shape[-2], groups, -1)
        total += jnp.einsum("...gi,igo->...go", seen, weights).reshape(*seen.shape[:-2], -1)
    return total


def whole(shape: Sequence[int], seed: int) -> np.ndarray:
    """Small whole numbers, whose products and sums are exact in float32."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)
