"""Every operator as a Linen module: the NNX operator's numbers, from ordinary collections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import msconv_jax
from msconv_jax import linen, operators

KEY = jax.random.key(0, impl="rbg")  # whose draws compile faster than the default ones
IMAGE = jax.random.normal(jax.random.key(0), (2, 8, 6, 8))
LOW = jax.random.normal(jax.random.key(1), (2, 4, 3, 4))
GUIDE = jax.random.normal(jax.random.key(2), (2, 8, 6, 3))
FINE = jax.random.normal(jax.random.key(3), (2, 16, 12, 3))
NODES = jax.random.normal(jax.random.key(4), (5, 8))
EDGES = jnp.ones((5, 5)) / 5
SPATIAL = {"kernel_size": (3, 3)}
# Arguments and inputs of each operator. A new one needs a row here.
CASES = {
    "ACConv": (SPATIAL, (IMAGE,)),
    "ACGraph": ({}, (NODES, EDGES, EDGES)),
    "DynamicPSConv": ({**SPATIAL, "factors": (2, 2)}, (IMAGE,)),
    "GroupedConv": ({**SPATIAL, "feature_group_count": 4, "use_bias": False}, (IMAGE,)),
    "HetConv": ({**SPATIAL, "parts": 2}, (IMAGE,)),
    "ICConv": ({**SPATIAL, "pattern": ((1, 1, 5), (2, 3, 3))}, (IMAGE,)),
    "OctConv": ({**SPATIAL, "alpha_in": 0.5, "alpha_out": 0.5}, ((IMAGE[..., :4], LOW),)),
    "PACConv": ({**SPATIAL, "padding": 1, "kernel_type": "inv_0.5_0.8"}, (IMAGE, GUIDE)),
    "PACConvTranspose": ({**SPATIAL, "strides": 2, "kernel_type": "inv_0.5_0.8"}, (IMAGE, FINE)),
    "PACPool": ({**SPATIAL, "padding": 1, "smooth_kernel_type": "full_3"}, (IMAGE, GUIDE)),
    "PSConv": ({**SPATIAL, "strides": 2, "padding": 1}, (IMAGE,)),
    "PyConv": ({"kernel_sizes": (3, 5), "groups": (1, 4)}, (IMAGE,)),
    "Res2Conv": ({**SPATIAL, "kind": "stage"}, (IMAGE,)),
    "SISConv": ({**SPATIAL, "inner": "bnrelu", "kind": "recurrent1"}, (IMAGE,)),
}


def made(name):
    """The NNX and the Linen operator of a row."""
    options, _ = CASES[name]
    cls = getattr(operators, name)
    if name == "PACPool":
        return cls(**options), linen.PACPool(**options)
    return cls(8, 8, rngs=nnx.Rngs(KEY), **options), getattr(linen, name)(features=8, **options)


def test_every_operator_is_there():
    assert set(CASES) == set(linen.__all__) - {"linen_form", "params_of"}
    assert set(CASES) == {n for n in msconv_jax.__all__ if isinstance(getattr(msconv_jax, n), type)} - {
        "KernelLattice",
        "Tile",
    }


@pytest.mark.parametrize("name", CASES)
def test_same_values_give_the_same_output(name):
    ours, theirs = made(name)
    inputs = CASES[name][1]
    drawn = jax.eval_shape(theirs.init, KEY, *inputs)
    variables = linen.params_of(ours)
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, variables)
    assert set(drawn) <= {"params", "batch_stats"}

    @jax.jit
    def apply(variables):
        return theirs.apply(variables, *inputs, mutable=["batch_stats"])

    got, updated = apply(variables)
    graphdef, state = nnx.split(ours)
    expected = jax.jit(lambda state: nnx.merge(graphdef, state)(*inputs))(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)
    if "batch_stats" in variables:
        ours(*inputs)  # in training mode this moves the statistics
        after = linen.params_of(ours)["batch_stats"]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated["batch_stats"], after)
        ours.eval()
        fixed = theirs.apply(linen.params_of(ours), *inputs, use_running_average=True)
        np.testing.assert_allclose(fixed, ours(*inputs), rtol=1e-5, atol=1e-5)


def test_the_first_values_are_those_of_the_initialisers():
    conv = linen.PSConv(8, (3, 3), kernel_init=nnx.initializers.constant(2.0), bias_init=nnx.initializers.ones)
    params = conv.init(jax.random.key(0), IMAGE)["params"]
    assert set(params["kernel"].ravel().tolist()) == {2.0}
    assert set(params["bias"].tolist()) == {1.0}
    random = linen.PSConv(8, (3, 3)).init(jax.random.key(0), IMAGE)["params"]["kernel"]
    other = linen.PSConv(8, (3, 3)).init(jax.random.key(1), IMAGE)["params"]["kernel"]
    assert not np.array_equal(random, other)


def test_inside_a_linen_network_and_under_gradients():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(linen.HetConv(8, (3, 3), parts=2, name="first")(x))
            return linen.ICConv(4, (3, 3), pattern=((1, 1, 2), (1, 2, 2)))(x).mean((1, 2))

    net = Net()
    variables = net.init(jax.random.key(0), IMAGE)
    assert set(variables["params"]) == {"first", "ICConv_0"}
    assert set(variables["params"]["first"]) == {"kernel", "pointwise_kernel", "bias"}
    gradient = jax.grad(lambda v: net.apply(v, IMAGE).sum())(variables)
    assert all(bool((leaf != 0).any()) for leaf in jax.tree.leaves(gradient))


def test_unknown_arguments_and_bad_values_are_refused():
    with pytest.raises(TypeError, match="paddding"):
        linen.PSConv(8, (3, 3), paddding=1)
    with pytest.raises(ValueError, match="parts=3"):
        linen.HetConv(8, (3, 3), parts=3).init(jax.random.key(0), IMAGE)
    with pytest.raises(TypeError, match="pattern"):
        linen.ICConv(8, (3, 3))
