"""Networks of a few parameters, of which each has other kinds of variables."""

import dataclasses
from typing import Any

from flax import nnx

from msconv_jax.models.registry import register_model
from msconv_jax.modes.normalization import BatchNorm
from tests.train.helpers import TINY_ENTRY, tiny
from train.config import Config


class Dropping(nnx.Module):
    """One dense layer behind BatchNorm and dropout, so that every kind of variable occurs."""

    def __init__(self, *, num_classes, in_channels, rngs):
        self.norm = nnx.BatchNorm(in_channels, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(64 * in_channels, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.head(self.drop(self.norm(images).reshape(len(images), -1)))


class Plain(nnx.Module):
    """A convolution and a dense layer, without batch statistics and random numbers."""

    def __init__(self, *, num_classes, in_channels, rngs, dtype=None):
        self.conv = nnx.Conv(in_channels, 4, (3, 3), rngs=rngs, dtype=dtype)
        self.head = nnx.Linear(256, num_classes, rngs=rngs, dtype=dtype)

    def __call__(self, images):
        return self.head(nnx.relu(self.conv(images)).reshape(len(images), -1))


class Normalised(Plain):
    """The same with batch statistics."""

    def __init__(self, *, num_classes, in_channels, rngs, dtype=None):
        super().__init__(num_classes=num_classes, in_channels=in_channels, rngs=rngs, dtype=dtype)
        self.norm = BatchNorm(4, momentum=0.5, rngs=rngs, dtype=dtype)

    def __call__(self, images):
        return self.head(nnx.relu(self.norm(self.conv(images))).reshape(len(images), -1))


ENTRIES = [
    dataclasses.replace(TINY_ENTRY, name=builder.__name__, builder=builder) for builder in (Dropping, Plain, Normalised)
]


def register_small() -> None:
    """Makes the networks known in a process of its own; within the tests a fixture does."""
    for entry in ENTRIES:
        register_model(entry)


def small(model: str, changes: dict[str, Any] | None = None) -> Config:
    """The tiny config of one of these networks, with changes by dotted names; its rate has no warm-up."""
    return tiny({"model.name": model, "model.kwargs": {}, "optimizer.warmup_epochs": 0.0, **(changes or {})})
