"""Compares the library with recorded numbers of the papers' public code.

    python -m tests.parity DIR [--only GLOB]

runs every fixture in ``DIR/ops`` (``NAME.npz``), ``DIR/models`` (``NAME.npz`` with ``NAME.json``) and directly in
``DIR`` (``NAME.npz`` of dense tasks). It prints the largest deviation of each fixture, and exits with status 1 if one
deviates, cannot be built or is of an unknown kind. ``--only`` is a pattern over ``ops/NAME``, ``models/NAME`` and
``NAME``.

An operator fixture contains inputs, parameters, outputs, a cotangent for each output and the gradients, all in
PyTorch's layouts. ``tests/families`` builds our module. ``msconv_jax.torch_weights`` converts PyTorch's parameters by
differentiable operations, so the gradients are with respect to PyTorch's parameters, in its layouts. BatchNorm's
running variance after a step is compared up to the factor n / (n - 1): PyTorch stores the unbiased variance, Flax the
biased one.

The ``meta`` of a dense task's fixture contains its family and arguments: a module, a whole network, or data and
measures on the host.
"""

from tests.parity.dense import is_built
from tests.parity.networks import MODELS, SEGMENTATION
from tests.parity.program import check, fixtures, main

__all__ = ["MODELS", "SEGMENTATION", "check", "fixtures", "is_built", "main"]
