import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.helpers import tiny
from train.data import load_source
from train.errors import UserError
from train.tasks import Classification
from train.tasks.mixing import mix, neighbours, outside_box

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 6, 9, 2)).astype(np.float32)
TARGETS = np.eye(5, dtype=np.float32)[[0, 3, 2, 2]]
PARTNERS = [1, 0, 3, 2]


@pytest.fixture(scope="module")
def draws():
    """Batches mixed with 400 keys: lists of images and targets for each kind of mixing."""
    keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(1), number))(jnp.arange(400))
    function = jax.jit(jax.vmap(lambda key: mix(IMAGES, TARGETS, key, 0.4, 1.0, 0.6)))
    by_kind = {"mixup": [], "cutmix": [], "neither": []}
    for image, target in zip(*map(np.asarray, function(keys)), strict=True):
        own, other = kept_pixels(image)
        kind = "neither" if own.all() else "cutmix" if (own | other).all() else "mixup"
        by_kind[kind].append((image, target))
    return by_kind


def kept_pixels(images):
    """Masks (height, width) of the first image's own pixels, and of its partner's."""
    return (images[0] == IMAGES[0]).all(axis=-1), (images[0] == IMAGES[1]).all(axis=-1)


def test_one_of_both_is_done_with_equal_probability_and_now_and_then_neither(draws):
    assert 90 <= len(draws["mixup"]) <= 150
    assert 80 <= len(draws["cutmix"]) <= 150  # some boxes are empty
    assert 130 <= len(draws["neither"]) <= 200
    for _, targets in draws["neither"]:
        np.testing.assert_array_equal(targets, TARGETS)


def test_mixup_weighs_images_and_targets_alike(draws):
    shares = []
    for images, targets in draws["mixup"]:
        share = targets[0, 0]  # of class 0, not the partner's class
        np.testing.assert_allclose(images, share * IMAGES + (1 - share) * IMAGES[PARTNERS], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(targets, share * TARGETS + (1 - share) * TARGETS[PARTNERS], rtol=1e-4, atol=1e-6)
        shares.append(share)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)
    assert np.var(shares) == pytest.approx(1 / (4 * 1.8), rel=0.25)


def test_cutmix_weighs_targets_by_the_pixels_that_remain(draws):
    areas = set()
    for images, targets in draws["cutmix"]:
        own, other = kept_pixels(images)
        assert (own ^ other).all()
        rows, columns = np.nonzero(other)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # one full box
        areas.add(len(rows))
        np.testing.assert_allclose(targets[0, 0], own.mean(), rtol=1e-6)
        np.testing.assert_allclose(targets, own.mean() * TARGETS + other.mean() * TARGETS[PARTNERS], atol=1e-6)
        np.testing.assert_array_equal(images[3] == IMAGES[3], np.broadcast_to(own[:, :, None], (6, 9, 2)))
    assert len(areas) > 8


def test_box_is_timms():
    """Sides are size * sqrt(1 - share); half a side is rounded down; any centre; clipped at the border."""
    rows, columns = set(), set()
    for number in range(50):
        inside = 1 - np.asarray(outside_box(jax.random.key(number), jnp.float32(0.75), 8, 12))
        rows.add(tuple(np.flatnonzero(inside.any(axis=1))))
        columns.add(tuple(np.flatnonzero(inside.any(axis=0))))
    assert rows == {tuple(range(max(c - 2, 0), min(c + 2, 8))) for c in range(8)}
    assert columns == {tuple(range(max(c - 3, 0), min(c + 3, 12))) for c in range(12)}


def test_neighbours_change_places():
    np.testing.assert_array_equal(neighbours(jnp.asarray(IMAGES)), IMAGES[PARTNERS])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.mix_probability": 0.5}, "config.task.mix_probability is 0.5 but nothing is mixed"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        tiny(changes)


def test_batches_without_pairs_are_refused():
    config = tiny({"task.mixup_alpha": 0.2, "batch_size": 15})
    with pytest.raises(UserError, match=r"batch_size is 15 but must be even.*16 would do"):
        Classification(config, load_source(config))
