"""Encoded images become pixels."""

import numpy as np

from train.data.opencv import cv2


def decode(data: bytes, channels: int) -> np.ndarray:
    """Decodes an image file's bytes.

    Args:
        data: a PNG, a JPEG, ...; its colours are turned into the number of channels asked for.
        channels: 1, grey, or 3, red, green, blue.

    Returns:
        (height, width, channels) uint8.

    Raises:
        ValueError: if the bytes are no image.
    """
    mode = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    image = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError(f"{len(data)} bytes are not an image, or a damaged one")
    return image.reshape(*image.shape[:2], channels)
