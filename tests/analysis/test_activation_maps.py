"""Grad-CAM against the class activation map's closed form, and against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib.figure import Figure

from msconv_jax import create_model
from msconv_jax.analysis import class_activation_maps, plot_class_activation_maps

IMAGES = np.random.default_rng(0).standard_normal((3, 19, 22, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    network = create_model("resnet8", width=4, zero_init_last=False, num_classes=5, rngs=nnx.Rngs(0))
    network.eval()
    return network


def enlarged(small):
    large = np.asarray(jax.image.resize(jnp.asarray(small, jnp.float32), IMAGES.shape[:3], "linear"))
    return large / np.maximum(large.max(axis=(1, 2), keepdims=True), 1e-30)


def test_on_the_last_map_it_is_the_class_activation_map(model):
    last = np.asarray(model.forward_features(IMAGES), np.float64)
    kernel = np.asarray(model.fc.kernel[...], np.float64)
    predicted = np.asarray(model(IMAGES)).argmax(axis=-1)
    for labels, given in ((predicted, None), (np.array([4, 0, 2]), [4, 0, 2])):
        expected = np.maximum(np.einsum("nhwk,kn->nhw", last, kernel[:, labels]), 0)
        np.testing.assert_allclose(class_activation_maps(model, IMAGES, given), enlarged(expected), atol=1e-4)


def test_on_an_earlier_map_the_gradient_goes_through_what_follows(model):
    second = model.feature_maps(IMAGES)[1]

    def rest(maps):
        for stage in (model.layer2, model.layer3):
            for block in stage:
                maps = block(maps)
        return model.forward_head(maps)[jnp.arange(3), jnp.array([1, 2, 3])].sum()

    weights = np.asarray(jax.grad(rest)(second), np.float64).mean(axis=(1, 2))
    expected = np.maximum(np.einsum("nhwk,nk->nhw", np.asarray(second, np.float64), weights), 0)
    np.testing.assert_allclose(class_activation_maps(model, IMAGES, [1, 2, 3], 1), enlarged(expected), atol=1e-4)


def test_what_speaks_against_the_class_everywhere_is_zero(model):
    graphdef, state = nnx.split(model)
    against = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
    against.fc.kernel[...] = -jnp.ones_like(against.fc.kernel[...])
    assert not class_activation_maps(against, IMAGES).any()


@pytest.mark.slow
def test_half_precision_gives_maps():
    half = create_model("resnet8", width=4, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    maps = class_activation_maps(half, IMAGES.astype(jnp.bfloat16), [0, 1, 2])
    assert maps.shape == (3, 19, 22)
    assert 0 <= maps.min() <= maps.max() <= 1


def test_arguments_that_do_not_fit_are_refused(model):
    for labels in ([0, 1], [0, 1, 5], [0, -1, 2], [0.0, 1.0, 2.0]):
        with pytest.raises(ValueError, match="expected 3 whole numbers from 0 to 4"):
            class_activation_maps(model, IMAGES, labels)
    with pytest.raises(ValueError, match="index=4: there are 4 maps"):
        class_activation_maps(model, IMAGES, index=4)
    with pytest.raises(ValueError, match="Linear has no feature_maps"):
        class_activation_maps(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), IMAGES)
    headless = create_model("resnet8", width=4, num_classes=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no logits"):
        class_activation_maps(headless, IMAGES)
    with pytest.raises(ValueError, match="give one image as"):
        class_activation_maps(model, IMAGES[0])


@pytest.mark.slow
def test_a_map_beside_the_way_is_refused():
    octaves = create_model("oct_resnet26", width=8, rngs=nnx.Rngs(0))
    images = np.ones((1, 33, 33, 3), np.float32)
    assert class_activation_maps(octaves, images).shape == (1, 33, 33)
    with pytest.raises(ValueError, match="the logits do not depend on it"):
        class_activation_maps(octaves, images, index=2)


def test_pictures_and_maps_lie_on_each_other():
    maps = np.linspace(0, 1, 3 * 19 * 22).reshape(3, 19, 22)
    given = Figure().subplots(1, 3)
    assert plot_class_activation_maps(IMAGES, maps, given, titles=["a", "b", "c"]) is given
    for axes, own in zip(given, maps, strict=True):
        under, over = axes.images
        assert (under.get_array().min(), under.get_array().max()) == (0, 1)
        np.testing.assert_array_equal(over.get_array(), own)
    with pytest.raises(ValueError, match="1 titles for 3 images"):
        plot_class_activation_maps(IMAGES, maps, titles=["a"])
    with pytest.raises(ValueError, match="expected \\(N, H, W, 1 or 3\\)"):
        plot_class_activation_maps(IMAGES, maps[:, :-1])
