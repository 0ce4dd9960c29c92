"""Folders of pictures, good and bad."""

import contextlib
import os
import shutil
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.train.helpers import tiny
from tests.train.rows import data_config, evaluation_rows, training_rows
from train.data import evaluation_batches, load_source, train_batches
from train.data.images import decode
from train.data.readers.division import divide, number_contents
from train.data.readers.files import printable_name
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
    first, *others = source.report.splitlines()
    assert (
        first
        == f"{pictures}: 24 train, 24 validation, 24 test images of 2 classes; 0 entries left out, 0 of them damaged"
    )
    assert "  dog: 12, 12, 12" in others


def test_the_config_names_the_splits(pictures):
    (pictures / "test").rename(pictures / "held back")
    (pictures / "train").rename(pictures / "learn")
    named = {"train": "learn", "validation": "val", "test": "held back"}
    source = load(pictures, splits=named)
    assert {split: len(records) for split, records in source.splits.items()} == dict.fromkeys(named, 24)
    assert source.splits["test"][0].file.endswith("held back/cat/000.jpg")
    with pytest.raises(UserError, match=r"names 'best' for test but .* it has held back, learn, val"):
        load(pictures, splits={**named, "test": "best"})


def counts_of(source):
    """The number of pictures of each class by split."""
    return {
        split: [Counter(sample.label for sample in samples)[label] for label in range(len(source.classes))]
        for split, samples in source.splits.items()
    }


def test_without_folders_of_splits_each_class_gives_a_tenth(tmp_path):
    folder = tmp_path / "all"
    sizes = [1, 2, 3, 4, 14, 15, 24, 25, 50]
    for number, size in enumerate(sizes):
        fill(folder, classes=(f"class {number}",), count=size, seed=number)
    source = load(folder)
    tenths = [0, 0, 1, 1, 1, 2, 2, 3, 5]
    counts = counts_of(source)
    assert counts["test"] == counts["validation"] == tenths
    assert counts["train"] == [size - 2 * tenth for size, tenth in zip(sizes, tenths, strict=True)]
    assert counts["train"][-1] == 40

    # New names, more classes and copies do not move a picture to another split.
    where = {record.image: split for split, records in source.splits.items() for record in records}
    other = tmp_path / "more"
    shutil.copytree(folder, other)
    fill(other, classes=("aardvark",), count=30, seed=99)
    for n in range(0, 50, 10):
        file = other / "class 8" / f"{n:03}.jpg"
        (other / "class 8" / f"copy {n}.jpg").write_bytes((other / "class 8" / f"{n + 1:03}.jpg").read_bytes())
        file.rename(other / "class 8" / f"renamed {n}.jpg")
    again = load(other)
    found = {record.image: split for split, records in again.splits.items() for record in records}
    assert {image: found[image] for image in where} == where
    assert sum(map(len, again.splits.values())) == sum(sizes) + 30 + 5
    contents = [{record.image for record in records} for records in again.splits.values()]
    assert len(set.union(*contents)) == sum(map(len, contents))
    assert "also in" not in again.report

    # A new picture of a class moves at most two others.
    fill(tmp_path / "one", classes=("class 8",), count=1, seed=77)
    shutil.copy(tmp_path / "one" / "class 8" / "000.jpg", folder / "class 8" / "new.jpg")
    again = load(folder.rename(tmp_path / "again"))
    found = {record.image: split for split, records in again.splits.items() for record in records}
    assert sum(found[image] != split for image, split in where.items()) <= 2


def test_shares_by_their_definition():
    """Checks shares and moved pictures for random contents and many class sizes."""
    rng = np.random.default_rng(0)

    def drawn(values):
        contents = number_contents(b"".join(int(value).to_bytes(16, "big") for value in values))
        chosen = divide(contents, np.zeros(len(values), int), [None] * len(values), [])
        return dict(zip(values.tolist(), chosen, strict=True))

    for size in (1, 2, 3, 4, 5, 9, 14, 15, 16, 24, 25, 33, 44, 45, 99, 100, 104, 105):
        values = rng.permutation(10**6)[: size + 1]
        before, after = drawn(values[:-1]), drawn(values)
        tenth = 0 if size < 3 else max(1, int(size / 10 + 0.5))
        ordered = sorted(before)
        assert [value for value in ordered if before[value] == "test"] == ordered[:tenth]
        assert [value for value in ordered if before[value] == "validation"] == ordered[size - tenth :]
        moved = [{before[value], after[value]} for value in before if before[value] != after[value]]
        assert len(moved) <= 2
        assert all("train" in pair for pair in moved)


def test_copies_in_several_classes_stand_in_one_split(tmp_path):
    fill(tmp_path / "two", count=40)
    for n in range(0, 40, 2):
        shutil.copy(tmp_path / "two" / "cat" / f"{n:03}.jpg", tmp_path / "two" / "dog" / f"cat {n}.jpg")
    source = load(tmp_path / "two")
    contents = [{record.image for record in records} for records in source.splits.values()]
    assert len(set.union(*contents)) == sum(map(len, contents)) == 80
    assert counts_of(source)["test"] == counts_of(source)["validation"] == [4, 6]
    assert "20 pictures are in several classes, cat/000.jpg and dog/cat 0.jpg for one." in source.report.splitlines()

    # A class with only copies of the other class still gets its tenth.
    shutil.rmtree(tmp_path / "two" / "dog")
    (tmp_path / "two").rename(tmp_path / "same")
    shutil.copytree(tmp_path / "same" / "cat", tmp_path / "same" / "dog")
    assert counts_of(load(tmp_path / "same")) == {"train": [32, 32], "validation": [4, 4], "test": [4, 4]}


def test_missing_splits_are_taken_from_the_others(tmp_path):
    fill(tmp_path / "train", classes=("cat",), count=50)
    fill(tmp_path / "train", classes=("dog",), count=24)
    fill(tmp_path / "test", seed=1)
    source = load(tmp_path)
    assert counts_of(source) == {"train": [45, 22], "validation": [5, 2], "test": [12, 12]}
    assert "There is no folder for validation: a tenth" in source.report

    fill(tmp_path / "second" / "train")
    fill(tmp_path / "second" / "validation", seed=1)
    source = load(tmp_path / "second")
    assert [r.file for r in source.splits["test"]] == [r.file for r in source.splits["validation"]]
    assert source.fingerprints["test"] == source.fingerprints["validation"] != source.fingerprints["train"]
    assert "the validation pictures are the test too" in source.report
    assert "also in" not in source.report


def test_copies_in_folders_of_splits_are_noted(pictures):
    for n in range(3):
        shutil.copy(pictures / "train" / "cat" / f"00{n}.jpg", pictures / "test" / "cat" / f"copy {n}\n.jpg")
    shutil.copy(pictures / "train" / "cat" / "005.jpg", pictures / "val" / "dog" / "005.jpg")
    lines = load(pictures).report.splitlines()
    assert "3 pictures of test are also in train, train/cat/000.jpg and test/cat/copy 0\\n.jpg for one." in lines
    assert "1 picture of validation is also in train, train/cat/005.jpg and val/dog/005.jpg for one." in lines
    assert "1 picture is in several classes, train/cat/005.jpg and val/dog/005.jpg for one." in lines


def test_unicode_spellings_of_a_class_are_one(tmp_path):
    nfc = unicodedata.normalize("NFC", "café")
    nfd = unicodedata.normalize("NFD", "café")
    fill(tmp_path / "one" / "train", classes=(nfc, nfd, "tea"))
    fill(tmp_path / "one" / "val", classes=(nfd, "tea"), seed=1)
    fill(tmp_path / "one" / "test", classes=(nfc, "tea"), seed=2)
    source = load(tmp_path / "one")
    assert source.classes == (nfc, "tea")
    assert counts_of(source) == {"train": [24, 12], "validation": [12, 12], "test": [12, 12]}
    names = [Path(sample.file).parent.name for sample in source.splits["train"]]
    assert names == 12 * [nfd] + 12 * [nfc] + 12 * ["tea"]  # spelled as on the disk
    assert all(isinstance(sample.image, bytes) for sample in source.splits["train"])

    fill(tmp_path / "two", classes=(nfc, "tea"), count=9)
    fill(tmp_path / "two", classes=(nfd,), count=11, seed=1)
    assert counts_of(load(tmp_path / "two"))["test"] == [2, 1]

    (tmp_path / "one" / "train").rename(tmp_path / "one" / nfd)
    assert load(tmp_path / "one", splits={"train": nfc}).classes == (nfc, "tea")


def test_names_that_look_alike_stay_different_classes(tmp_path):
    names = ["a\nb", r"a\nb", r"a\\nb", "a b", "a b ", " a b", r"a b\x20", "A B", "a\u200bb", r"a\b", "a\\", "a" * 255]
    fill(tmp_path, classes=names, count=3)
    source = load(tmp_path)
    shown = [printable_name(name) for name in sorted(names)]
    assert list(source.classes) == shown
    assert len(set(shown)) == len(names)
    assert {r"a\nb", r"a\\nb", r"a b\x20", r"\x20a b", r"a\b", r"a\u200bb"} <= set(shown)
    assert all(name.isprintable() and name == name.strip() for name in shown)
    assert [line for line in source.report.splitlines() if line.endswith(": 1, 1, 1")] == [
        f"  {name}: 1, 1, 1" for name in shown
    ]


def test_fingerprints_change_with_the_pictures_alone(pictures, tmp_path):
    before = load(pictures).fingerprints
    assert len(set(before.values())) == 3
    assert all(len(value) == 32 for value in before.values())
    train = pictures.rename(tmp_path / "moved") / "train"
    assert load(tmp_path / "moved", threads=5).fingerprints == before
    seen = {before["train"]}

    def assert_changed():
        found = load(tmp_path / "moved").fingerprints
        assert (found["validation"], found["test"]) == (before["validation"], before["test"])
        assert found["train"] not in seen
        seen.add(found["train"])

    file = (train / "dog" / "003.jpg").rename(train / "dog" / "003 b.jpg")
    assert_changed()
    data = bytearray(file.read_bytes())
    times = file.stat()
    data[15] ^= 2  # the density of its dots; size and time stay
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert_changed()
    file.unlink()
    assert_changed()
    (train / "dog" / "099.jpg").write_bytes(jpeg(99))
    assert_changed()
    (train / "dog" / "099.jpg").rename(train / "cat" / "099.jpg")
    assert_changed()
    (train / "dog").rename(train / "hound")
    fill(train, classes=("dog",), count=1, seed=5)  # otherwise validation and test have unknown classes
    assert_changed()


def test_the_current_folder(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    source = load(".")
    assert source.splits["train"][12].image == (pictures / "train" / "dog" / "000.jpg").read_bytes()
    monkeypatch.chdir(pictures / "train")
    splits = {"train": ".", "validation": "../val/", "test": str(pictures / "test")}
    source = load("./", splits=splits)
    assert source.splits["validation"][12].image == (pictures / "val" / "dog" / "000.jpg").read_bytes()
    assert source.splits["test"][12].image == (pictures / "test" / "dog" / "000.jpg").read_bytes()


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, classes=("bus", "train"), count=60)
    assert load(tmp_path).classes == ("bus", "train")


def spoil(pictures):
    """Adds typical bad files and folders to good pictures."""
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
    # Good files.
    cv2.imwrite(str(cat / "one.png"), np.full((1, 1, 3), 9, np.uint8))
    cv2.imwrite(str(cat / "deep.png"), np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 50)
    palette = Image.fromarray(decode(good, 3)).quantize(8)
    palette.save(cat / "palette.gif")
    palette.save(cat / "animated.gif", save_all=True, append_images=[palette.rotate(90), palette.rotate(180)])
    (cat / "filled.jpg").write_bytes(good[:-2] + bytes(99) + good[-2:])  # libjpeg warns, but no pixel is lost
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


@contextlib.contextmanager
def as_nobody():
    """Drops the superuser's rights, which include reading everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that every user can open, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_what_cannot_be_read_is_named(open_folder):
    for split, seed in (("train", 0), ("val", 1), ("test", 2)):
        fill(open_folder / "data" / split, classes=("cat", "dog", "owl", "pig"), count=4, seed=seed)
    train = open_folder / "data" / "train"
    (train / "dog" / "003.jpg").chmod(0)
    (train / "owl").chmod(0)
    (train / "pig").chmod(0o444)  # its files can be listed, but not read
    with as_nobody():
        source = load(open_folder / "data")
    assert source.classes == ("cat", "dog")
    assert "  train/dog/003.jpg: cannot be read: Permission denied" in source.report.splitlines()
    assert "  train/owl: cannot be listed: Permission denied" in source.report.splitlines()
    assert "  train/pig/000.jpg: cannot be read: Permission denied" in source.report.splitlines()
    for folder, mode, message in (
        (train / "..", 0o444, r"holds no picture for train .*cannot be read: Permission denied"),
        (train, 0, r"train cannot be listed: Permission denied; the folder of the data must be readable"),
        (train / "..", 0, r"data cannot be listed: Permission denied; the folder of the data must be readable"),
        (open_folder, 0, r"config\.data\.dir is '.*', which cannot be read: Permission denied"),
    ):
        folder.chmod(mode)
        with as_nobody(), pytest.raises(UserError, match=message):
            load(open_folder / "data")
        folder.chmod(0o755)


def test_links_and_devices(tmp_path):
    fill(tmp_path / "data", count=4)
    fill(tmp_path, classes=("elsewhere",), count=4, seed=1)
    data = tmp_path / "data"
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "self").symlink_to(".")
    (data / "circle").symlink_to("circle")
    (data / "cat" / "up.jpg").symlink_to("..")
    (data / "cat" / "circle.jpg").symlink_to("circle.jpg")
    (data / "cat" / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(data / "pipe")
    source = load(data)
    assert source.classes == ("cat", "dog", "linked")
    entries = [line for line in source.report.splitlines() if line.startswith("  ") and ", " not in line]
    assert [entry for entry in entries if not entry.startswith("  self/")] == [
        "  cat/circle.jpg: a link to nothing",
        "  cat/up.jpg: a folder within the folder of a class; only files are read there",
        "  cat/zero.jpg: no regular file",
        "  circle: cannot be read: Too many levels of symbolic links",
        "  pipe: not in the folder of a class",
    ]


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


def test_escaped():
    assert printable_name("é 猫") == "é 猫"
    assert printable_name("a\nb\udcff") == "a\\nb\\udcff"
    rng = np.random.default_rng(0)
    names = {"".join(rng.choice(list("\\ nx\n20"), rng.integers(1, 6))) for _ in range(3000)}
    assert len({printable_name(name) for name in names}) == len(names)


def test_a_path_that_is_too_long():
    with pytest.raises(
        UserError, match=r"^config\.data\.dir is 'a{300}\.\.\.', which cannot be read: File name too long"
    ):
        load("a" * 5000)
