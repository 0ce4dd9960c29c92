"""One matrix moves all fields of a sample alike."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.sample import IGNORED, Sample
from train.data.transforms import RandomCrop, trivial
from train.data.transforms.colours import ColorJitter, Lighting
from train.data.transforms.crops import Flip, PadCrop, RandomResizedCrop
from train.data.transforms.erasing import RandomErasing
from train.data.transforms.geometry import (
    from_indices,
    mirroring,
    move,
    move_boxes,
    move_map,
    move_points,
    scaling,
    translation,
)
from train.data.transforms.segmentation import Blur, RandomRotation, RandomScale
from train.data.transforms.warp import Warp

MEAN = (0.0, 0.0, 0.0)  # black, unlike the object, for pixels outside the image


def filled(outline, height, width):
    """Masks the pixels with centres inside a convex outline, from its edges."""
    y, x = np.mgrid[:height, :width] + 0.5
    sides = []
    for start, end in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        (x0, y0), (x1, y1) = start, end
        sides.append((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0))
    return np.all(np.array(sides) >= 0, axis=0) | np.all(np.array(sides) <= 0, axis=0)


def scene(height, width, seed):
    """A sample of a bright convex pentagon, with every kind of annotation."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 5) * 0.2 + np.arange(5) * 2 * np.pi / 5)
    centre = rng.uniform(0.35, 0.65, 2) * (width, height)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    outline = centre + around * rng.uniform(0.2, 0.34) * min(height, width)
    mask = filled(outline, height, width)
    image = np.where(mask[..., None], np.uint8(255), np.uint8(0)) * np.ones(3, np.uint8)
    points = np.concatenate([centre[None] + 0.5 * (outline - centre), centre[None]])
    return Sample(
        image=image,
        label=3,
        segmentation=mask.astype(np.uint8),
        boxes=np.concatenate([outline.min(0), outline.max(0)])[None].astype(np.float32),
        labels=np.array([7], np.int32),
        polygons=((outline.astype(np.float32),),),
        masks=mask[None],
        keypoints=np.concatenate([points, np.full((6, 1), 2)], axis=1)[None].astype(np.float32),
        crowd=np.array([False]),
        file="scene.png",
    )


TRANSFORMS = {
    "random_resized_crop": RandomResizedCrop((40, 56, 3), area=(0.3, 1.0)),
    "pad_crop": PadCrop(padding=9),
    "warp": Warp(shift=4.0, rotation=60.0, scale=0.4),
    "random_scale": RandomScale(0.5, 2.0),
    "random_rotation": RandomRotation(MEAN, 45.0, 1.0),
    "blur": Blur(1.0),
    "flip": Flip(1.0),
    "random_crop": RandomCrop(45, 80, MEAN),
    "centre": lambda sample, rng: RandomCrop(33, 47, MEAN).centred(sample),
    **{
        name: lambda sample, rng, name=name, by=by: trivial.apply(sample, name, by * rng.uniform(-1, 1))
        for name, by in {"shear_x": 0.5, "shear_y": 0.5, "translate_x": 20, "translate_y": 20, "rotate": 135}.items()
    },
}


def assert_consistent(moved):
    """Checks that the remaining annotations agree within a pixel."""
    height, width = moved.image.shape[:2]
    bright = np.asarray(moved.image, float)[..., 0] > 127
    mask = moved.segmentation == 1
    core, edge = np.ones((3, 3), np.uint8), np.ones((5, 5), np.uint8)

    def assert_alike(one, other):
        """Checks equality, except within two pixels of an edge or of the image border."""
        sure = cv2.erode(one.astype(np.uint8), edge) > 0
        possible = cv2.dilate(one.astype(np.uint8), edge) > 0
        assert not (sure & ~other)[2:-2, 2:-2].any()
        assert not (other & ~possible)[2:-2, 2:-2].any()

    assert_alike(mask, bright)
    if not len(moved.boxes):  # the object left the picture
        assert mask.sum() <= 2 * (height + width)
        assert (len(moved.labels), len(moved.polygons), len(moved.masks), len(moved.keypoints)) == (0, 0, 0, 0)
        return
    assert_alike(moved.masks[0], mask)
    assert_alike(filled(moved.polygons[0][0], height, width), mask)
    rows, columns = np.nonzero(mask)
    x0, y0, x1, y1 = moved.boxes[0]
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    if len(rows):  # tolerance at twice the size: half a pixel of the source and one of the output
        assert x0 - 2 <= columns.min()
        assert columns.max() + 1 <= x1 + 2
        assert y0 - 2 <= rows.min()
        assert rows.max() + 1 <= y1 + 2
    near = cv2.dilate(mask.astype(np.uint8), core) > 0
    for x, y, visibility in moved.keypoints[0]:
        assert visibility in (0, 2)
        if visibility:
            assert near[int(y), int(x)]
        else:
            assert (x, y) == (0, 0)


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=25, deadline=None)
@given(height=st.integers(48, 72), width=st.integers(48, 72), seed=st.integers(0, 2**32 - 1))
def test_a_transform_moves_all_fields_alike(name, height, width, seed):
    sample = scene(height, width, seed)
    assert_consistent(sample)
    moved = TRANSFORMS[name](sample, np.random.default_rng(seed))
    assert_consistent(moved)
    assert (moved.label, moved.file) == (3, "scene.png")
    assert moved.masks.shape[1:] == moved.segmentation.shape == moved.image.shape[:2]
    assert (moved.segmentation.dtype, moved.masks.dtype) == (np.uint8, bool)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_transforms_one_after_another_move_all_fields_alike(seed):
    rng, moved = np.random.default_rng(seed), scene(64, 64, seed)
    steps = [RandomScale(0.8, 1.2), TRANSFORMS["random_rotation"], TRANSFORMS["flip"]]  # each up to half a pixel off
    for place in rng.permutation(3):
        moved = steps[place](moved, rng)
    height, width = moved.image.shape[:2]
    crop = RandomCrop(int(rng.integers(height // 2, height + 1)), int(rng.integers(width // 2, width + 1)), MEAN)
    assert_consistent(crop(moved, rng))


@pytest.mark.parametrize(
    "transform",
    [
        ColorJitter((60, 60, 3), 0.4, 0.4, 0.4, 0.1),
        Lighting((60, 60, 3)),
        RandomErasing(MEAN, 1.0),
        Blur(1.0),
        *(lambda sample, rng, name=name: trivial.apply(sample, name, 0.7) for name in trivial.COLOURS),
    ],
)
def test_colours_touch_the_image_alone(transform):
    sample = scene(60, 60, 0)
    changed = transform(sample, np.random.default_rng(0))
    for name in ("segmentation", "boxes", "labels", "polygons", "masks", "keypoints", "crowd", "label", "file"):
        assert getattr(changed, name) is getattr(sample, name)


def test_floats_between_transforms_are_rounded_where_levels_are_looked_up():
    sample = scene(60, 60, 1)
    floats = sample.replace(image=sample.pixels.astype(np.float32) * np.float32(0.5) + np.float32(0.4))
    for transform in (ColorJitter((60, 60, 3), 0.4), Lighting((60, 60, 3)), trivial.TrivialAugment()):
        for seed in range(20):
            assert transform(floats, np.random.default_rng(seed)).pixels.dtype == np.uint8
    jitter = ColorJitter((60, 60, 3), 0.4)
    expected = jitter(sample.replace(image=np.rint(floats.pixels).astype(np.uint8)), np.random.default_rng(5))
    np.testing.assert_array_equal(jitter(floats, np.random.default_rng(5)).pixels, expected.pixels)


def many():
    """Three instances; only the middle one is within columns 10 to 20."""
    boxes = np.array([[0, 0, 8, 8], [11, 2, 18, 9], [22, 5, 30, 12]], np.float32)
    masks = np.zeros((3, 20, 30), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    corners = [np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float32) for x0, y0, x1, y1 in boxes]
    return Sample(
        image=np.zeros((20, 30, 3), np.uint8),
        boxes=boxes,
        labels=np.array([4, 5, 6], np.int32),
        masks=masks,
        polygons=tuple((corner,) for corner in corners),
        keypoints=np.concatenate([boxes.reshape(3, 2, 2), np.ones((3, 2, 1))], axis=-1).astype(np.float32),
        crowd=np.array([True, False, True]),
    )


@pytest.mark.parametrize("missing", [(), ("boxes",), ("boxes", "masks"), ("masks", "polygons")])
def test_instances_that_leave_the_picture_leave_all_fields(missing):
    sample = many().replace(**dict.fromkeys(missing))
    moved = move(sample, np.zeros((20, 10, 3), np.uint8), translation(-10, 0))
    assert moved.labels.tolist() == [5]
    assert moved.crowd.tolist() == [False]
    np.testing.assert_array_equal(moved.keypoints, [[[1, 2, 1], [8, 9, 1]]])
    for name in ("boxes", "masks", "polygons"):
        value = getattr(moved, name)
        assert value is None if name in missing else len(value) == 1
    if moved.boxes is not None:
        np.testing.assert_array_equal(moved.boxes, [[1, 2, 8, 9]])


def test_boxes_are_clipped_and_key_points_outside_are_not_labelled():
    moved = move(many(), np.zeros((20, 10, 3), np.uint8), translation(-15, 0))
    np.testing.assert_array_equal(moved.boxes, [[0, 2, 3, 9], [7, 5, 10, 12]])
    np.testing.assert_array_equal(moved.keypoints, [[[0, 0, 0], [3, 9, 1]], [[7, 5, 1], [0, 0, 0]]])
    unlabelled = many().replace(keypoints=np.array([[[3, 4, 0]]] * 3, np.float32))
    still = move(unlabelled, np.zeros((20, 30, 3), np.uint8), translation(0, 0))
    assert not still.keypoints.any()


def test_all_instances_may_leave():
    moved = move(many(), np.zeros((5, 5, 3), np.uint8), translation(-200, 0))
    assert [moved.boxes.shape, moved.masks.shape, moved.keypoints.shape] == [(0, 4), (0, 5, 5), (0, 2, 3)]
    assert moved.polygons == ()
    again = move(moved, np.zeros((5, 5, 3), np.uint8), mirroring(5))
    assert again.boxes.shape == (0, 4)


def test_maps_take_the_pixel_under_the_centre():
    classes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(move_map(classes, mirroring(4), 3, 4, IGNORED), classes[:, ::-1])
    np.testing.assert_array_equal(
        move_map(classes, translation(1, -1), 3, 4, IGNORED), [[255, 4, 5, 6], [255, 8, 9, 10], [255] * 4]
    )
    np.testing.assert_array_equal(move_map(classes, scaling(2, 2), 6, 8, IGNORED), classes.repeat(2, 0).repeat(2, 1))
    quarter = np.array(((0, -1, 3), (1, 0, 0), (0, 0, 1)), np.float64)  # clockwise
    np.testing.assert_array_equal(move_map(classes, quarter, 4, 3, IGNORED), np.rot90(classes, -1))
    np.testing.assert_array_equal(
        move_map(np.stack([classes, classes + 20]), quarter, 4, 3, IGNORED)[1], np.rot90(classes + 20, -1)
    )


def test_points_move_by_any_matrix_with_a_perspective():
    matrix = np.array(((2, 0, 1), (0, 3, 2), (0.5, 0, 1)), np.float64)
    np.testing.assert_allclose(move_points([[2, 4]], matrix), [[5 / 2, 14 / 2]])
    np.testing.assert_allclose(
        move_boxes(np.array([[0, 0, 2, 4]], np.float32), matrix, 100, 100), [[1, 1, 2.5, 14]], rtol=1e-6
    )


def test_opencvs_matrices_count_from_centres():
    half = np.array(((-1, 0, 7), (0, -1, 3)), np.float64)  # turns 8 x 4 pixels by 180 degrees
    np.testing.assert_allclose(move_points([[0, 0], [0.5, 0.5]], from_indices(half)), [[8, 4], [7.5, 3.5]])
