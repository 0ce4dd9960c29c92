"""Weights of adaptively connected layers against the equations, computed from their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import ACConv, ACGraph, create_model
from msconv_jax.analysis import connection_maps, plot_connection_maps

RNGS = nnx.Rngs(0)
X = np.random.default_rng(0).standard_normal((2, 7, 9, 3)).astype(np.float32)


@pytest.mark.parametrize(("mix", "shape"), [("scalar", ()), ("channel", (4,)), ("position", (7, 9))])
def test_learnt_weights_are_the_softmax(mix, shape):
    conv = ACConv(3, 4, (3, 3), mix=mix, spatial_shape=(7, 9) if mix == "position" else None, rngs=RNGS)
    logits = np.random.default_rng(1).standard_normal(conv.mix_logits.shape)
    conv.mix_logits[...] = jnp.asarray(logits, jnp.float32)
    found = connection_maps(conv)[""]
    expected = np.exp(logits) / np.exp(logits).sum(axis=0)
    for term, weights in zip(("local", "point", "global"), expected, strict=True):
        assert found[term].shape == shape
        np.testing.assert_allclose(found[term], weights.reshape(shape), rtol=1e-5)


def test_fixed_weights_and_graphs():
    conv = ACConv(3, 4, (3, 3), use=("local", "global"), learn_mix=False, rngs=RNGS)
    assert {term: float(weight) for term, weight in connection_maps(conv)[""].items()} == {"local": 0.5, "global": 0.5}
    graph = ACGraph(3, 4, rngs=RNGS)
    graph.mix_logits[...] = jnp.log(jnp.array([1.0, 2.0, 5.0]))
    found = {term: round(float(weight), 5) for term, weight in connection_maps(graph)[""].items()}
    assert found == {"point": 0.125, "local": 0.25, "global": 0.625}  # u, v, w


def test_the_gate_is_that_of_the_images():
    conv = ACConv(3, 4, (3, 3), strides=2, padding=1, kind="pixel", rngs=RNGS)
    found = connection_maps(nnx.Sequential(conv, nnx.relu), X)["layers.0"]["global"]
    local = conv.local(X)
    g = conv.fc2(nnx.relu(conv.fc1(X.mean(axis=(1, 2), keepdims=True))))
    both = jnp.concatenate([local, jnp.broadcast_to(g, local.shape)], axis=-1)
    gate = jax.nn.sigmoid(conv.gate2(nnx.relu(conv.gate1(both))))
    np.testing.assert_allclose(found, gate, atol=1e-5)
    np.testing.assert_allclose(local + g * found, conv(X) - conv.bias[...][None, None, None], atol=1e-5)
    with pytest.raises(ValueError, match="images=None"):
        connection_maps(conv)


def test_a_network_has_a_map_for_each_block():
    model = create_model("ac_resnet50", layers=(1,), width=8, input_size=(33, 49), rngs=RNGS)
    found = connection_maps(model)
    assert {path: terms["global"].shape for path, terms in found.items()} == {"layer1.0.conv2": (9, 13)}
    figure = plot_connection_maps(found)
    assert [axes.get_title() for axes in figure.axes[:1]] == list(found)
    with pytest.raises(ValueError, match="no adaptively connected layer"):
        connection_maps(nnx.Linear(2, 2, rngs=RNGS))


def test_gates_are_drawn_as_their_mean_and_scalars_as_bars():
    gate = np.random.default_rng(0).random((2, 5, 6, 4))
    scalars = {"local": np.array(0.75), "global": np.array(0.25)}
    figure = plot_connection_maps({"a": {"global": gate}, "b": scalars}, image=1)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), gate[1].mean(axis=-1))
    assert [bar.get_height() for bar in figure.axes[1].patches] == [0.75, 0.25]
    with pytest.raises(ValueError, match="image=2: a has the gates of 2 images"):
        plot_connection_maps({"a": {"global": gate}}, image=2)
    with pytest.raises(ValueError, match="term='local': a has global"):
        plot_connection_maps({"a": {"global": gate}}, term="local")
    with pytest.raises(ValueError, match="connections is empty"):
        plot_connection_maps({})
