"""Receptive fields against closed forms, spoilt pixels and Gaussians."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib.figure import Figure

from msconv_jax import PSConv, PyConv, create_model
from msconv_jax.analysis import (
    effective_receptive_field,
    plot_receptive_field,
    receptive_field_radius,
    receptive_field_size,
    theoretical_receptive_field,
)
from msconv_jax.convolution import planning_for
from msconv_jax.models.pooling import average_pool


def shapes_of(name, **options):
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))


def stacked(layers):
    """The field of a chain of (extent, stride): the next layer's pixels lie further apart."""
    size, step = 1, 1
    for extent, stride in layers:
        size, step = size + (extent - 1) * step, step * stride
    return size


def bottlenecks(depths, extent, stem=((7, 2), (3, 2))):
    """Fields at the ends of the stages of a ResNet whose spatial kernels span `extent` pixels."""
    layers, sizes = list(stem), []
    for stage, depth in enumerate(depths):
        layers += [(extent, 2 if stage and not block else 1) for block in range(depth)]
        sizes.append(stacked(layers))
    return sizes


@pytest.mark.parametrize(
    ("name", "extent"),
    [
        ("resnet50", 3),
        ("ps_resnet50", 9),  # dilations up to 4
        pytest.param("ic_resnet50", 9, marks=pytest.mark.slow),
        pytest.param("het_resnet50", 3, marks=pytest.mark.slow),
    ],
)
def test_the_stages_of_resnets_of_50_layers(name, extent):
    model = shapes_of(name)
    expected = [7, *bottlenecks((3, 4, 6, 3), extent)]
    for stage in (0, 2, 4):
        assert theoretical_receptive_field(model, (2048, 2047, 3), stage).size == (expected[stage],) * 2


@pytest.mark.slow
def test_chains_of_slices_are_followed():
    model, layers, expected = shapes_of("res2net50_26w_4s"), [(7, 2), (3, 2)], []
    for stage, depth in enumerate((3, 4, 6, 3)):
        # The first block of a stage has no chain: its slices are convolved each by itself.
        layers += [(3, 2 if stage else 1), *[(7, 1)] * (depth - 1)]
        expected.append(stacked(layers))
    found = [theoretical_receptive_field(model, (1500, 1500, 3), stage).size for stage in range(1, 5)]
    assert found == [(size, size) for size in expected]


@pytest.mark.parametrize(("name", "size"), [("vgg16_bn", 212), ("mobilenetv1", 315)])
def test_published_sizes(name, size):
    """Araujo, Norris, Sim: Computing Receptive Fields of Convolutional Neural Networks, Distill 2019, table 1."""
    assert theoretical_receptive_field(shapes_of(name), (513, 513, 3)).size == (size, size)


@pytest.mark.parametrize("name", ["se_resnet50", pytest.param("ac_pixel_resnet50", marks=pytest.mark.slow)])
def test_a_global_mean_sees_the_whole_image(name):
    field = theoretical_receptive_field(shapes_of(name), (301, 267, 3), 1)
    assert field.size == (301, 267)
    assert field.cut


SMALL = {
    "plain": ("resnet8", {"width": 8}),
    "ps": ("ps_resnet8", {"width": 8}),
    "py": ("resnet8", {"width": 8, "conv": partial(PyConv, kernel_sizes=(3, 5), groups=(1, 2))}),
    "oct": ("oct_resnet26", {"width": 8, "output_stride": 8}),
    "res2net": ("res2net50_26w_4s", {"layers": (1, 1)}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("oct", "res2net"))) for name in SMALL]
)
def test_every_pixel_in_the_box_matters_and_none_outside(name):
    entry, options = SMALL[name]
    model = create_model(entry, rngs=nnx.Rngs(0), **options)
    model.eval()
    height, width = 45, 38
    place = 1 if name in ("oct", "res2net") else 2
    field = theoretical_receptive_field(model, (height, width, 3), place)
    image = jnp.ones((1, height, width, 3))
    with planning_for("onnx"):  # convolutions as the lattices have them: none that computes with added zeros
        maps = jax.jit(lambda images: model.feature_maps(images)[place])
        rows = jnp.where(jnp.eye(height, dtype=bool)[:, :, None, None], jnp.nan, image)
        columns = jnp.where(jnp.eye(width, dtype=bool)[:, None, :, None], jnp.nan, image)
        spoilt = [np.asarray(maps(part)) for part in (rows, columns)]
    for side, found in zip((field.rows, field.columns), spoilt, strict=True):
        seen = np.flatnonzero(np.isnan(found[:, found.shape[1] // 2, found.shape[2] // 2]).any(axis=-1))
        assert side == (seen[0], seen[-1])


def test_any_unit_and_any_callable():
    def pooled(images):
        return average_pool(images, 2, 2)

    field = theoretical_receptive_field(pooled, (9, 12, 1), unit=(3, 0))
    assert (field.rows, field.columns, field.image, field.cut) == ((6, 7), (0, 1), (9, 12), True)
    ones = np.ones((2, 9, 12, 1))
    effective = effective_receptive_field(pooled, ones, unit=(3, 0))
    expected = np.zeros((9, 12))
    expected[6:8, 0:2] = 0.25
    np.testing.assert_allclose(effective, expected)


def test_the_effective_field_is_the_gradient():
    kernel = np.random.default_rng(0).standard_normal((3, 5, 2, 4)).astype(np.float32)

    def convolve(images):
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    images = np.ones((3, 7, 9, 2), np.float32)
    for measure, power in (("squared", 2), ("absolute", 1)):
        found = effective_receptive_field(convolve, images, measure=measure)
        taps = (np.abs(kernel.sum(axis=-1, dtype=np.float64)) ** power).sum(axis=-1)
        expected = np.zeros((7, 9))
        expected[2:5, 2:7] = taps / taps.sum()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
    drawn = [effective_receptive_field(convolve, images, channels="random", seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-3


def test_sizes_of_a_gaussian():
    place = np.arange(-40, 41)
    profile = np.exp(-(place**2) / (2 * 6.0**2))
    field = np.outer(profile, profile)
    assert receptive_field_radius(field) == pytest.approx(6, rel=1e-6)
    # 95 % in a square: sqrt(0.95) along each axis, at 2.236 deviations
    assert abs(receptive_field_size(field) - 2 * 2.236 * 6) < 1.5
    shifted = np.roll(field, (3, -5), (0, 1))
    assert receptive_field_size(shifted) == receptive_field_size(field)
    assert receptive_field_size(shifted, centre=(40, 40)) > receptive_field_size(field)
    assert receptive_field_size(np.ones((4, 6)), 1.0) in (5, 7)


def test_arguments_that_do_not_fit_are_refused():
    model = shapes_of("resnet8")
    with pytest.raises(ValueError, match="expected height, width and channels"):
        theoretical_receptive_field(model, (32, 32))
    with pytest.raises(ValueError, match="index=4: there are 4 maps"):
        theoretical_receptive_field(model, (32, 32, 3), 4)
    with pytest.raises(ValueError, match=r"unit=\(8, 0\): the map has 8 rows"):
        theoretical_receptive_field(model, (32, 32, 3), unit=(8, 0))
    with pytest.raises(ValueError, match="does not depend on the image"):
        theoretical_receptive_field(jnp.zeros_like, (4, 4, 1))
    ones = np.ones((1, 8, 8, 3))
    with pytest.raises(ValueError, match="expected a map"):
        effective_receptive_field(lambda images: images.mean(), ones)
    with pytest.raises(ValueError, match=r"give one image as images\[None\]"):
        effective_receptive_field(lambda images: images, ones[0])
    with pytest.raises(ValueError, match="has the sum 0"):
        effective_receptive_field(lambda images: 0 * images, ones)
    for name in ("channels", "measure"):
        with pytest.raises(ValueError, match=f"{name}='sum': expected one of"):
            effective_receptive_field(lambda images: images, ones, **{name: "sum"})
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=f"share={share}"):
            receptive_field_size(np.ones((3, 3)), share)
    for field in (np.zeros((3, 3)), -np.ones((3, 3)), np.ones(3), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="expected \\(H, W\\) of numbers"):
            receptive_field_radius(field)


def test_psconv_and_pyconv_see_further_than_the_plain_network_at_equal_depth():
    images = np.random.default_rng(0).standard_normal((2, 65, 65, 3)).astype(np.float32)
    sizes, radii = {}, {}
    for name, conv in {
        "plain": {},
        "ps": {"conv": PSConv},
        "py": {"conv": partial(PyConv, kernel_sizes=(3, 5, 7, 9), groups=(1, 2, 4, 4))},
    }.items():
        model = create_model("resnet8", zero_init_last=False, rngs=nnx.Rngs(0), **conv)
        field = effective_receptive_field(model, images)
        sizes[name] = receptive_field_size(field, centre=(32, 32))
        radii[name] = receptive_field_radius(field)
        assert sizes[name] <= theoretical_receptive_field(model, (257, 257, 3)).size[0]
    assert min(sizes["ps"], sizes["py"]) > 1.5 * sizes["plain"]
    assert min(radii["ps"], radii["py"]) > 1.5 * radii["plain"]


def test_half_precision_has_fields():
    conv = nnx.Conv(3, 4, (3, 3), param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    field = effective_receptive_field(conv, np.ones((1, 9, 9, 3), jnp.bfloat16))
    assert field.dtype == np.float64
    assert np.count_nonzero(field) == 9
    assert field.sum() == pytest.approx(1)


def test_the_picture_has_both_fields():
    field = theoretical_receptive_field(lambda images: average_pool(images, 3, 3), (9, 9, 1))
    axes = Figure().subplots()
    assert plot_receptive_field(np.eye(9)[:, ::-1] + np.eye(9), axes, theoretical=field, title="a") is axes
    square, box = axes.patches
    assert (square.get_width(), box.get_width(), box.get_xy()) == (9, 3, (2.5, 2.5))
    assert [text.get_text() for text in axes.get_legend().get_texts()][1] == "theoretical, 3 x 3"
