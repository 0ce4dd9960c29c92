import json
import os
import random
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.helpers import ROOT, endings, processes, run_python
from train import evaluate, predict
from train.config import parse_command_line, update_config
from train.data import load_source, train_batches
from train.data.sample import Sample
from train.data.source import Source
from train.engine import loop
from train.errors import UserError
from train.tasks.segmentation import IGNORED, Segmentation, SegmentationEvaluator, overlay, palette
from train.untrusted import shortened

CONFIG = Path(__file__).with_name("masks_config.py")
NAMES = ("ground", "red", "blue")


def write_masks(folder):
    """Writes images of coloured rectangles with masks; every third mask is ignored except for its first row."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 18), ("validation", 5), ("test", 5)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            height, width = rng.integers(10, 20, size=2)
            image = rng.integers(0, 60, size=(height, width, 3)).astype(np.uint8)
            mask = np.zeros((height, width), np.uint8)
            for label, channel in ((1, 2), (2, 0)):  # OpenCV's order is blue, green, red
                top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
                image[top : top + 5, left : left + 5, channel] = 250
                mask[top : top + 5, left : left + 5] = label
            if number % 3 == 0:
                mask[1:] = IGNORED
            cv2.imwrite(str(folder / split / "images" / f"{number}.png"), image)
            cv2.imwrite(str(folder / split / "masks" / f"{number}.png"), mask)
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return folder


@pytest.fixture(scope="session")
def masks(tmp_path_factory):
    return write_masks(tmp_path_factory.mktemp("masks"))


def config_of(masks, *overrides):
    arguments = ["train", f"--config={CONFIG}", f"--config.data.dir={masks}", *overrides]
    return parse_command_line(arguments, None, needs_workdir=False)[0]


@pytest.fixture(scope="session")
def finished(masks, tmp_path_factory):
    """An uninterrupted run; tests must not change it."""
    from msconv_jax.models import registry
    from tests.train.helpers import TINY_SEGMENTER

    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._ENTRIES, TINY_SEGMENTER.name, TINY_SEGMENTER)
        assert loop.train(config_of(masks), Segmentation, workdir, command="again") == 0
    return workdir


def task_of(config, classes=3):
    names = tuple(map(str, range(classes)))
    source = Source({}, (), (12, 16, 3), False, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), segmentation_classes=names)
    return Segmentation(config, source)


class Given:
    """A fake network that returns these logits."""

    def __init__(self, *outputs):
        self.outputs = outputs

    def __call__(self, images):
        return self.outputs if len(self.outputs) > 1 else self.outputs[0]


def cross_entropies(logits, labels):
    """The cross-entropies by definition, in float64, pixel by pixel; 0 where ignored."""
    losses = np.zeros(labels.shape)
    for place in np.ndindex(labels.shape):
        if labels[place] != IGNORED:
            scores = np.asarray(logits[place], np.float64)
            losses[place] = np.log(np.exp(scores).sum()) - scores[labels[place]]
    return losses


def test_the_loss_is_the_mean_over_the_valid_pixels_of_the_batch(masks):
    rng = np.random.default_rng(0)
    main, auxiliary = rng.normal(size=(2, 4, 5, 6, 3)).astype(np.float32)
    labels = rng.integers(0, 3, size=(4, 5, 6)).astype(np.uint8)
    labels[0] = IGNORED
    labels[1, 2:] = IGNORED
    task = task_of(config_of(masks, "--config.task.auxiliary_weight=0.3"))
    rows = task.targets({"image": jnp.zeros((4, 5, 6, 3)), "segmentation": jnp.asarray(labels)}, jax.random.key(0))
    loss, terms = task.loss(Given(jnp.asarray(main), jnp.asarray(auxiliary)), rows, jax.random.key(0))
    count = (labels != IGNORED).sum()
    first, second = (cross_entropies(logits, labels).sum() / count for logits in (main, auxiliary))
    assert float(loss) == pytest.approx(first + 0.3 * second, rel=1e-6)
    hits = ((main.argmax(-1) == labels) & (labels != IGNORED)).sum()
    expected = {
        "loss": first + 0.3 * second,
        "main_loss": first,
        "auxiliary_loss": second,
        "pixel_accuracy": hits / count,
    }
    assert {name: float(total / weight) for name, (total, weight) in terms.items()} == pytest.approx(expected, rel=1e-5)

    # The loss is a sum over rows: with the weights of the whole batch, its parts add up.
    parts = []
    for rows_of in (slice(0, 1), slice(1, 4)):
        part = {name: value[rows_of] for name, value in rows.items()}
        parts.append(float(task.loss(Given(jnp.asarray(main[rows_of])), part, jax.random.key(0))[0]))
    assert sum(parts) == pytest.approx(first, rel=1e-6)
    assert parts[0] == 0


def test_a_batch_without_valid_pixels_has_loss_0_and_gradient_0(masks):
    task = task_of(config_of(masks))
    labels = jnp.full((2, 4, 4), IGNORED, jnp.uint8)
    rows = task.targets({"image": jnp.ones((2, 4, 4, 3)), "segmentation": labels}, jax.random.key(0))

    def loss(logits):
        return task.loss(Given(logits), rows, jax.random.key(0))[0]

    value, gradient = jax.value_and_grad(loss)(jnp.ones((2, 4, 4, 3)))
    assert float(value) == 0
    assert not np.any(np.asarray(gradient))


def test_scores_count_pixels_by_class_and_prediction(masks):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 4, 5, 3)).astype(np.float32)
    labels = rng.choice([0, 1, 2, IGNORED], size=(3, 4, 5)).astype(np.uint8)
    task = task_of(config_of(masks))
    batch = {"image": jnp.zeros((3, 4, 5, 3)), "segmentation": jnp.asarray(labels), "weight": jnp.ones(3)}
    rows = jax.device_get(task.score(Given(jnp.asarray(logits)), batch))
    expected = np.zeros((3, 3, 3), int)
    for place in np.ndindex(labels.shape):
        if labels[place] != IGNORED:
            expected[place[0], labels[place], logits[place].argmax()] += 1
    np.testing.assert_array_equal(rows["confusion"], expected)
    np.testing.assert_allclose(rows["loss"], cross_entropies(logits, labels).sum((1, 2)), rtol=1e-5)
    evaluator = SegmentationEvaluator(NAMES)
    for number in range(3):
        evaluator.add({name: value[number : number + 1] for name, value in rows.items()})
    total = expected.sum(0)
    ious = np.diag(total) / (total.sum(0) + total.sum(1) - np.diag(total))
    result = evaluator.result()
    assert result["miou"] == pytest.approx(ious.mean())
    assert result["pixel_accuracy"] == pytest.approx(np.trace(total) / total.sum())
    assert result["loss"] == pytest.approx(cross_entropies(logits, labels).sum() / total.sum(), rel=1e-5)


def test_networks_that_do_not_fit_the_crops_are_refused_before_training(masks):
    network = {"model.name": "seg_baseline_ps_resnet8", "model.kwargs": {"zoom": 1}, "task.crop": [17, 25]}
    with pytest.raises(UserError, match=r"gives 5 x 7 logits for crops of 17 x 25 pixels.*'zoom': 8"):
        task_of(update_config(config_of(masks), network))
    with pytest.raises(UserError, match=r"config.task.crop is \[16, 24\] but the network refuses it: .*17 x 25"):
        task_of(update_config(config_of(masks), {**network, "task.crop": [16, 24]}))


def test_predictions_are_enlarged_to_the_windows(masks):
    task = task_of(config_of(masks))
    probabilities = task.predict(Given(jnp.zeros((1, 2, 2, 3))), jnp.zeros((1, 9, 9, 3)))["probabilities"]
    np.testing.assert_allclose(probabilities, np.full((1, 9, 9, 3), 1 / 3), rtol=1e-6)


def test_rows_are_crops_of_one_size_and_the_same_for_any_number_of_processes(masks):
    config = config_of(masks)
    source = load_source(config, Segmentation.needs)
    task = Segmentation(config, source)
    assert source.segmentation_classes == NAMES
    transform = task.transform(training=True)
    whole = list(train_batches(source, config, transform, 0, 4))
    assert {batch["image"].shape for batch in whole} == {(8, 12, 16, 3)}
    assert {batch["segmentation"].shape for batch in whole} == {(8, 12, 16)}
    halves = [
        list(train_batches(source, config, transform, 0, 4, process_index=index, process_count=2)) for index in (0, 1)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([part[name] for part in parts]))
    later = next(iter(train_batches(source, config, transform, 3, 4)))
    np.testing.assert_array_equal(later["image"], whole[3]["image"])


def test_labels_out_of_range_and_other_ignored_labels(masks):
    image, mask = np.zeros((12, 16, 3), np.uint8), np.zeros((12, 16), np.uint8)
    mask[0, 0] = 7
    sample = Sample(image=image, segmentation=mask, file="a.png")
    with pytest.raises(UserError, match=r"a.png has the label 7, but labels are 0 to 2, or 255"):
        task_of(config_of(masks)).transform(training=False)(sample, None)
    row = task_of(config_of(masks, "--config.task.ignore_label=7")).transform(training=False)(sample, None)
    assert row["segmentation"][0, 0] == IGNORED
    assert (row["segmentation"] == 0).sum() == 12 * 16 - 1


def test_crops_need_a_size(masks):
    with pytest.raises(UserError, match=r"config.task.crop is \[\] but must be \[height, width\]: the images"):
        task_of(config_of(masks, "--config.task.crop=()"))
    with pytest.raises(UserError, match=r"config.task.crop is \[5\] but must be \[height, width\]"):
        task_of(config_of(masks, "--config.task.crop=(5,)"))


def test_colours_are_those_of_pascal_voc():
    # Aeroplane, bicycle, bird, person and tv monitor, from the data set's development kit.
    expected = {1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    colours = palette(21)
    assert {number: tuple(colours[number].tolist()) for number in expected} == expected
    image = np.full((1, 3, 3), 100, np.uint8)
    shown = overlay(image, np.array([[0, 1, IGNORED]], np.uint8))
    assert shown.tolist() == [[[45, 45, 45], [115, 45, 45], [45, 45, 45]]]
    assert overlay(image[..., :1], np.zeros((1, 3), np.uint8)).shape == (1, 3, 3)


def test_a_byte_holds_the_class_of_a_pixel(masks):
    for count in (256, 10_000):
        with pytest.raises(UserError, match=f"has {count:,} classes of pixels, but .* at most 255"):
            task_of(config_of(masks), classes=count)


def test_the_worst_of_many_classes_are_drawn_whatever_their_names():
    names = ["$x_$", "a$", "\u732b" * 85, "\\frac{", "\u202e", *(f"class {n}" for n in range(250))]
    counts = np.diag(np.arange(1, 256))
    counts[:, 254] += 1  # the IoU grows with the class index
    evaluator = SegmentationEvaluator(names)
    evaluator.add({"confusion": counts[None]})
    by_class, _ = evaluator.sections()
    assert by_class.pictures[0].caption == "IoU of the 150 worst classes; the line is the mean of all"
    assert by_class.text == f"In the picture number 2 is {shortened(names[2])}, number 4 is \u202e."
    assert len(by_class.rows) == 255
    assert cv2.imdecode(np.frombuffer(by_class.pictures[0].png, np.uint8), cv2.IMREAD_COLOR).shape == (360, 1600, 3)


def lines_of(workdir):
    return (workdir / "metrics.jsonl").read_text()


def test_a_run_leaves_its_files_and_evaluates_to_the_same_line(finished, capsys, monkeypatch):
    records = [json.loads(line) for line in lines_of(finished).splitlines()]
    assert len(records) == 2
    for name in ("train_loss", "train_main_loss", "train_auxiliary_loss", "train_pixel_accuracy"):
        assert name in records[0]
    for name in ("validation_loss", "validation_miou", "validation_mean_accuracy", "validation_pixel_accuracy"):
        assert name in records[0]
    result = json.loads((finished / "result.json").read_text())
    assert set(result) == {"test_miou", "test_mean_accuracy", "test_pixel_accuracy", "step"}
    best = max(records, key=lambda record: (record["validation_miou"], record["step"]))
    assert result["step"] == best["step"]
    page = (finished / "report.html").read_text()
    assert "IoU of the test images by class" in page
    assert "Worst test images" in page
    assert all(f"<td>{name}</td>" in page for name in NAMES)
    with np.load(finished / "test_answers.npz") as kept:
        counts = kept["confusion"]
    assert counts.sum() > 0
    assert result["test_pixel_accuracy"] == pytest.approx(np.trace(counts) / counts.sum())
    assert evaluate.main(["evaluate", f"--workdir={finished}"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"test mean IoU {result['test_miou']:.4f}, pixel accuracy")


def test_predict_writes_the_classes_in_colours(finished, masks, tmp_path, capsys):
    image = next((masks / "test" / "images").iterdir())
    assert predict.main(["predict", f"--workdir={finished}", f"--out={tmp_path}", str(image)]) == 0
    line, place = capsys.readouterr().out.splitlines()
    shares = [float(part.split()[-1].rstrip("%")) for part in line.removeprefix(f"{image}: ").split(", ")]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    written = cv2.imread(place.strip())
    assert written.shape == cv2.imread(str(image)).shape


def test_a_stopped_run_goes_on_to_the_same_end(finished, masks, tmp_path, monkeypatch):
    original, calls = loop.shard_batch, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), 15)
        return original(*arguments)

    workdir = tmp_path / "run"
    monkeypatch.setattr(loop, "shard_batch", stopping)
    assert loop.train(config_of(masks), Segmentation, workdir, command="again") == 128 + 15
    assert loop.train(config_of(masks), Segmentation, workdir, command="again") == 0
    assert lines_of(workdir) == lines_of(finished)
    assert (workdir / "result.json").read_text() == (finished / "result.json").read_text()


KILLED = """
import os, signal, sys, threading
from pathlib import Path
import grain, matplotlib.figure, rich.progress  # here, so that no life spends its time on it
from tests.train.helpers import register_tiny
from tests.train.test_segmentation import config_of
from train.engine import loop
from train.tasks import Segmentation
register_tiny()

def live(seconds, masks, workdir):
    original, calls = loop.shard_batch, []
    def deadly(*arguments):
        calls.append(1)
        if len(calls) == 2 and seconds:  # the step is compiled
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return original(*arguments)
    loop.shard_batch = deadly
    return loop.train(config_of(masks, "--config.epochs=6"), Segmentation, workdir, command="again")

masks, whole, workdir = sys.argv[1:4]
for seconds, folder in [(0, whole)] + [(float(seconds), workdir) for seconds in sys.argv[4:]]:
    child = os.fork()
    if not child:
        sys.exit(live(seconds, masks, Path(folder)))
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_kills_by_chance_change_nothing(masks, tmp_path):
    chance = random.Random(1)
    lives = [str(chance.uniform(0.01, 0.4)) for _ in range(8)] + ["0"]
    environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = run_python("-u", "-c", KILLED, str(masks), str(whole), str(killed), *lives, **environment)
    assert run.returncode == 0, run.stderr
    statuses = [line for line in run.stdout.splitlines() if line.startswith("status")]
    assert statuses[0] == statuses[-1] == "status 0"
    assert statuses.count("status -9") >= 4
    assert lines_of(killed) == lines_of(whole)
    assert (killed / "result.json").read_text() == (whole / "result.json").read_text()


@pytest.mark.slow
def test_every_topology_has_equal_losses_with_ignored_pixels_spread_unevenly(masks, tmp_path):
    results = []
    for count, devices in ((1, 4), (2, 2), (4, 1)):
        workdir = tmp_path / f"{count}x{devices}"
        with processes(workdir, count, devices, f"--config.data.dir={masks}", config=CONFIG) as started:
            ended = endings(started)
        for status, output in ended:
            assert status == 0, output
        records = [json.loads(line) for line in lines_of(workdir).splitlines()]
        results.append((records, json.loads((workdir / "result.json").read_text())))
    for records, result in results[1:]:
        for record, expected in zip(records, results[0][0], strict=True):
            for name, value in record.items():
                np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)
        assert result == pytest.approx(results[0][1], rel=1e-5)


@pytest.mark.slow
def test_the_recipe_reaches_its_mean_iou(tmp_path):
    """Runs a fifth of the epochs of the recipe for scaled digits: two minutes on two cores."""
    run = run_python("-m", "train.prepare", "--dataset=scaled_digits", f"--data_dir={tmp_path / 'data'}")
    assert run.returncode == 0, run.stderr
    arguments = [f"--config={ROOT / 'configs/segment_scaled_digits.py'}", f"--config.data.dir={tmp_path / 'data'}"]
    run = run_python("-m", "train", *arguments, "--config.epochs=2", f"--workdir={tmp_path / 'run'}", limit=900)
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_miou"] > 0.3
    sample = tmp_path / "run" / "samples" / "7.png"
    run = run_python("-m", "train.predict", f"--workdir={tmp_path / 'run'}", str(sample))
    assert run.returncode == 0, run.stderr
    assert f"{sample}: background " in run.stdout
    assert (tmp_path / "run" / "predictions" / "7.png").is_file()
