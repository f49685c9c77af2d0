"""Image files in and out: PNG, JPEG and WebP, checked from their headers before anything is decoded.

A photograph becomes 8-bit RGB or is refused with one sentence; nothing is changed without a note, and nothing
that would lose information (16 bits, transparency, CMYK, frames) is changed at all.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from idc_hub.errors import ImageError

MAX_FILE_BYTES = 2**29
MAX_PIXELS = 170_000_000  # a little below the size at which Pillow itself starts to refuse

_OTHER_FORMATS = {b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Photograph:
    """A decoded image file.

    Attributes:
        pixels: uint8 RGB, `[height, width, 3]`.
        notes: One sentence for each thing that was changed while reading; empty where the file was 8-bit RGB.
    """

    pixels: np.ndarray
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Header:
    open: Callable[[BytesIO], ImageFile.ImageFile]
    width: int
    height: int
    bits: int = 8


def read_image(source: Path | bytes, name: str | None = None) -> Photograph:
    """Read a PNG, JPEG or WebP photograph as 8-bit RGB.

    Gray and palette images are converted, a fully opaque alpha channel is dropped, and the EXIF orientation
    is applied; each leaves a note. Color profiles are ignored, as super-resolution benchmarks ignore them.

    Args:
        source: A file, or the bytes of one.
        name: What to call it in messages; the path by default.

    Returns:
        Pixels and notes.

    Raises:
        ImageError: Not such a file, damaged, too large, or something that has no 8-bit RGB equal: more than 8
            bits, transparency, CMYK, several frames. The message is one sentence that names the file.
    """
    if isinstance(source, Path):
        name = name or str(source)
        source = read_file(source, name)
    name = name or "The image"
    header = _read_header(source, name)
    try:
        with header.open(BytesIO(source)) as image:
            image.load()
            animated = getattr(image, "n_frames", 1) > 1
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # on damaged data the decoders raise nearly every class there is
        raise _refusal(name, f"is damaged or truncated ({error})", "replace it") from error
    if animated:
        raise _refusal(name, "is an animation", "save the frame that you want as a PNG")
    pixels, notes = _to_rgb(upright, name)
    if orientation in range(2, 9):
        notes.append(f"Turned upright as its EXIF orientation ({orientation}) says.")
    return Photograph(pixels, tuple(notes))


def read_file(path: Path, name: str) -> bytes:
    """Read a whole regular file of at most `MAX_FILE_BYTES`.

    Raises:
        ImageError: No such file, a broken link, a special file, too large or unreadable.
    """
    try:
        if not path.is_file():  # also keeps pipes and devices from being opened
            raise _refusal(name, "is missing, a broken link or not a regular file", "replace it")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise too_many_bytes(name, path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise _refusal(name, f"cannot be read ({error.strerror})", "check its permissions") from error


def too_many_bytes(name: str, size: int) -> ImageError:
    """The refusal of a file of `size` bytes."""
    sizes = f"{size / 2**20:,.0f} MiB, more than the limit of {MAX_FILE_BYTES // 2**20} MiB"
    return _refusal(name, f"has {sizes}", "make it smaller")


def encode_png(array: np.ndarray) -> bytes:
    """PNG bytes of a uint8 RGB image `[height, width, 3]`: no metadata, always the same with one Pillow."""
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(data: bytes, name: str | None = None) -> np.ndarray:
    """uint8 RGB `[height, width, 3]` of PNG bytes, under the limits and with the errors of `read_image`."""
    return read_image(data, name).pixels


def write_png(path: Path, array: np.ndarray) -> None:
    """Write a uint8 RGB image `[height, width, 3]` as a PNG file."""
    path.write_bytes(encode_png(array))


def _refusal(name: str, what: str, remedy: str) -> ImageError:
    return ImageError(f"{name} {what}: {remedy}, or leave it out.")


def _read_header(data: bytes, name: str) -> _Header:
    """Look at format, size and depth without decoding a pixel, and refuse what must not be decoded.

    The three readers are called by name: `PIL.Image.open` would try some fifty formats and has a size limit
    of its own, a warning that no thread can silence for itself.
    """
    if not data:
        raise _refusal(name, "is empty (0 bytes)", "replace it")
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height, bits = struct.unpack_from(">IIB", data, 16)
            header = _Header(PngImageFile, width, height, bits)
        elif data.startswith(b"\xff\xd8\xff"):
            header = _Header(JpegImageFile, *JpegImageFile(BytesIO(data)).size)
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            header = _webp_header(data)
        else:
            raise _unknown_format(data, name)
    except (struct.error, OSError, SyntaxError, ValueError, IndexError) as error:
        raise _refusal(name, f"is damaged or truncated ({error})", "replace it") from error
    if header.width * header.height > MAX_PIXELS:
        what = f"is {header.width}x{header.height}, more than {MAX_PIXELS // 10**6} megapixels"
        raise _refusal(name, what, "cut it into smaller images")
    if header.bits > 8:
        raise _refusal(name, f"has {header.bits} bits per channel", "save it with 8 bits")
    return header


def _webp_header(data: bytes) -> _Header:
    """Size from the first chunk of a WebP file (RFC 9649, sections 2.5 to 2.7)."""
    kind, _, payload = struct.unpack_from("<4sI10s", data, 12)
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(payload[at : at + 3], "little") for at in (4, 7))
        return _Header(WebPImageFile, width, height)
    if kind == b"VP8L":
        packed = int.from_bytes(payload[1:5], "little")
        return _Header(WebPImageFile, 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
    width, height = struct.unpack("<HH", payload[6:10])
    return _Header(WebPImageFile, width & 0x3FFF, height & 0x3FFF)


def _unknown_format(data: bytes, name: str) -> ImageError:
    for magic, format_name in _OTHER_FORMATS.items():
        if data.startswith(magic):
            return _refusal(name, f"is a {format_name} file", "save it as PNG, JPEG or WebP")
    return _refusal(name, "is not a PNG, JPEG or WebP image", "replace it")


def _to_rgb(image: Image.Image, name: str) -> tuple[np.ndarray, list[str]]:
    """uint8 RGB pixels and notes of a decoded image, or the refusal of its mode."""
    notes = []
    mode = image.mode
    if mode not in ("RGB", "RGBA", "L", "LA", "P", "1"):
        raise _refusal(name, f"has the color mode {mode}", "save it as 8-bit RGB")
    if mode in ("RGBA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise _refusal(name, "is transparent in places", "save it on a background without alpha")
        notes.append("Dropped an alpha channel that was opaque everywhere.")
    if mode in ("L", "LA", "P", "1"):
        kind = {"P": "palette", "1": "1-bit"}.get(mode, "gray")
        notes.append(f"Converted from {kind} to RGB.")
    return np.array(image.convert("RGB")), notes
