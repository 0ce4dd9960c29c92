"""Operations on an image and its labels, compared with plain loops."""

import numpy as np
import pytest

from train.data.transforms import dense

MEAN = (120.0, 110.0, 100.0)


def drawn(height, width, channels=3):
    random = np.random.default_rng(0)
    image = random.uniform(0, 255, (height, width, channels)).astype(np.float32)
    return image, random.integers(0, 20, (height, width)).astype(np.uint8)


def value(image, row, column, outside=None):
    """Bilinear interpolation at a position; beyond the image the edge's value, or `outside`."""
    top, left = int(np.floor(row)), int(np.floor(column))
    total = 0.0
    for i, a in ((top, top + 1 - row), (top + 1, row - top)):
        for j, b in ((left, left + 1 - column), (left + 1, column - left)):
            is_inside = 0 <= i < image.shape[0] and 0 <= j < image.shape[1]
            edge = image[np.clip(i, 0, image.shape[0] - 1), np.clip(j, 0, image.shape[1] - 1)]
            total = total + a * b * np.asarray(edge if is_inside or outside is None else outside, np.float64)
    return total


@pytest.mark.parametrize("factor", [0.5, 0.73, 1.61])
@pytest.mark.parametrize("shape", [(7, 11, 3), (9, 6, 1)])
def test_rescaling(factor, shape):
    image, label = drawn(*shape)
    got, labels = dense.rescale(image, label, factor)
    assert got.shape == (round(shape[0] * factor), round(shape[1] * factor), shape[2])
    for i, j in np.ndindex(labels.shape):
        np.testing.assert_allclose(
            got[i, j], value(image, (i + 0.5) / factor - 0.5, (j + 0.5) / factor - 0.5), atol=1e-3
        )
        assert labels[i, j] == label[min(int(i / factor), shape[0] - 1), min(int(j / factor), shape[1] - 1)]


def test_rescaling_leaves_at_least_a_pixel():
    got, labels = dense.rescale(*drawn(1, 9), 0.5)
    assert (got.shape, labels.shape) == ((1, 4, 3), (1, 4))


@pytest.mark.parametrize("degrees", [-10.0, 3.7, 90.0])
def test_rotation(degrees):
    image, label = drawn(9, 13)
    got, labels = dense.rotate(image, label, degrees, MEAN, 255)
    back = np.linalg.inv(dense.rotation_matrix(9, 13, degrees))
    for i, j in np.ndindex(9, 13):
        column, row, _ = back @ (j, i, 1)
        np.testing.assert_allclose(got[i, j], value(image, row, column, MEAN), atol=2e-2)
        if max(abs(row % 1 - 0.5), abs(column % 1 - 0.5)) < 1e-3:
            continue
        nearest = (round(row), round(column))
        is_inside = 0 <= nearest[0] < 9 and 0 <= nearest[1] < 13
        assert labels[i, j] == (label[nearest] if is_inside else 255)


def test_positive_angles_turn_counter_clockwise():
    image, label = drawn(9, 9)
    label[:] = 0
    label[4, 7] = 7  # right of the centre
    _, labels = dense.rotate(image, label, 90, MEAN, 255)
    row, column = np.argwhere(labels == 7)[0]
    assert row < 3
    assert 3 <= column <= 5


@pytest.mark.parametrize("shape", [(6, 9, 3), (3, 4, 1)])
def test_blur(shape):
    image, _ = drawn(*shape)
    wide = np.pad(image.astype(np.float64), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    kernel = np.array((1, 4, 6, 4, 1)) / 16
    rows = sum(weight * wide[n : n + shape[0]] for n, weight in enumerate(kernel))
    expected = sum(weight * rows[:, n : n + shape[1]] for n, weight in enumerate(kernel))
    np.testing.assert_allclose(dense.blur(image), expected, atol=1e-3)


def test_flipping_twice_is_nothing():
    image, label = drawn(5, 8)
    mirrored = dense.flip(image, label)
    assert (mirrored[0][:, 0] == image[:, -1]).all()
    np.testing.assert_array_equal(dense.flip(*mirrored)[0], image)
    np.testing.assert_array_equal(dense.flip(*mirrored)[1], label)


@pytest.mark.parametrize(("size", "corner"), [((4, 5), (1, 3)), ((9, 5), (0, 2)), ((9, 12), (0, 0)), ((4, 12), None)])
def test_crops(size, corner):
    image, label = drawn(6, 9)
    got, labels = dense.crop(image, label, size, corner, MEAN, 255)
    top, left = (max(s - n, 0) // 2 for s, n in zip(size, (6, 9), strict=True))
    begin = corner or tuple((max(n, s) - s) // 2 for s, n in zip(size, (6, 9), strict=True))
    assert got.shape == (*size, 3)
    for i, j in np.ndindex(size):
        row, column = i + begin[0] - top, j + begin[1] - left
        is_inside = 0 <= row < 6 and 0 <= column < 9
        np.testing.assert_array_equal(got[i, j], image[row, column] if is_inside else np.float32(MEAN))
        assert labels[i, j] == (label[row, column] if is_inside else 255)
