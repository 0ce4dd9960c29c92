from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.helpers import tiny
from tests.train.rows import data_config, evaluation_rows, training_rows
from train.data import Sample, Source, evaluation_batches, load_source, train_batches
from train.data.images import as_pixels, decode
from train.data.loading import SOURCES
from train.data.transforms.evaluation import create_evaluation
from train.data.transforms.warp import Warp
from train.engine.mesh import create_mesh
from train.engine.network import split_model
from train.engine.step import create_predict_step, create_score_step
from train.errors import UserError
from train.tasks import Classification

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def source():
    return load_source(data_config())


def images_of(samples):
    return [sample.image.tobytes() for sample in samples]


def test_splits_have_their_documented_sizes_and_share_no_image(source):
    assert [len(source.splits[name]) for name in SPLITS] == [1163, 270, 364]
    everything = [image for name in SPLITS for image in images_of(source.splits[name])]
    assert len(set(everything)) == 1797  # the data set has no duplicates


def test_splits_are_stratified_and_fixed(source):
    for name, share in zip(SPLITS, (0.65, 0.15, 0.20), strict=True):
        counts = Counter(sample.label for sample in source.splits[name])
        for label, of_class in enumerate((178, 182, 177, 183, 181, 182, 181, 179, 174, 180)):
            assert abs(counts[label] - share * of_class) < 2
    # The data set starts with 0 to 9 three times; the first ten are the first of each class.
    assert [sample.label for sample in source.splits["test"]][:10] == list(range(10))
    again = SOURCES["digits"](data_config())
    for name in SPLITS:
        assert images_of(again.splits[name]) == images_of(source.splits[name])


def test_mean_and_deviation_are_those_of_the_train_split(source):
    pixels = np.stack([sample.image for sample in source.splits["train"]])
    assert pixels.dtype == np.uint8
    assert pixels.mean() / 255 == pytest.approx(source.mean[0], abs=5e-4)
    assert pixels.std() / 255 == pytest.approx(source.std[0], abs=5e-4)


def test_augmentation_of_no_strength_changes_nothing(source):
    rng = np.random.default_rng(0)
    image = source.splits["train"][0].image
    off = {"shift": 0.0, "rotation": 0.0, "scale": 0.0}
    np.testing.assert_array_equal(Warp(**off)(Sample(image=image), rng).image, image)
    for name, strength in {"shift": 2.0, "rotation": 45.0, "scale": 0.45}.items():
        changed = Warp(**{**off, name: strength})(Sample(image=image), rng).image
        assert changed.shape == image.shape
        assert changed.dtype == image.dtype
        assert not np.array_equal(changed, image)


def test_a_shift_moves_the_image(source):
    class Up:
        def uniform(self, low, high, size=None):
            return np.full(size, high) if size else high

    sample = source.splits["train"][0]
    image = sample.image
    moved = Warp(shift=2.0, rotation=0.0, scale=0.0)(sample, Up()).image
    np.testing.assert_array_equal(moved[2:, 2:], image[:-2, :-2])
    assert not moved[:2].any()


WARP = {"warp": {"shift": 1.0, "rotation": 10.0, "scale": 0.1}}


def batches(source, first, last, index=0, count=1, **changes):
    config = data_config(**{"augment": WARP, **changes})
    rows = training_rows(source, config)
    return list(train_batches(source, config, rows, first, last, process_index=index, process_count=count))


def assert_same_batches(left, right):
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys() == {"image", "label"}
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_training_batches_have_the_shapes_of_the_model(source):
    (batch,) = batches(source, 0, 1)
    assert batch["image"].shape == (240, 8, 8, 1)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].shape == (240,)
    assert batch["label"].dtype == np.int32


def test_two_processes_see_the_batches_of_one(source):
    whole = batches(source, 0, 7)
    halves = [batches(source, 0, 7, index, 2) for index in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(batch[key], np.concatenate([first[key], second[key]]))


def test_a_resumed_run_sees_the_same_batches_for_any_number_of_threads(source):
    whole = batches(source, 0, 8, threads=0)
    assert_same_batches(whole[3:], batches(source, 3, 8, threads=4))


def test_batches_depend_on_the_seed_and_never_repeat_an_augmentation(source):
    (first,), (other,) = batches(source, 0, 1), batches(source, 0, 1, seed=1)
    assert not np.array_equal(first["label"], other["label"])
    # 10 epochs of one batch each, which is the whole split: every epoch augments every image differently.
    epochs = batches(source, 0, 3, batch_size=1163)
    assert not np.array_equal(epochs[0]["label"], epochs[1]["label"])
    pictures = [image.tobytes() for batch in epochs for image in batch["image"]]
    assert len(set(pictures)) == 3 * 1163


def test_an_epoch_holds_every_image_once(source):
    (epoch,) = batches(source, 2, 3, batch_size=1163, augment={})
    expected = [sample.image for sample in source.splits["train"]]
    assert sorted(i.tobytes() for i in epoch["image"]) == sorted(i.tobytes() for i in expected)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batch_size", [10, 240, 364])
def test_evaluation_weighs_every_image_once(source, batch_size, count):
    labels, weights, images = [], [], []
    for index in range(count):
        config, rows = data_config(batch_size=batch_size), evaluation_rows(source)
        for batch in evaluation_batches(source, "test", config, rows, process_index=index, process_count=count):
            assert batch["image"].shape == (batch_size // count, 8, 8, 1)
            labels.extend(batch["label"])
            weights.extend(batch["weight"])
            images.extend(batch["image"])
    real = [i for i, weight in enumerate(weights) if weight]
    assert len(real) == 364
    expected = source.splits["test"]
    assert Counter(labels[i] for i in real) == Counter(s.label for s in expected)
    assert {images[i].tobytes() for i in real} == {sample.image.tobytes() for sample in expected}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "digit"}, "'digit', which does not exist; did you mean 'digits'"),
        ({"augment": {"wrap": {}}}, "unknown transform 'wrap'.*'warp'"),
        ({"augment": {"warp": 1.0}}, "warp is 1.0 but must be a dictionary"),
        ({"augment": {"warp": {"shift": 1.0, "rotation": 1.0}}}, "warp lacks 'scale'"),
        ({"augment": {"warp": {"shift": 1.0, "rotate": 1.0}}}, "unknown key 'rotate'.*'rotation'"),
        ({"augment": {"warp": {"shift": 9.0, "rotation": 1.0, "scale": 0}}}, "shift is 9.0 .* 0 to 4"),
        ({"augment": {"warp": {"shift": "1", "rotation": 1.0, "scale": 0}}}, "shift is '1'"),
    ],
)
def test_sources_and_strengths_that_do_not_exist(changes, message):
    config = data_config(**changes)
    with pytest.raises(UserError, match=message):
        training_rows(load_source(config), config)


MINIATURE = {"source": "miniature", "augment": {"random_resized_crop": {}, "flip": {}}}


def test_the_miniature_has_files_of_varying_sizes():
    source = load_source(data_config(**MINIATURE))
    assert [len(source.splits[name]) for name in SPLITS] == [120, 40, 40]
    assert source.image_shape == (32, 32, 3)
    assert load_source(data_config(**MINIATURE, image_size=24)).image_shape == (24, 24, 3)
    images = [decode(sample.image, 3) for name in SPLITS for sample in source.splits[name]]
    sides = {side for image in images for side in image.shape[:2]}
    assert min(sides) >= 40
    assert max(sides) <= 80
    assert len({image.shape for image in images}) > 100
    for name in SPLITS:
        of_class = Counter(sample.label for sample in source.splits[name])
        assert set(of_class.values()) == {len(source.splits[name]) // 10}
    again = load_source(data_config(**MINIATURE))
    assert images_as_bytes(again) == images_as_bytes(source)


def images_as_bytes(source):
    return [sample.image for name in SPLITS for sample in source.splits[name]]


@pytest.mark.parametrize("name", ["miniature", "miniature32"])
def test_mean_and_deviation_of_the_miniatures(name):
    source = load_source(data_config(**{**MINIATURE, "source": name}))
    pixels = [as_pixels(sample.image, 3).reshape(-1, 3) for sample in source.splits["train"]]
    pixels = np.concatenate(pixels) / 255
    np.testing.assert_allclose(pixels.mean(0), source.mean, atol=0.03)
    np.testing.assert_allclose(pixels.std(0), source.std, atol=0.03)


def test_batches_of_varying_images_have_one_size():
    source = load_source(data_config(**MINIATURE))
    config = data_config(**MINIATURE, batch_size=16)
    (batch,) = train_batches(source, config, training_rows(source, config), 0, 1)
    assert batch["image"].shape == (16, 32, 32, 3)
    batch, *_ = evaluation_batches(source, "test", config, evaluation_rows(source, eval_size=40, eval_crops=10))
    assert batch["image"].shape == (16, 10, 40, 40, 3)
    assert batch["image"].dtype == np.uint8


def evaluate(image, is_sized=False, shape=(224, 224, 3), **changes):
    source = Source({}, ("a",), shape, is_sized, (0.0,) * 3, (1.0,) * 3)
    return create_evaluation(source, **changes)(image)


@pytest.mark.parametrize(("changes", "shorter", "side"), [({}, 256, 224), ({"eval_size": 320}, 366, 320)])
def test_the_centre_of_a_resized_image_is_evaluated(changes, shorter, side):
    """Red and green encode the position in the picture."""
    y, x = np.mgrid[:300, :500]
    image = np.dstack([x / 499, y / 299, 0 * x]) * 255
    crop = evaluate(np.rint(image).astype(np.uint8), **changes).astype(float) / 255
    assert crop.shape == (side, side, 3)
    scale = shorter / 300
    # Row centres: (row + 0.5) / shorter of the height; columns likewise, with shorter * 5 / 3.
    for place in (0, side // 2, side - 1):
        row = ((place + (shorter - side) / 2 + 0.5) / scale - 0.5) / 299
        column = ((place + (shorter * 5 / 3 - side) / 2 + 0.5) / scale - 0.5) / 499
        assert crop[place, 0, 1] == pytest.approx(row, abs=0.006)
        assert crop[0, place, 0] == pytest.approx(column, abs=0.006)


def test_ten_crops_are_corners_centre_and_mirrors():
    image = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)
    crops = evaluate(image, shape=(4, 4, 3), eval_resize=8, eval_crops=10)
    expected = [image[:4, :4], image[:4, 6:], image[4:, :4], image[4:, 6:], image[2:6, 3:7]]
    np.testing.assert_array_equal(crops, expected + [part[:, ::-1] for part in expected])


def test_sized_images_are_evaluated_as_they_are_unless_a_size_is_set():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(evaluate(image, is_sized=True, shape=(32, 32, 3)), image)
    enlarged = evaluate(image, is_sized=True, shape=(32, 32, 3), eval_size=64)
    assert enlarged.shape == (64, 64, 3)
    assert np.abs(enlarged.astype(int).mean((0, 1)) - image.mean((0, 1))).max() < 2


def test_a_crop_larger_than_its_image_is_refused():
    with pytest.raises(
        UserError, match=r"config\.task\.eval_resize is 200 but .* 224 x 224 pixels; set it to at least 224"
    ):
        evaluate(np.zeros((9, 9, 3), np.uint8), eval_resize=200)
    with pytest.raises(UserError, match=r"config\.data\.image_size is 64 but the images of 'digits' have 8 pixels"):
        load_source(data_config(image_size=64))


def test_fields_that_a_source_does_not_have():
    message = r"source is 'digits', which has no masks and no segmentation; it has label; choose another source or"
    with pytest.raises(UserError, match=message):
        load_source(data_config(), frozenset({"label", "segmentation", "masks"}))


@pytest.mark.parametrize("statistic", ["pixel_mean", "pixel_std"])
def test_statistics_are_the_configs_and_fit_the_channels(statistic):
    source = load_source(data_config(**{statistic: [0.25]}))
    assert {"pixel_mean": source.mean, "pixel_std": source.std}[statistic] == (0.25,)
    with pytest.raises(UserError, match=rf"config\.data\.{statistic} is \[0\.1, 0\.2\] but .* each of the 1 channels"):
        load_source(data_config(**{statistic: [0.1, 0.2]}))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_row_of_another_shape_is_named(source, threads):
    named = [sample.replace(file=f"{n}.png") for n, sample in enumerate(source.splits["train"][:8])]
    wide = named[5].replace(image=np.zeros((8, 9, 1), np.uint8))
    splits = {"train": [*named[:5], wide, *named[6:]], "test": [*named, wide.replace(file="wide.png")]}
    odd, config = source._replace(splits=splits), data_config(batch_size=4, threads=threads)
    rows = training_rows(odd, config)  # without transforms or random numbers
    with pytest.raises(UserError, match=r"\.png gives arrays of the shapes .*\(8, 9, 1\).*add a crop or a resize"):
        list(train_batches(odd, config, rows, 0, 2))
    with pytest.raises(
        UserError, match=r"wide\.png gives arrays of the shapes \{'image': \(8, 9, 1\), 'label': \(\)\}"
    ):
        list(evaluation_batches(odd, "test", config, rows))


def test_probabilities_are_averaged_over_crops():
    """Compares with the crops one by one."""
    task, mesh = Classification(tiny(), load_source(tiny())), create_mesh()
    model, params, other_state = split_model(task.create())
    images = np.random.default_rng(0).integers(0, 256, (4, 10, 8, 8, 1), np.uint8)
    labels, weights = np.array([3, 1, 4, 1]), np.array([1.0, 1.0, 1.0, 0.0], np.float32)
    predict = create_predict_step(model, task, mesh)
    single = np.stack([predict(params, other_state, images[:, crop])["probabilities"] for crop in range(10)])
    probabilities = single.mean(0)
    np.testing.assert_allclose(
        predict(params, other_state, images)["probabilities"], probabilities, rtol=1e-5, atol=1e-7
    )
    batch = {"image": images, "label": labels, "weight": weights}
    scores = create_score_step(model, task, mesh)(params, other_state, {k: jnp.asarray(v) for k, v in batch.items()})
    losses = -np.log(probabilities[np.arange(4), labels])
    np.testing.assert_allclose(scores["loss"], losses, rtol=1e-5)
    np.testing.assert_array_equal(scores["predicted"], probabilities.argmax(1))
