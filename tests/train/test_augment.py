"""Transforms, compared with Pillow's operations and torchvision's rules."""

import io
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests.train.rows import data_config
from train.data.images import decode
from train.data.resizing import resize, resize_shorter
from train.data.sample import Sample
from train.data.source import Source
from train.data.transforms import TRANSFORMS, check_equal_sizes, colours, create_augmentation, trivial
from train.data.transforms.colours import ColorJitter, Lighting
from train.data.transforms.crops import Flip, PadCrop, RandomResizedCrop
from train.data.transforms.erasing import RandomErasing
from train.data.transforms.trivial import TrivialAugment
from train.errors import UserError

SHAPE = (32, 40, 3)


def picture(height=32, width=40, channels=3):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)][:channels]
    return np.rint(127.5 + 120 * np.dstack(waves)).astype(np.uint8)


def source(shape=SHAPE, is_sized=True):
    mean = (0.5,) * shape[-1]
    return Source({"train": [], "validation": [], "test": []}, ("a", "b"), shape, is_sized, mean, mean)


def augmentation(is_sized=True, shape=SHAPE, **augment):
    return of_images(create_augmentation(augment, source(shape, is_sized)))


def of_images(transform):
    """Makes a transform of samples a function of images."""
    return lambda image, rng: transform(Sample(image=image), rng).image


IMAGE = picture()
PILLOW = Image.fromarray(IMAGE)


def distance(image, other):
    return np.abs(image.astype(int) - np.asarray(other)).max()


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
def test_blends_are_pillows(factor):
    assert distance(colours.brightness(IMAGE, factor), ImageEnhance.Brightness(PILLOW).enhance(factor)) <= 1
    assert distance(colours.contrast(IMAGE, factor), ImageEnhance.Contrast(PILLOW).enhance(factor)) <= 2
    assert distance(colours.saturation(IMAGE, factor), ImageEnhance.Color(PILLOW).enhance(factor)) <= 2
    assert distance(trivial.sharpness(IMAGE, factor), ImageEnhance.Sharpness(PILLOW).enhance(factor)) <= 2


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.3])
def test_the_hue_turns_as_pillows_does(shift):
    hue, saturation, value = PILLOW.convert("HSV").split()
    turned = np.asarray(hue).astype(int) + int(shift * 255)
    expected = Image.merge("HSV", (Image.fromarray((turned % 256).astype(np.uint8)), saturation, value)).convert("RGB")
    error = np.abs(colours.hue(IMAGE, shift).astype(int) - np.asarray(expected))
    assert error.max() <= 12  # one step of the hue is up to 6 levels of a colour
    assert error.mean() < 2


def test_tables_of_levels_are_pillows():
    for bits in range(2, 9):
        assert distance(trivial.posterize(IMAGE, bits), ImageOps.posterize(PILLOW, bits)) == 0
    for threshold in (0, 93.5, 255):
        assert distance(trivial.solarize(IMAGE, threshold), ImageOps.solarize(PILLOW, threshold)) == 0
    narrow = (IMAGE // 3 + 60).astype(np.uint8)
    assert distance(trivial.autocontrast(narrow), ImageOps.autocontrast(Image.fromarray(narrow))) <= 1
    big = picture(64, 64) // 2
    assert distance(trivial.equalize(big), ImageOps.equalize(Image.fromarray(big))) == 0


def affine(matrix):
    return np.asarray(PILLOW.transform(PILLOW.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        ("shear_x", 0.3, lambda: affine((1, 0.3, 0, 0, 1, 0))),
        ("shear_y", -0.3, lambda: affine((1, 0, 0, -0.3, 1, 0))),
        ("translate_x", 7.9, lambda: affine((1, 0, -7, 0, 1, 0))),
        ("translate_y", -5.0, lambda: affine((1, 0, 0, 0, 1, 5))),
        ("rotate", 30.0, lambda: np.asarray(PILLOW.rotate(30, Image.Resampling.BILINEAR))),
    ],
)
def test_movements_are_pillows_but_for_the_edge(name, strength, expected):
    moved, reference = trivial.apply(Sample(image=IMAGE), name, strength).pixels, expected()
    # The two interpolate differently at the black border.
    inside = np.asarray(Image.fromarray((reference.max(2) > 0).astype(np.uint8) * 255)) > 0
    inside[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    error = np.abs(moved.astype(int) - reference)[1:-1, 1:-1][inside[1:-1, 1:-1]]
    assert error.size > 1500
    assert np.quantile(error, 0.95) <= 12


def test_the_strengths_of_trivial_augment_are_torchvisions():
    largest = trivial.STRENGTHS
    assert largest.keys() == trivial.MOVEMENTS.keys() | trivial.COLOURS.keys()
    assert len(largest) == 14
    for name in ("shear_x", "shear_y", "brightness", "color", "contrast", "sharpness"):
        assert largest[name] == (0.99, True)
    assert largest["translate_x"] == largest["translate_y"] == (32, True)
    assert largest["rotate"] == (135, True)
    assert largest["solarize"] == (255, False)
    kept = [8 - round(6 * bin / 30) for bin in range(31)]
    assert (kept[0], kept[30], sorted(set(kept))) == (8, 2, [2, 3, 4, 5, 6, 7, 8])
    assert all(
        distance(trivial.apply(Sample(image=IMAGE), n, 0).pixels, IMAGE) == 0
        for n in largest
        if n not in ("autocontrast", "equalize")
    )


def test_trivial_augment_draws_every_operation(monkeypatch):
    drawn = []
    monkeypatch.setattr(trivial, "apply", lambda sample, name, by: drawn.append((name, by)) or sample)
    rng = np.random.default_rng(0)
    for _ in range(2800):
        TrivialAugment()(Sample(image=IMAGE), rng)
    for name, (largest, signed) in trivial.STRENGTHS.items():
        strengths = [by for drawn_name, by in drawn if drawn_name == name]
        assert 140 < len(strengths) < 260
        assert max(strengths) <= largest
        if largest:
            assert max(strengths) > 0.9 * largest
            assert (min(strengths) < -0.9 * largest) == signed


def test_the_crop_follows_torchvisions_rule():
    crop, rng = RandomResizedCrop((224, 224, 3)), np.random.default_rng(0)
    boxes = [crop.draw(375, 500, rng) for _ in range(3000)]
    areas = np.array([b.height * b.width / (375 * 500) for b in boxes])
    ratios = np.array([b.width / b.height for b in boxes])
    assert all(0 <= b.top <= 375 - b.height and 0 <= b.left <= 500 - b.width for b in boxes)
    assert 0.078 < areas.min() < 0.09
    assert 0.98 < areas.max() <= 1.0
    assert ratios.min() >= 0.74
    assert ratios.max() <= 1.35
    # Small crops are never rejected, so their areas and log ratios are uniform.
    small = areas < 0.4
    assert abs(areas[small].mean() - 0.24) < 0.01
    assert abs(np.log(ratios[small]).mean()) < 0.015
    assert abs(np.mean([b.top / (375 - b.height) for b, s in zip(boxes, small, strict=True) if s]) - 0.5) < 0.03


def test_the_crop_falls_back_to_the_centre():
    crop, rng = RandomResizedCrop((8, 8, 3), area=(0.9, 1.0)), np.random.default_rng(0)
    assert crop.draw(1000, 10, rng) == (493, 0, 13, 10)  # 10 / (3/4) rows
    assert crop.draw(10, 1000, rng) == (0, 493, 10, 13)
    assert crop.draw(1, 1, rng) == (0, 0, 1, 1)


def jpeg(image, quality=95):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def test_a_file_is_cropped_like_its_pixels():
    data = jpeg(picture(100, 140))
    for seed in range(5):
        crop = RandomResizedCrop((64, 64, 3))
        of_file = of_images(crop)(data, np.random.default_rng(seed))
        of_pixels = of_images(crop)(decode(data, 3), np.random.default_rng(seed))
        np.testing.assert_array_equal(of_file, of_pixels)


def test_a_large_part_is_decoded_small():
    data = jpeg(resize(picture(20, 30), 400, 600))
    crop = RandomResizedCrop((20, 24, 3), area=(0.8, 0.9))
    for seed in range(5):
        of_file = of_images(crop)(data, np.random.default_rng(seed)).astype(int)
        of_pixels = of_images(crop)(decode(data, 3), np.random.default_rng(seed)).astype(int)
        assert of_file.shape == (20, 24, 3)
        assert np.abs(of_file - of_pixels).mean() < 8  # a shift of up to half a pixel of the small image


def test_shrinking_takes_means_and_enlarging_interpolates():
    image = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (32, 32))[..., None]
    assert distance(resize(image, 16, 16), np.full((16, 16, 1), 128)) <= 1
    assert distance(resize(image, 16, 16, quick=True), np.full((16, 16, 1), 128)) <= 1
    assert resize(image, 80, 90).shape == (80, 90, 1)
    assert resize_shorter(picture(100, 133), 32).shape == (32, 43, 3)
    assert resize_shorter(picture(1, 400), 8).shape == (8, 3200, 3)
    smooth = picture(100, 133)
    pillow = Image.fromarray(smooth).resize((67, 50), Image.Resampling.BOX)
    assert distance(resize(smooth, 50, 67), pillow) <= 8


def test_padding_is_black_and_shifts_are_uniform():
    image, rng = np.full((8, 8, 1), 255, np.uint8), np.random.default_rng(0)
    crops = [of_images(PadCrop(padding=2))(image, rng) for _ in range(500)]
    assert all(c.shape == (8, 8, 1) for c in crops)
    tops = [int((c[:, 4, 0] == 0).sum()) for c in crops]
    assert set(tops) == {0, 1, 2}
    assert sum(top == 0 for top in tops) == pytest.approx(100, abs=30)  # one of five shifts


def test_flips_come_as_often_as_said():
    rng = np.random.default_rng(0)
    flipped = [not np.array_equal(of_images(Flip(0.3))(IMAGE, rng), IMAGE) for _ in range(1000)]
    assert sum(flipped) == pytest.approx(300, abs=45)
    np.testing.assert_array_equal(of_images(Flip(1.0))(IMAGE, rng), IMAGE[:, ::-1])
    assert of_images(Flip(1.0))(IMAGE, rng).flags.c_contiguous  # otherwise batching is slow
    assert of_images(Flip(0.0))(IMAGE, rng) is IMAGE


def test_jitter_of_no_strength_changes_nothing_and_orders_differ():
    rng = np.random.default_rng(0)
    assert of_images(ColorJitter(SHAPE))(IMAGE, rng) is IMAGE
    jitter = of_images(ColorJitter(SHAPE, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1))
    assert len({jitter(IMAGE, rng).tobytes() for _ in range(20)}) == 20
    bright = [of_images(ColorJitter(SHAPE, brightness=0.5))(IMAGE, rng).mean() / IMAGE.mean() for _ in range(200)]
    assert 0.49 < min(bright) < 0.55
    assert max(bright) > 1.2  # larger factors are clipped
    grey = of_images(ColorJitter((8, 8, 1), brightness=0.5, contrast=0.5))(picture(8, 8, 1), rng)
    assert grey.shape == (8, 8, 1)


def test_lighting_has_the_covariance_of_imagenet():
    rng = np.random.default_rng(0)
    middle = np.full((1, 1, 3), 128, np.uint8)
    shifts = np.array([of_images(Lighting((1, 1, 3), std=0.1))(middle, rng)[0, 0] for _ in range(4000)], float) - 128
    values = np.sqrt(np.linalg.eigvalsh(np.cov(shifts.T)))[::-1]
    np.testing.assert_allclose(values, np.hypot(25.5 * np.array([0.2175, 0.0188, 0.0045]), 12**-0.5), rtol=0.08)


def test_erasing_paints_the_mean_over_an_area_of_the_range():
    rng, image = np.random.default_rng(0), np.zeros((50, 60, 3), np.uint8)
    erasing = of_images(RandomErasing(mean=(0.2, 0.4, 0.6), probability=1.0))
    shares = []
    for _ in range(300):
        erased = erasing(image, rng)
        mask = erased[..., 2] > 0
        assert set(map(tuple, erased[mask])) == {(51, 102, 153)}
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns
        assert 0.25 < rows / columns < 4
        shares.append(mask.mean())
    assert 0.015 < min(shares) < 0.04
    assert 0.29 < max(shares) < 0.34
    never = of_images(RandomErasing(mean=(0.0,) * 3, probability=0.0))
    assert never(image, rng) is image
    assert not image.any()


EVERYTHING = {
    "random_resized_crop": {},
    "pad_crop": {},
    "warp": {"shift": 1.0, "rotation": 10.0, "scale": 0.1},
    "flip": {},
    "trivial_augment": {},
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "lighting": {},
    "random_erasing": {},
}


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (2, 3), (300, 200)])
def test_any_size_passes_all_transforms(size):
    assert EVERYTHING.keys() == TRANSFORMS.keys() - {"random_scale", "random_rotation", "blur"}
    augment = augmentation(is_sized=False, **EVERYTHING)
    for seed in range(25):
        for image in (picture(*size), jpeg(picture(*size))):
            result = augment(image, np.random.default_rng(seed))
            assert (result.shape, result.dtype) == (SHAPE, np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_channel_passes_what_needs_no_colours(channels):
    names = EVERYTHING.keys() - {"color_jitter", "lighting"}
    augment = augmentation(shape=(32, 40, channels), **{name: EVERYTHING[name] for name in names})
    for seed in range(60):
        assert augment(picture(32, 40, channels), np.random.default_rng(seed)).shape == (32, 40, channels)


def test_files_are_decoded_where_nothing_crops_them():
    data = jpeg(IMAGE)
    np.testing.assert_array_equal(augmentation()(data, np.random.default_rng(0)), decode(data, 3))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("random_resized_crop", {"area": 0.5}, "area is 0.5 but must be two rising numbers"),
        ("random_resized_crop", {"area": [0.5, 0.1]}, r"area is \[0.5, 0.1\]"),
        ("random_resized_crop", {"area": [0, 1]}, "above 0, at most 1"),
        ("random_resized_crop", {"ratio": [1, "2"]}, "ratio is"),
        ("random_resized_crop", {"shape": [8, 8, 3]}, "unknown key 'shape'"),
        ("pad_crop", {"padding": 1.5}, "padding is 1.5 but must be a whole number"),
        ("pad_crop", {"padding": -1}, "padding is -1"),
        ("flip", {"probability": 1.1}, "probability is 1.1 but must be a number from 0 to 1"),
        ("color_jitter", {"hue": 0.6}, "hue is 0.6"),
        ("color_jitter", {"hue": True}, "hue is True"),
        ("lighting", {"std": -1}, "std is -1"),
        ("trivial_augment", {"bins": 31}, "unknown key 'bins'; it takes no arguments"),
        ("random_erasing", {"area": [0.1, 2]}, "area is"),
        ("random_erasing", {"probability": "1"}, "probability is '1'"),
    ],
)
def test_arguments_that_are_refused(name, arguments, message):
    with pytest.raises(UserError, match=rf"config\.data\.augment\.{name}.*{message}"):
        augmentation(**{name: arguments})


def test_colours_need_three_channels():
    for name, arguments in (("lighting", {}), ("color_jitter", {"hue": 0.1}), ("color_jitter", {"saturation": 0.1})):
        with pytest.raises(UserError, match="3 channels"):
            augmentation(shape=(8, 8, 1), **{name: arguments})


def test_varying_sizes_need_a_crop():
    with pytest.raises(UserError, match=r"vary in size; add 'random_resized_crop': \{\}"):
        check_equal_sizes(data_config("miniature", augment={"flip": {}}).data, source(is_sized=False))
    check_equal_sizes(data_config("miniature", augment={"random_resized_crop": {}}).data, source(is_sized=False))
    check_equal_sizes(data_config("miniature32", augment={"flip": {}}).data, source())


def test_transforms_come_in_the_order_of_the_table_whatever_the_order_of_the_config():
    one = augmentation(flip={}, pad_crop={}, random_erasing={})
    other = augmentation(random_erasing={}, pad_crop={}, flip={})
    for seed in range(5):
        results = [augment(IMAGE, np.random.default_rng(seed)) for augment in (one, other)]
        np.testing.assert_array_equal(*results)
    assert math.isclose(RandomResizedCrop(SHAPE).area[0], 0.08)
