from collections import Counter

import numpy as np
import pytest

from tests.train.helpers import tiny
from train.data import evaluation_batches, load_source, train_batches
from train.data.augment import Warp
from train.data.loading import SOURCES
from train.errors import UserError

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def source():
    return load_source(tiny())


def images_of(records):
    return [record["image"].tobytes() for record in records]


def test_splits_have_their_documented_sizes_and_share_no_image(source):
    assert [len(source.splits[name]) for name in SPLITS] == [1163, 270, 364]
    everything = [image for name in SPLITS for image in images_of(source.splits[name])]
    assert len(set(everything)) == 1797  # all images of the data set differ


def test_splits_are_stratified_and_fixed(source):
    for name, share in zip(SPLITS, (0.65, 0.15, 0.20), strict=True):
        counts = Counter(record["label"] for record in source.splits[name])
        for label, of_class in enumerate((178, 182, 177, 183, 181, 182, 181, 179, 174, 180)):
            assert abs(counts[label] - share * of_class) < 2
    # The data set begins 0 to 9 three times over; the first ten are each the first of its class.
    assert [record["label"] for record in source.splits["test"]][:10] == list(range(10))
    again = SOURCES["digits"](tiny())
    for name in SPLITS:
        assert images_of(again.splits[name]) == images_of(source.splits[name])


def test_mean_and_deviation_are_those_of_the_train_split(source):
    pixels = np.stack([record["image"] for record in source.splits["train"]])
    assert pixels.dtype == np.uint8
    normalised = source.normalise(pixels)
    assert normalised.dtype == np.float32
    assert abs(normalised.mean()) < 2e-3
    assert abs(normalised.std() - 1) < 2e-3


def test_augmentation_of_no_strength_changes_nothing(source):
    rng = np.random.default_rng(0)
    image = source.splits["train"][0]["image"]
    off = {"shift": 0.0, "rotation": 0.0, "scale": 0.0}
    np.testing.assert_array_equal(Warp(**off)(image, rng), image)
    for name, strength in {"shift": 2.0, "rotation": 45.0, "scale": 0.45}.items():
        changed = Warp(**{**off, name: strength})(image, rng)
        assert changed.shape == image.shape
        assert changed.dtype == image.dtype
        assert not np.array_equal(changed, image)


def test_a_shift_moves_the_image(source):
    class Up:
        def uniform(self, low, high, size=None):
            return np.full(size, high) if size else high

    image = source.splits["train"][0]["image"]
    moved = Warp(shift=2.0, rotation=0.0, scale=0.0)(image, Up())
    np.testing.assert_array_equal(moved[2:, 2:], image[:-2, :-2])
    assert not moved[:2].any()


def batches(source, first, last, index=0, count=1, **changes):
    return list(train_batches(source, tiny(**changes), first, last, process_index=index, process_count=count))


def assert_same_batches(left, right):
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys() == {"image", "label"}
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_training_batches_have_the_shapes_of_the_model(source):
    (batch,) = batches(source, 0, 1)
    assert batch["image"].shape == (240, 8, 8, 1)
    assert batch["image"].dtype == np.float32
    assert batch["label"].shape == (240,)
    assert batch["label"].dtype == np.int32


def test_two_processes_see_the_batches_of_one(source):
    whole = batches(source, 0, 7)
    halves = [batches(source, 0, 7, index, 2) for index in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(batch[key], np.concatenate([first[key], second[key]]))


def test_a_resumed_run_sees_the_same_batches_for_any_number_of_threads(source):
    whole = batches(source, 0, 8, data_threads=0)
    assert_same_batches(whole[3:], batches(source, 3, 8, data_threads=4))


def test_batches_depend_on_the_seed_and_never_repeat_an_augmentation(source):
    (first,), (other,) = batches(source, 0, 1), batches(source, 0, 1, seed=1)
    assert not np.array_equal(first["label"], other["label"])
    # 10 epochs of the whole split in one batch each: every image is drawn anew in each.
    epochs = batches(source, 0, 3, batch_size=1163)
    assert not np.array_equal(epochs[0]["label"], epochs[1]["label"])
    pictures = [image.tobytes() for batch in epochs for image in batch["image"]]
    assert len(set(pictures)) == 3 * 1163


def test_an_epoch_holds_every_image_once(source):
    (epoch,) = batches(source, 2, 3, batch_size=1163, augment={})
    expected = [source.normalise(record["image"]) for record in source.splits["train"]]
    assert sorted(i.tobytes() for i in epoch["image"]) == sorted(i.tobytes() for i in expected)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batch_size", [10, 240, 364])
def test_evaluation_weighs_every_image_once(source, batch_size, count):
    labels, weights, images = [], [], []
    for index in range(count):
        for batch in evaluation_batches(
            source, "test", tiny(batch_size=batch_size), process_index=index, process_count=count
        ):
            assert batch["image"].shape == (batch_size // count, 8, 8, 1)
            labels.extend(batch["label"])
            weights.extend(batch["weight"])
            images.extend(batch["image"])
    real = [i for i, weight in enumerate(weights) if weight]
    assert len(real) == 364
    expected = source.splits["test"]
    assert Counter(labels[i] for i in real) == Counter(r["label"] for r in expected)
    assert {images[i].tobytes() for i in real} == {source.normalise(record["image"]).tobytes() for record in expected}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "digit"}, "'digit', which does not exist; did you mean 'digits'"),
        ({"augment": {"wrap": {}}}, "unknown transform 'wrap'.*'warp'"),
        ({"augment": {"warp": 1.0}}, "warp is 1.0 but must be a dictionary"),
        ({"augment": {"warp": {"shift": 1.0, "rotation": 1.0}}}, "warp lacks 'scale'"),
        ({"augment": {"warp": {"shift": 1.0, "rotate": 1.0}}}, "unknown key 'rotate'.*'rotation'"),
        ({"augment": {"warp": {"shift": 9.0, "rotation": 1.0, "scale": 0}}}, "shift is 9.0 .* 0 to 4"),
        ({"augment": {"warp": {"shift": "1", "rotation": 1.0, "scale": 0}}}, "shift is '1'"),
    ],
)
def test_sources_and_strengths_that_do_not_exist(changes, message):
    with pytest.raises(UserError, match=message):
        load_source(tiny(**changes))
