"""Fuzzes pictures of every format: decoded, read as masks, checked in a folder, and read for a prediction."""

import io
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from etils import epath
from PIL import Image

from tests.fuzz.driver import EXTREMES, Fuzzer, main, mutated
from train.data.images import ImageError, decode
from train.data.indexed_png import read_indices
from train.data.readers.files import UnusableError
from train.data.readers.folder import _read_picture
from train.data.resizing import resize_shorter
from train.errors import UserError
from train.page import enlarged, thumbnail
from train.predict import read_image


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _seeds() -> list[bytes]:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8))
    smooth = noise.resize((96, 64), Image.Resampling.BICUBIC)
    grey, palette = smooth.convert("L"), smooth.quantize(16)
    frames = {"save_all": True, "append_images": [smooth.rotate(90), smooth.rotate(180)]}
    return [
        *(_saved(image, "JPEG") for image in (smooth, grey, smooth.convert("CMYK"))),
        *(_saved(smooth, "JPEG", progressive=True), _saved(smooth, "JPEG", restart_marker_rows=1)),
        *(_saved(image, "PNG") for image in (smooth, grey, palette, smooth.convert("RGBA"), smooth.convert("1"))),
        *(_saved(Image.fromarray(np.arange(800, dtype=np.uint16).reshape(20, 40)), kind) for kind in ("PNG", "TIFF")),
        *(_saved(smooth, kind, **frames) for kind in ("PNG", "GIF", "WEBP", "TIFF")),
        *(_saved(smooth, "WEBP"), _saved(smooth.convert("RGBA"), "WEBP", lossless=True)),
        *(_saved(image, "BMP") for image in (smooth, grey, palette, smooth.convert("1"))),
        *(_saved(smooth, "TIFF", compression=name) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")),
        *(_saved(smooth, "TIFF", compression="jpeg"), _saved(smooth.convert("1"), "TIFF", compression="group4")),
    ]


SEEDS = _seeds()
_CHUNKS = (b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"IEND")


def make(rng: np.random.Generator) -> bytes:
    """Damages a picture; half of the PNG files get valid checksums, which exercises more of the reader."""
    data = SEEDS[rng.integers(len(SEEDS))]
    if data.startswith(b"\x89PNG") and rng.random() < 0.5:
        return _with_other_chunks(data, rng)
    return mutated(data, SEEDS, rng)


def _with_other_chunks(data: bytes, rng: np.random.Generator) -> bytes:
    chunks, position = [], 8
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        chunks.append((name, data[position + 8 : position + 8 + length]))
        position += 12 + length
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(chunks)))
        name, content = chunks[place]
        action = rng.integers(4)
        if action == 0:
            chunks[place] = (name, mutated(content, [chunk for _, chunk in chunks], rng))
        elif action == 1:
            chunks.insert(int(rng.integers(len(chunks) + 1)), (name, content))
        elif action == 2:
            bomb = b"a\0\0" + zlib.compress(bytes(2 ** int(rng.integers(4, 22))))
            chunks.insert(place, (_CHUNKS[rng.integers(len(_CHUNKS))], content if rng.random() < 0.5 else bomb))
        elif len(content) >= 4:
            at = 4 * int(rng.integers(len(content) // 4))
            value = struct.pack(">I", EXTREMES[rng.integers(len(EXTREMES))] % 2**32)
            chunks[place] = (name, content[:at] + value + content[at + 4 :])
    written = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return data[:8] + b"".join(written)


def check(data: bytes) -> None:
    """Reads a picture in every way of the programs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture.png")
        path.write_bytes(data)
        for read in (
            lambda: read_indices(data),
            lambda: decode(data, 1, 8, strict=True),
            lambda: decode(data, 3, 2, rows=5),
            lambda: _read_picture(epath.Path(path)),
            lambda: read_image(path, 3),
        ):
            try:
                read()
            except (ImageError, UnusableError, UserError):
                continue
    pixels = decode(data, 3)
    resize_shorter(pixels, 64)
    enlarged(pixels, 128)
    thumbnail(pixels)


FUZZER = Fuzzer("pictures", make, check, (ImageError,))

if __name__ == "__main__":
    sys.exit(main(FUZZER, sys.argv[1:]))
