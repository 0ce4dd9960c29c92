"""The memory for a picture is bounded by the size of its file."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.fuzz.driver import Fuzzer, failures
from tests.fuzz.faulty import FUZZER as FAULTY
from tests.train.helpers import run_python
from tests.train.rows import data_config
from train.data import load_source
from train.data.images import ImageError, decode
from train.data.indexed_png import read_indices
from train.data.resizing import resize, resize_shorter
from train.data.sample import Sample
from train.data.transforms.segmentation import RandomScale
from train.errors import UserError
from train.page import encode_png, enlarged, thumbnail

HUGE = 8192  # pixels a side, the maximum


def chunk(name, content, length=None):
    size = struct.pack(">I", len(content) if length is None else length)
    return size + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, bits, kind, data, *more, length=None):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", data, length) + chunk(b"IEND", b"")


def bmp(width, height, bits, compression=0, data=b""):
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + header + data


def tiff(width, height, bits=8, channels=1, compression=1, **more):
    """A TIFF file with one strip of 256 bytes; `more` sets tags, as t322=... ."""
    tags = {
        256: width,
        257: height,
        258: bits,
        259: compression,
        262: 1,
        273: 400,
        277: channels,
        278: height,
        279: 256,
    }
    tags |= {int(name[1:]): value for name, value in more.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries).ljust(400, b"\0") + bytes(256)


def gif(width, height, data):
    header = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0, 0, 0) + bytes(6)
    return header + b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02" + data + b"\x3b"


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(width, height):
    data = saved(Image.new("RGB", (80, 60)), "JPEG")
    return data.replace(b"\0\x3c\0\x50", struct.pack(">HH", height, width))


PIXELS = zlib.compress(bytes(8 * 9))
ASKING = {
    "a chunk": (png(8, 8, 8, 0, PIXELS, length=0x7FFFFFFF), "cut off or damaged"),
    "a chunk of text": (png(8, 8, 8, 0, PIXELS, chunk(b"zTXt", b"a", 2**31)), "cut off or damaged"),
    "a PNG": (png(HUGE, HUGE, 16, 6, PIXELS), "bytes cannot hold its 8192 x 8192 pixels"),
    "a PNG of bits": (png(HUGE, HUGE, 1, 0, PIXELS), "cannot hold"),
    "a mask": (png(HUGE, HUGE, 8, 3, PIXELS, chunk(b"PLTE", bytes(6))), "cannot hold"),
    "a GIF": (gif(HUGE, HUGE, b"\x01\x44\x00"), "cannot hold"),
    "a BMP": (bmp(HUGE, -HUGE, 24), "cannot hold"),
    "a small BMP": (bmp(100, 100, 32), "cannot hold"),
    "a packed BMP": (bmp(HUGE, HUGE, 8, 1), "cannot hold"),
    "a TIFF": (tiff(HUGE, HUGE), "cannot hold"),
    "a packed TIFF": (tiff(HUGE, HUGE, compression=8), "cannot hold"),
    "a TIFF of many channels": (tiff(64, 64, channels=60_000), "60000 channels of 8 bits"),
    "a TIFF of long numbers": (tiff(64, 64, bits=64), "1 channels of 64 bits"),
    "a TIFF of huge tiles": (tiff(64, 64, t322=2**15, t323=2**15), "not an image|too many pixels"),
    "a TIFF of another compression": (tiff(64, 64, compression=50_000), "way in which it is compressed"),
    "a JPEG": (jpeg(HUGE, HUGE), "cannot hold"),
    "too many pixels": (png(2**16, 2**16, 8, 0, PIXELS), "too many pixels, at most 67,108,864"),
    "no pixels": (png(0, 8, 8, 0, PIXELS), "not an image"),
    "another format": (b"P6 8 8 255 " + bytes(192), "its format is not read; convert it to JPEG"),
    "a film": (b"\0\0\0\x20ftypisom" + bytes(100), "its format is not read; convert it"),
    "a text": (b"hello", "not an image, or a damaged one"),
}


@pytest.mark.parametrize("name", ASKING)
def test_files_that_ask_for_more_than_they_hold(name):
    data, message = ASKING[name]
    with pytest.raises(ImageError, match=message):
        decode(data, 3)
    with pytest.raises(ImageError):
        read_indices(data)


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from train.data.images import ImageError, decode
from train.data.indexed_png import read_indices
from train.data.resizing import resize_shorter

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024

before, folder = peak(), Path(sys.argv[1])
for path in folder.glob("asking*"):
    data = path.read_bytes()
    for read in (lambda: decode(data, 3), lambda: decode(data, 1, 8, strict=True), lambda: read_indices(data)):
        try:
            read()
        except ImageError:
            pass
print(peak() - before)
resize_shorter(np.zeros((2, 4000, 3), np.uint8), 256)
print(peak() - before)
decode((folder / "large").read_bytes(), 3)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak of memory is Linux's")
def test_memory_of_files_that_ask_for_much(tmp_path):
    for number, (data, _) in enumerate(ASKING.values()):
        (tmp_path / f"asking{number}").write_bytes(data)
    (tmp_path / "large").write_bytes(png(HUGE, HUGE, 8, 2, zlib.compress(bytes(HUGE * (3 * HUGE + 1)), 1)))
    done = run_python("-c", MEASURED, str(tmp_path))
    assert done.returncode == 0, done.stderr
    asking, strip, largest = map(int, done.stdout.split())
    assert asking < 60  # MiB
    assert strip < 200
    assert largest < 1024


def test_scans_that_take_hours_are_refused():
    """Every scan of a progressive JPEG processes all of its pixels."""
    data = saved(Image.new("L", (4096, 4096)), "JPEG", progressive=True)
    scan = data.rfind(b"\xff\xda")
    many = data[:scan] + data[scan:-2] * 200 + data[-2:]
    with pytest.raises(ImageError, match="too many scans"):
        decode(many, 3)


def test_what_is_read_of_every_format_is_what_it_was():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    for kind, options in (
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ):
        expected = np.asarray(Image.open(io.BytesIO(saved(image, kind, **options))).convert("RGB"))
        np.testing.assert_array_equal(decode(saved(image, kind, **options), 3), expected)


def shorter_by_whole(image, side):
    """`resize_shorter` without its limit."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    return resize(image, max(side, round(height * side / shorter)), max(side, round(width * side / shorter)))


@pytest.mark.parametrize("shape", [(300, 200, 3), (40, 40, 1), (1, 400, 3), (3, 700, 3)])
def test_ordinary_pictures_are_resized_as_before(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(resize_shorter(image, 64), shorter_by_whole(image, 64))


@pytest.mark.parametrize("shape", [(2, 4000, 3), (2, 4001, 3), (4000, 2, 1)])
def test_the_middle_of_long_strips_is_that_of_the_whole(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    part, whole = resize_shorter(image, 132), shorter_by_whole(image, 132)
    assert part.size <= 2**25 * shape[2] < whole.size

    def centre(pixels):
        first = [round((side - 132) / 2) for side in pixels.shape[:2]]
        return pixels[first[0] : first[0] + 132, first[1] : first[1] + 132]

    np.testing.assert_array_equal(centre(part), centre(whole))


@pytest.mark.parametrize("shape", [(1, 9000, 3), (9000, 1, 1), (1, 2**20, 3), (20_000, 30, 3)])
def test_pictures_of_the_report_may_have_any_proportions(shape):
    image = np.zeros(shape, np.uint8)
    for data in (encode_png(enlarged(image, 128)), thumbnail(image)):
        assert max(Image.open(io.BytesIO(data)).size) <= 2**14


def test_large_images_are_not_enlarged_without_bound():
    image = np.zeros((6000, 6000, 1), np.uint8)
    scaled = RandomScale(3.0, 3.0)(Sample(image=image), np.random.default_rng(0))
    assert scaled.pixels.shape == image.shape
    small = RandomScale(3.0, 3.0)(Sample(image=image[:100, :50]), np.random.default_rng(0))
    assert small.pixels.shape == (300, 150, 1)


def test_a_segmentation_of_another_size_than_its_image_is_refused():
    sample = Sample(image=saved(Image.new("RGB", (8, 6)), "PNG"), segmentation=np.zeros((8, 6), np.uint8))
    with pytest.raises(ImageError, match=r"its segmentation has \(8, 6\) pixels, but the image has \(6, 8\)"):
        sample.decoded(3)


def test_a_film_in_the_folder_of_a_class_is_left_out_unread(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "a.png")
    with (tmp_path / "train" / "cat" / "video.mp4").open("wb") as file:
        file.truncate(3 * 2**30)
    source = load_source(data_config("folder", dir=str(tmp_path)))
    assert "train/cat/video.mp4: it has 3,221,225,472 bytes, and at most 268,435,456 are read" in source.report


def test_a_long_list_of_classes_is_refused_quickly(tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(10**5))))
    with pytest.raises(UserError, match=r"classes.txt has the lines '0', '1', '2', '3' ..., but must hold 2 to 255"):
        load_source(data_config("masks", dir=str(tmp_path)))
    with (tmp_path / "classes.txt").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(UserError, match=r"8,589,934,592 bytes, and at most 8,388,608 are read"):
        load_source(data_config("masks", dir=str(tmp_path)))


def test_damaged_pictures():
    from tests.fuzz.pictures import FUZZER, SEEDS

    for data in SEEDS:
        FUZZER.check(data)
    assert failures(FUZZER, 150) == []


def test_damaged_descriptions():
    from tests.fuzz.features import FUZZER

    assert failures(FUZZER, 80) == []


def test_what_fails_is_noticed():
    def check(data):
        raise KeyError("lost")

    fuzzer = Fuzzer("none", lambda rng: rng.bytes(3), check, (ValueError,))
    assert failures(fuzzer, 2) == ["none 0: KeyError: 'lost'", "none 1: KeyError: 'lost'"]
    assert failures(fuzzer._replace(allowed=(LookupError,)), 2) == []


@pytest.mark.slow
def test_the_driver_notices_every_fault(tmp_path):
    done = run_python("-m", "tests.fuzz.faulty", "--count=12", f"--out={tmp_path}")
    assert done.returncode == 1
    *lines, last = done.stdout.splitlines()
    kinds = {path.read_bytes().decode() for path in tmp_path.iterdir()}
    assert kinds == set("cehm")
    for number in range(12):
        letter = FAULTY.input(0, number)
        found = [line for line in lines if f"faulty-0-{number}.bin" in line]
        message = {b"c": "status -6", b"e": "KeyError: 'lost'", b"h": "hangs: more than 5 s", b"m": "takes 1,"}.get(
            letter
        )
        assert bool(found) == bool(message)
        assert not message or message in found[0]
    assert last.startswith("faulty: 12 inputs, ")
