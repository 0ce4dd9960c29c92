"""Pixel-adaptive convolution (Su et al., CVPR 2019): operators whose kernels a guide adapts at every pixel."""

from msconv_jax.operators.pac.functions import pac_convolve, pac_convolve_transpose, pac_kernel, pac_pool
from msconv_jax.operators.pac.modules import PACConv, PACConvTranspose, PACPool

__all__ = [
    "PACConv",
    "PACConvTranspose",
    "PACPool",
    "pac_convolve",
    "pac_convolve_transpose",
    "pac_kernel",
    "pac_pool",
]
