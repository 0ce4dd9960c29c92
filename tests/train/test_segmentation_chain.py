"""The transforms of segmentation, compared with numbers of PyConvSegNet's public code."""

import json
from pathlib import Path

import numpy as np
import pytest

from train.data.sample import IGNORED, Sample
from train.data.source import IMAGENET_MEAN, IMAGENET_STD, Source
from train.data.transforms import RandomCrop, create_augmentation
from train.data.transforms.segmentation import Blur, RandomRotation, RandomScale
from train.errors import UserError

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "dense" / "seg_augment.npz"
SOURCE = Source({}, ("a",), (33, 41, 3), False, IMAGENET_MEAN, IMAGENET_STD)
CHAIN = {"flip": {}, "random_scale": {}, "blur": {}, "random_rotation": {}}  # in any order


class Replay:
    """A generator that returns numbers from a list."""

    def __init__(self, numbers):
        self.numbers = list(numbers)

    def random(self):
        assert 0 <= self.numbers[0] < 1
        return self.numbers.pop(0)

    def integers(self, low, high):
        assert low <= self.numbers[0] < high
        assert self.numbers[0] == int(self.numbers[0])
        return self.numbers.pop(0)


@pytest.mark.skipif(not GOLDEN.is_file(), reason="the recorded numbers stand in ../shared/golden")
def test_the_chain_gives_the_recorded_numbers():
    golden = np.load(GOLDEN)
    meta = json.loads(str(golden["meta"]))
    transform, crop = create_augmentation(CHAIN, SOURCE), RandomCrop(33, 41, IMAGENET_MEAN)
    sample = Sample(image=golden["image"].astype(np.uint8), segmentation=golden["label"].astype(np.uint8))
    np.testing.assert_array_equal(sample.image, golden["image"])
    for seed in meta["chain_seeds"]:
        rng = Replay(meta["chain_draws"][seed])
        row = crop(transform(sample, rng), rng)
        assert not rng.numbers
        normalised = (row.pixels / 255 - SOURCE.mean) / SOURCE.std
        np.testing.assert_allclose(normalised.transpose(2, 0, 1), golden[f"chain{seed}_image"], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(row.segmentation, golden[f"chain{seed}_label"])


def sample(height, width, dtype=np.uint8):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3)).astype(dtype)
    return Sample(image=image, segmentation=rng.integers(0, 9, (height, width)).astype(np.uint8))


def test_draws_are_uniform_and_in_a_fixed_order():
    one = sample(40, 60)
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    scaled = RandomScale(0.5, 1.5)(one, rng)
    factor = 0.5 + again.random()
    assert scaled.image.shape == (round(40 * factor), round(60 * factor), 3)
    RandomRotation(IMAGENET_MEAN, 10.0, 1.0)(one, rng), Blur(0.5)(one, rng), RandomCrop(10, 20, IMAGENET_MEAN)(one, rng)
    again.random(3), again.integers(0, 31), again.integers(0, 41)
    assert rng.random() == again.random()
    unturned = RandomRotation(IMAGENET_MEAN, 10.0, 0.0)(one, rng)
    again.random()
    np.testing.assert_array_equal(unturned.image, one.image)
    assert unturned.pixels.dtype == np.float32
    assert rng.random() == again.random()


def test_every_place_of_a_crop_is_drawn():
    one, rng = sample(6, 9), np.random.default_rng(0)
    places = {RandomCrop(4, 7, IMAGENET_MEAN)(one, rng).pixels.tobytes() for _ in range(200)}
    assert places == {one.pixels[r : r + 4, c : c + 7].tobytes() for r in range(3) for c in range(3)}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_small_image_is_padded_with_the_mean_and_ignored(dtype):
    one = sample(5, 8, dtype)
    for moved in (
        RandomCrop(8, 6, (0.2, 0.4, 0.6)).centred(one),
        RandomCrop(8, 6, (0.2, 0.4, 0.6))(one, Replay([0, 1])),
    ):
        assert moved.pixels.dtype == dtype
        np.testing.assert_array_equal(moved.pixels[1:6], one.pixels[:, 1:7])
        np.testing.assert_array_equal(moved.segmentation[1:6], one.segmentation[:, 1:7])
        for row in (0, 6, 7):
            np.testing.assert_allclose(moved.pixels[row], [[51, 102, 153]] * 6, rtol=1e-6)
            assert set(moved.segmentation[row]) == {IGNORED}


def test_images_without_a_segmentation_pass():
    augment = create_augmentation(CHAIN | {"trivial_augment": {}}, SOURCE)
    for seed in range(30):
        moved = augment(sample(40, 60).replace(segmentation=None), np.random.default_rng(seed))
        assert moved.segmentation is None
        assert moved.pixels.dtype == np.uint8


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (2, 3), (300, 200)])
def test_any_size_passes(size):
    augment, crop = create_augmentation(CHAIN | {"color_jitter": {"hue": 0.1}}, SOURCE), RandomCrop(33, 41, (0.5,) * 3)
    for seed in range(15):
        rng = np.random.default_rng(seed)
        moved = crop(augment(sample(*size), rng), rng)
        assert (moved.pixels.shape, moved.segmentation.shape) == ((33, 41, 3), (33, 41))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("random_scale", {"low": 0}, "low is 0 but must be a number from 0.05 to 20"),
        ("random_scale", {"low": 3.0}, "high is 2.0 but must not be below low, 3.0"),
        ("random_rotation", {"degrees": 181}, "degrees is 181 but must be a number from 0 to 180"),
        ("random_rotation", {"mean": [0, 0, 0]}, "unknown key 'mean'"),
        ("blur", {"probability": 2}, "probability is 2"),
    ],
)
def test_arguments_that_are_refused(name, arguments, message):
    with pytest.raises(UserError, match=rf"config\.data\.augment\.{name}.*{message}"):
        create_augmentation({name: arguments}, SOURCE)


@pytest.mark.parametrize("height", [0, 4.0, True])
def test_crops_that_are_refused(height):
    with pytest.raises(ValueError, match=r"height is .* but must be a whole number of pixels above 0"):
        RandomCrop(height, 4, IMAGENET_MEAN)
