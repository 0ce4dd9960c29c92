"""A residual network as others write them with Flax, which knows nothing of this library: the patient of the tests."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Block(nnx.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_features: int, features: int, strides: int, rngs: nnx.Rngs):
        conv = functools.partial(nnx.Conv, use_bias=False, padding=1, rngs=rngs)
        self.body = nnx.Sequential(
            conv(in_features, features, (3, 3), strides=strides),
            nnx.BatchNorm(features, rngs=rngs),
            nnx.relu,
            conv(features, features, (3, 3)),
            nnx.BatchNorm(features, rngs=rngs),
        )
        self.shortcut = nnx.data(None)
        if strides != 1 or in_features != features:
            self.shortcut = nnx.Conv(in_features, features, (1, 1), strides=strides, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.body(x) + (x if self.shortcut is None else self.shortcut(x)))


class Stage(nnx.Module):
    """Blocks in a list, between two modules."""

    def __init__(self, in_features: int, features: int, blocks: int, strides: int, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            [Block(features if n else in_features, features, 1 if n else strides, rngs) for n in range(blocks)]
        )
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return self.drop(x)


class ForeignResNet(nnx.Module):
    """The network: a stem, stages and a classifier."""

    def __init__(self, *, classes: int = 4, width: int = 8, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, width, kernel_size=(5, 5), padding="SAME", rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.stages = nnx.List([Stage(width, width, 1, 1, rngs), Stage(width, 2 * width, 2, 2, rngs)])
        self.head = nnx.Linear(2 * width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean(axis=(1, 2)))


def filled(make: Callable[[], nnx.Module], seed: int = 0) -> Any:
    """The module that `make` makes, with kernels from NumPy: XLA would compile a generator for each of their shapes."""
    rng = np.random.default_rng(seed)
    module = nnx.eval_shape(make)
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        if jnp.issubdtype(variable.dtype, jax.dtypes.prng_key):
            variable.set_value(jax.random.key(seed))
        elif path[-1] == "kernel":
            std = np.prod(variable.shape[:-1]) ** -0.5
            variable.set_value(jnp.asarray(std * rng.standard_normal(variable.shape), variable.dtype))
        else:
            ones = path[-1] in ("scale", "var")
            variable.set_value(jnp.full(variable.shape, ones, variable.dtype))
    return module
