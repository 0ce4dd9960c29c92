"""From the bytes of an image file to its pixels; what is damaged is refused, not painted over."""

import numpy as np

from train.data.opencv import MAX_PIXELS, cv2

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


class ImageError(ValueError):
    """The bytes are no image that can be read; the message says why, in a few words."""


def decode(data: bytes, channels: int, reduction: int = 1) -> np.ndarray:
    """Decodes JPEG, PNG, GIF, WebP, BMP, TIFF and what else OpenCV knows.

    16 bits become 8, of an animation the first frame is taken; transparency and the camera's orientation are ignored,
    as torchvision does. A JPEG has no checksum: of one that is damaged within, decoders guess the rest, and nobody
    notices.

    Args:
        data: the whole file.
        channels: 1 for grey, 3 for red, green, blue.
        reduction: 1, 2, 4 or 8: what both sides of a JPEG are divided by (and rounded up), which takes less time.
            Other formats are decoded whole.

    Returns:
        (height, width, channels) uint8.

    Raises:
        ImageError: if the file is empty, cut off, damaged, too large or no image.
    """
    if not data:
        raise ImageError("the file is empty")
    is_jpeg = data.startswith(b"\xff\xd8")
    # The end of the image follows the start of its last scan; before it may come a thumbnail with an end of its own.
    if is_jpeg and not data.endswith(b"\xff\xd9") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ImageError("the JPEG data is cut off")
    if not is_jpeg:
        reduction = 1
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _MODES[channels, reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
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
    """Decodes an image that is not decoded yet.

    Raises:
        ImageError: as `decode`.
    """
    return decode(image, channels) if isinstance(image, bytes) else image


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Reads (height, width) from the header of a JPEG; None if it is not one, or its header says nothing."""
    position = 2
    while data.startswith(b"\xff\xd8") and position + 9 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xFF:  # filling
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # no table: the frame
            height, width = (int.from_bytes(data[position + at : position + at + 2], "big") for at in (5, 7))
            return (height, width) if height and width else None
        else:
            position += 2 + length
    return None
