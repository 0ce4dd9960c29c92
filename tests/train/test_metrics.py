import io
import json
import struct
import tracemalloc

import cv2
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from train.engine.log import MetricsLog, ProgressReport, draw_curves, read_metrics, repair_records
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


DAMAGED = [
    (b'{"step": 10, "epo', "it is not JSON"),
    (b"\xff\xfe\x00", "it is not JSON"),
    (b"", "it is not JSON"),
    (b"[" * 30_000, "it is not JSON"),
    (b'{"step": 9, "epoch": ' + b"1" * 5000 + b"}", "it is not JSON"),
    (b"[1]", "it is not a JSON object"),
    (b"{}", "it has no 'step'"),
    (b'{"step": 9, "epoch": 1}', "it has no 'validation_accuracy'"),
    (b'{"step": 9, "epoch": 1, "validation_accuracy": NaN}', "is nan, which is not a finite number"),
    (b'{"step": 9, "epoch": 1, "validation_accuracy": 1e999}', "is inf, which is not a finite number"),
    (b'{"step": 9, "epoch": 1, "validation_accuracy": 1' + b"0" * 400 + b"}", "which is not a finite number"),
    (b'{"step": 9, "epoch": 1, "validation_accuracy": true}', "is True, which is not a finite number"),
    (b'{"step": 9, "epoch": 1, "validation_accuracy": "\\u001b[31m"}', "is '\\x1b[31m', which is not a finite number"),
    (b'{"step": 9, "epoch": 1, "validation_accuracy": 1, "\\u202e": 1}', "it has the name"),
    (b'{"step": 9.5, "epoch": 1, "validation_accuracy": 1}', "'step' is 9.5, which is not a whole number"),
    (b'{"step": 9, "epoch": 0, "validation_accuracy": 1}', "'epoch' is 0, which is not a whole number above 0"),
    (b'{"step": 5, "epoch": 1, "validation_accuracy": 1}', "its step 5 is in an earlier line"),
    (b'{"step": 9, "epoch": 1, "x": "' + b"y" * 100_000 + b'"}', "it has more than 65,536 bytes"),
]


def test_a_damaged_line_is_skipped_alone_and_the_file_is_kept(tmp_path, capsys):
    """The lines before and after any damaged line stay; stderr names the skipped line and the reason."""
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps(record(step)).encode() + b"\n" for step in (5, 10, 15)]
    for number, (line, reason) in enumerate(DAMAGED, start=1):
        content = good[0] + line + b"\n" + good[1] + good[2]
        path.write_bytes(content)
        assert repair_records(path, 100, ["validation_accuracy"]) == [record(step) for step in (5, 10, 15)], line
        assert path.read_bytes() == b"".join(good), line
        kept = tmp_path / f"metrics.jsonl.damaged{number if number > 1 else ''}"
        assert kept.read_bytes() == content
        errors = capsys.readouterr().err
        assert errors.startswith(f"{path} is damaged and is kept as {kept.name}; skipped: line 2: "), line
        assert reason in errors, line
        assert errors.removesuffix("\n").isprintable()
        assert len(errors) < 500
    for ending in (b"", good[2][:-1]):  # a crash leaves a partial line, or a line without its newline
        path.write_bytes(good[0] + good[1] + ending)
        assert read_metrics(path, 100).skipped == 0
        assert len(read_metrics(path, 100).records) == 2 + bool(ending)


def test_many_damaged_lines_are_counted_and_lines_are_put_in_order(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(record(step)) for step in (15, 5, 10)]
    path.write_text("\n".join(["nothing"] * 4 + lines[:2] + ["{"] * 1000 + lines[2:]) + "\n")
    MetricsLog(tmp_path, 100, BEST).close()
    assert steps_in(path) == [5, 10, 15]
    errors = capsys.readouterr().err
    assert "line 1: it is not JSON; line 2" in errors
    assert "line 7: it is not JSON; 999 more" in errors


def test_speeds_without_fields_are_skipped_too(tmp_path, capsys):
    speed = {"step": 5, "epoch": 1, "images_per_second": 10.0, "waiting": 0.5}
    (tmp_path / "speeds.jsonl").write_text(f'{json.dumps(speed)}\n{{"step": 6, "epoch": 1, "waiting": 0.5}}\n')
    MetricsLog(tmp_path, 100, BEST).close()
    assert (tmp_path / "speeds.jsonl").read_text() == json.dumps(speed) + "\n"
    assert "speeds.jsonl is damaged" in (errors := capsys.readouterr().err)
    assert "line 2: it has no 'images_per_second'" in errors


@pytest.mark.slow
def test_a_huge_line_takes_no_memory(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(2**28)
        file.seek(0, 2)
        file.write(b"\n" + json.dumps(record(5)).encode() + b"\n")
    tracemalloc.start()
    found = read_metrics(path, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.records, found.skipped) == ([record(5)], 1)
    assert peak < 2**22


def test_records_of_different_fields_are_drawn(tmp_path, capsys):
    """As after manual edits: missing fields are not drawn."""
    some = {name: value for name, value in record(10).items() if name != "train_loss"}
    draw_curves([some, record(5), {**record(15), "validation_$x_{": 1.0}], BEST, tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).shape[1] == 1800
    assert capsys.readouterr().err == ""


def test_curves_that_cannot_be_drawn_are_a_note(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no \x1b[31m ink")

    monkeypatch.setattr("train.engine.log.Figure.suptitle", fail)
    log = MetricsLog(tmp_path, 0, BEST)
    log.write(record(5))
    log.close()
    assert capsys.readouterr().err == (
        "note: curves.png is missing, drawing it failed with RuntimeError: no \\x1b[31m ink\n"
    )
    assert steps_in(log.path) == [5]


def test_tensorboard_files_hold_the_scalars(tmp_path):
    log = MetricsLog(tmp_path, 0, BEST)
    log.write(record(5))
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content, found = events.read_bytes(), {}
    while content:  # an event is a length, a checksum, data and a checksum
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        content = content[16 + length :]
    expected = {name.replace("_", "/", 1): value for name, value in record(5).items() if name not in ("step", "epoch")}
    assert found == pytest.approx({(tag, 5): value for tag, value in expected.items()})


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
    """For any metrics of a task: three panels in a row, and one line for a quantity of a single split."""
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
