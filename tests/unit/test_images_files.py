import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from idc_hub.images.files import decode_png, encode_png, read_image, write_png

PIXELS = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("JPEG2000", {}),
    ],
)
def test_lossless_rgb_comes_back_as_it_is(tmp_path, kind, options):
    path = tmp_path / "photo"
    path.write_bytes(encoded(Image.fromarray(PIXELS), kind, **options))
    photograph = read_image(path)
    assert np.array_equal(photograph.pixels, PIXELS)
    assert photograph.pixels.dtype == np.uint8
    assert photograph.notes == ()


@pytest.mark.parametrize(("kind", "mode"), [("PPM", "L"), ("PPM", "1"), ("GIF", "L"), ("TIFF", "P"), ("BMP", "P")])
def test_gray_and_palette_of_other_formats(kind, mode):
    image = Image.fromarray(PIXELS).convert("L").convert(mode)
    photograph = read_image(encoded(image, kind))
    assert np.array_equal(photograph.pixels, np.array(image.convert("RGB")))
    assert len(photograph.notes) == 1
    assert photograph.notes[0].endswith(" converted to RGB")


def test_avif():
    smooth = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], (24, 16, 3)).copy()
    photograph = read_image(encoded(Image.fromarray(smooth), "AVIF", quality=95))
    assert np.abs(photograph.pixels.astype(int) - smooth).max() <= 6


def test_a_color_profile_is_ignored_with_a_note():
    photograph = read_image(encoded(Image.fromarray(PIXELS), "PNG", icc_profile=b"a profile" * 20))
    assert np.array_equal(photograph.pixels, PIXELS)
    assert photograph.notes == ("color profile ignored",)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


DAMAGED_TEXT = chunk(b"tEXt", b"Software\0nothing")[:-1] + b"?"
LONG_TEXT = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b" " * 2**20 * 3))


@pytest.mark.parametrize(
    ("metadata", "place"),
    [(DAMAGED_TEXT, 33), (LONG_TEXT, 33), (LONG_TEXT, -12)],
    ids=["checksum", "too long", "too long, after the pixels"],
)
def test_metadata_that_cannot_be_read_costs_no_pixels(metadata, place):
    data = encode_png(PIXELS)
    photograph = read_image(data[:place] + metadata + data[place:])
    assert np.array_equal(photograph.pixels, PIXELS)
    assert photograph.notes == ("unreadable metadata ignored",)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg(options):
    smooth = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], (24, 16, 3))
    photograph = read_image(encoded(Image.fromarray(smooth.copy()), "JPEG", quality=95, **options))
    assert np.abs(photograph.pixels.astype(int) - smooth).max() <= 4
    assert photograph.notes == ()


def test_lossy_webp_has_its_size():
    assert read_image(encoded(Image.fromarray(PIXELS), "WEBP")).pixels.shape == PIXELS.shape


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA"])
def test_other_modes_become_rgb_with_a_note(mode):
    image = Image.fromarray(PIXELS).convert("L").convert(mode)
    photograph = read_image(encoded(image, "PNG"))
    assert np.array_equal(photograph.pixels, np.array(image.convert("RGB")))
    kind = {"P": "palette", "1": "1-bit"}.get(mode, "gray")
    assert photograph.notes[-1] == f"{kind} converted to RGB"
    assert len(photograph.notes) == (2 if mode == "LA" else 1)


def test_gray_jpeg_becomes_rgb_with_a_note():
    photograph = read_image(encoded(Image.fromarray(PIXELS[..., 0]), "JPEG"))
    assert photograph.pixels.shape == (6, 9, 3)
    assert photograph.notes == ("gray converted to RGB",)


def test_gray_of_four_bits_keeps_its_full_range():
    rows = b"".join(b"\0" + bytes([0x0F]) for _ in range(2))  # two pixels a row: 0 and 15

    header = struct.pack(">IIBBBBB", 2, 2, 4, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert read_image(png).pixels[..., 1].tolist() == [[0, 255], [0, 255]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_opaque_alpha_is_dropped_with_a_note(kind):
    rgba = Image.fromarray(np.dstack([PIXELS, np.full((6, 9), 255, np.uint8)]))
    photograph = read_image(encoded(rgba, kind, lossless=True))
    assert np.array_equal(photograph.pixels, PIXELS)
    if kind == "PNG":  # the WebP encoder drops such a channel itself
        assert photograph.notes == ("opaque alpha channel dropped",)


def test_a_color_key_that_no_pixel_has_is_dropped_with_a_note():
    pixels = np.full((4, 4, 3), 9, np.uint8)
    photograph = read_image(encoded(Image.fromarray(pixels), "PNG", transparency=(1, 2, 3)))
    assert np.array_equal(photograph.pixels, pixels)
    assert photograph.notes == ("opaque alpha channel dropped",)


UPRIGHT = {  # what a viewer does for each EXIF orientation (Exif 2.3, tag 0x0112)
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph = read_image(encoded(Image.fromarray(PIXELS), kind, exif=exif, lossless=True))
    assert np.array_equal(photograph.pixels, UPRIGHT[orientation](PIXELS))
    expected = () if orientation == 1 else ("EXIF orientation applied",)
    assert photograph.notes == expected


def test_exif_rotated_jpeg():
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 8:] = 255  # right half white; turned clockwise, the lower half is
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph = read_image(encoded(Image.fromarray(wide), "JPEG", exif=exif, quality=95))
    assert photograph.pixels.shape == (16, 8, 3)
    assert photograph.pixels[:8].max() < 10
    assert photograph.pixels[8:].min() > 245
    assert len(photograph.notes) == 1


def test_png_bytes_hold_pixels_and_nothing_else(tmp_path):
    data = encode_png(PIXELS)
    assert data == encode_png(PIXELS.copy())
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append(data[at + 4 : at + 8])
        at += 12 + length
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
    assert np.array_equal(decode_png(data), PIXELS)
    write_png(tmp_path / "a.png", PIXELS)
    assert (tmp_path / "a.png").read_bytes() == data
