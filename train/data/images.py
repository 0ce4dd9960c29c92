"""Decodes image files; damaged files are errors.

simplejpeg (libjpeg-turbo) decodes JPEGs, because it raises libjpeg's warnings, which OpenCV only prints. A JPEG has no
checksum, and a damaged one decodes to grey areas or false colours with only a warning. simplejpeg is also somewhat
faster, and its pixels are the same. OpenCV decodes all other formats, and JPEGs that simplejpeg does not support, such
as those in four colours. `train.data.formats` first compares the header of a file with its bytes.
"""

import re
from typing import Any

import numpy as np
import simplejpeg

from train.data.formats import ImageError, check_file, check_jpeg_size, jpeg_frame
from train.data.opencv import MAX_PIXELS, cv2

__all__ = ["Image", "ImageError", "as_pixels", "decode", "jpeg_size"]

Image = np.ndarray | bytes  # (height, width, channels) uint8, or a file that holds one

_MODES = {
    (1, 1): cv2.IMREAD_GRAYSCALE,
    (1, 2): cv2.IMREAD_REDUCED_GRAYSCALE_2,
    (1, 4): cv2.IMREAD_REDUCED_GRAYSCALE_4,
    (1, 8): cv2.IMREAD_REDUCED_GRAYSCALE_8,
    (3, 1): cv2.IMREAD_COLOR_RGB,
    (3, 2): cv2.IMREAD_REDUCED_COLOR_2,
    (3, 4): cv2.IMREAD_REDUCED_COLOR_4,
    (3, 8): cv2.IMREAD_REDUCED_COLOR_8,
}
_FOUR_COLOURS = ("CMYK", "YCCK")
_NEEDLESS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


def decode(
    data: bytes, channels: int, reduction: int = 1, *, rows: int | None = None, strict: bool = False
) -> np.ndarray:
    """Decodes JPEG, PNG, GIF, WebP, BMP and TIFF.

    16 bits become 8, and an animation gives its first frame. Transparency and the camera's orientation are ignored, as
    in torchvision.

    Args:
        data: the whole file.
        channels: 1 for grey, 3 for red, green, blue.
        reduction: 1, 2, 4 or 8: the divisor of both sides of a JPEG (rounded up), which saves time. Other formats are
            decoded at full size.
        rows: the number of rows needed, from the top; None for all. Most JPEGs are decoded only so far.
        strict: also refuse JPEGs with libjpeg warnings, unless removing bytes that are certainly needless removes the
            warning. Published data sets contain good pictures that look damaged, so training is not strict; the check
            of a folder and prediction are.

    Returns:
        (height, width, channels) uint8; with `rows` it may have fewer rows than the file, but at least `rows`.

    Raises:
        ImageError: if the file is empty, truncated, damaged, too large or not an image of these formats.
    """
    check_file(data)
    if not data.startswith(b"\xff\xd8"):
        return _with_opencv(data, channels)
    # The end marker follows the last start of scan; a thumbnail before it may have an end marker, too.
    if not data.endswith(b"\xff\xd9") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ImageError("the JPEG data is cut off")
    try:
        header: Any = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: a truncated header
        return _with_opencv(data, channels, reduction)
    height, width, colours, _ = header
    check_jpeg_size(data, height, width)
    if colours in _FOUR_COLOURS:
        return _with_opencv(data, channels, reduction)
    frame = jpeg_frame(data)
    if rows is not None and frame is not None:
        # libjpeg reads the number of rows in the header. A few more rows affect the colours of the last one.
        height = min(height, rows + 4 * reduction)
        data = data[: frame + 5] + height.to_bytes(2, "big") + data[frame + 7 :]
    # simplejpeg takes the smallest scale with at least this size.
    size = {"min_height": -(-height // reduction), "min_width": -(-width // reduction), "min_factor": reduction}
    settings: dict[str, Any] = {"colorspace": "GRAY" if channels == 1 else "RGB", "strict": strict}
    return _with_simplejpeg(data, settings | (size if reduction > 1 else {}))


def _with_simplejpeg(data: bytes, settings: dict[str, Any]) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(data, **settings)
    except ValueError:
        data = _with_clean_header(data)  # its warnings are errors even if `strict` is off
    try:
        return simplejpeg.decode_jpeg(data, **settings)
    except ValueError as error:
        data = _without_filling(data, str(error))
    try:
        return simplejpeg.decode_jpeg(data, **settings)
    except ValueError as error:
        raise ImageError("the JPEG data is damaged") from error


def _with_clean_header(data: bytes) -> bytes:
    """Removes needless bytes between the segments of a header, and sets its JFIF revision to a usual one."""
    kept, position = [data[:2]], 2
    while (start := data.find(b"\xff", position, len(data) - 2)) >= 0:
        start += data[start + 1] == 0xFF  # a fill byte
        if data[start + 1] == 0xDA:  # the first scan
            return b"".join(kept) + data[start:]
        position = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        segment = data[start:position]
        is_jfif = segment.startswith(b"\xff\xe0") and segment[4:9] == b"JFIF\0"
        kept.append(segment[:9] + b"\1\1" + segment[11:] if is_jfif else segment)
    return data


def _without_filling(data: bytes, warning: str) -> bytes:
    """Removes the bytes before the end that a warning calls needless, if all are equal.

    Unequal bytes may be the remainder of a damaged scan, the sign of most damage.
    """
    needless, end = _NEEDLESS.search(warning), data.rfind(b"\xff\xd9")
    count = int(needless[1]) if needless else 0
    return data[: end - count] + data[end:] if len(set(data[end - count : end])) == 1 else data


def _with_opencv(data: bytes, channels: int, reduction: int = 1) -> np.ndarray:
    mode = _MODES[channels, reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error as error:
        if "MAX_IMAGE" in str(error):
            raise ImageError(f"it has too many pixels, at most {MAX_PIXELS:,} are read") from error
        raise ImageError("not an image, or a damaged one") from error
    if image is None:
        raise ImageError("not an image, or a damaged one")
    if channels == 1:
        return image[..., None]
    # There is no reduced mode for red, green, blue.
    return image if reduction == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def as_pixels(image: Image, channels: int) -> np.ndarray:
    """Decodes an image unless it is decoded already.

    Raises:
        ImageError: as `decode`.
    """
    return decode(image, channels) if isinstance(image, bytes) else image


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Reads (height, width) from the header of a JPEG; None for other files and headers without a size."""
    frame = jpeg_frame(data)
    if frame is None:
        return None
    height, width = (int.from_bytes(data[frame + at : frame + at + 2], "big") for at in (5, 7))
    return (height, width) if height and width else None
