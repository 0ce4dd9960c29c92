"""Every operator as a Linen module: equal numbers to the NNX operator, with ordinary collections."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import msconv_jax
from msconv_jax import linen, operators
from tests.operators.rows import IMAGE, rows

KEY = jax.random.key(0, impl="rbg")  # compiles faster than the default
CASES = {row.operator.__name__: (row.linen, row.inputs) for row in rows()}


def made(name):
    """The NNX and the Linen operator of a row."""
    options, _ = CASES[name]
    cls = getattr(operators, name)
    if name == "PACPool":
        return cls(**options), linen.PACPool(**options)
    return cls(8, 8, rngs=nnx.Rngs(KEY), **options), getattr(linen, name)(features=8, **options)


def test_every_operator_is_there():
    assert set(CASES) == set(operators.__all__) == {operator.__name__ for operator in operators.ALL}
    assert set(CASES) <= set(linen.__all__) & set(msconv_jax.__all__) & set(dir(linen))


def test_the_classes_are_importable_by_name():
    conv = linen.HetConv(8, (3, 3), parts=2)
    assert pickle.loads(pickle.dumps(conv)) == conv  # noqa: S301  what was just written
    assert (linen.HetConv.__doc__ or "").startswith("Linen form of `HetConv`.")


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
        ours(*inputs)  # updates the statistics in training mode
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
