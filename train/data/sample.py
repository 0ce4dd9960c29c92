"""A sample: an image and its annotations."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from train.data.images import Image, ImageError, as_pixels

Generator = np.random.Generator
IGNORED = 255  # the class of ignored pixels in a segmentation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """An image with its annotations; missing annotations are None.

    Coordinates (x, y) are continuous: pixel i covers [i, i + 1).

    Attributes:
        image: (height, width, channels) uint8, or float32 of 0..255 between transforms; or the bytes of a
            file.
        label: the class of the image.
        segmentation: (height, width) uint8, the class of every pixel, 255 for ignored pixels.
        boxes: (n, 4) float32, x0, y0, x1, y1 of each instance.
        labels: (n,) int32, the class of each instance.
        polygons: the outlines of each instance, (points, 2) float32.
        masks: (n, height, width) bool, the pixels of each instance.
        keypoints: (n, points, 3) float32: x, y and visibility (0 not labelled, 1 hidden, 2 visible) of each instance.
        crowd: (n,) bool, whether an instance is a crowd of objects.
        file: the file name of the image, or "".
        numbers: further numbers of the image, by the source's names.
    """

    image: Image
    label: int | None = None
    segmentation: np.ndarray | None = None
    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    polygons: tuple[tuple[np.ndarray, ...], ...] | None = None
    masks: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    crowd: np.ndarray | None = None
    file: str = ""
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def pixels(self) -> np.ndarray:
        """The decoded image.

        Raises:
            TypeError: if the image is not decoded.
        """
        if isinstance(self.image, bytes):
            raise TypeError("the image is not decoded; call Sample.decoded first")
        return self.image

    def decoded(self, channels: int) -> "Sample":
        """Decodes the image: 1 channel for grey, 3 for red, green, blue.

        Raises:
            ImageError: if the bytes are not an image, or the segmentation has another size.
        """
        if not isinstance(self.image, bytes):
            return self
        pixels = as_pixels(self.image, channels)
        if self.segmentation is not None and self.segmentation.shape != pixels.shape[:2]:
            raise ImageError(
                f"its segmentation has {self.segmentation.shape} pixels, but the image has {pixels.shape[:2]}"
            )
        return self.replace(image=pixels)

    def replace(self, **changes: Any) -> "Sample":
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)
