import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import DynamicPSConv, lattice_convolve
from msconv_jax.convolution import convolve
from tests.operators.rows import SPATIAL, Row
from tests.reference import naive_psconv, whole

ROWS = [
    Row(
        DynamicPSConv,
        {**SPATIAL, "factors": (2, 2)},
        settings=[{"factors": (2, 2)}, {"dilations": (1, 3), "factors": (4, 2), "feature_group_count": 2}],
        plain={"dilations": (1, 1), "factors": (2, 1)},
    )
]


def made(**options):
    module = DynamicPSConv(8, 12, (3, 3), padding=1, use_bias=False, rngs=nnx.Rngs(0), **{"factors": (2, 4), **options})
    fan_in = 8 // module.feature_group_count
    module.kernel[...] = whole((3, 3, fan_in, 12), 0)
    rng = np.random.default_rng(1)
    module.outer_factor[...] = rng.standard_normal(module.factors).astype(np.float32)
    module.inner_factor[...] = rng.standard_normal(module.inner_factor[...].shape).astype(np.float32)
    return module


def kronecker_mask(module):
    """M[c, k] from the factors, entry by entry."""
    U, V = np.asarray(module.outer_factor[...]), np.asarray(module.inner_factor[...])
    rows, columns = V.shape
    mask = np.zeros((len(U) * rows, U.shape[1] * columns), bool)
    for c, k in np.ndindex(mask.shape):
        mask[c, k] = np.sign(U[c // rows, k // columns]) * np.sign(V[c % rows, k % columns]) > 0
    return mask


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("dilations", [(1, 2), (3, 1)])
def test_the_mask_chooses_the_dilation_of_every_kernel(dilations):
    module = made(dilations=dilations)
    mask = kronecker_mask(module)
    assert 0 < mask.mean() < 1
    np.testing.assert_array_equal(module.dilation_mask, mask.T)
    x = whole((7, 8, 8), 2)
    expected = naive_psconv(x, module.kernel[...], lambda c, k: dilations[int(mask[c, k])], 1)
    np.testing.assert_array_equal(module(x), expected)


@pytest.mark.parametrize("options", [{}, {"feature_group_count": 2, "factors": (3, 2)}, {"kernel_dilation": 2}])
def test_the_lattice_says_what_the_module_computes(options):
    module = made(**options)
    x = whole((2, 9, 8, 8), 3)
    y = lattice_convolve(x, module.kernel[...], module.lattice, padding=module.padding)
    np.testing.assert_array_equal(y, module(x))


def test_sign_of_zero_is_one():
    module = made()
    module.outer_factor[...] = jnp.zeros(module.factors)
    module.inner_factor[...] = jnp.ones(module.inner_factor[...].shape)
    assert module.dilation_mask.all()


def test_gradients_pass_straight_through():
    """d loss / dU is what it were if S were U kron sign(V); it is cut where |u| > 1."""
    module = made()
    graphdef, state = nnx.split(module)
    x, weights = whole((7, 8, 8), 2), whole((7, 8, 12), 4)

    def loss(state):
        return jnp.sum(nnx.merge(graphdef, state)(x) * weights)

    def linear(u):
        """The loss with S linear in U."""
        mask = (1 + jnp.kron(u, jnp.sign(module.inner_factor[...])).T[None, None]) / 2
        kernel = module.kernel[...]
        y = convolve(x, kernel * (1 - mask), padding=1) + convolve(x, kernel * mask, padding=2, kernel_dilation=2)
        return jnp.sum(y * weights)

    gradient = jax.jit(jax.grad(loss))(state)
    U = module.outer_factor[...]
    expected = jax.jit(jax.grad(linear))(jnp.sign(U)) * (jnp.abs(U) <= 1).astype(U.dtype)
    assert 0 < float((jnp.abs(U) <= 1).mean()) < 1
    np.testing.assert_allclose(gradient["outer_factor"][...], expected, rtol=1e-5, atol=1e-3)


def test_training_moves_the_mask():
    module = DynamicPSConv(4, 4, (3, 3), padding=1, use_bias=False, factors=(2, 2), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(module)
    x = jax.random.normal(jax.random.key(0), (4, 9, 9, 4))

    @jax.jit
    def step(state):
        def loss(state):
            return jnp.mean((nnx.merge(graphdef, state)(x) - 1) ** 2)

        return jax.tree.map(lambda p, g: p - 0.05 * g, state, jax.grad(loss)(state))

    before = module.dilation_mask
    for _ in range(30):
        state = step(state)
    assert (nnx.merge(graphdef, state).dilation_mask != before).any()


def test_extra_parameters_are_those_of_the_formula():
    module = DynamicPSConv(64, 128, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
    extra = module.outer_factor[...].size + module.inner_factor[...].size
    assert extra == 16 + 64 * 128 // 16
    assert module.kernel[...].size == 9 * 64 * 128 == module.lattice.num_parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factors": (3, 4)}, "factors=.3, 4.: the first must divide out_features=8"),
        ({"factors": (4, 4), "feature_group_count": 4}, "the 2 inputs"),
        ({"factors": (4,)}, "factors"),
        ({"dilations": (1, 2, 3)}, "dilations"),
        ({"dilations": (0, 1)}, "dilations"),
        ({"kernel_size": (2, 2)}, "odd"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    size = options.pop("kernel_size", (3, 3))
    with pytest.raises(ValueError, match=message):
        DynamicPSConv(8, 8, size, rngs=nnx.Rngs(0), **options)
