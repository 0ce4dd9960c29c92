"""Compares the library with numbers recorded from the papers' public code.

    python -m tests.parity DIR [--only GLOB]

runs every fixture in ``DIR/ops`` (``NAME.npz``), ``DIR/models`` (``NAME.npz`` beside ``NAME.json``) and in ``DIR``
itself (``NAME.npz`` of dense tasks), prints a line for each with its largest deviation, and exits with status 1 if one
deviates, cannot be built or is of an unknown kind. ``--only`` takes a pattern over ``ops/NAME``, ``models/NAME`` and,
for those in ``DIR`` itself, ``NAME``.

An operator fixture holds inputs, parameters, outputs, a cotangent for each output and the gradients, all in PyTorch's
layouts. ``tests/families`` makes our module for it and ``msconv_jax.torch_weights`` turns PyTorch's parameters into
ours by differentiable operations, so that the gradients come out in PyTorch's layouts again, and with respect to every
one of its parameters. BatchNorm's running variance after a step is compared up to the known factor n / (n - 1):
PyTorch keeps the unbiased variance, Flax the biased one.

A fixture of dense tasks says in its ``meta`` of which family it is and with what arguments: a module, a whole network,
or data and measures on the host.
"""

from tests.parity.dense import is_built
from tests.parity.networks import MODELS, SEGMENTATION
from tests.parity.program import check, fixtures, main

__all__ = ["MODELS", "SEGMENTATION", "check", "fixtures", "is_built", "main"]
