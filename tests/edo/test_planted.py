"""Supernets that are trained on data whose signal lives at known dilations: the search finds them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from msconv_jax import edo
from msconv_jax.operators import ICConv

D_MAX, FILTERS = 4, 16


class Net(nnx.Module):
    """Searched filters whose mixtures are the output at each pixel."""

    def __init__(self, conv, rngs):
        self.conv = conv
        self.head = nnx.Conv(FILTERS, 4, (1, 1), rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)))


def trained_supernet(dilations, *, steps, feature_group_count=1):
    """A supernet trained from random weights to do on noise what a network of these dilations does.

    The pixels of noise are independent, so nothing but the taps that the teacher reads tells anything of the target.
    """
    inputs = FILTERS if feature_group_count == FILTERS else 2 * feature_group_count
    arguments = {"feature_group_count": feature_group_count}
    teacher = Net(ICConv(inputs, FILTERS, (3, 3), pattern=dilations, rngs=nnx.Rngs(1), **arguments), nnx.Rngs(2))
    student = edo.supernet(Net(nnx.Conv(inputs, FILTERS, (3, 3), rngs=nnx.Rngs(3), **arguments), nnx.Rngs(4)), D_MAX)
    schedule = optax.cosine_decay_schedule(1e-2, steps)
    optimiser = nnx.Optimizer(student, optax.adamw(schedule, weight_decay=1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(student, optimiser, key):
        x = jax.random.normal(key, (16, 16, 16, inputs))
        target = teacher(x)

        def loss(student):
            return jnp.square(student(x) - target).mean() / jnp.var(target)

        value, gradients = nnx.value_and_grad(loss)(student)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to the number of steps
            optimiser.update(student, gradients)
        return value

    for number in range(steps):
        value = step(student, optimiser, jax.random.key(number))
    assert value < 0.1  # it has learnt the signal
    return student


def that_matter(student):
    """The filters that have more than a tenth of the largest one's part in the output."""
    kernel, head = np.asarray(student.conv.kernel[...]), np.asarray(student.head.kernel[0, 0])
    part = np.linalg.norm(kernel.reshape(-1, FILTERS), axis=0) * np.linalg.norm(head, axis=1)
    return part > 0.1 * part.max()


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize(
    ("truth", "groups", "steps"),
    [
        ((3, 2), 1, 800),
        ((2, 4), 1, 800),
        ((4, 1), 2, 800),
        # The fewer taps a filter has, the more often those that a wrong dilation leaves out nearly cancel.
        ((1, 3), FILTERS, 3000),
    ],
)
def test_the_dilation_of_the_signal_is_found(truth, groups, steps):
    student = trained_supernet([truth] * FILTERS, steps=steps, feature_group_count=groups)
    matter = that_matter(student)
    assert matter.sum() >= FILTERS // 2
    for objective in ("sum", "abs"):
        found = np.asarray(edo.select(student, objective)["conv"])
        assert (found == truth).all(axis=1)[matter].mean() >= 0.95
    assert edo.select(student, per="layer") == {"conv": [list(truth)] * FILTERS}
