import base64
import re

import numpy as np
import pytest

from train.data.opencv import cv2
from train.report import Mistake, RunReport, confusion_matrix, versions, write_report


def report(classes=("cat", "a <dog> & more", "fish"), **changes):
    counts = np.diag(np.full(len(classes), 5))
    counts[1, 0] = 2
    values = {
        "title": "ps_resnet8 on <pictures>",
        "result": "test accuracy 0.8824",
        "config": {"seed": 0, "augment.warp.shift": 0.75},
        "curves": cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes(),
        "classes": classes,
        "confusion": counts,
        "mistakes": [Mistake(np.full((8, 4, 3), (255, 0, 0), np.uint8), 1, 0, 3.217)],
        "speeds": [{"epoch": 1, "images_per_second": 100.0, "waiting": 0.25}],
        "notes": "left out: <x>",
    }
    return RunReport(**{**values, **changes})


def written(tmp_path, **changes):
    write_report(tmp_path / "report.html", report(**changes))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_stands_alone_and_shows_everything(tmp_path):
    page = written(tmp_path)
    assert not re.findall(r"https?://|<script|<link", page)
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 3  # curves, matrix, mistake
    for part in (
        "test accuracy 0.8824",
        "augment.warp.shift",
        "0.75",
        "3.22",
        "100 images a second",
        "25.0% of the time",
    ):
        assert part in page
    for name, version in versions().items():
        assert name in page
        assert version in page


def test_names_are_text_and_never_markup(tmp_path):
    page = written(tmp_path)
    assert "<dog>" not in page
    assert "<pictures>" not in page
    assert "<x>" not in page
    assert "a &lt;dog&gt; &amp; more" in page


def test_thumbnails_keep_proportions_and_colours(tmp_path):
    page = written(tmp_path)
    (encoded,) = re.findall(r'<figure><img alt="" src="data:image/png;base64,([^"]*)"', page)
    image = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image.shape == (96, 48, 3)
    assert (image == (255, 0, 0)).all()


def test_grey_and_extreme_images_have_thumbnails(tmp_path):
    images = [np.zeros((1, 1, 1), np.uint8), np.zeros((1, 500, 3), np.uint8), np.zeros((300, 200, 1), np.uint8)]
    page = written(tmp_path, mistakes=[Mistake(image, 0, 1, 1.0) for image in images])
    assert page.count("<figure>") == 3


def test_most_often_confused_are_named_in_order(tmp_path):
    counts = np.array([[5, 1, 0], [0, 5, 7], [3, 0, 5]])
    page = written(tmp_path, confusion=counts, classes=("a1", "b2", "c3"))
    rows = re.findall(r"<tr><td>(..)</td><td>(..)</td><td>(\d+)</td></tr>", page)
    assert rows == [("b2", "c3", "7"), ("c3", "a1", "3"), ("a1", "b2", "1")]


def test_nothing_wrong_nothing_measured_and_no_epoch(tmp_path):
    page = written(tmp_path, mistakes=[], speeds=[], curves=None, notes="", confusion=np.eye(3, dtype=int))
    for part in ("None: every test image", "too short to measure", "No epoch has ended"):
        assert part in page
    assert "Most often confused" not in page
    assert "<h2>Data</h2>" not in page


def test_many_classes_are_a_picture_without_names(tmp_path):
    page = written(tmp_path, classes=tuple(f"class {n}" for n in range(200)))
    assert "class 150" not in page


@pytest.mark.parametrize("classes", [2, 4])
def test_confusion_matrix_counts_rows_by_class(classes):
    counts = confusion_matrix(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 0]), classes)
    assert counts.shape == (classes, classes)
    assert counts[:2, :2].tolist() == [[1, 0], [2, 1]]
    assert counts.sum() == 4
