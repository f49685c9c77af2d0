"""Photographs that nobody should send and everybody does: each is refused with one sentence that names the file."""

import os
import struct
import warnings
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from idc_hub.errors import ImageError
from idc_hub.images import files
from idc_hub.images.files import encode_png, read_image
from idc_hub.images.sources import open_source, survey

PIXELS = np.random.default_rng(5).integers(0, 256, (40, 48, 3), dtype=np.uint8)
GRID = {"scale": 2, "size": 16, "stride": 8}
GOOD = encode_png(PIXELS)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, color: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG chunk by chunk, for what Pillow would not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(np.roll(PIXELS, shift, 0)) for shift in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)


def deeper_jpeg_2000() -> bytes:
    """A JPEG 2000 file whose SIZ marker says 16 bits, which Pillow would scale down to 8."""
    data = bytearray(encoded(Image.fromarray(PIXELS), "JPEG2000"))
    depths = data.index(b"\xff\x4f\xff\x51") + 42
    for component in range(3):
        data[depths + 3 * component] = 15
    return bytes(data)


def palette_with_hole() -> bytes:
    return encoded(Image.fromarray(PIXELS[..., 0]).convert("P"), "PNG", transparency=int(PIXELS[0, 0, 0]))


def rgba(alpha: int) -> Image.Image:
    image = Image.fromarray(PIXELS).convert("RGBA")
    image.putpixel((3, 4), (1, 2, 3, alpha))
    return image


ROWS_16_BIT_RGB = (b"\0" + bytes(range(24))) * 3  # 4x3 pixels of three 16-bit numbers
REFUSED = {
    "gray-16.png": (encoded(Image.fromarray(np.full((9, 9), 40000, np.uint16)), "PNG"), "16 bits per channel"),
    "rgb-16.png": (png(4, 3, 16, 2, ROWS_16_BIT_RGB), "16 bits per channel"),
    "cmyk.jpg": (encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"), "CMYK"),
    "float.tiff": (encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), "32 bits per channel"),
    "gray-16.tif": (encoded(Image.fromarray(np.full((9, 9), 40000, np.uint16)), "TIFF"), "16 bits per channel"),
    "gray-16.pgm": (b"P5 2 2 65535\n" + bytes(8), "16 bits per channel"),
    "rgb-16.ppm": (b"P6 # 12 bits\n2 2\n4095\n" + bytes(24), "12 bits per channel"),
    "rgb-16.jp2": (deeper_jpeg_2000(), "16 bits per channel"),
    "pages.tif": (animation("TIFF"), "has several pages: save the page that you want as a PNG"),
    "moving.png": (animation("PNG"), "is an animation"),
    "moving.webp": (animation("WEBP"), "is an animation"),
    "moving.gif": (animation("GIF"), "is an animation"),
    "renamed-gif.png": (animation("GIF"), "is an animation"),
    "pointer.png": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "is a Git LFS pointer, not the image itself: run `git lfs pull`",
    ),
    "page.jpg": (b"\n<!DOCTYPE html><html>Not found</html>", "is an HTML page, as a failed download leaves it"),
    "paper.png": (b"%PDF-1.7\n", "is a PDF document"),
    "archive.png": (b"PK\3\4" + bytes(40), "is a zip archive"),
    "phone.jpg": (b"\0\0\0\x18ftypheic" + bytes(40), "is a HEIC image"),
    "chunk.png": (GOOD[:33] + b"\0\0\0\1\x1b[31" + GOOD[33:], "is damaged or truncated: replace it"),
    "half.bmp": (encoded(Image.fromarray(PIXELS), "BMP")[:500], "is damaged or truncated"),
    "half.ppm": (encoded(Image.fromarray(PIXELS), "PPM")[:500], "is damaged or truncated"),
    "half.tif": (encoded(Image.fromarray(PIXELS), "TIFF")[:500], "is damaged or truncated"),
    "half.jp2": (encoded(Image.fromarray(PIXELS), "JPEG2000")[:60], "is damaged or truncated"),
    "half.avif": (encoded(Image.fromarray(PIXELS), "AVIF")[:150], "is damaged or truncated"),
    "glass.png": (encoded(rgba(254), "PNG"), "is transparent in places"),
    "glass.webp": (encoded(rgba(0), "WEBP", lossless=True, exact=True), "is transparent in places"),
    "gray-glass.png": (encoded(rgba(7).convert("LA"), "PNG"), "is transparent in places"),
    "palette-hole.png": (palette_with_hole(), "is transparent in places"),
    "color-key.png": (
        encoded(Image.fromarray(PIXELS), "PNG", transparency=tuple(PIXELS[5, 5].tolist())),
        "is transparent in places",
    ),
    "half.png": (GOOD[: len(GOOD) // 2], "is damaged or truncated"),
    "nearly.png": (GOOD[:-40], "is damaged or truncated"),
    "header-only.png": (GOOD[:33], "is damaged or truncated"),
    "signature-only.png": (GOOD[:10], "is damaged or truncated"),
    "bit-flip.png": (GOOD[:900] + bytes([GOOD[900] ^ 255]) + GOOD[901:], "is damaged or truncated"),
    "half.jpg": (encoded(Image.fromarray(PIXELS), "JPEG")[:700], "is damaged or truncated"),
    "start.jpg": (encoded(Image.fromarray(PIXELS), "JPEG")[:30], "is damaged or truncated"),
    "half.webp": (encoded(Image.fromarray(PIXELS), "WEBP")[:300], "is damaged or truncated"),
    "start.webp": (encoded(Image.fromarray(PIXELS), "WEBP")[:20], "is damaged or truncated"),
    "text.png": (
        b"this is not a photograph\n",
        "is not a PNG, JPEG, WebP, BMP, TIFF, PPM, GIF, JPEG 2000 or AVIF image",
    ),
    "zero.png": (b"", "is empty (0 bytes)"),
    "no-pixels.png": (png(0, 0, 8, 2, b""), "is damaged or truncated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_sentence_that_names_the_file(tmp_path, name):
    data, sentence = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source, called in ((path, str(path)), (data, name)):
            with pytest.raises(ImageError) as caught:
                read_image(source, None if source is path else name)
            message = str(caught.value)
            assert message.startswith(f"{called} ")
            assert sentence in message
            assert message.endswith("leave it out.")
            assert "\n" not in message
            assert message.isprintable()


def bomb_jpeg() -> bytes:
    data = bytearray(encoded(Image.fromarray(PIXELS), "JPEG"))
    at = data.index(b"\xff\xc0") + 5  # start of frame: length, precision, then height and width
    data[at : at + 4] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


def bomb_webp(kind: bytes) -> bytes:
    options = {b"VP8 ": {}, b"VP8L": {"lossless": True}, b"VP8X": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}}[kind]
    data = bytearray(encoded(Image.fromarray(PIXELS), "WEBP", **options))
    assert data[12:16] == kind
    if kind == b"VP8X":
        data[24:30] = (29_999).to_bytes(3, "little") * 2
    elif kind == b"VP8L":
        data[21:25] = (0xFFFFFFF).to_bytes(4, "little")
    else:
        data[26:30] = struct.pack("<HH", 16383, 16383)
    return bytes(data)


def bomb_bmp() -> bytes:
    data = bytearray(encoded(Image.fromarray(PIXELS), "BMP"))
    data[18:26] = struct.pack("<ii", 60000, 60000)
    return bytes(data)


def bomb_tiff() -> bytes:
    data = bytearray(encoded(Image.fromarray(PIXELS), "TIFF"))
    for tag, side in ((256, PIXELS.shape[1]), (257, PIXELS.shape[0])):
        for kind, form in ((3, "<HHIH"), (4, "<HHII")):
            entry = struct.pack(form, tag, kind, 1, side)
            if entry in data:
                at = data.index(entry)
                data[at : at + len(entry)] = struct.pack(form, tag, kind, 1, 60000)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png(30_000, 30_000, 8, 2, bytes(90_001)), "30000x30000"),
        (png(2**31 - 1, 2**31 - 1, 1, 0, b"\0"), "2147483647x2147483647"),
        (bomb_jpeg(), "65000x65000"),
        (bomb_webp(b"VP8 "), "16383x16383"),
        (bomb_webp(b"VP8L"), "16384x16384"),
        (bomb_webp(b"VP8X"), "30000x30000"),
        (b"P6 30000 30000 255\n", "30000x30000"),
        (b"GIF89a" + struct.pack("<HH", 65000, 65000) + bytes(9), "65000x65000"),
        (bomb_bmp(), "60000x60000"),
        (bomb_tiff(), "60000x60000"),
    ],
    ids=["png", "png-largest", "jpeg", "webp", "webp-lossless", "webp-extended", "ppm", "gif", "bmp", "tiff"],
)
def test_a_decompression_bomb_is_refused_from_its_header(monkeypatch, data, size):
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loaded.append(self))
    monkeypatch.setattr("PIL._webp.WebPAnimDecoder", lambda data: loaded.append(data))
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as caught:
            read_image(data, "bomb.png")
    assert str(caught.value).startswith(f"bomb.png is {size}, more than 170 megapixels: ")
    assert not loaded
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_large_photograph_within_the_limit_does_not_warn(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_image(GOOD).pixels, PIXELS)


def test_too_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)
    path = tmp_path / "large.png"
    path.write_bytes(GOOD)
    with pytest.raises(ImageError, match=r"large\.png has 0 MiB, more than the limit"):
        read_image(path)


def refusal(path: Path) -> str:
    """The message of the survey of a folder or zip."""
    with pytest.raises(ImageError) as caught:
        survey(open_source(str(path)), **GRID)
    return str(caught.value)


def test_all_bad_photographs_are_listed_in_one_error(tmp_path):
    expected = []
    for name, (data, sentence) in REFUSED.items():
        expected.append((f"{len(expected):02}-{name}", sentence))
        (tmp_path / expected[-1][0]).write_bytes(data)
    (tmp_path / "good.png").write_bytes(GOOD)
    (tmp_path / "small.png").write_bytes(encode_png(PIXELS[:31, :45]))
    expected.append(("small.png", "is 44x30 after mod-crop; one HR patch needs 32x32: leave it out or make"))
    first, *lines = refusal(tmp_path).splitlines()
    assert first == f"Some photographs of {tmp_path} cannot be used:"
    for line, (name, sentence) in zip(lines, expected, strict=True):
        assert line.startswith(f"  {name} ")
        assert sentence in line


def test_two_files_with_the_same_stem(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/Lena.png", "lena.PNG", "other.png"):
        (tmp_path / name).write_bytes(GOOD)
    message = refusal(tmp_path)
    assert "  a/Lena.png and lena.PNG have the same name up to the suffix: rename all but one." in message
    assert "other" not in message


@pytest.mark.parametrize("name", ["back\\slash.png", "line\nbreak.png", "x" * 201 + ".png"])
def test_names_that_cannot_be_an_id(tmp_path, name):
    (tmp_path / name).write_bytes(GOOD)
    message = refusal(tmp_path)
    assert f"{name!r} cannot name an instance" in message
    assert len(message.splitlines()) == 2


def test_a_name_that_is_not_unicode(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(GOOD)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    message = refusal(tmp_path)
    assert "'caf\\udce9.png' cannot name an instance" in message
    message.encode()  # can be printed


def test_folders_without_photographs(tmp_path):
    for name in ("notes.txt", ".hidden.png", "moving.mp4"):
        (tmp_path / name).write_bytes(GOOD)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(GOOD)
    with pytest.raises(ImageError, match=r"holds no photographs \(2 other files, such as moving\.mp4\)") as caught:
        open_source(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_no_such_path(tmp_path):
    missing = str(tmp_path / "photos")
    with pytest.raises(ImageError) as caught:
        open_source(missing)
    assert f"There is no folder, zip or Hub dataset {missing}." in str(caught.value)


@pytest.mark.timeout(30)
def test_links_that_loop(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.png").write_bytes(GOOD)
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "again").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert [entry.name for entry in open_source(str(tmp_path)).entries] == ["a/one.png"]
    (tmp_path / "ring.png").symlink_to(tmp_path / "ring.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    message = refusal(tmp_path)
    for name in ("ring.png", "gone.png"):
        assert f"  {name} is missing, a broken link or not a regular file: replace it, or leave it out." in message
    assert len(message.splitlines()) == 3


@pytest.mark.timeout(30)
def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png is missing, a broken link or not a regular file" in refusal(tmp_path)


def test_files_and_folders_without_permission(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "locked.png").write_bytes(GOOD)
    with monkeypatch.context() as patch:  # root may read everything, so a mode of 0 would not do
        patch.setattr(Path, "read_bytes", refuse)
        assert "  locked.png cannot be read (Permission denied): check its permissions" in refusal(tmp_path)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError, match=f"The folder {tmp_path} cannot be read: Permission denied"):
        open_source(str(tmp_path))


def make_zip(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "photo.png").write_bytes(GOOD)
    with pytest.raises(ImageError, match=r"photo\.png cannot be opened as a zip"):
        open_source(str(tmp_path / "photo.png"))
    half = make_zip(tmp_path / "half.zip", {"a.png": GOOD})
    half.write_bytes(half.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"half\.zip cannot be opened as a zip"):
        open_source(str(half))


def test_a_zip_without_photographs(tmp_path):
    path = make_zip(tmp_path / "empty.zip", {"readme.txt": b"", "__MACOSX/._a.png": GOOD, "folder.png/": b""})
    with pytest.raises(ImageError, match=r"empty\.zip holds no photographs"):
        open_source(str(path))


def test_zip_members_never_leave_the_archive(tmp_path):
    folder = tmp_path / "inside"
    folder.mkdir()
    path = make_zip(folder / "photos.zip", {"../evil.png": GOOD, "/abs.png": GOOD, "win\\dows.png": GOOD})
    before = sorted(tmp_path.rglob("*"))
    source = open_source(str(path))
    assert [entry.id for entry in source.entries] == ["abs", "evil", "win\\dows"]
    assert "cannot name an instance" in refusal(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_zip_members_that_are_damaged_or_locked(tmp_path):
    path = make_zip(tmp_path / "photos.zip", {"a.png": GOOD, "b.png": GOOD}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 50] ^= 255  # inside a.png: the checksum no longer fits
    second = data.rindex(b"PK\x01\x02")  # b.png in the central directory
    data[second + 8] |= 1  # encrypted
    first = data.index(b"PK\x03\x04", data.index(b"IEND"))
    data[first + 6] |= 1
    path.write_bytes(data)
    lines = refusal(path).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("  a.png cannot be read from its zip (Bad CRC-32")
    assert lines[2].startswith("  b.png cannot be read from its zip (")
    assert "password" in lines[2]


def test_a_zip_bomb_is_refused_by_its_declared_size(tmp_path, monkeypatch):
    monkeypatch.setattr("idc_hub.images.files.MAX_FILE_BYTES", 2**20)
    path = make_zip(tmp_path / "photos.zip", {"bomb.png": bytes(2**22)})
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    assert "bomb.png has 4 MiB, more than the limit" in refusal(path)
