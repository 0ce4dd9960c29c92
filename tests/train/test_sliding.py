"""Sliding windows, compared with a plain loop over all pixels, and on images of odd sizes."""

import math

import cv2
import numpy as np
import pytest

from train.errors import UserError
from train.tasks.sliding import sliding_probabilities

MEAN = (120.0, 110.0, 100.0)


def colours(windows):
    """Probabilities that depend on the pixel and on its position in the window."""
    count, height, width, _ = windows.shape
    place = np.arange(height)[:, None] * 0.01 + np.arange(width) * 0.02
    scores = np.concatenate([windows / 50, np.broadcast_to(place[None, ..., None], (count, height, width, 1))], -1)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


def naive(image, crop, size):
    """One scale, with a stride of 2/3, window by window."""
    height, width = image.shape[:2]
    long_side = round(size)
    new = [
        long_side if side == max(height, width) else round(long_side / max(height, width) * side)
        for side in (height, width)
    ]
    scaled = cv2.resize(image.astype(np.float32), (new[1], new[0]))
    before = [max(c - n, 0) // 2 for c, n in zip(crop, new, strict=True)]
    whole = [max(c, n) for c, n in zip(crop, new, strict=True)]
    padded = np.ones((*whole, 3), np.float32) * np.array(MEAN, np.float32)
    padded[before[0] : before[0] + new[0], before[1] : before[1] + new[1]] = scaled
    total, visits = np.zeros((*whole, 4)), np.zeros((*whole, 1))
    strides = [math.ceil(c * 2 / 3) for c in crop]
    for i in range(math.ceil((whole[0] - crop[0]) / strides[0]) + 1):
        for j in range(math.ceil((whole[1] - crop[1]) / strides[1]) + 1):
            bottom, right = min(i * strides[0] + crop[0], whole[0]), min(j * strides[1] + crop[1], whole[1])
            part = (slice(bottom - crop[0], bottom), slice(right - crop[1], right))
            window = padded[part][None]
            total[part] += (colours(window) + colours(window[:, :, ::-1])[:, :, ::-1])[0] / 2
            visits[part] += 1
    inside = (total / visits)[before[0] : before[0] + new[0], before[1] : before[1] + new[1]]
    return cv2.resize(inside, (width, height))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("shape", [(23, 31), (31, 23), (6, 40)])
def test_a_plain_loop(shape, batch_size):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    sizes = []

    def counted(windows):
        sizes.append(windows.shape)
        return colours(windows)

    got = sliding_probabilities(
        image, counted, crop=(13, 9), base_size=30, scales=(0.5, 1.75), mean=MEAN, batch_size=batch_size
    )
    expected = (naive(image, (13, 9), 15) + naive(image, (13, 9), 52.5)) / 2
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-6)
    assert {size[1:] for size in sizes} == {(13, 9, 3)}
    assert max(size[0] for size in sizes) <= 2 * batch_size  # windows and their mirrors


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 40, 3), (40, 1, 3), (7, 8, 1)])
def test_small_images_and_single_channels(shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    got = sliding_probabilities(
        image,
        lambda windows: colours(np.repeat(windows[..., :1], 3, -1)),
        crop=(9, 9),
        base_size=0,
        mean=MEAN[: shape[2]],
    )
    assert got.shape == (*shape[:2], 4)
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)


def test_more_classes_than_opencv_resizes_at_once():
    def flat(windows):
        return np.broadcast_to(np.arange(150, dtype=np.float32), (*windows.shape[:3], 150))

    got = sliding_probabilities(np.zeros((20, 14, 3), np.uint8), flat, crop=(9, 9), base_size=33, mean=MEAN)
    np.testing.assert_allclose(got, np.broadcast_to(np.arange(150), (20, 14, 150)), rtol=1e-5)


def test_base_size_0_is_the_images_longer_side():
    image = np.random.default_rng(0).integers(0, 256, (12, 26, 3)).astype(np.uint8)
    options = {"crop": (9, 9), "mean": MEAN, "mirror": False}
    np.testing.assert_array_equal(
        sliding_probabilities(image, colours, base_size=0, **options),
        sliding_probabilities(image, colours, base_size=26, **options),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, r"scales are \(\) but must be positive"),
        ({"scales": (0.0,)}, "must be positive"),
        ({"stride_rate": 1.5}, "stride_rate is 1.5 but"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"base_size": -1}, "base_size -1 at least 0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        sliding_probabilities(np.zeros((9, 9, 3)), colours, crop=(9, 9), mean=MEAN, **options)
