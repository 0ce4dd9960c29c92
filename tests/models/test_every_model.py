"""Every kind of registered classifier: a training step, half precision, its maps, odd sizes.

The networks here have one block a stage, whose layers are of all the kinds that the deep ones have. The maps of the
deep ones themselves are traced in test_registry.py.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax.models import create_model, list_models, model_entry
from tests.models.conftest import OneKey

QUICK = ("ps_resnet8", "het_vgg16_cifar")


def kind(name):
    """What distinguishes the networks with one block a stage: depth and patterns do not."""
    entry = model_entry(name)
    config = {key: value for key, value in entry.config.items() if key not in ("layers", "patterns")}
    stages = len(entry.config.get("layers", ()))
    return entry.builder, entry.make_conv, entry.input_size, stages, repr(sorted(config.items()))


KINDS = {kind(name): name for name in [*list_models(task="classification"), *QUICK]}


def layers_of(value):
    """The classes in a part of a config, without their numbers."""
    if isinstance(value, tuple):
        return tuple(map(layers_of, value))
    return getattr(value, "func", value) if callable(value) else type(value)


def kind_of_layers(name):
    """Networks that differ in widths, groups or scales alone have one training step that is worth its time."""
    entry = model_entry(name)
    return kind(name)[1:3], entry.builder.__name__, repr(sorted((k, layers_of(v)) for k, v in entry.config.items()))


OPTIMISED = ("mobilenetv1", "oct_mobilenetv1", "sis_resnet50", "sis_res2net50")  # no test has recorded numbers of them


def slow_but(names):
    slow, optimised = [pytest.mark.slow], [pytest.mark.slow, pytest.mark.optimised]
    return [
        name if name in QUICK else pytest.param(name, marks=optimised if name in OPTIMISED else slow) for name in names
    ]


TRAINED = {kind_of_layers(name): name for name in KINDS.values()}.values()


def odd_size(name):
    """Height and width of odd images, small ones for the networks of small images."""
    return (65, 97) if model_entry(name).input_size[0] == 224 else (15, 21)


def shallow(name, **options):
    """The network with a block in each stage, or thin where it cannot be shallow."""
    entry = model_entry(name)
    options["num_classes"] = 5
    if "layers" in entry.keywords:
        options["layers"] = (1,) * len(entry.config["layers"])
    if "patterns" in entry.keywords:
        options["patterns"] = "even"  # the published ones are for all blocks
    if "width_mult" in entry.keywords:
        options["width_mult"] = 0.25
    if "hidden_features" in entry.keywords:
        options |= {"hidden_features": (16,), "bins": 2, "dropout_rate": 0.0}
    if "input_size" in entry.keywords:
        options["input_size"] = odd_size(name)
    if "zero_init_last" in entry.keywords:
        options["zero_init_last"] = False  # zeros would keep the gradients of their branch from the others
    return nnx.eval_shape(lambda: create_model(name, rngs=OneKey(), **options))


def filled(model):
    """Fills the model with NumPy values, because the initialisers would compile for every shape."""
    numbers = np.random.default_rng(0)

    def value(path, leaf):
        name, shape = path[-1], leaf.shape
        if name == "kernel":
            fan_in = math.prod(shape[:-1])
            return numbers.standard_normal(shape, np.float32) * math.sqrt(2 / fan_in)
        if name in ("scale", "var"):
            return np.ones(shape, np.float32)
        return np.zeros(shape, np.float32) if name in ("bias", "mean") else numbers.standard_normal(shape, np.float32)

    state = nnx.to_flat_state(nnx.state(model))
    nnx.update(
        model, nnx.from_flat_state([(path, leaf.replace(jnp.asarray(value(path, leaf)))) for path, leaf in state])
    )
    return model


@pytest.mark.parametrize("name", slow_but(TRAINED))
def test_a_training_step_reaches_every_parameter(name):
    model = filled(shallow(name))
    graphdef, params, other_state = nnx.split(model, nnx.Param, ...)
    images = jax.random.normal(jax.random.key(0), (2, *odd_size(name), 3))

    @jax.jit
    def step(params, other_state):
        def loss(params):
            model = nnx.merge(graphdef, params, other_state, copy=True)
            logits = model(images)
            return -jax.nn.log_softmax(logits)[:, 1].mean(), (logits, nnx.state(model, nnx.BatchStat))

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (logits, statistics)), gradients = step(params, other_state)
    assert logits.shape == (2, 5)
    assert np.isfinite(loss)
    for path, leaf in nnx.to_flat_state(gradients):
        value = np.asarray(leaf[...])
        assert np.isfinite(value).all(), path
        # Published weights have a projection whose map nothing reads: see Tree.
        assert value.any() or ("project" in path and "dla" in name), path
    before = dict(nnx.to_flat_state(nnx.state(model, nnx.BatchStat)))
    for path, leaf in nnx.to_flat_state(statistics):
        assert np.isfinite(leaf[...]).all(), path
        assert (leaf[...] != before[path][...]).any(), path


@pytest.mark.parametrize("name", slow_but(KINDS.values()))
def test_half_precision_maps_and_full_logits_at_an_odd_size(name):
    model = shallow(name, dtype=jnp.bfloat16)
    model.eval()
    graphdef, state = nnx.split(model)
    height, width = odd_size(name)
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)

    def run(state, images):
        model = nnx.merge(graphdef, state)
        maps = model.feature_maps(images)
        return maps, model.forward_head(maps[-1])

    maps, logits = jax.eval_shape(run, state, images)
    described = [
        (2, -(-height // f["reduction"]), -(-width // f["reduction"]), f["num_chs"]) for f in model.feature_info
    ]
    assert [m.shape for m in maps] == described
    assert {m.dtype for m in maps} == {jnp.dtype(jnp.bfloat16)}
    assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype(jnp.float32)}
