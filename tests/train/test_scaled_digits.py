"""The data set of digits at known sizes: its images, its disjoint splits, and its reader."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.train.rows import data_config
from train.data.images import as_pixels
from train.data.loading import load_source
from train.data.opencv import cv2
from train.data.readers import scaled_digits
from train.data.readers.scaled_digits import LARGEST, PARTS, SIDE, examples
from train.errors import UserError


@pytest.fixture(scope="module")
def some():
    return list(itertools.islice(examples("train"), 600))


def test_every_box_is_as_large_as_its_scale_says(some):
    """The mask of a digit fills its 8 rows, except blank ones at the edges."""
    for example in some:
        top, left, bottom, right = example.box
        assert 0 <= top < bottom <= SIDE
        assert 0 <= left < right <= SIDE
        assert 5 * example.scale - 2 <= bottom - top <= 8 * example.scale + 1
        assert right - left <= 8 * example.scale + 1
        assert example.mask[top:bottom, left:right].sum() == example.mask.sum() > 0
        assert example.mask[top].any()
        assert example.mask[bottom - 1].any()


def test_scales_are_log_uniform_from_1_to_6():
    scales = np.array([e.scale for e in examples("validation")])
    places = np.sort(np.log(scales) / np.log(LARGEST))
    assert places[0] >= 0
    assert places[-1] < 1
    uniform = (np.arange(len(places)) + 0.5) / len(places)
    assert np.abs(places - uniform).max() < 1.63 / np.sqrt(len(places))  # Kolmogorov-Smirnov at level 0.01


def test_the_digit_is_the_labelled_one(some):
    """The mask inside its box, reduced to the scanned digit's pixels, matches most of them."""
    scanned = load_digits()
    for example in some[:20]:
        assert scanned.target[example.digit] == example.label
    large = [e for e in some if e.scale > 5]
    assert len(large) > 20
    for example in large:
        ink = scanned.images[example.digit]
        rows, columns = (np.flatnonzero((ink >= 8).any(axis)) for axis in (1, 0))
        expected = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] >= 8
        top, left, bottom, right = example.box
        height, width = expected.shape
        # The centres of the scanned digit's pixels.
        at = np.ix_(
            (top + (np.arange(height) + 0.5) * (bottom - top) / height).astype(int),
            (left + (np.arange(width) + 0.5) * (right - left) / width).astype(int),
        )
        assert (example.mask[at] == expected).mean() > 0.7


def test_the_digit_is_lighter_than_all_else(some):
    for example in some:
        light = example.image.mean(axis=-1)
        assert light[example.mask].max() >= 210 > 180 > light[~example.mask].mean()
        near = cv2.dilate(example.mask.astype(np.uint8), np.ones((9, 9)))  # the digit with its soft edge
        assert light[near == 0].max(initial=0) < 150


def test_no_digit_and_no_pixel_of_a_photograph_is_in_two_parts():
    for a, b in itertools.combinations(PARTS.values(), 2):
        assert not set(a.digits) & set(b.digits)
        assert not set(a.columns) & set(b.columns)
    assert sum(len(part.digits) for part in PARTS.values()) == 1797


def test_parts_are_cut_where_a_writer_begins_the_list_of_digits():
    target = load_digits().target
    for part in PARTS.values():
        assert target[part.digits[0] : part.digits[0] + 20].tolist() == [*range(10), *range(10)]


def test_images_are_always_the_same():
    first, second = next(examples("test")), next(examples("test"))
    assert (first.image == second.image).all()
    assert first[1:5] == second[1:5]


def test_it_must_be_prepared_first(tmp_path):
    with pytest.raises(UserError, match="--dataset=scaled_digits --data_dir="):
        load_source(data_config("scaled_digits", dir=str(tmp_path)))


@pytest.mark.slow
def test_what_is_prepared_without_tensorflow_is_what_was_drawn(tmp_path):
    command = [sys.executable, "-m", "train.prepare", "--dataset=scaled_digits", f"--data_dir={tmp_path}"]
    for _ in range(2):  # the second run reads it
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "train: 6942 records" in done.stdout
        assert "test: 1910 records" in done.stdout
    config = data_config("scaled_digits", dir=str(tmp_path))
    source = load_source(config)
    assert source.image_shape == (64, 64, 3)
    assert source.is_sized
    assert not source.note
    train = np.stack([as_pixels(record.image, 3) for record in source.splits["train"]]) / 255
    np.testing.assert_allclose(train.mean(axis=(0, 1, 2)), scaled_digits.MEAN, atol=5e-4)
    np.testing.assert_allclose(train.std(axis=(0, 1, 2)), scaled_digits.STD, atol=5e-4)
    records = {(r.numbers["digit"], round(r.numbers["scale"], 4)): r for r in source.splits["test"]}
    drawn = list(examples("test"))
    assert len(records) == len(drawn)
    for example in drawn[::7]:
        record = records[example.digit, round(example.scale, 4)]
        assert (as_pixels(record.image, 3) == example.image).all()
        assert record.label == example.label
        assert record.segmentation is None
        assert record.boxes is None
    assert source.classes == tuple("0123456789")

    needs = frozenset({"label", "segmentation", "boxes", "labels"})
    dense = load_source(config, needs)
    assert dense.fields == needs
    assert dense.segmentation_classes == ("background", *"0123456789")
    samples = {(s.numbers["digit"], round(s.numbers["scale"], 4)): s for s in dense.splits["test"]}
    for example in drawn[::7]:
        sample = samples[example.digit, round(example.scale, 4)]
        np.testing.assert_array_equal(sample.segmentation, np.where(example.mask, example.label + 1, 0))
        top, left, bottom, right = example.box
        np.testing.assert_array_equal(sample.boxes, [[left, top, right, bottom]])
        assert sample.labels.tolist() == [example.label]
