"""Reads class indices from PNG files.

Masks are palette or grey PNG files whose values are class indices, 255 for ignored pixels. OpenCV converts a palette to
colours, so Pillow, restricted to PNG, reads these files.
"""

import io
import struct

import numpy as np
from PIL import Image

from train.data.formats import ImageError, check_png
from train.data.opencv import MAX_PIXELS

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3
_COLOURS = {2: "red, green and blue", 4: "grey with transparency", 6: "colours with transparency"}


def read_indices(data: bytes) -> np.ndarray:
    """Reads the indices of a palette or grey PNG file of 1, 2, 4 or 8 bits.

    Args:
        data: the whole file.

    Returns:
        (height, width) uint8.

    Raises:
        ImageError: if the file is empty, not a PNG, truncated, damaged or too large, or if its pixels are colours or
            have 16 bits.
    """
    _, bits, kind = read_header(data)
    check_png(data)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()  # all checksums; loading skips some
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            pixels = np.array(image, np.uint8)
    except Exception as error:  # Pillow has no single error type for damage
        raise ImageError("the PNG data is cut off or damaged") from error
    return pixels // (255 // (2**bits - 1)) if kind == _GREY and bits in (2, 4) else pixels  # Pillow scales these


def read_header(data: bytes) -> tuple[tuple[int, int], int, int]:
    """Reads the header of a PNG file of indices: (height, width), bits for each pixel, and colour type.

    Raises:
        ImageError: as `read_indices`, except for damage after the header.
    """
    if not data:
        raise ImageError("the file is empty")
    if not data.startswith(_SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 33:
        raise ImageError("not a PNG file, which masks must be")
    width, height, bits, kind = struct.unpack(">IIBB", data[16:26])
    if kind in _COLOURS:
        raise ImageError(f"its pixels are {_COLOURS[kind]}, but must be the numbers of classes: a palette or grey PNG")
    if bits == 16:
        raise ImageError("its pixels have 16 bits, but the numbers of classes must have at most 8")
    if kind not in (_GREY, _PALETTE) or bits not in (1, 2, 4, 8) or not width or not height:
        raise ImageError("the PNG data is cut off or damaged")
    if width * height > MAX_PIXELS:
        raise ImageError(f"it has too many pixels, at most {MAX_PIXELS:,} are read")
    return (height, width), bits, kind
