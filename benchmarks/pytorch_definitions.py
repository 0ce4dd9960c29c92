"""PSConv, PyConv and IC-Conv in PyTorch, as sums and concatenations of its convolutions.

Only 3x3, strides 1, equal inputs and outputs, without bias, for the benchmark. The children have the names of the
public weights, so `msconv_jax.load_state_dict` also loads these modules' `state_dict`. Importing this file needs
PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def centred(inputs: int, outputs: int, kernel: int, dilation: tuple[int, int] = (1, 1), groups: int = 1) -> nn.Conv2d:
    """A convolution with an output of the input's size."""
    padding = dilation[0] * (kernel // 2), dilation[1] * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)


class PSConv(nn.Module):
    """Poly-scale convolution of pattern (1, 2, 1, 4), in the form of the public networks: a sum of three convolutions.

    Channels are in four blocks. Output block p sees input block p at dilation 2 and input block p + 2 (modulo 4) at
    dilation 4, both by grouped convolutions; the latter's input has its halves swapped. A dense convolution at dilation
    1 adds the remaining blocks; its weights are masked to zero in the blocks of the other two.
    """

    def __init__(self, width: int, parts: int = 4, dilation: int = 2):
        super().__init__()
        self.gwconv = centred(width, width, 3, (dilation, dilation), parts)
        self.gwconv_shift = centred(width, width, 3, (2 * dilation, 2 * dilation), parts)
        self.conv = centred(width, width, 3)
        near = torch.eye(parts)
        kept = 1 - near - near.roll(parts // 2, dims=1)
        mask = kept.repeat_interleave(width // parts, 0).repeat_interleave(width // parts, 1)[:, :, None, None]
        with torch.no_grad():
            self.conv.weight *= mask
        self.conv.weight.register_hook(lambda gradient: gradient * mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        first, second = x.chunk(2, dim=1)
        return self.gwconv(x) + self.gwconv_shift(torch.cat((second, first), dim=1)) + self.conv(x)


class PyConv(nn.Module):
    """Pyramidal convolution: grouped convolutions of several kernel sizes side by side."""

    def __init__(self, width: int, kernels: Sequence[int], groups: Sequence[int], features: Sequence[int]):
        super().__init__()
        levels = zip(kernels, groups, features, strict=True)
        self.pyconv_levels = nn.ModuleList(centred(width, out, kernel, groups=own) for kernel, own, out in levels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        return torch.cat([level(x) for level in self.pyconv_levels], dim=1)


class ICConv(nn.Module):
    """Inception convolution: the concatenated outputs of one convolution for each pair of dilations."""

    def __init__(self, width: int, pattern: Sequence[tuple[int, int, int]]):
        super().__init__()
        self.conv_list = nn.ModuleList(centred(width, count, 3, (down, across)) for down, across, count in pattern)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        return torch.cat([conv(x) for conv in self.conv_list], dim=1)
