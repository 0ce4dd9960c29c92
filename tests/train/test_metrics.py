import io
import json

import cv2
import pytest
from rich.console import Console

from train.engine.log import MetricsLog, ProgressReport, draw_curves, read_metrics
from train.task import Metric

BEST = Metric("accuracy")


def record(step):
    return {
        "step": step,
        "epoch": step // 5,
        "learning_rate": 0.1,
        "train_loss": 1 / step,
        "train_accuracy": 0.5,
        "validation_loss": 2 / step,
        "validation_accuracy": 0.25,
    }


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_after_the_restored_step_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, 0, BEST)
    for step in (5, 10, 15):
        log.write(record(step))
    log.close()
    assert steps_in(log.path) == [5, 10, 15]
    again = MetricsLog(tmp_path, 12, BEST)
    assert steps_in(again.path) == [5, 10]
    again.write(record(15))
    again.close()
    assert steps_in(again.path) == [5, 10, 15]


@pytest.mark.parametrize("tail", [b'{"step": 10, "epo', b"\xff\xfe\n", b"[1]\n", b"{}\n"])
def test_what_a_crash_left_of_a_line_is_dropped(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(record(5)).encode() + b"\n" + tail)
    assert read_metrics(path, 100) == [record(5)]
    MetricsLog(tmp_path, 100, BEST).close()
    assert steps_in(path) == [5]


def test_tensorboard_files_hold_the_scalars(tmp_path):
    log = MetricsLog(tmp_path, 0, BEST)
    log.write(record(5))
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    for tag in (b"train/loss", b"validation/accuracy", b"learning/rate"):
        assert tag in content


def test_a_silent_log_writes_nothing(tmp_path):
    log = MetricsLog(tmp_path, 0, BEST, enabled=False)
    log.write(record(5))
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_curves_are_a_picture_with_both_lines(tmp_path):
    draw_curves([record(5), record(10)], BEST, tmp_path / "curves.png")
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture.shape == (480, 1200, 3)
    colours = {tuple(pixel) for pixel in picture.reshape(-1, 3)}
    assert (180, 119, 31) in colours  # matplotlib's C0 and C1, blue first
    assert (14, 127, 255) in colours


def test_curves_have_a_panel_for_every_quantity(tmp_path):
    """Whatever a task measures: three panels stand beside each other, and those of one split alone have one line."""
    records = [{"step": 5 * n, "epoch": n, "train_error": 1 / n, "validation_error": 2 / n} for n in (1, 2)]
    for number, quantities in enumerate([(), ("mean_iou", "pixel_accuracy", "boundary_f")]):
        path = tmp_path / f"{number}.png"
        more = {f"validation_{name}": 0.5 for name in quantities}
        draw_curves([{**record, **more} for record in records], Metric("error", larger_is_better=False), path)
        rows, columns = ((1, 1), (2, 3))[number]
        assert cv2.imread(str(path)).shape == (pytest.approx(120 * (3.6 * rows + 0.4), abs=1), 600 * columns, 3)


def titles_of(monkeypatch, tmp_path, best):
    titles = []
    monkeypatch.setattr("train.engine.log.Figure.suptitle", lambda self, text, **_: titles.append(text))
    draw_curves([record(5), {**record(10), "validation_accuracy": 0.75}], best, tmp_path / "curves.png")
    return titles[0].splitlines()[0]


def test_the_title_names_the_best_by_the_metric_of_the_task(monkeypatch, tmp_path):
    assert titles_of(monkeypatch, tmp_path, BEST) == "best validation accuracy 0.7500 at epoch 2"
    smallest = Metric("accuracy", larger_is_better=False)
    assert titles_of(monkeypatch, tmp_path, smallest) == "best validation accuracy 0.2500 at epoch 1"


def report(is_terminal):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
    with ProgressReport(20, 5, console) as progress:
        if progress.is_due():
            progress.step(10, {"loss": 0.5, "accuracy": 0.75}, 1000.0)
        progress.epoch(record(10), 4, 1000.0)
    return console.file.getvalue()


def test_a_terminal_gets_a_bar_and_a_file_gets_lines():
    terminal, file = report(True), report(False)
    assert "10/20" in terminal
    assert "loss 0.500  accuracy 0.750  1000 images/s" in terminal
    assert file == (
        "epoch 2/4  train loss 0.1000 accuracy 0.5000  validation loss 0.2000 accuracy 0.2500  1000 images/s\n"
    )
