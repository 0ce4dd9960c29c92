"""OpenCV, configured for untrusted files and external threads."""

import os

# OpenCV reads this limit at import and refuses larger images before it allocates memory.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

import cv2

MAX_PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])
cv2.setNumThreads(0)  # grain's threads already use the cores
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the readers raise errors instead

__all__ = ["MAX_PIXELS", "cv2"]
