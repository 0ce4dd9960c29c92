"""Decoding, compared with Pillow."""

import io

import numpy as np
import pytest
import simplejpeg
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
TURNED[0x0112] = 6  # orientation: rotated by a right angle
FILES = {
    "jpeg": encoded(COLOUR, "JPEG", quality=90),
    "progressive": encoded(COLOUR, "JPEG", progressive=True),
    "grey jpeg": encoded(COLOUR.convert("L"), "JPEG"),
    "inverted cmyk": CMYK,  # as Adobe's, with its APP14 segment
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
    """Colours agree within 1. Grey is a JPEG's stored channel; Pillow computes it from clipped colours."""
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


def spoilt(data, rng):
    """Overwrites 64 bytes of the first scan with random ones."""
    first = data.find(b"\xff\xda") + 20
    place = int(rng.integers(first, len(data) - 66))
    return data[:place] + rng.bytes(64) + data[place + 64 :]


@pytest.mark.parametrize("reduction", [1, 8])
@pytest.mark.parametrize("name", ["large", "progressive", "grey jpeg"])
def test_strict_decoding_refuses_most_jpegs_that_are_damaged_within(name, reduction):
    """Huffman codes cannot detect all damage: libjpeg accepts bytes that decode to the right number of blocks."""
    rng = np.random.default_rng(0)
    data = FILES.get(name, encoded(Image.fromarray(picture(200, 300)), "JPEG", quality=95))
    refused = 0
    for _ in range(50):
        try:
            decode(spoilt(data, rng), 1, reduction, strict=True)
        except ImageError:
            refused += 1
    assert refused >= 42


def between(data, needless, marker):
    place = data.rfind(marker)
    return data[:place] + needless + data[place:]


# As some files of ImageNet and of Cats vs Dogs: libjpeg warns, but no pixel is lost.
ODD = {
    "needless bytes before a table": lambda data: between(data, b"abc", b"\xff\xc4"),
    "needless bytes before the scan": lambda data: between(data, bytes(7), b"\xff\xda"),
    "filling at the end": lambda data: between(data, bytes(900), b"\xff\xd9"),
    "both": lambda data: between(between(data, b"abc", b"\xff\xda"), bytes(900), b"\xff\xd9"),
    "markers as filling": lambda data: between(data, b"\xff\xff\xff", b"\xff\xd9"),
    "an odd revision": lambda data: data.replace(b"JFIF\0\1\1", b"JFIF\0\0\0"),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_harmless_oddities_are_read_and_not_called_damage(name, strict):
    data = ODD[name](FILES["jpeg"])
    assert data != FILES["jpeg"]
    np.testing.assert_array_equal(decode(data, 3, strict=strict), decode(FILES["jpeg"], 3))


LEFT_OVER = bytes(range(1, 40))


def test_what_a_scan_leaves_over_is_read_but_suspected():
    data = between(FILES["jpeg"], LEFT_OVER, b"\xff\xd9")
    np.testing.assert_array_equal(decode(data, 3), decode(FILES["jpeg"], 3))
    with pytest.raises(ImageError, match="the JPEG data is damaged"):
        decode(data, 3, strict=True)


def test_an_odd_header_does_not_hide_damage():
    data = between(ODD["both"](FILES["jpeg"]), LEFT_OVER, b"\xff\xd9")
    with pytest.raises(ImageError, match="the JPEG data is damaged"):
        decode(data, 3, strict=True)


@pytest.mark.parametrize("name", FILES)
def test_strict_decoding_reads_every_good_file_alike(name):
    np.testing.assert_array_equal(decode(FILES[name], 3, strict=True), decode(FILES[name], 3))


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_the_first_rows_are_those_of_the_whole_file(subsampling, reduction):
    kind = "GRAY" if subsampling == "Gray" else "RGB"
    image = picture(131, 90)[..., : 1 if kind == "GRAY" else 3].copy()
    data = simplejpeg.encode_jpeg(image, 90, kind, subsampling)
    whole = decode(data, 3, reduction)
    assert whole.shape == (-(-131 // reduction), -(-90 // reduction), 3)
    for rows in range(1, 132):
        part = decode(data, 3, reduction, rows=rows)
        assert part.shape[0] <= -(-min(131, rows + 32) // reduction)
        np.testing.assert_array_equal(part[: rows // reduction], whole[: rows // reduction])


@pytest.mark.parametrize("name", ["progressive", "restarts", "inverted cmyk", "png"])
def test_rows_of_all_kinds_of_files(name):
    data = FILES.get(name, encoded(COLOUR, "JPEG", restart_marker_rows=1))
    for rows in (1, 20, 60):
        np.testing.assert_array_equal(decode(data, 3, rows=rows)[:rows], decode(data, 3)[:rows])


def test_a_jpeg_with_too_many_pixels_is_refused_before_memory_is_spent():
    data = FILES["jpeg"].replace(b"\0\x3c\0\x50", b"\xff\xdc\xff\xdc")  # 60 x 80 becomes 65500 x 65500
    with pytest.raises(ImageError, match="too many pixels, at most 67,108,864"):
        decode(data, 3)


def test_colours_of_unequal_resolutions_that_simplejpeg_does_not_know():
    image = Image.fromarray(picture()).convert("L").convert("RGB")
    data = encoded(image, "JPEG", subsampling=0)
    frame = data.find(b"\xff\xc0")
    assert data[frame + 11] == 0x11
    other = data[: frame + 14] + b"\x21" + data[frame + 15 :]  # the second component has twice the width of the first
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg_header(other)
    assert decode(other, 3).shape == (60, 80, 3)


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
