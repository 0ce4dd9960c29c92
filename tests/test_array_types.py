"""The tests check the types of annotated arrays at run time."""

import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from msconv_jax.models.pooling import average_pool
from msconv_jax.vision import segmentation_cross_entropy
from tests.array_types import check_arrays


@jaxtyped(typechecker=check_arrays)
def transposed(x: Float[Array, "rows columns"], times: int = 1) -> Float[Array, "columns rows"]:
    return x.T if times % 2 else x


def test_a_wrong_rank_and_a_wrong_result_are_refused():
    assert transposed(jnp.ones((2, 3))).shape == (3, 2)
    assert transposed(jnp.ones((2, 3)), times=1.0).shape == (3, 2)  # only arrays are checked
    with pytest.raises(TypeCheckError):
        transposed(jnp.ones((2, 3, 4)))
    with pytest.raises(TypeCheckError):
        transposed(jnp.ones((2, 3)), times=2)


def test_the_librarys_functions_are_checked():
    with pytest.raises(TypeCheckError, match="average_pool"):
        average_pool(jnp.ones((1, 4, 4, 2), jnp.int32), 2, 2)


def test_a_functions_own_message_comes_first():
    with pytest.raises(ValueError, match="must be integers"):
        segmentation_cross_entropy(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2)))
