"""The report of ImageNet-21k's 21,841 classes takes no memory of the square of the classes."""

import tracemalloc

import numpy as np

from tests.train.helpers import tiny
from train.data.sample import Sample
from train.data.source import Source
from train.page import Page, write_page
from train.tasks import Classification

CLASSES, IMAGES, LARGEST = 3000, 500, 21_841


def test_memory_of_the_report(tmp_path):
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(CLASSES, size=(2, IMAGES)).astype(np.int32)
    samples = [Sample(image=np.zeros((8, 8, 3), np.uint8), label=int(label)) for label in labels]
    source = Source({"test": samples}, tuple(map(str, range(CLASSES))), (8, 8, 3), True, (0.5,) * 3, (0.2,) * 3)
    evaluator = Classification(tiny(), source).evaluator("test")
    rows = {"label": labels, "predicted": predicted, "rank": np.ones(IMAGES, np.int32)}
    evaluator.add({**rows, "loss": np.ones(IMAGES, np.float32)})
    tracemalloc.start()
    try:
        sections = list(evaluator.sections())
        write_page(tmp_path / "report.html", Page("title", "result", None, sections, [], "", {}))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak * (LARGEST / CLASSES) ** 2 < 4e9
