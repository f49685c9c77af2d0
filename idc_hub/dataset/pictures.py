"""Pictures for the card: LR patches beside their HR versions."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from idc_hub.atomic import write_bytes_atomically
from idc_hub.dataset import parquet
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.images.files import decode_png

PICTURE = Path("report", "patches.png")
MAX_BYTES = 500_000
MAX_ROWS = 4
MAX_VERSIONS = 3

_SIDE = 256  # approximate width of a patch in the picture
_GAP = 12
_HEADING = 32
_LABEL = 28
_BACKGROUND = (255, 255, 255)
_INK = (31, 35, 40)
_FAINT = (89, 99, 110)


def draw_patches(condensed: CondensedSet) -> Path | None:
    """Draw `report/patches.png` for a set: patches from the whole set, with the default HR version first.

    It shows no pixels beyond those of the set's own LR and HR patches. A photograph whose name the font cannot write
    is labeled with its number in the order of the rows, from 1.

    Args:
        condensed: The set.

    Returns:
        The picture; None if there is no HR version.

    Raises:
        RunError: An HR version is damaged.
    """
    manifest = condensed.manifest
    if manifest.default is None:
        return None
    newest = sorted(manifest.hr_versions, key=lambda name: manifest.hr_versions[name].date, reverse=True)
    names = sorted(newest, key=lambda name: name != manifest.default)[:MAX_VERSIONS]
    headings = [f"LR: {manifest.patch_size}x{manifest.patch_size}", *(f"HR: {name}" for name in names)]
    across = 2 if len(names) == 1 else 1
    keys = parquet.read_keys(condensed.data(manifest.default))
    instance_ids = dict.fromkeys(instance_id for instance_id, _ in keys)
    labels = {
        name: name if is_drawable(name) else f"photograph {number}" for number, name in enumerate(instance_ids, start=1)
    }
    for rows in range(MAX_ROWS, 0, -1):
        chosen = _spread(keys, rows * across)
        tiles = _read_tiles(condensed, names, chosen)
        patches = [
            (f"{labels[instance_id]}, patch {index}", tiles[instance_id, index]) for instance_id, index in chosen
        ]
        buffer = BytesIO()
        contact_sheet(headings, patches, across=across).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MAX_BYTES:
            break
    path = condensed.folder / PICTURE
    path.parent.mkdir(exist_ok=True)
    write_bytes_atomically(path, buffer.getvalue())
    return path


def contact_sheet(
    headings: Sequence[str], patches: Sequence[tuple[str, Sequence[np.ndarray]]], *, across: int
) -> Image.Image:
    """Arrange patches in rows: LR and HR images of each side by side, with a label below and headings on top.

    LR is enlarged to the size of HR by repeating pixels, so that its pixels stay visible and nothing is smoothed.

    Args:
        headings: Names of the images of a patch: LR, then the HR versions.
        patches: For each patch its label and its images, uint8 `[height, width, 3]`, one for each heading.
        across: Patches per row.

    Returns:
        The picture, RGB.
    """
    largest = max(len(image) for _, images in patches for image in images)
    side = largest * max(1, round(_SIDE / largest))
    strips = [_strip(label, images, side) for label, images in patches]
    width, height = strips[0].size
    beside = min(across, len(strips))
    rows = -(-len(strips) // beside)
    gap = 3 * _GAP
    size = (2 * _GAP + beside * width + (beside - 1) * gap, _GAP + _HEADING + rows * height)
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for group in range(beside):
        for position, heading in enumerate(headings):
            place = (_GAP + group * (width + gap) + position * (side + _GAP), _GAP)
            _write(draw, place, heading, 20, _INK, side)
    for number, strip in enumerate(strips):
        row, group = divmod(number, beside)
        sheet.paste(strip, (_GAP + group * (width + gap), _GAP + _HEADING + row * height))
    return sheet


def _strip(label: str, images: Sequence[np.ndarray], side: int) -> Image.Image:
    """The images of one patch side by side, with its label below."""
    width = len(images) * (side + _GAP) - _GAP
    strip = Image.new("RGB", (width, side + _LABEL), _BACKGROUND)
    for position, image in enumerate(images):
        tile = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
        strip.paste(tile, (position * (side + _GAP), 0))
    _write(ImageDraw.Draw(strip), (0, side + 4), label, 15, _FAINT, width)
    return strip


def is_drawable(text: str) -> bool:
    """Whether the picture's font has all characters of a text."""
    font = ImageFont.load_default(15)
    missing = bytes(font.getmask("\U0010ffff"))
    return all(letter == " " or (letter.isprintable() and bytes(font.getmask(letter)) != missing) for letter in text)


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, color: tuple[int, ...], width: int
) -> None:
    """Write one line, cut to `width` pixels."""
    font = ImageFont.load_default(size)
    shown = text
    while shown and draw.textlength(shown, font) > width:
        text = text[:-1]
        shown = f"{text}..."
    draw.text(place, shown, color, font)


def _spread(keys: list[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    """At most `count` keys, evenly spaced."""
    count = min(count, len(keys))
    return [keys[(2 * number + 1) * len(keys) // (2 * count)] for number in range(count)]


def _read_tiles(
    condensed: CondensedSet, names: list[str], chosen: list[tuple[str, int]]
) -> dict[tuple[str, int], list[np.ndarray]]:
    """For each chosen patch its LR image and its HR image in every version."""
    tiles: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in chosen}
    for name in names:
        for row in condensed.rows(name, {instance_id for instance_id, _ in chosen}):
            images = tiles.get((row.instance_id, row.patch_index))
            if images is None:
                continue
            if not images:
                images.append(decode_png(row.lr_png, row.instance_id))
            images.append(decode_png(row.hr_png, row.instance_id))
    return tiles
