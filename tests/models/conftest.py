import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from msconv_jax.models import create_model, model_entry


class OneKey:
    """The same key for every parameter: shapes need no more, and tracing nnx.Rngs is five times slower."""

    def __init__(self):
        self._key = jax.random.key(0)

    def params(self):
        return self._key


def ic_mobilenetv2_patterns(width_mult=1.0):
    """Some dilations for every depthwise convolution; the published ones are not public."""
    plain = nnx.eval_shape(lambda: create_model("mobilenetv2", width_mult=width_mult, rngs=OneKey()))
    widths = {f"features.{n}.conv2": plain.features[n].conv2.out_features for n in range(1, 18)}
    return {path: ((1, 1, width - width // 4), (1, 2, width // 4)) for path, width in widths.items()}


# What a name has no default for, by the keyword.
_REQUIRED = {"patterns": ic_mobilenetv2_patterns}


def _build(name):
    """A model without memory behind its parameters, in evaluation mode."""
    required = {keyword: _REQUIRED[keyword]() for keyword in model_entry(name).required}
    model = nnx.eval_shape(lambda: create_model(name, rngs=OneKey(), **required))
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
    """Builds the named model by shapes only."""
    return _build


@pytest.fixture(scope="session")
def abstract_model():
    """The same, built once for all tests: do not change it."""
    return _abstract


@pytest.fixture(scope="session")
def abstract_shapes():
    """(name, height, width) -> shapes of all feature maps and of the logits, without computing."""
    return _abstract_maps
