"""Borders other than zeros: the image repeated, mirrored, or padded on one side, as in nnx.Conv, for every tile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import msconv_jax as ms
from msconv_jax import KernelLattice, Tile, lattice_convolve, linen
from tests.operators.test_contract import PLAIN_SETTING, SETTINGS, build

BORDERS = ("CIRCULAR", "REFLECT")
OPERATORS = [
    *((operator, settings[0]) for operator, settings in SETTINGS.items()),
    (ms.ACConv, {"use": ("local", "point")}),
]


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def rngs():
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain_conv(x, kernel, strides, padding, dilation):
    ndim = kernel.ndim - 2
    conv = nnx.Conv(*kernel.shape[-2:], kernel.shape[:ndim], strides=strides, padding=padding,
                    kernel_dilation=dilation, use_bias=False, rngs=rngs())  # fmt: skip
    conv.kernel[...] = jnp.asarray(kernel)
    return conv(x)


@pytest.mark.parametrize("lowering", ["auto", *map(slow, ("tiles", "packs", "grouped", "dense", "shifts", "scatter"))])
@pytest.mark.parametrize("padding", BORDERS)
def test_each_tile_is_a_plain_convolution_with_the_same_border(lowering, padding):
    lattice = KernelLattice(4, 6, (
        Tile(slice(0, 3), slice(0, 4), (3, 3)),
        Tile(slice(3, 6), slice(0, 2), (3, 5), dilation=(4, 1)),
        Tile(slice(3, 6), slice(2, 4), (5, 3), dilation=(1, 2)),
    ))  # fmt: skip
    x, kernels = draw(2, 6, 5, 4), [draw(3, 3, 4, 3, seed=1), draw(3, 5, 2, 3, seed=2), draw(5, 3, 2, 3, seed=3)]
    for strides in ((1, 1), (2, 3)):
        y = lattice_convolve(x, kernels, lattice, strides, padding, lowering=lowering)
        first = plain_conv(x, kernels[0], strides, padding, (1, 1))
        second = plain_conv(x[..., :2], kernels[1], strides, padding, (4, 1))
        third = plain_conv(x[..., 2:], kernels[2], strides, padding, (1, 2))
        np.testing.assert_allclose(y, jnp.concatenate([first, second + third], -1), rtol=1e-4, atol=1e-4)


def test_no_tile_of_a_causal_convolution_sees_later_places():
    conv = ms.PSConv(4, 4, (3,), padding="causal", pattern=(1, 3), use_bias=False, rngs=rngs())
    x = draw(1, 12, 4)
    y = sum(
        plain_conv(x, jnp.where(d == conv.lattice.dilations[..., 0].T, conv.kernel[...], 0), 1, "CAUSAL", d)
        for d in (1, 3)
    )
    np.testing.assert_allclose(conv(x), y, rtol=1e-5, atol=1e-5)
    changed = x.copy()
    changed[:, 8:] += 1
    np.testing.assert_array_equal(conv(x)[:, :8], conv(changed)[:, :8])


@pytest.mark.parametrize(("operator", "settings"), OPERATORS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_periodic_layer_turns_with_its_input(operator, settings):
    x = draw(1, 6, 8, 8)
    for stride in (1, 2):
        periodic, zeros = (build(operator, strides=stride, padding=p, **settings) for p in ("CIRCULAR", 1))
        periodic.eval(), zeros.eval()
        y = periodic(x)
        turned = np.roll(y, (2 // stride, 4 // stride), (1, 2))
        np.testing.assert_allclose(periodic(np.roll(x, (2, 4), (1, 2))), turned, rtol=1e-4, atol=1e-5)
        assert np.abs(zeros(x) - y).max() > 1e-3
        assert periodic.macs((3, 4)) == zeros.macs((3, 4))


def test_a_periodic_octave_convolution_turns_with_its_input():
    conv = ms.OctConv(8, 8, (3, 3), alpha_in=0.5, alpha_out=0.5, padding="CIRCULAR", rngs=rngs())
    high, low = draw(1, 8, 8, 4), draw(1, 4, 4, 4)
    for got, expected, step in zip(
        conv((np.roll(high, 4, 1), np.roll(low, 2, 1))), conv((high, low)), (4, 2), strict=True
    ):
        np.testing.assert_allclose(got, np.roll(expected, step, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "operator", [o for o, setting in PLAIN_SETTING.items() if setting is not None and o is not ms.ACConv]
)
def test_the_plain_setting_is_nnx_conv(operator):
    for padding in BORDERS:
        for size, strides, dilation in (((3, 3), (1, 2), 2), ((5, 3), (2, 1), 1)):
            options = {"strides": strides, "padding": padding, "kernel_dilation": dilation}
            conv = build(operator, kernel_size=size, **options, **PLAIN_SETTING[operator])
            plain = nnx.Conv(8, 8, size, **options, rngs=rngs())
            (kernel,) = [v for _, v in nnx.to_flat_state(nnx.state(conv, nnx.Param)) if v.shape == plain.kernel.shape]
            plain.kernel[...] = kernel[...]
            x = draw(2, 3, 4, 8)  # smaller than the border
            np.testing.assert_allclose(conv(x), plain(x), rtol=1e-5, atol=1e-5)


def test_even_kernels_and_linen():
    x = draw(2, 7, 6, 4)
    for padding in BORDERS:
        conv = ms.GroupedConv(4, 6, (4, 2), padding=padding, kernel_dilation=(1, 2), use_bias=False, rngs=rngs())
        expected = plain_conv(x, conv.kernel[...], (1, 1), padding, (1, 2))
        np.testing.assert_allclose(conv(x), expected, rtol=1e-5, atol=1e-5)
    layer = linen.PSConv(features=4, kernel_size=(3, 3), padding="CIRCULAR")
    variables = layer.init(jax.random.key(0), x)
    np.testing.assert_allclose(
        layer.apply(variables, np.roll(x, 3, 1)), np.roll(layer.apply(variables, x), 3, 1), rtol=1e-4, atol=1e-5
    )


def test_what_knows_zeros_only_says_so():
    for make in (
        lambda: ms.PACConv(2, 2, (3, 3), padding="CIRCULAR", rngs=rngs()),
        lambda: ms.PACConvTranspose(2, 2, (3, 3), padding="REFLECT", rngs=rngs()),
        lambda: ms.PACPool((3, 3), padding="CIRCULAR"),
    ):
        with pytest.raises(ValueError, match=r"padding='(CIRCULAR|REFLECT)': .* pads with zeros only"):
            make()
