"""Losses, augmentation, measures and sliding windows of segmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msconv_jax.vision import resize_bilinear, segmentation_cross_entropy
from tests.parity.results import Arrays, relative
from train.data.transforms import dense
from train.tasks.miou import confusion, segmentation_metrics
from train.tasks.sliding import sliding_probabilities

MEAN = 255 * np.array((0.485, 0.456, 0.406))
STD = 255 * np.array((0.229, 0.224, 0.225))
IGNORED = 255


def unequal(got: np.ndarray, golden: np.ndarray, counted: np.ndarray | bool = True) -> float:
    """The share of all pixels with different labels; only `counted` pixels can differ."""
    assert got.shape == golden.shape
    return float(np.mean((got != golden) & counted))


# --- the loss ---


def check_loss(meta: Mapping[str, Any], data: Arrays) -> dict[str, float]:
    """Checks the weighted sum of the main and the auxiliary loss, its terms, and its gradients."""
    labels = jnp.asarray(data["labels"])

    def losses(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        each, weights = segmentation_cross_entropy(logits.transpose(0, 2, 3, 1), labels, meta["ignore_label"])
        return each.sum() / weights.sum(), each

    def total(main: jax.Array, auxiliary: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        (loss_main, each), (loss_aux, _) = losses(main), losses(auxiliary)
        loss = loss_main + meta["aux_weight"] * loss_aux
        return loss, {"loss": loss, "loss_main": loss_main, "loss_aux": loss_aux, "per_pixel_main": each}

    (of_main, of_aux), got = jax.grad(total, argnums=(0, 1), has_aux=True)(data["main"], data["aux"])
    got |= {"grad_main": of_main, "grad_aux": of_aux}
    return {key: relative(value, data[key]) for key, value in got.items()}


# --- measures ---


def check_metrics(meta: Mapping[str, Any], data: Arrays) -> dict[str, float]:
    """Checks the counts of each image, and the metrics of all images."""
    classes, total, deviations = meta["classes"], 0, {}
    for key in (key for key in data if key.startswith("pred")):
        number = key.removeprefix("pred")
        counts = confusion(data[key], data[f"target{number}"], classes, meta["ignore_label"])
        hits, areas = np.diag(counts), counts.sum(1)
        found = {"intersection": hits, "union": areas + counts.sum(0) - hits, "target_area": areas}
        deviations |= {f"{name}{number}": relative(value, data[f"{name}{number}"]) for name, value in found.items()}
        total = total + counts
    deviations["confusion"] = relative(total, data["confusion"])
    found = segmentation_metrics(np.asarray(total))
    theirs = {"mIoU": "miou", "mAcc": "mean_accuracy", "allAcc": "pixel_accuracy", "mIoU_nanmean": "miou_present"}
    deviations |= {key: relative(found[name], data[key]) for key, name in {**theirs, "iou": "iou"}.items()}
    return deviations


# --- augmentation ---


def check_augment(meta: Mapping[str, Any], data: Arrays) -> dict[str, float]:
    """Checks each operation separately, and chains with recorded draws."""
    image, label, mean = data["image"], data["label"], data["mean"]
    results: dict[str, tuple[np.ndarray, np.ndarray | None]] = {"blur": (dense.blur(image), None)}
    results["flip"] = dense.flip(image, label)
    for number, scale in enumerate(meta["scales"]):
        results[f"scale{number}"] = dense.rescale(image, label, scale)
    for number, size in enumerate(meta["crops"]):
        results[f"crop{number}"] = dense.crop(image, label, tuple(size), None, mean, IGNORED)
    deviations = {}
    for number, degrees in enumerate(meta["angles"]):
        results[f"rotate{number}"] = dense.rotate(image, label, degrees, mean, IGNORED)
        matrix = dense.rotation_matrix(*label.shape, degrees)[:2]
        deviations[f"rotate{number}_matrix"] = relative(matrix, data[f"rotate{number}_matrix"])
        for key in ("image_exact", "label_exact"):
            data = {**data, f"rotate{number}_{key.removesuffix('_exact')}": data[f"rotate{number}_{key}"]}
    for seed, draws in zip(meta["chain_seeds"], meta["chain_draws"], strict=True):
        size = data[f"chain{seed}_label"].shape
        final, labels = chain(image, label, Replay(draws), size, mean)
        results[f"chain{seed}"] = ((final - mean) / data["std"]).transpose(2, 0, 1), labels
    for name, (pixels, labels) in results.items():
        deviations[f"{name}_image"] = relative(pixels, data[f"{name}_image"])
        if labels is not None:
            deviations[f"{name}_label"] = unequal(labels, data[f"{name}_label"])
    return deviations


class Replay:
    """A generator that replays recorded draws; all must be used."""

    def __init__(self, draws: list[float]):
        self._draws = list(draws)

    def random(self) -> float:
        """The next draw from [0, 1)."""
        return self._draws.pop(0)

    def integers(self, low: int, high: int) -> int:
        """The next draw from low to high - 1."""
        draw = int(self._draws.pop(0))
        assert low <= draw < high
        return draw

    def check_empty(self) -> None:
        """Fails if draws are left."""
        assert not self._draws


def chain(
    image: np.ndarray, label: np.ndarray, rng: Replay, size: tuple[int, int], mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The augmentation of the public training, without the normalisation."""
    image, label = dense.rescale(image, label, 0.5 + 1.5 * rng.random())
    if rng.random() < 0.5:
        image, label = dense.rotate(image, label, -10 + 20 * rng.random(), mean, IGNORED)
    if rng.random() < 0.5:
        image = dense.blur(image)
    if rng.random() < 0.5:
        image, label = dense.flip(image, label)
    image, label = dense.pad(image, label, size, mean, IGNORED)
    top, left = (rng.integers(0, whole - part + 1) for whole, part in zip(label.shape, size, strict=True))
    rng.check_empty()
    return dense.crop(image, label, size, (top, left), mean, IGNORED)


# --- sliding windows ---


def check_sliding(meta: Mapping[str, Any], data: Arrays) -> dict[str, float]:
    """Checks probabilities at single scales and over all scales, and labels where the best class is clear."""
    crop, stride = tuple(meta["crop"]), meta["stride"]
    kernels = {name: data[f"param:{name}.weight"].transpose(2, 3, 1, 0) for name in ("conv1", "conv2")}

    def convolve(x: jax.Array, name: str, stride: int) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x, kernels[name], (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + data[f"param:{name}.bias"][None, None, None]

    @jax.jit
    def probabilities(windows: jax.Array) -> jax.Array:
        mean, std = (value.astype(np.float32)[None, None, None] for value in (MEAN, STD))
        x = (windows - mean) / std
        logits = convolve(jax.nn.relu(convolve(x, "conv1", stride)), "conv2", 1)
        return jax.nn.softmax(resize_bilinear(logits, crop))

    def found(scales: list[float]) -> np.ndarray:
        return sliding_probabilities(
            data["image"],
            lambda windows: np.asarray(probabilities(windows)),
            crop=crop,
            base_size=meta["base_size"],
            scales=scales,
            mean=MEAN,
        )

    deviations = {}
    for key in (key for key in data if key.startswith("prob_scale")):
        got = found([float(key.removeprefix("prob_scale"))])
        deviations[key] = relative(got, data[key])
        if key == "prob_scale1.0":
            clear = _is_clear(data[key])
            deviations["single_scale_labels"] = unequal(got.argmax(-1), data["single_scale_labels"], clear)
    got = found(meta["scales"])
    deviations["prob"] = relative(got, data["prob"])
    deviations["labels"] = unequal(got.argmax(-1), data["labels"], _is_clear(data["prob"]))
    return deviations


def _is_clear(probabilities: np.ndarray) -> np.ndarray:
    """Masks the pixels where the two best classes differ by more than rounding errors."""
    second, first = np.moveaxis(np.sort(probabilities, axis=-1)[..., -2:], -1, 0)
    return first - second > 1e-5


FAMILIES: dict[str, Callable[[Mapping[str, Any], Arrays], dict[str, float]]] = {
    "seg_augment": check_augment,
    "seg_loss_aux_ignore": check_loss,
    "seg_metrics": check_metrics,
    "seg_sliding": check_sliding,
}
