"""Intersection over union of segmentations, from the confusion of their pixels."""

from typing import Any

import numpy as np

from train.errors import UserError

_EPSILON = 1e-10  # the public code's value, for classes without a pixel


def confusion(predicted: np.ndarray, target: np.ndarray, classes: int, ignore_label: int = 255) -> np.ndarray:
    """Counts pixels by their class and the predicted one; the sum over images is that of a data set.

    Args:
        predicted: predicted classes, integers of any shape, 0 to `classes` - 1.
        target: right classes, of the same shape, or `ignore_label` for pixels that do not count.
        classes: number of classes.
        ignore_label: label of the pixels that do not count.

    Returns:
        (classes, classes) int64: the right class is the row, the predicted one the column.

    Raises:
        UserError: if the shapes differ, or a prediction or a label is out of range.

    Example:
        >>> confusion(np.array([[0, 1, 1]]), np.array([[0, 0, 255]]), 2).tolist()
        [[1, 1], [0, 0]]
    """
    if predicted.shape != target.shape:
        raise UserError(
            f"a prediction of shape {predicted.shape} for labels of shape {target.shape}; predict at the labels' size"
        )
    counts = target != ignore_label
    for name, values in (("predicted class", predicted), ("label", target[counts])):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            wrong = values.min() if values.min() < 0 else values.max()
            or_ignored = f", or {ignore_label} for pixels that do not count" if name == "label" else ""
            raise UserError(
                f"{name} {wrong} must be from 0 to {classes - 1}{or_ignored}; correct it, or the number of classes"
            )
    places = target[counts].astype(np.int64) * classes + predicted[counts]
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def segmentation_metrics(confusion: np.ndarray) -> dict[str, Any]:
    """Computes the usual measures, as fractions.

    Args:
        confusion: (classes, classes), of a whole data set, from `confusion`.

    Returns:
        "miou": the mean IoU over all classes, where a class without a pixel counts 0 (PyConvSegNet's and PSPNet's
        public code); "miou_present": the mean over the classes that are predicted or right anywhere (most code for
        PASCAL VOC), 0 if none is; "mean_accuracy": the mean over all classes of the share of their pixels that are
        right; "pixel_accuracy": the share of all pixels; "iou": (classes,) float64, each class's IoU, 0 without a
        pixel.

    Example:
        >>> found = segmentation_metrics(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
        >>> found["iou"].round(3).tolist(), round(found["miou"], 3), round(found["miou_present"], 3)
        ([0.75, 0.8, 0.0], 0.517, 0.775)
    """
    hits, target = np.diag(confusion).astype(np.float64), confusion.sum(axis=1)
    union = target + confusion.sum(axis=0) - hits
    iou, accuracy = hits / (union + _EPSILON), hits / (target + _EPSILON)
    is_present = union > 0
    return {
        "miou": float(iou.mean()),
        "miou_present": float(iou[is_present].mean()) if is_present.any() else 0.0,
        "mean_accuracy": float(accuracy.mean()),
        "pixel_accuracy": float(hits.sum() / (target.sum() + _EPSILON)),
        "iou": iou,
    }
