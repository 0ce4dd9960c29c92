"""Folders of pictures, good and bad."""

import os
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.train.helpers import tiny
from tests.train.rows import data_config, evaluation_rows, training_rows
from train.data import evaluation_batches, load_source, train_batches
from train.data.images import decode
from train.data.readers.files import printable
from train.engine.loop import train
from train.errors import UserError
from train.tasks import Classification

CROP = {"random_resized_crop": {}}


def jpeg(seed, height=40, width=50):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(small, (width, height)))[1].tobytes()


def fill(folder, classes=("cat", "dog"), count=12, seed=0):
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            (folder / name / f"{n:03}.jpg").write_bytes(jpeg((seed, place, n)))


def load(folder, **changes):
    return load_source(data_config("folder", dir=str(folder), image_size=16, augment=CROP, **changes))


@pytest.fixture
def pictures(tmp_path):
    for split, seed in (("train", 0), ("val", 1), ("test", 2)):
        fill(tmp_path / "pictures" / split, seed=seed)
    return tmp_path / "pictures"


def test_folders_of_splits(pictures):
    source = load(pictures)
    assert source.classes == ("cat", "dog")
    assert (source.image_shape, source.is_sized) == ((16, 16, 3), False)
    assert source.mean == (0.485, 0.456, 0.406)
    for split, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        records = source.splits[split]
        assert len(records) == 24
        assert [record.label for record in records] == 12 * [0] + 12 * [1]
        assert records[12].image == (pictures / folder / "dog" / "000.jpg").read_bytes()
        assert records[-1].file == str(pictures / folder / "dog" / "011.jpg")
    first, *rest = source.report.splitlines()
    assert (
        first
        == f"{pictures}: 24 train, 24 validation, 24 test images of 2 classes; 0 entries left out, 0 of them damaged"
    )
    assert "  dog: 12, 12, 12" in rest


def test_the_config_names_the_splits(pictures):
    (pictures / "test").rename(pictures / "held back")
    (pictures / "train").rename(pictures / "learn")
    named = {"train": "learn", "validation": "val", "test": "held back"}
    source = load(pictures, splits=named)
    assert {split: len(records) for split, records in source.splits.items()} == dict.fromkeys(named, 24)
    assert source.splits["test"][0].file.endswith("held back/cat/000.jpg")
    with pytest.raises(UserError, match=r"names 'best' for test but .* it has held back, learn, val"):
        load(pictures, splits={**named, "test": "best"})


def test_without_folders_of_splits_the_contents_decide(tmp_path):
    folder = tmp_path / "all"
    fill(folder, count=400)
    source = load(folder)
    sizes = {split: len(records) for split, records in source.splits.items()}
    assert sum(sizes.values()) == 800
    assert 55 < sizes["validation"] < 105
    assert 55 < sizes["test"] < 105
    for split in ("validation", "test"):
        of_class = Counter(record.label for record in source.splits[split])
        assert min(of_class.values()) > 20

    # Neither more pictures, nor other names, nor copies move a picture.
    where = {record.image: split for split, records in source.splits.items() for record in records}
    other = tmp_path / "more"
    fill(other, count=400)
    fill(other / "..", classes=("owl",), count=30, seed=9)
    (tmp_path / "owl").rename(other / "aardvark")
    for n in range(0, 400, 10):
        (other / "cat" / f"{n:03}.jpg").rename(other / "cat" / f"renamed {n}.jpg")
        (other / "cat" / f"copy {n}.jpg").write_bytes((other / "cat" / f"{n + 1:03}.jpg").read_bytes())
    again = load(other)
    found = {record.image: split for split, records in again.splits.items() for record in records}
    assert {image: found[image] for image in where} == where
    assert sum(map(len, again.splits.values())) == 870
    contents = [{record.image for record in records} for records in again.splits.values()]
    assert len(set.union(*contents)) == sum(map(len, contents))


def test_missing_splits_are_taken_from_the_others(tmp_path):
    fill(tmp_path / "train", count=100)
    fill(tmp_path / "test", seed=1)
    source = load(tmp_path)
    assert len(source.splits["test"]) == 24
    assert 8 < len(source.splits["validation"]) < 40
    assert len(source.splits["train"]) + len(source.splits["validation"]) == 200
    assert "There is no folder for validation: a tenth" in source.report

    fill(tmp_path / "second" / "train")
    fill(tmp_path / "second" / "validation", seed=1)
    source = load(tmp_path / "second")
    assert [r.file for r in source.splits["test"]] == [r.file for r in source.splits["validation"]]
    assert "the validation pictures are the test too" in source.report


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, classes=("bus", "train"), count=60)
    assert load(tmp_path).classes == ("bus", "train")


def spoil(pictures):
    """Puts next to good pictures what people have in their folders."""
    cat = pictures / "train" / "cat"
    good = jpeg(77)
    (cat / "cut.jpg").write_bytes(good[: len(good) // 2])
    (cat / "damaged.jpg").write_bytes(good[:-40] + good[-20:])
    (cat / "empty.png").touch()
    (cat / "notes.txt").write_text("a cat")
    (cat / "html.jpg").write_text("<html>404</html>")
    (cat / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (cat / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (cat / "._000.jpg").write_bytes(b"\0\5\x16\7")
    (cat / "more").mkdir()
    (cat / "more" / "000.jpg").write_bytes(good)
    (cat / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(cat / "pipe.jpg")
    (pictures / "train" / "owl").mkdir()
    (pictures / "train" / "readme.md").write_text("hello")
    (pictures / "train" / ".git").mkdir()
    (pictures / "extra").mkdir()
    (pictures / "val" / "bat").mkdir()
    (pictures / "val" / "bat" / "0.jpg").write_bytes(good)
    # These are good.
    cv2.imwrite(str(cat / "one.png"), np.full((1, 1, 3), 9, np.uint8))
    cv2.imwrite(str(cat / "deep.png"), np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 50)
    palette = Image.fromarray(decode(good, 3)).quantize(8)
    palette.save(cat / "palette.gif")
    palette.save(cat / "animated.gif", save_all=True, append_images=[palette.rotate(90), palette.rotate(180)])
    (cat / "filled.jpg").write_bytes(good[:-2] + bytes(99) + good[-2:])  # libjpeg warns, but nothing is lost
    (cat / "odd 猫\n'\"; $(x) é.jpg").write_bytes(good)
    with open(os.fsencode(cat) + b"/\xff\xfe.jpg", "wb") as file:
        file.write(good)
    (cat / "png.jpeg").write_bytes((cat / "one.png").read_bytes())
    return 8


LEFT_OUT = {
    "train/cat/cut.jpg": "the JPEG data is cut off",
    "train/cat/damaged.jpg": "the JPEG data is damaged",
    "train/cat/empty.png": "the file is empty",
    "train/cat/notes.txt": "not an image, or a damaged one",
    "train/cat/html.jpg": "not an image, or a damaged one",
    "train/cat/.DS_Store": "hidden, or the system's",
    "train/cat/Thumbs.db": "hidden, or the system's",
    "train/cat/._000.jpg": "hidden, or the system's",
    "train/cat/more": "a folder within the folder of a class; only files are read there",
    "train/cat/gone.jpg": "a link to nothing",
    "train/cat/pipe.jpg": "no regular file",
    "train/owl": "an empty folder",
    "train/readme.md": "not in the folder of a class",
    "train/.git": "hidden, or the system's",
    "extra": "not a folder of a split",
}


def test_a_bad_folder_is_reported(pictures):
    added = spoil(pictures)
    source = load(pictures)
    lines = source.report.splitlines()
    entries = dict(line[2:].split(": ", 1) for line in lines[lines.index("left out (15):") + 1 :][:15])
    assert entries == LEFT_OUT
    assert "Class 'bat' has nothing to train on: 1 pictures of validation left out." in lines
    first = f"{24 + added} train, 24 validation, 24 test images of 2 classes; 15 entries left out, 7 of them damaged"
    assert lines[0] == f"{pictures}: {first}"
    names = {record.file.rpartition("/")[2] for record in source.splits["train"]}
    assert {"one.png", "odd 猫\\n'\"; $(x) é.jpg", "\\udcff\\udcfe.jpg", "palette.gif", "filled.jpg"} <= names


@pytest.mark.slow
def test_a_bad_folder_is_trained_on(pictures, tmp_path, capfd):
    spoil(pictures)
    data = {"source": "folder", "dir": str(pictures), "image_size": 8, "augment": CROP}
    data |= {"pixel_mean": [0.5] * 3, "pixel_std": [0.2] * 3}
    config = tiny({"data": data, "epochs": 1, "batch_size": 8, "optimizer.warmup_epochs": 0.0})
    assert train(config, Classification, tmp_path / "run", command="again") == 0
    report = (tmp_path / "run" / "images.txt").read_text(encoding="utf-8")
    assert report == load_source(config).report
    assert report.splitlines()[0] in capfd.readouterr().out


def test_strict_stops_at_the_first_damaged_image(pictures):
    spoil(pictures)
    with pytest.raises(UserError, match=r"train/cat/cut.jpg: the JPEG data is cut off; .*strict_images=False"):
        load(pictures, strict_images=True)


def test_strict_minds_neither_hidden_files_nor_folders(pictures):
    (pictures / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (pictures / "train" / "cat" / "more").mkdir()
    assert len(load(pictures, strict_images=True).splits["train"]) == 24


def test_a_file_that_goes_bad_or_away_later_is_named(pictures):
    config = data_config("folder", dir=str(pictures), image_size=16, augment=CROP, batch_size=24)
    source = load_source(config)
    (pictures / "train" / "dog" / "003.jpg").write_bytes(b"\xff\xd8 no more")
    (pictures / "val" / "dog" / "004.jpg").unlink()
    with pytest.raises(UserError, match=r"train/dog/003.jpg: not an image, or a damaged one; repair or remove"):
        list(train_batches(source, config, training_rows(source, config), 0, 1))
    with pytest.raises(UserError, match=r"val/dog/004.jpg can no longer be read \(No such file"):
        list(evaluation_batches(source, "validation", config, evaluation_rows(source)))


def test_a_file_without_permission(pictures):
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    (pictures / "train" / "dog" / "003.jpg").chmod(0)
    assert "train/dog/003.jpg: cannot be read: Permission denied" in load(pictures).report


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "which is no folder"),
        (lambda path: path.mkdir(), "holds no picture for train"),
        (lambda path: fill(path, count=1), r"holds no picture for .*more pictures"),
        (lambda path: (path / "a").mkdir(parents=True) or (path / "a" / "x.jpg").touch(), "a/x.jpg: the file is empty"),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "data")


def test_the_folder_must_be_named():
    with pytest.raises(UserError, match=r"config\.data\.dir is ''"):
        load_source(data_config("folder", augment=CROP))


def test_printable():
    assert printable("é 猫") == "é 猫"
    assert printable("a\nb\udcff") == "a\\nb\\udcff"
