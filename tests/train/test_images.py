"""Decoding, against Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from train.data.images import ImageError, as_pixels, decode, jpeg_size


def picture(height=60, width=80):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)]
    return np.rint(127.5 + 127.5 * np.dstack(waves)).astype(np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


COLOUR = Image.fromarray(picture())
PALETTE = COLOUR.quantize(16)
CMYK = encoded(COLOUR.convert("CMYK"), "JPEG")
_ADOBE = CMYK.find(b"Adobe") - 4
TURNED = Image.Exif()
TURNED[0x0112] = 6  # the orientation: by a right angle
FILES = {
    "jpeg": encoded(COLOUR, "JPEG", quality=90),
    "progressive": encoded(COLOUR, "JPEG", progressive=True),
    "grey jpeg": encoded(COLOUR.convert("L"), "JPEG"),
    "inverted cmyk": CMYK,  # as Adobe writes it, and says in a segment of its own
    "cmyk": CMYK[:_ADOBE] + CMYK[_ADOBE + 2 + int.from_bytes(CMYK[_ADOBE + 2 : _ADOBE + 4], "big") :],
    "png": encoded(COLOUR, "PNG"),
    "palette": encoded(PALETTE, "PNG"),
    "transparent palette": encoded(PALETTE, "PNG", transparency=0),
    "alpha": encoded(Image.merge("RGBA", (*COLOUR.split(), COLOUR.split()[0])), "PNG"),
    "grey and alpha": encoded(COLOUR.convert("LA"), "PNG"),
    "one bit": encoded(COLOUR.convert("1"), "PNG"),
    "gif": encoded(PALETTE, "GIF"),
    "animated gif": encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(90), PALETTE.rotate(180)]),
    "webp": encoded(COLOUR, "WEBP", lossless=True),
    "bmp": encoded(COLOUR, "BMP"),
    "tiff": encoded(COLOUR, "TIFF"),
    "turned by the camera": encoded(
        COLOUR, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_pillow_reads_the_same(name):
    """Colours within 1; the grey of a JPEG is stored in it, Pillow computes it from clipped colours."""
    image = Image.open(io.BytesIO(FILES[name]))
    colour = decode(FILES[name], 3)
    assert (colour.shape, colour.dtype) == ((60, 80, 3), np.uint8)
    assert np.abs(colour.astype(int) - np.asarray(image.convert("RGB"))).max() <= 1
    grey = decode(FILES[name], 1)
    assert grey.shape == (60, 80, 1)
    error = np.abs(grey[..., 0].astype(int) - np.asarray(image.convert("L")))
    assert error.max() <= (12 if name.endswith(("jpeg", "cmyk", "progressive", "camera")) else 1)
    assert error.mean() < 1


def test_16_bits_are_scaled_and_not_clipped():
    deep = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    for channels in (1, 3):
        image = decode(encoded(Image.fromarray(deep), "PNG"), channels)
        assert np.abs(image - deep[..., None] / 257).max() < 1


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_is_refused(name, share):
    data = FILES[name]
    with pytest.raises(ImageError, match=r"cut off|damaged"):
        decode(data[: int(len(data) * share)], 3)


def test_a_jpeg_without_its_last_two_bytes_and_one_with_bytes_after_it():
    data = FILES["jpeg"]
    with pytest.raises(ImageError, match="cut off"):
        decode(data[:-2], 3)
    np.testing.assert_array_equal(decode(data + b"\0" * 99, 3), decode(data, 3))


def test_a_thumbnail_within_does_not_hide_that_the_rest_is_cut_off():
    thumbnail = encoded(Image.fromarray(picture(16, 16)), "JPEG")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = FILES["jpeg"][:2] + segment + FILES["jpeg"][2:]
    np.testing.assert_array_equal(decode(whole, 3), decode(FILES["jpeg"], 3))
    with pytest.raises(ImageError, match="cut off"):
        decode(whole[:-100], 3)
    assert jpeg_size(whole) == (60, 80)


def test_a_damaged_checksum_is_noticed():
    data = bytearray(FILES["png"])
    data[len(data) // 2] ^= 0x55
    with pytest.raises(ImageError, match="damaged"):
        decode(bytes(data), 3)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty"), (b"hello", "not an image"), (b"\xff\xd8", "not an image")]
)
def test_what_is_no_image(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode(data, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced_decoding_gives_means(channels, reduction):
    image = picture(64, 96)
    full = decode(encoded(Image.fromarray(image), "JPEG", quality=100, subsampling=0), channels).astype(float)
    small = decode(encoded(Image.fromarray(image), "JPEG", quality=100, subsampling=0), channels, reduction)
    h, w = 64 // reduction, 96 // reduction
    assert small.shape == (h, w, channels)
    means = full.reshape(h, reduction, w, reduction, channels).mean((1, 3))
    assert np.abs(small - means).max() < 4


def test_reduced_decoding_rounds_up_and_leaves_other_formats_whole():
    assert decode(encoded(Image.fromarray(picture(61, 83)), "JPEG"), 3, 8).shape == (8, 11, 3)
    assert decode(encoded(Image.fromarray(picture(1, 1)), "JPEG"), 1, 8).shape == (1, 1, 1)
    assert decode(encoded(Image.fromarray(picture(1, 1)), "PNG"), 1, 8).shape == (1, 1, 1)
    assert decode(FILES["png"], 3, 8).shape == (60, 80, 3)


def test_sizes_are_read_from_headers():
    for name in ("jpeg", "progressive", "grey jpeg", "inverted cmyk"):
        assert jpeg_size(FILES[name]) == (60, 80)
    assert jpeg_size(FILES["png"]) is None
    assert jpeg_size(b"") is None
    assert jpeg_size(FILES["jpeg"][:30]) is None


def test_arrays_pass_and_bytes_are_decoded():
    image = picture()
    assert as_pixels(image, 3) is image
    np.testing.assert_array_equal(as_pixels(FILES["png"], 3), image)
