"""Checks the header of an image file against its bytes before decoding.

Decoders trust headers: 34 bytes of GIF can request half a gigabyte, and the length of a PNG chunk two gigabytes. Six
formats are read, recognised by their first bytes, and each has a largest number of pixels for a byte.
"""

import struct
from collections.abc import Iterator

from train.data.limits import MAX_FILE_BYTES
from train.data.opencv import MAX_PIXELS

_MAX_CHUNKS = 2**17  # of a PNG file
_MAX_SCANS = 3 * 2**29  # scans x pixels of a JPEG: each scan may visit every pixel
_UNCHECKED_PIXELS = 2**20  # always allowed
# The most pixels, or bytes of pixels, that a byte can encode.
_JPEG_RATIO = 2048  # at least a bit for a block of 64 pixels; 4 x as much for brightness at half the resolution
_DEFLATE_RATIO, _LZW_RATIO, _RUN_RATIO = 1032, 2560, 128
_TIFF_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)  # none, fax, LZW, JPEG, deflate, PackBits, deflate
_OTHERS = (
    *(b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ", b"\x76\x2f\x31\x01", b"#?RADIANCE", b"#?RGBE", b"\x59\xa6\x6a\x95"),
    *(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"PF", b"Pf", b"II+\0", b"MM\0+", b"\xff\x0a", b"8BPS"),
)


class ImageError(ValueError):
    """The bytes are not a readable image; the message is a short reason."""


def check_file(data: bytes) -> None:
    """Refuses a file of another format, or one that declares more than its bytes can hold.

    Args:
        data: the whole file: JPEG, PNG, GIF, WebP, BMP or TIFF.

    Raises:
        ImageError: if the file is empty, of another format, truncated, damaged or too large.
    """
    if not data:
        raise ImageError("the file is empty")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"it has {len(data):,} bytes, and at most {MAX_FILE_BYTES:,} are read")
    checks = {
        b"\xff\xd8": _check_jpeg,
        b"\x89PNG\r\n\x1a\n": check_png,
        b"GIF8": _check_gif,
        b"RIFF": _check_webp,
        b"BM": _check_bmp,
        b"II*\0": _check_tiff,
        b"MM\0*": _check_tiff,
    }
    for signature, check in checks.items():
        if data.startswith(signature):
            try:
                return check(data)
            except (struct.error, IndexError) as error:  # a truncated header
                raise ImageError("not an image, or a damaged one") from error
    if data.startswith(_OTHERS) or data[4:8] == b"ftyp":
        raise ImageError("its format is not read; convert it to JPEG, PNG, GIF, WebP, BMP or TIFF")
    raise ImageError("not an image, or a damaged one")


def jpeg_frame(data: bytes) -> int | None:
    """Finds the frame segment of a JPEG's header; the height is 5 bytes after its start."""
    position = 2
    while data.startswith(b"\xff\xd8") and position + 9 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xFF:  # a fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, not a table
            return position
        else:
            position += 2 + length
    return None


def _check_jpeg(data: bytes) -> None:
    frame = jpeg_frame(data)
    if frame is not None:
        height, width = struct.unpack(">HH", data[frame + 5 : frame + 9])
        check_jpeg_size(data, height, width)


def check_jpeg_size(data: bytes, height: int, width: int) -> None:
    """Refuses a JPEG whose bytes cannot hold so many pixels.

    Raises:
        ImageError: as `check_file`.
    """
    _check_pixels(height, width, height * width / _JPEG_RATIO, len(data))
    if height * width * data.count(b"\xff\xda") > _MAX_SCANS:
        raise ImageError("it has too many scans for its size; save it anew")


def check_png(data: bytes) -> None:
    """Refuses a PNG file whose chunks exceed it, or whose data cannot hold its pixels.

    Raises:
        ImageError: as `check_file`.
    """
    if data[12:16] != b"IHDR" or len(data) < 26:
        raise ImageError("not an image, or a damaged one")
    width, height, bits, kind = struct.unpack(">IIBB", data[16:26])
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind)
    if channels is None or bits not in (1, 2, 4, 8, 16):
        raise ImageError("not an image, or a damaged one")
    packed = sum(length for name, length in _png_chunks(data) if name == b"IDAT")
    _check_pixels(height, width, height * width * channels * bits / 8 / _DEFLATE_RATIO, packed)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    position = 8
    for _ in range(_MAX_CHUNKS):
        if position + 12 > len(data):
            raise ImageError("the PNG data is cut off or damaged")
        length, name = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if position > len(data):
            raise ImageError("the PNG data is cut off or damaged")
        yield name, length
        if name == b"IEND":
            return
    raise ImageError("it has too many chunks; save it anew")


def _check_gif(data: bytes) -> None:
    width, height = struct.unpack("<HH", data[6:10])
    _check_pixels(height, width, height * width / _LZW_RATIO, len(data))


def _check_webp(data: bytes) -> None:
    kind = data[12:16]
    if data[8:12] != b"WEBP" or len(data) < 30:
        raise ImageError("not an image, or a damaged one")
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        sides = int.from_bytes(data[21:25], "little")
        width, height = 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", data[26:30]))
    _check_pixels(height, width, 0, len(data))  # a file of one colour has any number of pixels


def _check_bmp(data: bytes) -> None:
    (header,) = struct.unpack("<I", data[14:18])
    if header == 12:
        width, height, _, bits = struct.unpack("<HHHH", data[18:26])
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack("<iiHHI", data[18:34])
    width, height = abs(width), abs(height)
    is_packed = compression in (1, 2)
    row = (width * bits + 31) // 32 * 4
    _check_pixels(
        height, width, height * width / _RUN_RATIO if is_packed else height * row, len(data), exact=not is_packed
    )


def _check_tiff(data: bytes) -> None:
    tags = _tiff_tags(data)
    height, width = tags.get(257, 0), tags.get(256, 0)
    bits, channels, compression = tags.get(258, 1), tags.get(277, 1), tags.get(259, 1)
    if bits > 16 or channels > 5:
        raise ImageError(f"it has {channels} channels of {bits} bits, and at most 5 of 16 bits are read")
    if compression not in _TIFF_COMPRESSIONS:
        raise ImageError("the way in which it is compressed is not read; save it without, or as PNG")
    for rows, columns in ((322, 323), (278, 256)):  # tiles or strips, which are decoded whole
        if min(tags.get(rows, 0), max(height, 2**12)) * min(tags.get(columns, 0), max(width, 2**12)) > MAX_PIXELS:
            raise ImageError(f"it has too many pixels, at most {MAX_PIXELS:,} are read")
    size = height * width * channels * bits / 8
    _check_pixels(height, width, size if compression == 1 else size / _LZW_RATIO, len(data))


def _tiff_tags(data: bytes) -> dict[int, int]:
    """Reads the first value of every integer tag of the first image."""
    order = "<" if data.startswith(b"II") else ">"
    (first,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, first)
    tags = {}
    for entry in range(first + 2, first + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", data, entry)
        code, size = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4)}.get(kind, ("", 0))
        if code:
            is_here = values * size <= 4
            place = entry + 8 if is_here else struct.unpack_from(order + "I", data, entry + 8)[0]
            tags[tag] = struct.unpack_from(order + code, data, place)[0]
    return tags


def _check_pixels(height: int, width: int, least: float, found: int, *, exact: bool = False) -> None:
    """Checks an image's size against the limit, and the bytes found against the least number needed."""
    if height * width > MAX_PIXELS:
        raise ImageError(f"it has too many pixels, at most {MAX_PIXELS:,} are read")
    if not height or not width:
        raise ImageError("not an image, or a damaged one")
    if least > found and (exact or height * width > _UNCHECKED_PIXELS):
        raise ImageError(f"it is cut off or damaged: {found:,} bytes cannot hold its {height} x {width} pixels")
