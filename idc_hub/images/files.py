"""Image files in and out, checked from their headers before anything is decoded.

A photograph becomes 8-bit RGB or is refused with one sentence. Every conversion leaves a note; a conversion that would
lose information (16 bits, transparency, CMYK, several frames or pages) is a refusal.
"""

import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from idc_hub.errors import ImageError, one_line

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".jp2", ".j2k", ".avif"),
)
"""File name endings of photographs, in lower case."""
FORMATS = "PNG, JPEG, WebP, BMP, TIFF, PPM, GIF, JPEG 2000 or AVIF"
MAX_FILE_BYTES = 2**29
MAX_PIXELS = 170_000_000  # a little below the size at which Pillow itself starts to refuse

_ORIENTATION_TAG = 0x0112
_BITS_TAG = 258
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_NOT_PHOTOGRAPHS = {
    b"version https://git-lfs": ("is a Git LFS pointer, not the image itself", "run `git lfs pull`"),
    b"%PDF": ("is a PDF document", "save its pictures as PNG"),
    b"PK\3\4": ("is a zip archive", "give it the suffix .zip, or unpack it"),
    b"\x1f\x8b": ("is a gzip archive", "unpack it"),
    b"8BPS": ("is a Photoshop file", "save it as PNG"),
    b"\xff\x0a": ("is a JPEG XL image", "save it as PNG"),
    b"\0\0\0\x0cJXL ": ("is a JPEG XL image", "save it as PNG"),
    b"v/1\1": ("is an OpenEXR image", "save it as 8-bit PNG"),
    b"MATLAB": ("is a MATLAB file", "save its images as PNG"),
    b"\x93NUMPY": ("is a NumPy array", "save it as PNG"),
}
"""What a file that is no photograph begins with: what it is, and what to do."""


@dataclass(frozen=True)
class Photograph:
    """A decoded image file.

    Attributes:
        pixels: uint8 RGB, `[height, width, 3]`.
        notes: A phrase for each conversion, such as "gray converted to RGB"; empty if the file was plain 8-bit RGB.
    """

    pixels: np.ndarray
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Header:
    open: Callable[[BytesIO], ImageFile.ImageFile]
    width: int
    height: int
    bits: int = 8
    orientation: int = 1  # TIFF only: Pillow turns these upright itself and then forgets the tag


def read_image(source: Path | bytes, name: str | None = None) -> Photograph:
    """Read a photograph as 8-bit RGB: PNG, JPEG, WebP, BMP, TIFF, PPM, GIF, JPEG 2000 or AVIF.

    Gray and palette images are converted, a fully opaque alpha channel is dropped, the EXIF orientation is applied, and
    color profiles are ignored, as super-resolution benchmarks ignore them. Each leaves a note.

    Args:
        source: A file, or the bytes of one.
        name: What to call it in messages; the path by default.

    Returns:
        Pixels and notes.

    Raises:
        ImageError: The file is no such image, damaged, too large, or has no 8-bit RGB equal: more than 8 bits,
            transparency, CMYK, several frames or pages. The message is one sentence that names the file.
    """
    if isinstance(source, Path):
        name = name or str(source)
        source = read_file(source, name)
    name = name or "The image"
    header = _read_header(source, name)
    try:
        return _decode(source, header, name)
    except ImageError:
        bare = _without_metadata(source)
        if bare == source:
            raise
        try:
            photograph = _decode(bare, header, name)
        except ImageError:
            pass
        else:
            return Photograph(photograph.pixels, (*photograph.notes, "unreadable metadata ignored"))
        raise


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of a photograph by its header, before it is turned upright.

    Raises:
        ImageError: As `read_image` does for what the header tells.
    """
    header = _read_header(data, name)
    return header.width, header.height


def _decode(data: bytes, header: _Header, name: str) -> Photograph:
    try:
        with header.open(BytesIO(data)) as image:
            frames = getattr(image, "n_frames", 1)
            image.load()
            orientation = image.getexif().get(_ORIENTATION_TAG, header.orientation)
            upright = ImageOps.exif_transpose(image)
            profile = "icc_profile" in image.info
    except Exception as error:  # on damaged data the decoders raise nearly every class there is
        raise _damaged(name, error) from error
    if frames > 1:
        what = "has several pages" if header.open is TiffImageFile else "is an animation"
        remedy = "save the page that you want" if header.open is TiffImageFile else "save the frame that you want"
        raise _refusal(name, what, f"{remedy} as a PNG")
    pixels, notes = _to_rgb(upright, name)
    if orientation in range(2, 9):
        notes.append("EXIF orientation applied")
    if profile:
        notes.append("color profile ignored")
    return Photograph(pixels, tuple(notes))


def _without_metadata(data: bytes) -> bytes:
    """A PNG without its texts and color profile, whose damage or length makes Pillow refuse sound pixels.

    Returns:
        The same bytes if the file is no PNG, or has no such chunks.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return data
    kept, at = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind not in _PNG_METADATA:
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept)


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


def read_member(archive: zipfile.ZipFile, member: str, name: str) -> bytes:
    """The bytes of a zip's member, called `name` in messages.

    Raises:
        ImageError: It is missing, too large, damaged, encrypted or compressed in a way that Python lacks.
    """
    try:
        info = archive.getinfo(member)
        if info.file_size > MAX_FILE_BYTES:
            raise too_many_bytes(name, info.file_size)
        return archive.read(info)
    # RuntimeError: a password is needed; NotImplementedError, which is one: a compression that Python lacks
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, RuntimeError) as error:
        raise ImageError(f"{name} cannot be read from its zip ({one_line(error)}): make the zip again.") from error


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


def check_png(data: bytes, name: str, *, width: int, height: int) -> None:
    """Check, without decoding, that PNG bytes are an 8-bit RGB image of this size, and the checksums of their chunks.

    Raises:
        ImageError: They are not.
    """
    expected = struct.pack(">IIBB", width, height, 8, 2)
    if not data.startswith(_PNG_SIGNATURE) or data[12:16] != b"IHDR" or data[16:26] != expected:
        raise ImageError(f"{name} is not an 8-bit RGB PNG of {width} x {height} pixels.")
    try:
        PngImageFile(BytesIO(data)).verify()
    except Exception as error:  # on damaged data Pillow raises nearly every class there is
        raise _damaged(name, error) from error


def write_png(path: Path, array: np.ndarray) -> None:
    """Write a uint8 RGB image `[height, width, 3]` as a PNG file."""
    path.write_bytes(encode_png(array))


def _refusal(name: str, what: str, remedy: str) -> ImageError:
    return ImageError(f"{name} {what}: {remedy}, or leave it out.")


def _damaged(name: str, error: BaseException) -> ImageError:
    reason = one_line(error)
    told = "" if not reason or "b'" in reason or " object at 0x" in reason else f" ({reason})"
    return _refusal(name, f"is damaged or truncated{told}", "replace it")


def _read_header(data: bytes, name: str) -> _Header:
    """Read format, size and depth without decoding a pixel, and refuse what must not be decoded.

    The readers are called by name: `PIL.Image.open` would try some fifty formats and has a size limit of its own, a
    warning that no thread can silence for itself.
    """
    if not data:
        raise _refusal(name, "is empty (0 bytes)", "replace it")
    try:
        header = _header_of(data)
    # Errors and warnings alike: GIF checks its size by Pillow's own limit.
    except (struct.error, OSError, SyntaxError, ValueError, LookupError, TypeError, Warning) as error:
        raise _damaged(name, error) from error
    except Image.DecompressionBombError as error:
        raise _refusal(name, f"has more than {MAX_PIXELS // 10**6} megapixels", "cut it into smaller images") from error
    if header is None:
        raise _no_photograph(data, name)
    if header.width * header.height > MAX_PIXELS:
        what = f"is {header.width}x{header.height}, more than {MAX_PIXELS // 10**6} megapixels"
        raise _refusal(name, what, "cut it into smaller images")
    if header.bits > 8:
        raise _refusal(name, f"has {header.bits} bits per channel", "save it with 8 bits")
    return header


def _header_of(data: bytes) -> _Header | None:
    """The header by the file's first bytes, whatever its name says; None if it is no photograph."""
    if data.startswith(_PNG_SIGNATURE):
        return _Header(PngImageFile, *struct.unpack_from(">IIB", data, 16))
    if data.startswith(b"\xff\xd8\xff"):
        return _Header(JpegImageFile, *JpegImageFile(BytesIO(data)).size)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_header(data)
    if data.startswith(b"BM"):
        return _Header(BmpImageFile, *BmpImageFile(BytesIO(data)).size)
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _tiff_header(data)
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return _pnm_header(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _Header(GifImageFile, *struct.unpack_from("<HH", data, 6))
    if data.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")):
        return _jpeg_2000_header(data)
    if data[4:8] == b"ftyp" and (data[8:12] in (b"avif", b"avis") or b"avif" in data[16:64]):
        return _avif_header(data)
    return None


def _tiff_header(data: bytes) -> _Header:
    image = TiffImageFile(BytesIO(data))
    bits = max(np.atleast_1d(image.tag_v2.get(_BITS_TAG, 1)))
    return _Header(TiffImageFile, *image.size, int(bits), image.tag_v2.get(_ORIENTATION_TAG, 1))


def _pnm_header(data: bytes) -> _Header:
    """Size and depth of a PBM, PGM or PPM; Pillow scales a 16-bit PPM down to 8 bits without a word."""
    image = PpmImageFile(BytesIO(data))
    arguments = image.tile[0].args
    largest = arguments[1] if isinstance(arguments, tuple) else 65535 if "16" in str(arguments) else 255
    return _Header(PpmImageFile, *image.size, 8 if image.mode == "1" else max(8, int(largest).bit_length()))


def _jpeg_2000_header(data: bytes) -> _Header:
    """Size and depth; the depth is in the SIZ marker (ISO 15444-1, A.5.1), and Pillow scales RGB to 8 bits itself."""
    image = Jpeg2KImageFile(BytesIO(data))
    at = data.index(b"\xff\x4f\xff\x51")
    (components,) = struct.unpack_from(">H", data, at + 40)
    depths = data[at + 42 : at + 42 + 3 * components : 3]
    return _Header(Jpeg2KImageFile, *image.size, 1 + max(depth & 0x7F for depth in depths))


def _avif_header(data: bytes) -> _Header:
    """Size from libavif, which parses only; depth from the AV1 configuration (av1-isobmff, section 2.3)."""
    flags = data[data.index(b"av1C") + 6]
    bits = (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    return _Header(AvifImageFile, *AvifImageFile(BytesIO(data)).size, bits)


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


def _no_photograph(data: bytes, name: str) -> ImageError:
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, (what, remedy) in _NOT_PHOTOGRAPHS.items():
        if start.startswith(magic):
            return _refusal(name, what, remedy)
    if start.lower().startswith((b"<!doctype html", b"<html")):
        return _refusal(name, "is an HTML page, as a failed download leaves it", "download it again")
    if data[4:8] == b"ftyp":
        heic = data[8:12] in (b"heic", b"heix", b"mif1", b"msf1")
        return _refusal(name, "is a HEIC image" if heic else "is a video", "save it as PNG")
    return _refusal(name, f"is not a {FORMATS} image", "replace it")


def _to_rgb(image: Image.Image, name: str) -> tuple[np.ndarray, list[str]]:
    """uint8 RGB pixels and notes of a decoded image, or the refusal of its mode."""
    notes = []
    mode = image.mode
    if mode not in ("RGB", "RGBA", "L", "LA", "P", "PA", "1"):
        raise _refusal(name, f"has the color mode {mode}", "save it as 8-bit RGB")
    if mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise _refusal(name, "is transparent in places", "save it on a background without alpha")
        notes.append("opaque alpha channel dropped")
    if mode in ("L", "LA", "P", "PA", "1"):
        kind = {"P": "palette", "PA": "palette", "1": "1-bit"}.get(mode, "gray")
        notes.append(f"{kind} converted to RGB")
    return np.array(image.convert("RGB")), notes
