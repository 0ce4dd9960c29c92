"""Fuzzes folders of images: names, kinds of files, lists of classes, and pairs of image and mask."""

import io
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.driver import Fuzzer, main, mutated
from tests.train.rows import data_config
from train.data import load_source
from train.data.record import compare, make_record, read_record, write_record
from train.errors import UserError

# An input is a byte for the source, a byte for its settings, and the files. A file is its kind, the lengths of its path
# and its content, the path and the content.
_HEAD = struct.Struct("<BHH")
_FILE, _FOLDER, _LINK, _PIPE = range(4)
_SOURCES = (("folder", frozenset({"label"})), ("masks", frozenset({"segmentation"})))
_SETTINGS: tuple[dict[str, Any], ...] = (
    *({},) * 6,
    {"strict_images": True},
    {"image_size": 16},
    {"splits": {"train": "train", "test": "val"}},
    {"splits": {"train": "caf\u00e9", "validation": "."}},
)
# Targets of links; no other part of an input selects a path outside its folder.
_TARGETS = (b"nothing", b".", b"..", b"train", b"a", b"../a", b"0.png", b"1.jpg", b"/dev/zero", b"/proc/self/status")
_NAMES = (
    *(b"train", b"val", b"validation", b"test", b"images", b"masks", b"classes.txt", b"a", b"b", b"A", b" a "),
    *(b"0.png", b"0.jpg", b"0", b".png", b"0.PNG", b"0.png.png", b"..0", b".hidden", b"Thumbs.db", b"\\", b"-", b"~"),
    *("café".encode(), "cafe\u0301".encode(), "\u212b.png".encode(), "\u00c5.png".encode(), "\u202e.png".encode()),
    *(b"\x1b[2J\n", b"a\\n", b"a\n", b"\xff\xfe", b"\xed\xa0\x80", b"<b>&amp;", b"{0.__class__}", b"%s"),
    *(b"n" * 255, "\u0301".encode() * 127, b"n" * 251 + b".png", b"*", b"[a]", b"?", b"$HOME", b"a:b", b"gs:"),
)
_TEXTS = (
    *(b"", b"sky\nroad\n", b"sky\r\nroad\r\n", b"sky\nsky\n", b"sky\n\nroad", b"\xef\xbb\xbfsky\nroad", b"\xff\xfe"),
    *(b"sky\n" + b"r" * 10_000, b"a\nb\x1b[2J\n", b"\n" * 300, "é\ne\u0301\n".encode(), b"a\x00\nb", b"a\x0bb\x0cc\n"),
    *("a\u2028b\n\u202ec\n".encode(), b"\n".join(b"%d" % number for number in range(255)), b"a\\nb\na\nb"),
)


def _picture(kind: str, pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


_RNG = np.random.default_rng(0)
_IMAGES = [
    _picture(kind, _RNG.integers(0, 256, (6, 8, 3), np.uint8)) for kind in ("PNG", "JPEG", "GIF", "BMP") for _ in "12"
]
MASKS = [_picture("PNG", _RNG.integers(0, 2, (6, 8), np.uint8)) for _ in range(4)]
MASKS += [_picture("PNG", np.full(shape, 255, np.uint8)) for shape in ((6, 8), (1, 1))]
MASKS += [_picture("PNG", _RNG.integers(0, 256, (6, 8), np.uint8))]

Entry = tuple[int, bytes, bytes]  # kind, path and content


def _tree(source: int, rng: np.random.Generator) -> list[Entry]:
    """A valid folder in one of the supported layouts."""
    splits = ((b"",), (b"train/", b"val/", b"test/"), (b"train/", b"val/"), (b"train/",))[rng.integers(4)]
    found: list[Entry] = []
    for split in splits:
        images = rng.permutation(len(_IMAGES))
        for number in range(4):
            image, other = (_IMAGES[images[place]] for place in (number, number + 4))
            if source == 1:
                found += [
                    (_FILE, split + b"images/%d.jpg" % number, image),
                    (_FILE, split + b"masks/%d.png" % number, MASKS[rng.integers(4)]),
                ]
            else:
                found += [
                    (_FILE, split + b"a/%d.png" % number, image),
                    (_FILE, split + b"b/%d.png" % number, other),
                ]
    if source == 1 and rng.random() < 0.5:
        found.append((_FILE, b"classes.txt", _TEXTS[1]))
    return found


def _changed(entries: list[Entry], rng: np.random.Generator) -> list[Entry]:
    """Renames part of a path, for one file or all, or replaces a file."""
    kind, path, content = chosen = entries[rng.integers(len(entries))]
    parts, place = path.split(b"/"), int(rng.integers(path.count(b"/") + 1))
    name = _NAMES[rng.integers(len(_NAMES))]
    renamed = b"/".join([*parts[:place], name, *parts[place + 1 :]])
    action = rng.integers(9)
    if action == 0:
        before = b"/".join(parts[: place + 1])
        after = b"/".join([*parts[:place], name])
        return [(k, after + p[len(before) :] if p.startswith(before) else p, c) for k, p, c in entries]
    if action == 1:
        return [*entries, (kind, renamed, content)]
    others = {
        2: (kind, renamed, content),
        3: (_PIPE, path, b""),
        4: (_FOLDER, path, b""),
        5: (_LINK, path, bytes([rng.integers(len(_TARGETS))])),
        6: (kind, path, mutated(content, _TEXTS, rng)),
        7: (kind, path, (*_IMAGES, *MASKS, *_TEXTS)[rng.integers(len(_IMAGES) + len(MASKS) + len(_TEXTS))]),
        8: (_LINK, renamed, bytes([rng.integers(len(_TARGETS))])),
    }
    rest = [entry for entry in entries if entry is not chosen]
    return [*rest, others[int(action)]]


def make(rng: np.random.Generator) -> bytes:
    """Mutates a valid folder."""
    source = int(rng.integers(len(_SOURCES)))
    entries = _tree(source, rng)
    for _ in range(int(rng.choice((1, 2, 5)))):
        entries = _changed(entries, rng)
    data = pack(source, int(rng.integers(len(_SETTINGS))), entries)
    return mutated(data, [data], rng) if rng.random() < 0.1 else data


def pack(source: int, settings: int, entries: list[Entry]) -> bytes:
    """Packs files into an input."""
    short = [(kind, path[:65_535], content[:65_535]) for kind, path, content in entries]
    packed = [_HEAD.pack(kind, len(path), len(content)) + path + content for kind, path, content in short]
    return b"".join((bytes([source, settings]), *packed))


def _entries(data: bytes) -> Iterator[Entry]:
    while len(data) >= _HEAD.size:
        kind, name, content = _HEAD.unpack_from(data)
        middle, end = _HEAD.size + name, _HEAD.size + name + content
        yield kind % 4, data[_HEAD.size : middle], data[middle:end]
        data = data[end:]


def unpack(data: bytes, root: bytes) -> None:
    """Writes the files of an input into a folder, links last; skips invalid paths."""
    for kind, path, content in sorted(_entries(data), key=lambda entry: entry[0] == _LINK):
        parts = [part for part in path.replace(b"\0", b"").split(b"/") if part not in (b"", b".", b"..")]
        place = os.path.join(root, *parts[:4])
        folder = os.path.dirname(place)
        if place == root or not os.path.realpath(folder).startswith(os.path.realpath(root)):
            continue
        try:
            os.makedirs(folder, exist_ok=True)
            if kind == _FILE:
                with open(place, "xb") as file:
                    file.write(content)
            elif kind == _FOLDER:
                os.mkdir(place)
            elif kind == _LINK:
                os.symlink(_TARGETS[(content or b"\0")[0] % len(_TARGETS)], place)
            else:
                os.mkfifo(place)
        except OSError:  # the name is too long, or exists already
            continue


def check(data: bytes) -> None:
    """Reads the folder and every sample; all text is printable, and the data record survives a round trip."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.join(folder, "data", "root")
        os.makedirs(root)
        unpack(data[2:], os.fsencode(root))
        name, needs = _SOURCES[(data or b"\0")[0] % len(_SOURCES)]
        settings = _SETTINGS[(data[1:2] or b"\0")[0] % len(_SETTINGS)]
        source = load_source(data_config(name, dir=root, **settings), needs)
        assert source.report.replace("\n", "").isprintable()
        for samples in source.splits.values():
            for sample in samples:
                sample.decoded(3)
                assert sample.file.isprintable()
        write_record(Path(folder), source)
        assert compare(read_record(Path(folder)), make_record(source)) == []


SEEDS = [pack(source, 0, _tree(source, np.random.default_rng(seed))) for source in (0, 1) for seed in range(2)]
FUZZER = Fuzzer("annotations", make, check, (UserError,))

if __name__ == "__main__":
    sys.exit(main(FUZZER, sys.argv[1:]))
