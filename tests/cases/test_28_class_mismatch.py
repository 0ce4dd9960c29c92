"""Splits whose folders name other classes than the training split: labels go by name, in any Unicode form."""

import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

from train.config import validate_config
from train.data import load_source


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


@pytest.fixture
def load(tmp_path):
    """Writes 4 pictures of each class to train on and 2 of each to validate on, and reads them."""

    def read(train, validation):
        for split, names, count in (("train", train, 4), ("validation", validation, 2)):
            for name in names:
                write_pictures(tmp_path / split / name, count)
        values = {
            "data": {"source": "folder", "dir": str(tmp_path)},
            "model": {"name": "resnet8"},
            "optimizer": {"learning_rate": 0.1},
            "epochs": 1,
            "batch_size": 1,
        }
        return load_source(validate_config(values))

    return read


def test_labels_go_by_the_names_of_folders(load):
    source = load(("ant", "bee", "cow"), ("ant", "cow", "zebra"))
    samples = list(source.splits["validation"])
    assert len(samples) == 4
    for sample in samples:
        assert f"/{source.classes[sample.label]}/" in sample.file
    assert "zebra" in source.report


def test_a_name_in_two_unicode_forms_is_one_class(load):
    composed = "caf\u00e9"
    source = load((composed, "tea"), (unicodedata.normalize("NFD", composed), "tea"))
    assert len(source.classes) == 2
    assert len(source.splits["validation"]) == 4
