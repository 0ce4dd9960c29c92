"""OpenCV, set up for reading files of which nothing is known in threads of ours."""

import os

# Read when OpenCV is loaded: larger images are refused before memory is spent on them.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

import cv2

MAX_PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])
cv2.setNumThreads(0)  # grain's threads already fill the cores
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # who reads a file says what is wrong with it

__all__ = ["MAX_PIXELS", "cv2"]
