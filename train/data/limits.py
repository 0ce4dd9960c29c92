"""Limits of the files that readers accept.

Files are untrusted and must not determine memory use: a file that exceeds these limits, or declares more than its bytes
can hold, is refused before memory is allocated.
"""

MAX_FILE_BYTES = 2**28  # of a picture; the limit for decoding is 2**26 pixels, OPENCV_IO_MAX_IMAGE_PIXELS
MAX_TEXT_BYTES = 2**23  # of a list of class names or a description
MAX_CLASSES = 100_000
MAX_NAME_LENGTH = 255  # characters of a class name
MAX_ENLARGED_PIXELS = 2**25  # of an image enlarged for training or evaluation
