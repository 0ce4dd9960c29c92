"""Geometric transforms: one matrix moves an image's annotations with its pixels.

A matrix is (3, 3) float64 and maps source coordinates (x, y, 1) to output coordinates. Coordinates are continuous:
pixel i covers [i, i + 1) with the centre i + 0.5. A transform draws its parameters once, makes the output image by a
pixel operation, and passes the matrix to `move` for the annotations.
"""

import numpy as np

from train.data.sample import IGNORED, Sample


def translation(x: float, y: float) -> np.ndarray:
    """Makes the matrix of a shift by x to the right and y down."""
    return np.array(((1, 0, x), (0, 1, y), (0, 0, 1)), np.float64)


def scaling(x: float, y: float) -> np.ndarray:
    """Makes the matrix of a scaling about the top left corner."""
    return np.diag((x, y, 1.0))


def mirroring(width: int) -> np.ndarray:
    """Makes the matrix of a horizontal flip of `width` pixels."""
    return np.array(((-1, 0, width), (0, 1, 0), (0, 0, 1)), np.float64)


def from_indices(matrix: np.ndarray) -> np.ndarray:
    """Converts OpenCV's matrix, (2, 3) or (3, 3) with integer pixel centres, to continuous coordinates."""
    whole = np.vstack([matrix, (0, 0, 1)]) if len(matrix) == 2 else matrix
    return translation(0.5, 0.5) @ whole @ translation(-0.5, -0.5)


def move_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Moves points, (..., 2), by a matrix; returns float64.

    Example:
        >>> move_points(np.array([[1.0, 2.0]]), mirroring(8)).tolist()
        [[7.0, 2.0]]
    """
    moved = np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]
    return moved[..., :2] / moved[..., 2:]


def move_map(maps: np.ndarray, matrix: np.ndarray, height: int, width: int, outside: int) -> np.ndarray:
    """Moves maps of classes or masks: every output pixel takes the source value at its centre.

    Args:
        maps: (..., h, w) of any type.
        matrix: (3, 3), from the source to the output.
        height: rows of the output.
        width: columns of the output.
        outside: the value of output pixels outside the source.

    Returns:
        (..., height, width) of the same type.
    """
    backwards = np.linalg.inv(matrix)
    if not (backwards[[0, 1, 2, 2], [1, 0, 0, 1]]).any():  # separable: no rotation, shear or perspective
        columns = np.floor((backwards[0, 0] * (np.arange(width) + 0.5) + backwards[0, 2]) / backwards[2, 2])[None]
        rows = np.floor((backwards[1, 1] * (np.arange(height) + 0.5) + backwards[1, 2]) / backwards[2, 2])[:, None]
    else:
        centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
        columns, rows = np.moveaxis(np.floor(move_points(centres, backwards)), -1, 0)
    h, w = maps.shape[-2:]
    is_inside = (columns >= 0) & (columns < w) & (rows >= 0) & (rows < h)
    columns, rows = np.clip(columns, 0, w - 1).astype(np.intp), np.clip(rows, 0, h - 1).astype(np.intp)
    return np.where(is_inside, maps[..., rows, columns], np.asarray(outside, maps.dtype))


def move_boxes(boxes: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Moves boxes, (n, 4), to the hulls of their moved corners, clipped to an output of `height` x `width` pixels.

    Returns:
        (n, 4) float32; boxes outside the output have no area.
    """
    corners = move_points(boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]], matrix)
    clipped = np.clip(np.concatenate([corners.min(1), corners.max(1)], axis=1), 0, (width, height, width, height))
    return clipped.astype(np.float32)


def move(sample: Sample, image: np.ndarray, matrix: np.ndarray, *, segmentation: np.ndarray | None = None) -> Sample:
    """Moves the annotations of a sample and replaces its image.

    Boxes become the hulls of their moved corners, clipped to the output. Instances outside the output, by their box, or
    else mask, or else polygon, are dropped from all fields. Polygons are not clipped. Key points outside the output
    become unlabelled; a flip does not swap left and right key points. Maps take the nearest pixel's value: outside the
    source, masks are False and segmentations 255.

    Args:
        sample: the sample before; its image is not used.
        image: the output image, (height, width, channels), made by the transform.
        matrix: (3, 3), from the source to the output.
        segmentation: the output's segmentation, if the transform computes it itself.

    Returns:
        A sample with the new image.
    """
    height, width = image.shape[:2]
    boxes, polygons, masks, keypoints = sample.boxes, sample.polygons, sample.masks, sample.keypoints
    if segmentation is None and sample.segmentation is not None:
        segmentation = move_map(sample.segmentation, matrix, height, width, IGNORED)
    is_there: np.ndarray | None = None
    if polygons is not None:
        polygons = tuple(
            tuple(move_points(outline, matrix).astype(np.float32) for outline in outlines) for outlines in polygons
        )
        is_there = np.array([_is_seen(outlines, height, width) for outlines in polygons], bool)
    if masks is not None:
        masks = move_map(masks, matrix, height, width, False)
        is_there = np.any(masks, axis=(1, 2))
    if boxes is not None:
        boxes = move_boxes(boxes, matrix, height, width)
        is_there = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if keypoints is not None:
        keypoints = _move_keypoints(keypoints, matrix, height, width)
    moved = sample.replace(
        image=image, segmentation=segmentation, boxes=boxes, polygons=polygons, masks=masks, keypoints=keypoints
    )
    return moved if is_there is None or is_there.all() else _keep(moved, is_there)


def _is_seen(outlines: tuple[np.ndarray, ...], height: int, width: int) -> bool:
    """Whether the hull of a moved instance's outlines overlaps the output."""
    points = np.concatenate([*outlines, np.empty((0, 2))])
    if not len(points):
        return False
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return bool(max(left, 0) < min(right, width) and max(top, 0) < min(bottom, height))


def _move_keypoints(keypoints: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    places = move_points(keypoints[..., :2], matrix)
    is_inside = ((places >= 0) & (places < (width, height))).all(-1, keepdims=True) & (keypoints[..., 2:] > 0)
    return np.where(is_inside, np.concatenate([places, keypoints[..., 2:]], axis=-1), 0).astype(np.float32)


def _keep(sample: Sample, chosen: np.ndarray) -> Sample:
    """Drops the instances that are not chosen, (n,) bool."""
    fields = ("boxes", "labels", "masks", "keypoints", "crowd")
    kept = {name: value[chosen] for name in fields if (value := getattr(sample, name)) is not None}
    if sample.polygons is not None:
        kept["polygons"] = tuple(outlines for outlines, is_kept in zip(sample.polygons, chosen, strict=True) if is_kept)
    return sample.replace(**kept)
