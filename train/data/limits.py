"""What a file may ask for: the limits of every reader, in one place.

Files come from anywhere. None of them chooses how much memory is taken: a file that is larger than these limits, or
that declares more than its bytes can hold, is refused before memory is spent on it.
"""

MAX_FILE_BYTES = 2**28  # of a picture; the largest that may be decoded has 2**26 pixels, OPENCV_IO_MAX_IMAGE_PIXELS
MAX_TEXT_BYTES = 2**23  # of a list of class names or a description
MAX_CLASSES = 100_000
MAX_NAME_LENGTH = 255  # characters of the name of a class
MAX_ENLARGED_PIXELS = 2**25  # of an image that is enlarged for training or evaluation
