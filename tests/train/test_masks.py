"""Folders of pictures with masks, good and bad, and files of indices."""

import io
import os
import struct
import unicodedata
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.train.rows import data_config
from train.data import evaluation_batches, load_source, train_batches
from train.data.images import ImageError, decode
from train.data.indexed_png import read_indices
from train.data.transforms import RandomCrop, create_augmentation
from train.errors import UserError

SEGMENTATION = frozenset({"segmentation"})
FORMATS = Path(__file__).parents[3] / "shared" / "golden" / "dense" / "formats"


def picture(seed, height=30, width=40, kind=".jpg"):
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.imencode(kind, cv2.resize(small, (width, height)))[1].tobytes()


def classes_of(seed, height=30, width=40, count=3):
    """A mask of classes with an ignored strip."""
    classes = np.random.default_rng(seed).integers(0, count, (height, width)).astype(np.uint8)
    classes[:2] = 255
    return classes


def png(indices, *, palette=False, **options):
    image = Image.fromarray(indices)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def add(folder, name, seed, suffix=".jpg", **size):
    """Writes an image and its mask; every second mask has a palette."""
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "images" / f"{name}{suffix}").write_bytes(picture(seed, kind=suffix, **size))
    (folder / "masks" / f"{name}.png").write_bytes(png(classes_of(seed, **size), palette=seed % 2 == 1))


@pytest.fixture
def pictures(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        for seed in range(6):
            add(tmp_path / "data" / split, f"{seed:03}", 10 * number + seed)
    return tmp_path / "data"


def load(folder, **changes):
    return load_source(data_config("masks", dir=str(folder), **changes), SEGMENTATION)


def test_folders_of_splits(pictures):
    source = load(pictures)
    assert source.fields == SEGMENTATION
    assert source.classes == ()
    assert source.segmentation_classes == ("0", "1", "2")
    assert (source.image_shape, source.is_sized) == ((30, 40, 3), True)
    for number, (split, name) in enumerate((("train", "train"), ("validation", "val"), ("test", "test"))):
        samples = source.splits[split]
        assert len(samples) == 6
        for seed, sample in enumerate(samples):
            np.testing.assert_array_equal(sample.segmentation, classes_of(10 * number + seed))
            assert sample.segmentation.dtype == np.uint8
            assert sample.image == (pictures / name / "images" / f"{seed:03}.jpg").read_bytes()
            assert sample.file == str(pictures / name / "images" / f"{seed:03}.jpg")
    first, *others = source.report.splitlines()
    assert (
        first == f"{pictures}: 6 train, 6 validation, 6 test images of 3 classes; 0 entries left out, 0 of them damaged"
    )
    assert "  1: 6, 6, 6" in others


def test_without_folders_of_splits_a_tenth_is_kept(tmp_path):
    for seed in range(45):
        add(tmp_path / "all", f"{seed}.a", seed, suffix=".png" if seed % 3 else ".jpg")
    source = load(tmp_path / "all")
    sizes = {split: len(samples) for split, samples in source.splits.items()}
    assert sizes == {"train": 35, "validation": 5, "test": 5}
    where = {sample.image: split for split, samples in source.splits.items() for sample in samples}
    assert len(where) == 45
    for place in ("images", "masks"):
        (tmp_path / "all" / place / "7.a.png").rename(tmp_path / "all" / place / "new.png")
    # A copy with another mask goes to the picture's split.
    add(tmp_path / "all", "copy", 8, suffix=".png")
    (tmp_path / "all" / "masks" / "copy.png").write_bytes(png(classes_of(99)))
    again = load(tmp_path / "all")
    assert sum(map(len, again.splits.values())) == 46
    assert {sample.image: split for split, samples in again.splits.items() for sample in samples} == where
    assert "also in" not in again.report


def test_missing_splits_are_taken_from_the_others(tmp_path):
    for seed in range(26):
        add(tmp_path / "learn", str(seed), seed)
    source = load(tmp_path, splits={"train": "learn"})
    assert (len(source.splits["train"]), len(source.splits["validation"])) == (23, 3)
    assert source.splits["test"] == source.splits["validation"]
    assert source.fingerprints["test"] == source.fingerprints["validation"]
    assert "There is no folder for validation: a tenth" in source.report
    assert "the validation pictures are the test too" in source.report


def test_copies_in_folders_of_splits_are_noted(pictures):
    add(pictures / "test", "copy", 3)
    line = "1 picture of test is also in train, train/images/003.jpg and test/images/copy.jpg for one."
    assert line in load(pictures).report.splitlines()


def test_fingerprints_change_with_images_and_masks_alone(pictures, tmp_path):
    before = load(pictures).fingerprints
    assert len(set(before.values())) == 3
    train = pictures.rename(tmp_path / "moved") / "train"
    assert load(tmp_path / "moved", threads=5).fingerprints == before
    seen = {before["train"]}

    def assert_changed():
        found = load(tmp_path / "moved").fingerprints
        assert (found["validation"], found["test"]) == (before["validation"], before["test"])
        assert found["train"] not in seen
        seen.add(found["train"])

    (train / "masks" / "003.png").write_bytes(png(classes_of(99)))
    assert_changed()
    (train / "images" / "003.jpg").write_bytes(picture(99))
    assert_changed()
    for name in ("images/003.jpg", "masks/003.png"):
        (train / name).rename(train / name.replace("3", "9"))
    assert_changed()
    (train / "masks" / "009.png").unlink()
    assert_changed()


def test_unicode_spellings_of_image_and_mask_are_one(pictures):
    nfc, nfd = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    train = pictures / "train"
    add(train, f"one {nfc}", 50)
    (train / "masks" / f"one {nfc}.png").rename(train / "masks" / f"one {nfd}.png")
    add(train, f"two {nfd}", 51)
    (train / "masks" / f"two {nfd}.png").rename(train / "masks" / f"two {nfc}.png")
    add(train, f"both {nfc}", 52)
    add(train, f"both {nfd}", 53)
    add(train, f"half {nfc}", 54)
    add(train, f"half {nfd}", 55)
    (train / "masks" / f"half {nfd}.png").unlink()
    source = load(pictures)
    found = {Path(sample.file).stem: sample.segmentation for sample in source.splits["train"]}
    names = {f"one {nfc}": 50, f"two {nfd}": 51, f"both {nfc}": 52, f"both {nfd}": 53, f"half {nfc}": 54}
    assert found.keys() == {*names, *(f"{seed:03}" for seed in range(6))}
    for name, seed in names.items():
        np.testing.assert_array_equal(found[name], classes_of(seed))
    assert f"train/images/half {nfd}.jpg: it has no mask masks/half {nfd}.png" in source.report

    (pictures / "classes.txt").write_bytes(b"\xef\xbb\xbf" + f"sky\r\ncaf{nfd}\r\na\u2028b\r\n".encode())
    assert load(pictures).segmentation_classes == ("sky", f"caf{nfc}", "a\\u2028b")
    (pictures / "classes.txt").write_text(f"caf{nfd}\nsky\ncaf{nfc}\n")
    with pytest.raises(UserError, match=f"has the lines 'caf{nfc}' twice, but must hold"):
        load(pictures)


def test_classes_that_are_no_file_of_text(pictures):
    file = pictures / "classes.txt"
    os.mkfifo(file)
    with pytest.raises(UserError, match=r"classes\.txt cannot be read \(no regular file\)"):
        load(pictures)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"classes\.txt cannot be read \(no regular file\)"):
        load(pictures)
    file.unlink()
    file.symlink_to("nowhere.txt")
    with pytest.raises(UserError, match=r"classes\.txt cannot be read \(a link to nothing\)"):
        load(pictures)
    file.unlink()
    file.write_text("\n".join(f"\x1b[31m{'x' * 99}{n}" for n in range(50_000)))
    with pytest.raises(UserError, match="255 names") as error:
        load(pictures)
    assert len(str(error.value)) < 700
    assert str(error.value).isprintable()


def test_classes_have_the_names_of_a_file(pictures):
    (pictures / "classes.txt").write_text("sky\nhouse\n tree \ncar\n\n")
    source = load(pictures)
    assert source.segmentation_classes == ("sky", "house", "tree", "car")
    assert "No training picture shows car." in source.report
    assert "  tree: 6, 6, 6" in source.report.splitlines()
    assert "0 entries left out" in source.report


@pytest.mark.parametrize("text", ["one", "a\nb\na", "a\n\nb", "", "\n".join(map(str, range(256))), b"\xff\xfe\xfa"])
def test_names_that_do_not_do(pictures, text):
    (pictures / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"classes\.txt (has the lines .* but must hold 2 to 255 names|cannot be read)"):
        load(pictures)


def test_images_of_varying_sizes(pictures):
    add(pictures / "train", "large", 77, height=50, width=60)
    source = load(pictures)
    assert (source.image_shape, source.is_sized) == ((224, 224, 3), False)
    assert (load(pictures, image_size=32).image_shape, load(pictures, image_size=32).is_sized) == ((32, 32, 3), False)


def spoil(train):
    images, masks = train / "images", train / "masks"
    for name in ("no mask", "twice", "wide", "range", "deep", "colours", "alpha", "cut", "empty", "text", "broken"):
        add(train, name, 99)
    (masks / "no mask.png").unlink()
    (images / "twice.png").write_bytes(picture(3, kind=".png"))
    (masks / "wide.png").write_bytes(png(classes_of(0, 40, 30)))
    (masks / "range.png").write_bytes(png(classes_of(0, count=9)))
    (masks / "deep.png").write_bytes(png(np.zeros((30, 40), np.uint16)))
    (masks / "colours.png").write_bytes(png(np.zeros((30, 40, 3), np.uint8)))
    (masks / "alpha.png").write_bytes(png(np.zeros((30, 40, 4), np.uint8)))
    (masks / "cut.png").write_bytes((masks / "cut.png").read_bytes()[:-40])
    (masks / "empty.png").write_bytes(b"")
    (masks / "text.png").write_bytes(b"a mask")
    (images / "broken.jpg").write_bytes(picture(0)[:-20])
    (masks / "no image.png").write_bytes(png(classes_of(0)))
    (masks / "003.jpg").write_bytes(picture(0))
    (masks / "more").mkdir()
    (images / ".DS_Store").write_bytes(b"x")
    (train / "notes.txt").write_text("hello")
    (images / "gone.jpg").symlink_to("nowhere.jpg")
    (masks / "gone.png").write_bytes(png(classes_of(0)))
    (train.parent / "extra").mkdir()


LEFT_OUT = {
    "train/images/no mask.jpg": "it has no mask masks/no mask.png",
    "train/images/twice.png": "masks/twice.png is the mask of twice.jpg",
    "train/masks/wide.png": "it has 40 x 30 pixels, but its image has 30 x 40",
    "train/masks/range.png": "it has pixels of the class 8, but classes.txt names the classes 0 to 2",
    "train/masks/deep.png": "its pixels have 16 bits, but the numbers of classes must have at most 8",
    "train/masks/colours.png": (
        "its pixels are red, green and blue, but must be the numbers of classes: a palette or grey PNG"
    ),
    "train/masks/alpha.png": (
        "its pixels are colours with transparency, but must be the numbers of classes: a palette or grey PNG"
    ),
    "train/masks/cut.png": "the PNG data is cut off or damaged",
    "train/masks/empty.png": "the file is empty",
    "train/masks/text.png": "not a PNG file, which masks must be",
    "train/images/broken.jpg": "the JPEG data is cut off",
    "train/masks/no image.png": "it has no image",
    "train/masks/003.jpg": "not a PNG file by its name, <name>.png",
    "train/masks/more": "a folder where files should be; only files are read there",
    "train/images/.DS_Store": "hidden, or the system's",
    "train/notes.txt": "neither images nor masks",
    "train/images/gone.jpg": "a link to nothing",
    "extra": "not a folder of a split",
}


def test_every_fault_is_named(pictures):
    (pictures / "classes.txt").write_text("sky\nhouse\ntree\n")
    spoil(pictures / "train")
    source = load(pictures)
    lines = source.report.splitlines()
    assert lines[0].endswith(
        "7 train, 6 validation, 6 test images of 3 classes; 18 entries left out, 14 of them damaged"
    )
    start = lines.index("left out (18):") + 1
    assert dict(line[2:].split(": ", 1) for line in lines[start : start + 18]) == LEFT_OUT
    assert {Path(sample.file).name for sample in source.splits["train"]} == {
        *(f"{n:03}.jpg" for n in range(6)),
        "twice.jpg",
    }


def test_strict_stops_at_a_fault(pictures):
    (pictures / "train" / "masks" / "003.png").write_bytes(png(np.zeros((4, 4), np.uint8)))
    with pytest.raises(UserError, match=r"train/masks/003.png: it has 4 x 4 pixels, .*data\.strict_images=False"):
        load(pictures, strict_images=True)


def test_masks_of_0_and_255_are_no_two_classes(tmp_path):
    for seed in range(80):
        add(tmp_path, str(seed), seed)
        mask = np.where(classes_of(seed) == 1, np.uint8(255), np.uint8(0))
        (tmp_path / "masks" / f"{seed}.png").write_bytes(png(mask))
    with pytest.raises(UserError, match=r"no class but 0, and at least two .* as 0, 1, .*\(255 marks pixels"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "which is no folder"),
        (lambda path: path.mkdir(), "holds no picture with a mask for train .*images/<name>.* and masks/<name>.png"),
        (lambda path: add(path, "0", 0), "holds no picture with a mask for"),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "data")


def test_the_folder_must_be_named_and_has_no_labels(pictures):
    with pytest.raises(UserError, match=r"config\.data\.dir is '' but config\.data\.source='masks'"):
        load_source(data_config("masks"), SEGMENTATION)
    with pytest.raises(UserError, match="'masks', which has no label; it has segmentation; choose"):
        load_source(data_config("masks", dir=str(pictures)))


def test_a_file_that_goes_bad_or_away_later_is_named(pictures):
    source = load(pictures)
    (pictures / "train" / "masks" / "003.png").write_bytes(b"no more")
    (pictures / "train" / "images" / "004.jpg").unlink()
    with pytest.raises(UserError, match=r"train/masks/003.png: not a PNG file, which masks must be; repair or"):
        source.splits["train"][3]
    with pytest.raises(UserError, match=r"train/images/004.jpg can no longer be read"):
        source.splits["train"][4]


def test_batches_are_the_same_for_any_number_of_processes(pictures):
    config = data_config("masks", dir=str(pictures), augment={"random_scale": {}, "flip": {}}, batch_size=4)
    source = load_source(config, SEGMENTATION)
    augment, crop = create_augmentation(config.data.augment, source), RandomCrop(20, 24, source.mean)

    def row(sample, rng):
        moved = crop(augment(sample, rng), rng)
        return {"image": moved.pixels, "segmentation": moved.segmentation}

    def centre(sample, rng):
        moved = crop.centred(sample.decoded(3))
        return {"image": moved.pixels, "segmentation": moved.segmentation}

    whole = list(train_batches(source, config, row, 0, 4))
    halves = [list(train_batches(source, config, row, 2, 4, process_index=i, process_count=2)) for i in (0, 1)]
    for batch, first, second in zip(whole[2:], *halves, strict=True):
        for key, shape in (("image", (4, 20, 24, 3)), ("segmentation", (4, 20, 24))):
            assert batch[key].shape == shape
            np.testing.assert_array_equal(batch[key], np.concatenate([first[key], second[key]]))
    batches = list(evaluation_batches(source, "test", config, centre))
    assert [batch["weight"].tolist() for batch in batches] == [[1, 1, 1, 1], [1, 1, 0, 0]]
    np.testing.assert_array_equal(batches[0]["segmentation"][0], classes_of(20)[5:25, 8:32])
    np.testing.assert_array_equal(batches[0]["image"][0], decode(source.splits["test"][0].image, 3)[5:25, 8:32])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["grey", "palette"])
def test_indices_of_all_depths(bits, kind):
    indices = np.random.default_rng(0).integers(0, 2**bits, (7, 13)).astype(np.uint8)
    rows = np.unpackbits(indices[..., None], axis=-1)[..., 8 - bits :].reshape(7, -1)
    packed = np.packbits(rows, axis=1)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 13, 7, bits, 0 if kind == "grey" else 3, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(256))[: 3 * 2 ** min(bits, 6)]) if kind == "palette" else b""
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(read_indices(file), indices)


def test_transparency_does_not_change_indices():
    indices = classes_of(0)
    np.testing.assert_array_equal(read_indices(png(indices, palette=True, transparency=1)), indices)
    np.testing.assert_array_equal(read_indices(png(indices, transparency=1)), indices)


@pytest.mark.skipif(not FORMATS.is_dir(), reason="the recorded files stand in ../shared/golden")
def test_the_indices_of_pascal_voc():
    expected = np.load(FORMATS / "expected.npz")["voc_label"]
    np.testing.assert_array_equal(read_indices((FORMATS / "voc_SegmentationClass.png").read_bytes()), expected)


def test_damage_is_noticed_wherever_it_is():
    data = png(classes_of(1, 64, 64), palette=True)
    for share in (0.1, 0.5, 0.9, 0.99):
        with pytest.raises(ImageError, match=r"damaged|not a PNG"):
            read_indices(data[: int(len(data) * share)])
    rng = np.random.default_rng(0)
    for place in rng.integers(40, len(data) - 20, 60):
        spoilt = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        with pytest.raises(ImageError, match="the PNG data is cut off or damaged"):
            read_indices(spoilt)


def test_a_mask_of_too_many_pixels_is_refused_before_memory_is_spent():
    data = png(classes_of(0))
    huge = data[:16] + struct.pack(">II", 60_000, 60_000) + data[24:]
    with pytest.raises(ImageError, match="too many pixels, at most 67,108,864"):
        read_indices(huge)
    with pytest.raises(ImageError, match="not a PNG file"):
        read_indices(picture(0))
