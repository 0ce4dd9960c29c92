import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from msconv_jax.models import create_model


class OneKey(nnx.Rngs):
    """The same key for every parameter: shapes need no more, and tracing nnx.Rngs is five times slower."""

    def __init__(self):
        super().__init__(dropout=0)

    def params(self):
        return jax.random.key(0)


def _build(name, **arguments):
    """A model without memory behind its parameters, in evaluation mode."""
    model = nnx.eval_shape(lambda: create_model(name, rngs=OneKey(), **arguments))
    model.eval()
    return model


_abstract = functools.cache(_build)


@functools.cache
def _abstract_maps(name, height, width):
    graphdef, state = nnx.split(_abstract(name))

    def run(state, images):
        model = nnx.merge(graphdef, state)
        maps = model.feature_maps(images)
        return maps, model.forward_head(maps[-1])

    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    maps, logits = jax.eval_shape(run, state, images)
    return tuple(m.shape for m in maps), logits.shape


@pytest.fixture(scope="session")
def build_abstract():
    """Builds the named model with further arguments, by shapes only."""
    return _build


@pytest.fixture(scope="session")
def abstract_model():
    """Builds each named model once for all tests: do not change it."""
    return _abstract


@pytest.fixture(scope="session")
def abstract_shapes():
    """(name, height, width) -> shapes of all feature maps and of the logits, without computing."""
    return _abstract_maps
