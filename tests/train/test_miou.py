"""Confusion matrices and metrics of segmentations, compared with counts pixel by pixel."""

import numpy as np
import pytest

from train.errors import UserError
from train.tasks.miou import confusion, segmentation_metrics


def drawn(seed, classes=5, ignored=255):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 12, 2))
    target = random.integers(0, classes, shape)
    target[random.random(shape) < 0.2] = ignored
    return random.integers(0, classes, shape), target


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("ignored", "kind"), [(255, np.uint8), (-1, np.int32)])
def test_counting_one_by_one(seed, ignored, kind):
    predicted, target = drawn(seed, ignored=ignored)
    expected = np.zeros((5, 5), np.int64)
    for place in np.ndindex(target.shape):
        if target[place] != ignored:
            expected[target[place], predicted[place]] += 1
    got = confusion(predicted.astype(kind), target.astype(kind), 5, ignored)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, expected)


def test_the_sum_over_images_is_that_of_all_pixels():
    images = [drawn(seed) for seed in range(20)]
    total = sum(confusion(*image, 5) for image in images)
    flat = [np.concatenate([array.ravel() for array in arrays]) for arrays in zip(*images, strict=True)]
    np.testing.assert_array_equal(total, confusion(*flat, 5))
    assert total.sum() == (flat[1] != 255).sum()


def test_many_classes_of_bytes_do_not_overflow():
    values = np.arange(150, dtype=np.uint8)
    np.testing.assert_array_equal(confusion(values, values, 150), np.eye(150))


def test_measures_of_a_class_that_is_nowhere():
    found = segmentation_metrics(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    np.testing.assert_allclose(found["iou"], [3 / 4, 4 / 5, 0])
    assert found["miou"] == pytest.approx((3 / 4 + 4 / 5) / 3)
    assert found["miou_present"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert found["mean_accuracy"] == pytest.approx((3 / 4 + 1) / 3)
    assert found["pixel_accuracy"] == pytest.approx(7 / 8)


def test_measures_of_nothing_are_0():
    found = segmentation_metrics(confusion(np.zeros((2, 2), int), np.full((2, 2), 255), 3))
    assert {name: value for name, value in found.items() if name != "iou"} == dict.fromkeys(
        ("miou", "miou_present", "mean_accuracy", "pixel_accuracy"), 0.0
    )


@pytest.mark.parametrize(
    ("predicted", "target", "message"),
    [
        ([5], [0], "predicted class 5 must be from 0 to 4; correct"),
        ([-1], [255], "predicted class -1 must be from 0 to 4"),
        ([0], [254], "label 254 must be from 0 to 4, or 255 for pixels that do not count"),
        ([0, 1], [0], r"shape \(2,\) for labels of shape \(1,\)"),
    ],
)
def test_what_is_out_of_range_is_refused(predicted, target, message):
    with pytest.raises(UserError, match=message):
        confusion(np.array(predicted), np.array(target), 5)
