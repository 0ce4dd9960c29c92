"""Costs of calls, compared with JAX's programs, the operators' derivatives and manual counts."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import (
    ACConv,
    ACGraph,
    DynamicPSConv,
    GroupedConv,
    HetConv,
    ICConv,
    OctConv,
    PACConv,
    PACConvTranspose,
    PSConv,
    PyConv,
    Res2Conv,
    SISConv,
)
from msconv_jax.costs import call_macs
from msconv_jax.edo import SupernetConv
from msconv_jax.operators import PACPool

RNGS = nnx.Rngs(jax.random.key(0, impl="rbg"))


def products(jaxpr):
    """Multiply-accumulates of the convolutions and matrix products in a JAX program."""
    total = 0
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += products(inner)
        size = equation.outvars[0].aval.size
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += size * math.prod(kernel) // outputs // math.prod(equation.params["lhs_dilation"])
    return total


def shapes(values):
    leaves = jax.tree.leaves(values, is_leaf=lambda leaf: leaf is None)
    return [None if leaf is None else leaf.shape for leaf in leaves]


def abstract(*sizes):
    return [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]


def of_call(layer, *inputs):
    """The cost of a call of the layer."""
    graphdef, state = nnx.split(layer)
    outputs = jax.eval_shape(lambda state, *inputs: nnx.merge(graphdef, state, copy=True)(*inputs), state, *inputs)
    return call_macs(layer, shapes(inputs), shapes(outputs))


def of_program(layer, *inputs):
    """The cost of the JAX program of a call."""
    graphdef, state = nnx.split(layer)
    program = jax.make_jaxpr(lambda state, *inputs: nnx.merge(graphdef, state, copy=True)(*inputs))(state, *inputs)
    return products(program.jaxpr)


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (partial(nnx.Conv, 4, 6, 3), (2, 9, 4)),
        (partial(nnx.Conv, 4, 6, (3, 5), strides=(2, 1), padding="VALID", feature_group_count=2), (2, 9, 8, 4)),
        (partial(nnx.Conv, 4, 6, (3, 3), kernel_dilation=2), (7, 8, 4)),
        (partial(nnx.Conv, 2, 3, (3, 3, 2), padding="CIRCULAR"), (1, 5, 4, 6, 2)),
        (partial(nnx.Conv, 4, 6, (1,)), (2, 3, 9, 4)),
        (partial(nnx.Linear, 3, 5), (2, 3)),
        (partial(nnx.Linear, 3, 5), (1, 8, 8, 3)),
        (partial(nnx.Linear, 3, 5), (2, 100, 3)),
        (partial(nnx.LinearGeneral, (4, 3), (5, 2), axis=(-2, -1)), (2, 7, 4, 3)),
        (partial(nnx.LinearGeneral, 3, 5, axis=-1, batch_axis={0: 2}), (2, 7, 3)),
        (partial(nnx.Einsum, "nta,hab->nthb", (8, 2, 4), (8, 4)), (16, 11, 2)),
        (partial(nnx.Einsum, "...a,ab->...b", (2, 4)), (3, 5, 6, 2)),
        (partial(nnx.Einsum, "b...a,bac->b...c", (3, 2, 4)), (3, 5, 6, 2)),
        (partial(nnx.Einsum, "bnd,bde->bne", (3, 4, 5)), (3, 7, 4)),
        # Operators of the library whose programs have no products with zeros.
        (partial(GroupedConv, 4, 6, (3, 5), strides=2, padding=1), (2, 9, 8, 4)),
        (partial(ACConv, 4, 6, (3, 3), strides=2), (2, 9, 8, 4)),
        (partial(ACConv, 4, 6, (3, 3), use=("local", "global")), (2, 9, 8, 4)),
        (partial(SISConv, 4, 8, (3, 3)), (2, 9, 8, 4)),
        (partial(SISConv, 4, 8, (3, 3), kind="interactive1"), (2, 9, 8, 4)),
        (partial(SISConv, 4, 8, (3, 3), kind="recurrent2", steps=3, strides=2), (2, 9, 8, 4)),
        (partial(Res2Conv, 8, 8, (3, 3), scale=4, norm=None, act=None), (2, 9, 8, 8)),
        (partial(Res2Conv, 8, 8, (3, 3), scale=2, conv=nnx.Conv), (2, 9, 8, 8)),
        (partial(SupernetConv, 4, 6, (3, 3), d_max=2), (2, 9, 8, 4)),
    ],
    ids=str,
)
def test_costs_are_those_of_the_program(layer, size):
    layer, inputs = layer(rngs=RNGS), abstract(size)
    assert of_call(layer, *inputs) == of_program(layer, *inputs) > 0


@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, ((0, 2), (1, 0)), "CIRCULAR"])
@pytest.mark.parametrize("strides", [None, 2, (3, 1)])
@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_transposed_convolutions_multiply_each_input_by_the_kernel(padding, strides, transpose_kernel):
    features = (5, 4) if transpose_kernel else (4, 5)
    layer = nnx.ConvTranspose(
        *features, (3, 2), strides=strides, padding=padding, transpose_kernel=transpose_kernel, rngs=RNGS
    )
    (inputs,) = abstract((2, 6, 7, features[0]))
    assert of_call(layer, inputs) == 3 * 2 * 4 * 5 * 2 * 6 * 7
    if padding == "VALID" and strides is None:  # XLA's analysis counts the products inside the image
        graphdef, state = nnx.split(layer)
        program = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)).lower(state, inputs)
        bias = 2 * 8 * 8 * features[1]
        assert program.cost_analysis()["flops"] == 2 * of_call(layer, inputs) + bias


@pytest.mark.parametrize(
    "operator",
    [
        partial(GroupedConv, 8, 8, (3, 3), feature_group_count=4),
        partial(PSConv, 8, 8, (3, 3), pattern=(1, 2)),
        partial(ICConv, 8, 8, (3, 3), pattern=((1, 1, 4), (1, 2, 4))),
        partial(PyConv, 8, 8, [(3, 3), (5, 5)], groups=(1, 4)),
        partial(HetConv, 8, 8, (3, 3), parts=4),
        partial(DynamicPSConv, 8, 8, (3, 3), dilations=(1, 1), factors=(2, 2)),
    ],
    ids=lambda operator: operator.func.__name__,
)
def test_costs_are_the_inputs_that_an_output_depends_on(operator):
    """The cost of a middle output pixel is the number of inputs with a nonzero derivative."""
    module = operator(use_bias=False, rngs=RNGS)
    x = jax.random.normal(jax.random.key(0), (11, 11, 8))
    derivatives = jax.jacobian(lambda x: module(x)[5, 5])(x)
    weights = int((derivatives != 0).sum()) * (2 if isinstance(module, DynamicPSConv) else 1)  # both dilations
    assert of_call(module, *abstract((3, 2, 11, 11, 8))) == 6 * 121 * weights
    assert module.macs((11, 11)) == module.macs(11) == 121 * weights


@pytest.mark.parametrize(
    ("options", "high", "low", "expected"),
    [
        ({"alpha_in": 0, "alpha_out": 1}, 8, None, 9 * 64 * 4 * 4),  # pooled, then 8 to 8 channels
        ({"alpha_in": 0, "alpha_out": 1}, 7, None, 9 * 64 * 4 * 4),
        ({"alpha_in": 0, "alpha_out": 1, "strides": 2}, 8, None, 9 * 64 * 2 * 2),
        ({"alpha_in": 1, "alpha_out": 1}, None, 4, 9 * 64 * 4 * 4),
        ({"alpha_in": 1, "alpha_out": 0}, None, 4, 9 * 64 * 4 * 4),  # before the upsampling
        ({"alpha_in": 1, "alpha_out": 0, "strides": 2}, None, 4, 9 * 64 * 4 * 4),
        ({"alpha_in": 0, "alpha_out": 0}, 8, None, 9 * 64 * 8 * 8),
        ({"alpha_in": 0.5, "alpha_out": 0.5}, 8, 4, 9 * 16 * (64 + 3 * 16)),
        ({"alpha_in": 0.5, "alpha_out": 0.25, "strides": 2}, 7, 4, 9 * 4 * (6 * 2 * 16 + 2 * 2 * 4)),
    ],
)
def test_octave_convolutions(options, high, low, expected):
    conv = OctConv(8, 8, (3, 3), rngs=RNGS, **options)
    maps = [
        None if size is None else jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
        for size, channels in zip((high, low), conv.in_split, strict=True)
    ]
    inputs = tuple(maps) if low is not None else maps[0]
    assert of_call(conv, inputs) == 2 * expected
    if options.get("strides", 1) == 1 and high is not None:
        assert conv.macs((high, high)) == expected


def test_pixel_adaptive_layers():
    x, guide = abstract((2, 4, 7, 6), (2, 4, 7, 3))
    taps = 2 * 28 * 9
    conv = PACConv(6, 5, (3, 3), rngs=RNGS)
    assert of_call(conv, x, guide) == taps * (6 * 5 + 6 + 3 + 1) == 2 * conv.macs((4, 7), guide_features=3)
    given = [(2, 4, 7, 6), None, (2, 4, 7, 9)]
    assert call_macs(conv, given, [(2, 4, 7, 5)]) == taps * (6 * 5 + 6)
    with pytest.raises(ValueError, match="guide_features=None"):
        conv.macs((4, 7))
    up = PACConvTranspose(6, 5, (3, 3), 2, rngs=RNGS)
    (fine,) = abstract((2, 8, 14, 3))
    assert of_call(up, x, fine) == taps * (6 * 5 + 6 + 3 + 1)  # a quarter of the taps, at four times the pixels
    assert of_call(PACPool((3, 3)), x, guide) == taps * (6 + 3 + 1)
    channel_wise = PACPool((3, 3), channel_wise=True)
    (guides,) = abstract((2, 4, 7, 6))
    assert of_call(channel_wise, x, guides) == taps * (6 + 6 + 6)
    assert call_macs(channel_wise, given, [(2, 4, 7, 6)]) == taps * 6


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_graphs(batch):
    graph = ACGraph(4, 6, rngs=RNGS)
    inputs = abstract((*batch, 5, 4), (5, 5), (5, 5))
    expected = math.prod(batch) * (3 * 5 * 4 * 6 + 2 * 5 * 5 * 6)
    assert of_call(graph, *inputs) == of_program(graph, *inputs) == expected


def test_the_linear_layers_of_a_mean_are_counted_for_each_image():
    conv = ACConv(4, 4, (3, 3), kind="pixel", rngs=RNGS)
    assert of_call(conv, *abstract((3, 5, 6, 4))) == 3 * conv.macs((5, 6))


def test_costs_that_are_not_known():
    class Opaque(nnx.Module):
        pass

    class Old(nnx.Module):
        def macs(self, output_size):
            return 1

    class Doubled(nnx.Linear):
        def __call__(self, x):
            return super().__call__(super().__call__(x))

    for layer, message in (
        (Opaque(), r"Opaque has no macs\(input_shapes, output_shapes\)"),
        (Old(), r"Old\.macs\(output_size\) does not take"),
        (Doubled(4, 4, rngs=RNGS), "Doubled has no macs"),
    ):
        with pytest.raises(TypeError, match=message):
            call_macs(layer, [(1, 4)], [(1, 4)])
    with pytest.raises(ValueError, match=r"output_shapes=\[None\]: expected a shape of at least 3 axes at index 0"):
        GroupedConv(4, 4, (3, 3), rngs=RNGS).macs([(1, 5, 5, 4)], [None])
    with pytest.raises(ValueError, match=r"output_size=\(5, 5, 5\)"):
        GroupedConv(4, 4, (3, 3), rngs=RNGS).macs((5, 5, 5))
    assert np.isscalar(GroupedConv(4, 4, (3, 3), rngs=RNGS).macs(5))
