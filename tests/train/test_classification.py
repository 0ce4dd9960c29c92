import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.helpers import normalised, start, tiny
from tests.train.small_models import small
from train.data import load_source
from train.data.opencv import cv2
from train.data.sample import Sample
from train.engine import step
from train.engine.mesh import create_mesh
from train.engine.network import split_model
from train.engine.results import result_line
from train.engine.step import create_predict_step, create_score_step
from train.engine.trained import Scorer
from train.task import Pixels
from train.tasks import Classification
from train.tasks.classification import ClassificationEvaluator, confusion_matrix
from train.tasks.mixing import mix

# --- on devices


def test_evaluation_neither_drops_nor_normalises_by_the_batch(small_models):
    config = small("Dropping")
    state, _, (batch, _), model, task = start(config)
    weight = jnp.ones(len(batch["label"]))
    scores = create_score_step(model, task, create_mesh())(state.params, state.rest, {**batch, "weight": weight})
    # Fresh statistics have mean 0 and variance 1; BatchNorm's epsilon is 1e-5.
    flat = normalised(batch["image"], load_source(config)).reshape(len(weight), -1) / np.sqrt(1 + 1e-5)
    head = jax.tree.map(np.asarray, state.params["head"])
    logits = flat @ head["kernel"] + head["bias"]
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = np.asarray(batch["label"])
    of_labels = log_probabilities[np.arange(len(labels)), labels]
    np.testing.assert_allclose(scores["loss"], -of_labels, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(scores["predicted"], logits.argmax(axis=1))
    np.testing.assert_array_equal(scores["rank"], (log_probabilities > of_labels[:, None]).sum(axis=1))
    np.testing.assert_array_equal(scores["label"], labels)

    found = create_predict_step(model, task, create_mesh())(state.params, state.rest, batch["image"])
    np.testing.assert_allclose(found["probabilities"], np.exp(log_probabilities), rtol=1e-4, atol=1e-6)


def test_what_is_no_number_is_no_hit(small_models):
    state, _, (batch, _), model, task = start(small("Dropping"))
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)
    weight = jnp.ones(len(batch["label"]))
    scores = create_score_step(model, task, create_mesh())(params, state.rest, {**batch, "weight": weight})
    assert (scores["rank"] == 10).all()


@pytest.mark.parametrize("batch_size", [7, 240, 364])
def test_evaluation_does_not_depend_on_the_batch_size(batch_size):
    config = tiny(batch_size=batch_size)
    source, mesh = load_source(config), create_mesh()
    task = Classification(config, source)
    network = task.create()
    model, params, other_state = split_model(network)
    evaluator = Scorer(config, source, task, mesh, model).score(params, other_state, "test")
    network.eval()
    samples = list(source.splits["test"])
    logits = np.asarray(network(normalised(np.stack([sample.pixels for sample in samples]), source)))
    labels = np.array([sample.label for sample in samples])
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(364), labels]
    found, result = evaluator.arrays(), evaluator.result()
    np.testing.assert_array_equal(found["labels"], labels)
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-4, atol=1e-6)
    top_5 = np.argsort(-logits, axis=1)[:, :5]
    np.testing.assert_array_equal(found["ranks"] < 5, (top_5 == labels[:, None]).any(axis=1))
    assert result == {
        "accuracy": (logits.argmax(axis=1) == labels).mean(),
        "loss": pytest.approx(losses.mean(), rel=1e-5),
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_bytes_are_normalised_in_float32_whatever_the_network_computes_in(dtype):
    """Checks every byte in three channels; bfloat16 has errors up to 1/256 of the value."""
    pixels = Pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = np.arange(256 * 3).reshape(2, 16, 8, 3).astype(np.uint8).astype(dtype)
    found = jax.jit(pixels.normalized)(images)
    assert found.dtype == jnp.float32
    expected = (images / 255.0 - np.array(pixels.mean)) / np.array(pixels.std)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_networks_of_blue_green_red_get_it():
    pixels = Pixels((0.1, 0.2, 0.3), (1.0, 1.0, 1.0), is_bgr=True)
    image = np.array([[[255, 0, 51]]], np.uint8)
    np.testing.assert_allclose(pixels.normalized(jnp.asarray(image)), [[[0.2 - 0.1, 0 - 0.2, 1 - 0.3]]], atol=1e-6)


def digits(count):
    """A batch of random pixels."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.array([3, 0, 9, 3])}


def test_targets_are_smoothed_mixed_and_weighted():
    config = tiny(task={"label_smoothing": 0.1, "mixup_alpha": 1.0})
    source, batch, key = load_source(config), digits(4), jax.random.key(7)
    images = jnp.asarray(normalised(batch["image"], source))
    smoothed = 0.9 * jax.nn.one_hot(batch["label"], 10) + 0.01
    targets = Classification(config, source).targets
    found, (mixed, target) = jax.jit(lambda: (targets(batch, key), mix(images, smoothed, key, 1.0, 0.0, 1.0)))()
    assert float(jnp.abs(mixed - images).max()) > 0.1
    np.testing.assert_allclose(found["image"], mixed, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["target"], target, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["label"], batch["label"])
    np.testing.assert_array_equal(found["weight"], np.full(4, 0.25, np.float32))


def test_without_mixing_images_stay_as_they_are():
    config, batch = tiny({"task.label_smoothing": 0.0}), digits(4)
    found = Classification(config, load_source(config)).targets(batch, jax.random.key(7))
    np.testing.assert_allclose(found["image"], normalised(batch["image"], load_source(config)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["target"], np.eye(10)[[3, 0, 9, 3]])


@pytest.mark.slow
def test_mixed_batches_count_hits_by_their_own_labels(small_models):
    config = small("Plain", {"task.mixup_alpha": 1.0, "task.label_smoothing": 0.1})
    state, train_step, (batch, _), _, task = start(config)
    rows = task.targets(batch, step._key(config, step._TARGETS, jnp.int32(0)))
    targets = np.asarray(rows["target"], np.float64)
    network = task.create()
    logits = np.asarray(network(rows["image"]), np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    hits = (logits.argmax(axis=1) == np.asarray(batch["label"])).sum()
    state, report = train_step(state, batch)
    np.testing.assert_allclose(float(report["loss"]), -(targets * log_probabilities).sum() / 240, rtol=1e-5)
    assert float(state.terms["accuracy"][0]) == hits


# --- the evaluator


def answers(labels, predicted, losses, ranks=None, classes=("cat", "dog", "fish"), images=None):
    """An evaluator with its samples added in two batches."""
    samples = [Sample(image=image, label=0) for image in images or [np.zeros((8, 4, 3), np.uint8)] * len(labels)]
    source = load_source(tiny())._replace(classes=tuple(classes), image_shape=(8, 8, 3), splits={"test": samples})
    found = ClassificationEvaluator(source, "test")
    ranks = [0] * len(labels) if ranks is None else ranks
    values = {"label": labels, "predicted": predicted, "loss": np.float32(losses), "rank": ranks}
    for lot in (slice(0, 1), slice(1, None)):
        found.add({name: np.asarray(value)[lot] for name, value in values.items()})
    return found


def test_answers_are_summed_up():
    found = answers([0, 1, 2, 2], [0, 1, 0, 1], [0.5, 0.5, 2.0, 3.0], [0, 0, 1, 2])
    assert found.result() == {"accuracy": 0.5, "loss": 1.5}
    assert found.arrays()["labels"].tolist() == [0, 1, 2, 2]
    many = answers([0, 1, 2, 2], [0, 1, 0, 1], [0.5, 0.5, 2.0, 3.0], [0, 4, 5, 2], map(str, range(11)))
    assert many.result() == {"accuracy": 0.5, "loss": 1.5, "top5_accuracy": 0.75}


def test_top_5_is_told_where_it_says_something():
    result = {"test_accuracy": 0.5, "test_loss": 1.0, "step": 7}
    assert result_line(result, Classification) == "test accuracy 0.5000 (step 7, best of validation)"
    assert result_line({**result, "test_top5_accuracy": 0.875}, Classification) == (
        "test accuracy 0.5000, top-5 0.8750 (step 7, best of validation)"
    )


def test_most_often_confused_are_named_in_order():
    pairs = [(0, 1)] + 7 * [(1, 2)] + 3 * [(2, 0)] + 5 * [(0, 0), (1, 1), (2, 2)]
    labels, predicted = map(list, zip(*pairs, strict=True))
    confusion, _ = answers(labels, predicted, np.ones(len(pairs))).sections()
    assert confusion.rows == [("dog", "fish", 7), ("fish", "cat", 3), ("cat", "dog", 1)]
    assert confusion.title == "Confusion of the test images"


def test_the_worst_mistakes_come_first_and_no_more_than_fit():
    red = np.full((8, 4, 3), (255, 0, 0), np.uint8)
    blue = np.full((1, 500, 3), (0, 0, 255), np.uint8)
    _, mistakes = answers([0, 1, 2], [0, 2, 0], [9.0, 1.0, 3.217], images=[red, blue, red]).sections()
    assert [picture.caption for picture in mistakes.pictures] == [
        "fish\ntaken for cat\nloss 3.22",
        "dog\ntaken for fish\nloss 1.00",
    ]
    image = cv2.imdecode(np.frombuffer(mistakes.pictures[0].png, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image.shape == (96, 48, 3)  # keeps proportions and colours
    assert (image == (255, 0, 0)).all()
    wide = cv2.imdecode(np.frombuffer(mistakes.pictures[1].png, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert wide.shape == (1, 96, 3)
    _, many = answers([0] * 60, [1] * 60, np.arange(60)).sections()
    assert len(many.pictures) == 24


def test_without_mistakes_there_is_a_sentence():
    confusion, mistakes = answers([0, 1, 2], [0, 1, 2], [0.1, 0.1, 0.1]).sections()
    assert not confusion.rows
    assert mistakes.text == "None: every test image is taken for what it is."
    assert not mistakes.pictures


def test_many_classes_are_a_picture_without_names():
    names = [f"class {n}" for n in range(100)]
    confusion, _ = answers([0, 1, 2], [0, 2, 2], [0.1, 0.1, 0.1], classes=names).sections()
    few, _ = answers([0, 1, 2], [0, 2, 2], [0.1, 0.1, 0.1]).sections()
    shapes = [
        cv2.imdecode(np.frombuffer(section.pictures[0].png, np.uint8), cv2.IMREAD_COLOR).shape
        for section in (confusion, few)
    ]
    assert shapes == [(550, 600, 3), (700, 800, 3)]
    assert confusion.rows == [("class 1", "class 2", 1)]


def test_of_very_many_classes_those_confused_most_are_shown():
    """The matrix of ImageNet-21k's 21,841 classes would have 4 GB; memory depends on the samples instead."""
    names = [f"class {n}" for n in range(21_841)]
    labels = np.arange(0, 21_840, 7)
    predicted = np.where(labels % 700 == 0, labels + 1, labels)
    labels[1] = 0
    predicted[:2] = 9
    tracemalloc.start()
    confusion, mistakes = answers(labels, predicted, np.ones(len(labels)), classes=names).sections()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26
    assert confusion.rows[:2] == [("class 0", "class 9", 2), ("class 700", "class 701", 1)]
    assert len(confusion.rows) == 10
    assert confusion.text == "There are 21,841 classes; the picture shows those that are confused most often."
    assert confusion.pictures[0].caption == "confusion matrix of 30 classes; shares are of all images of a class"
    assert len(mistakes.pictures) == 24
    confusion, _ = answers(labels, labels, np.ones(len(labels)), classes=names).sections()
    assert (confusion.text, confusion.pictures) == ("None.", [])


def test_names_that_no_formula_or_font_takes_are_drawn():
    names = ("$x_$", "a$", "\u732b" * 85, "\\frac{", "x" * 255, "\u202e", "\u05d0")
    confusion, _ = answers([0, 1, 2, 3], [1, 2, 3, 0], np.ones(4), classes=names).sections()
    image = cv2.imdecode(np.frombuffer(confusion.pictures[0].png, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (700, 800, 3)
    assert confusion.text.startswith("In the picture number 2 is ")


@pytest.mark.parametrize("classes", [2, 4])
def test_confusion_matrix_counts_rows_by_class(classes):
    counts = confusion_matrix(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 0]), classes)
    assert counts.shape == (classes, classes)
    assert counts[:2, :2].tolist() == [[1, 0], [2, 1]]
    assert counts.sum() == 4


def test_samples_are_of_the_classes_that_the_split_has():
    source = load_source(tiny())
    few = [sample for sample in source.splits["validation"] if sample.label != 9]
    task = Classification(tiny(), source._replace(splits={**source.splits, "validation": few}))
    found = task.samples()
    assert set(found) == set("012345678")
    assert all(image.shape == (8, 8, 1) for image in found.values())
