from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import create_model, edo
from msconv_jax.operators import ICConv
from msconv_jax.surgery import Where
from tests.foreign_resnet import ForeignResNet, filled

GEOMETRIES = [
    {},
    {"strides": 2},
    {"strides": 2, "padding": 1},
    {"strides": (3, 1), "padding": "VALID"},
    {"strides": 2, "padding": ((0, 2), (1, 0))},
    {"kernel_dilation": 2, "padding": 2},
    {"kernel_dilation": (1, 2), "strides": 2, "padding": "SAME_LOWER"},
    {"feature_group_count": 2, "padding": 1},
    {"feature_group_count": 6, "padding": 1, "use_bias": False},
]


@pytest.mark.parametrize("arguments", GEOMETRIES)
@pytest.mark.parametrize("size", [(3, 3), (5, 3)])
def test_the_taps_of_a_dilation_are_the_dilated_convolution(arguments, size):
    if "padding" in arguments and arguments["padding"] == 2 and size != (3, 3):
        arguments = {**arguments, "padding": (4, 2)}
    d_max, dilations = 2, ((2, 1),) * 3 + ((1, 2),) * 3
    small = ICConv(6, 6, size, pattern=dilations, rngs=nnx.Rngs(0), **arguments)
    large = edo.SupernetConv(6, 6, size, d_max=d_max, rngs=nnx.Rngs(1), **arguments)
    assert large.kernel_size == tuple((k - 1) * d_max + 1 for k in size)
    assert large.kernel.shape[:2] == large.kernel_size
    kernel = np.zeros(large.kernel.shape, np.float32)
    for number, dilation in enumerate(dilations):
        middle = [n // 2 for n in large.kernel_size]
        taps = np.ix_(*(m + d * (np.arange(k) - k // 2) for m, d, k in zip(middle, dilation, size, strict=True)))
        kernel[(*taps, slice(None), number)] = small.kernel[..., number]
    large.kernel[...] = kernel
    for shape in ((12, 13), (11, 14)):
        x = jax.random.normal(jax.random.key(0), (2, *shape, 6))
        np.testing.assert_allclose(large(x), small(x), atol=1e-5)


def test_a_supernet_is_the_model_with_large_kernels():
    model = filled(lambda: ForeignResNet(rngs=nnx.Rngs(0)))
    supernet = edo.supernet(model, d_max=3, kernel_init=nnx.initializers.ones)
    large = edo.supernet_convs(supernet)
    assert len(large) == 6
    assert {conv.kernel.shape[:2] for conv in large.values()} == {(7, 7)}
    assert {(conv.base_kernel_size, conv.d_max, conv.base_padding) for conv in large.values()} == {((3, 3), 3, 1)}
    assert supernet.stem.kernel.shape[:2] == (5, 5)
    assert type(supernet.stages[1].blocks[0].shortcut) is nnx.Conv
    np.testing.assert_array_equal(supernet.stem.kernel[...], model.stem.kernel[...])
    assert model.stages[0].blocks[0].body.layers[0].kernel.shape[:2] == (3, 3)
    x = jnp.ones((2, 9, 9, 3))
    assert supernet(x).shape == model(x).shape == (2, 4)


def test_what_is_searched_can_be_chosen():
    model = filled(lambda: ForeignResNet(rngs=nnx.Rngs(0)))
    supernet = edo.supernet(model, 2, "stem", kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(1))
    assert list(edo.supernet_convs(supernet)) == ["stem"]
    assert supernet.stem.kernel.shape == (9, 9, 3, 8)
    assert float(supernet.stem.kernel[...].min()) == 1
    np.testing.assert_array_equal(supernet.stem.bias[...], model.stem.bias[...])


@pytest.mark.parametrize(
    ("name", "where", "convs", "shape"),
    [
        ("resnext50_32x4d", None, 16, (9, 9, 4, 128)),
        ("mobilenetv2", Where(feature_group_count="depthwise"), 17, (9, 9, 1, 32)),
        ("resnet50", None, 16, (9, 9, 64, 64)),
    ],
)
def test_plain_grouped_and_depthwise_networks_have_supernets(name, where, convs, shape):
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    found = edo.supernet_convs(edo.supernet(model, 4, where))
    assert len(found) == convs
    assert next(iter(found.values())).kernel.shape == shape


def test_networks_are_built_as_supernets_too():
    make = partial(create_model, "resnet8", width=8, conv=partial(edo.SupernetConv, d_max=2))
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    assert {conv.kernel.shape[:2] for conv in edo.supernet_convs(model).values()} == {(5, 5)}
    assert model.conv1.kernel.shape[:2] == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_max": 0}, "d_max=0"),
        ({"d_max": 2.5}, r"d_max=2\.5"),
        ({"d_max": True}, "d_max=True"),
        ({"d_max": 2, "kernel_size": (2, 2)}, "odd"),
        ({"d_max": 2, "kernel_size": (1, 1)}, "one tap"),
        ({"d_max": 2, "strides": 4}, "other centres"),
        ({"d_max": 2, "padding": "CIRCULAR"}, "padding='CIRCULAR'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        edo.SupernetConv(4, 4, **{"kernel_size": (3, 3), **arguments}, rngs=nnx.Rngs(0))


def test_a_model_that_cannot_be_searched_says_why():
    circular = nnx.Sequential(nnx.Conv(4, 4, (3, 3), padding="CIRCULAR", rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"cannot be replaced: layers\.0.*CIRCULAR"):
        edo.supernet(circular)
    with pytest.raises(ValueError, match="selects none"):
        edo.supernet(nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0))))
    with pytest.raises(ValueError, match="d_max='4'"):
        edo.supernet(circular, "4")
    with pytest.raises(ValueError, match=r"make its supernet with edo\.supernet"):
        edo.select(circular)
