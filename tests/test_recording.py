"""Recording finds all layers and calls of a model, and restores the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax.recording import recorded_calls

RNGS = nnx.Rngs(0)


def linear():
    return nnx.Linear(4, 4, rngs=RNGS)


def is_linear(module):
    return isinstance(module, nnx.Linear)


class Holding(nnx.Module):
    """A model with layers in every kind of container."""

    def __init__(self):
        self.plain = linear()
        self.again = self.plain
        self.list = nnx.List([linear(), nnx.List([linear()])])
        self.dict = nnx.Dict(a=linear())
        self.tuple = nnx.data((linear(), {"b": linear()}))
        self.sequence = nnx.Sequential(linear(), nnx.relu, linear())
        self.unused = linear()

    def __call__(self, x):
        for layer in (self.plain, self.list[0], self.list[1][0], self.dict["a"], *self.tuple[:1], self.tuple[1]["b"]):
            x = layer(x)
        return self.again(self.sequence(x))


class Calling(nnx.Module):
    """A model that calls a layer inside JAX's transformations."""

    def __init__(self, call):
        self.a, self.b = linear(), linear()
        self.call = call

    def __call__(self, x):
        return self.call(self, x)


def paths(calls):
    return [call.path for call in calls]


def test_layers_are_found_wherever_they_are_held():
    model = Holding()
    before, x = nnx.graphdef(model), jnp.ones((2, 4))
    expected = model(x)
    with recorded_calls(model, is_linear) as calls:
        y = model(x)
    np.testing.assert_array_equal(y, expected)
    held = ["list.0", "list.1.0", "dict.a", "tuple.0", "tuple.1.b", "sequence.layers.0", "sequence.layers.2"]
    assert paths(calls) == ["again", *held, "again"]  # the first of its two paths, for each call
    assert calls[-1].module is model.plain
    np.testing.assert_array_equal(calls[-1].outputs, y)
    assert calls[0].inputs[0] is x
    assert calls[0].input_shapes == ((2, 4), None)  # the second input is out_sharding
    assert calls[0].output_shapes == ((2, 4),)
    assert nnx.graphdef(model) == before


@pytest.mark.parametrize("cls", [nnx.Linear, type("Inheriting", (nnx.Linear,), {})])
def test_the_model_and_its_classes_are_as_before_after_an_exception(cls):
    model = nnx.Sequential(cls(4, 4, rngs=RNGS), cls(3, 3, rngs=RNGS))
    before, call, own = nnx.graphdef(model), cls.__call__, "__call__" in vars(cls)
    with pytest.raises(TypeError), recorded_calls(model, is_linear) as calls:
        model(jnp.ones((2, 4)))
    assert paths(calls) == ["layers.0"]
    assert nnx.graphdef(model) == before
    assert cls.__call__ is call
    assert ("__call__" in vars(cls)) == own
    model.layers[0](jnp.ones((2, 4)))
    assert len(calls) == 1


def jitted(model, x):
    call = nnx.jit(lambda layer, x: layer(x))
    return call(model.b, call(model.a, call(model.a, x)))


def rematted(model, x):
    return nnx.remat(lambda layer, x: layer(x))(model.b, jax.checkpoint(lambda x: model.a(model.a(x)))(x))


@nnx.remat
def rematted_once_for_all(layer, x):
    return layer(x)


def rematted_layers(model, x):
    return rematted_once_for_all(model.b, model.a(rematted_once_for_all(model.a, x)))


def scanned(model, x):
    return model.b(jax.lax.scan(lambda x, _: (model.a(x), None), x, None, length=2)[0])


@pytest.mark.parametrize("call", [jitted, rematted, rematted_layers, scanned])
def test_every_call_inside_a_transformation_is_recorded(call):
    model = Calling(call)
    graphdef, state = nnx.split(model)
    for _ in range(2):  # also after JAX has traced the function

        def run(state, x):
            copy = nnx.merge(graphdef, state)
            with recorded_calls(copy, is_linear) as calls:
                copy(x)
            assert paths(calls) == ["a", "a", "b"]
            assert {call.output_shapes for call in calls} == {((2, 4),)}

        jax.eval_shape(run, state, jnp.ones((2, 4)))


def test_mapped_axes_are_in_the_shapes():
    def mapped(model, x):
        y = jax.vmap(jax.vmap(model.a), in_axes=1)(x)
        return jax.vmap(lambda _: model.b(x))(y)  # computed once: its inputs are not mapped

    model = Calling(mapped)
    with recorded_calls(model, is_linear) as calls:
        model(jnp.ones((2, 3, 4)))
    assert [call.output_shapes for call in calls] == [((3, 2, 4),), ((2, 3, 4),)]


def test_calls_inside_a_recorded_call_belong_to_it():
    model = nnx.Sequential(nnx.Sequential(linear(), linear()), linear())
    with recorded_calls(model, lambda module: module is not model) as calls:
        model(jnp.ones((2, 4)))
    assert paths(calls) == ["layers.0", "layers.1"]


def test_other_models_and_a_second_recording_do_not_join():
    model, other = nnx.Sequential(linear()), nnx.Sequential(linear(), linear())
    with recorded_calls(model, is_linear) as calls:
        other(model(jnp.ones((2, 4))))
        with recorded_calls(other, is_linear) as inner:
            other(jnp.ones((2, 4)))
            model(jnp.ones((2, 4)))
        with recorded_calls(model, is_linear) as again:
            model(jnp.ones((2, 4)))
        model(jnp.ones((2, 4)))
    assert (len(calls), paths(inner), len(again)) == (4, ["layers.0", "layers.1"], 1)
