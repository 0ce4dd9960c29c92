"""The cross entropy of pixels: by a plain loop, with ignored and wrong labels, in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msconv_jax.vision import segmentation_cross_entropy


def drawn(classes=4, ignored=255):
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (2, 5, 7, classes)).astype(np.float32)
    labels = random.integers(0, classes, (2, 5, 7))
    labels[random.random(labels.shape) < 0.3] = ignored
    return logits, labels


@pytest.mark.parametrize(("ignored", "kind"), [(255, np.uint8), (255, np.int32), (-1, np.int8), (0, np.int64)])
def test_by_a_plain_loop(ignored, kind):
    logits, labels = drawn(ignored=ignored)
    losses, weights = segmentation_cross_entropy(logits, jnp.asarray(labels.astype(np.int32).astype(kind)), ignored)
    for place in np.ndindex(labels.shape):
        counts = labels[place] != ignored
        row = logits[place].astype(np.float64)
        expected = np.log(np.exp(row).sum()) - row[labels[place]] if counts else 0.0
        np.testing.assert_allclose(losses[place], expected, rtol=1e-5, atol=1e-6)
        assert float(weights[place]) == counts


def test_ignored_pixels_have_no_gradient_and_nothing_is_0():
    logits, labels = drawn()
    gradient = jax.grad(lambda x: segmentation_cross_entropy(x, jnp.asarray(labels))[0].sum())(logits)
    assert not gradient[labels == 255].any()
    assert np.abs(gradient[labels != 255]).sum(-1).all()
    losses, weights = segmentation_cross_entropy(logits, jnp.full(labels.shape, 255))
    assert float(losses.sum()) == float(weights.sum()) == 0


@pytest.mark.parametrize("label", [4, 254, -1])
def test_a_wrong_label_shows(label):
    logits, labels = drawn()
    labels[1, 2, 3] = label
    losses, weights = segmentation_cross_entropy(logits, jnp.asarray(labels))
    assert np.isnan(losses[1, 2, 3])
    assert np.isnan(np.asarray(losses)).sum() == float(weights[1, 2, 3]) == 1


def test_half_precision_logits_give_float32():
    logits, labels = drawn()
    losses, weights = segmentation_cross_entropy(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(labels))
    assert losses.dtype == weights.dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float32)
    np.testing.assert_allclose(losses, segmentation_cross_entropy(rounded, jnp.asarray(labels))[0], rtol=1e-6)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="labels of type float32: must be integers"):
        segmentation_cross_entropy(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"labels of shape \(2, 1\) .* must be \(1, 2\)"):
        segmentation_cross_entropy(jnp.zeros((1, 2, 3)), jnp.zeros((2, 1), int))
