"""Draw docs/condensed.png: two photographs of the quickstart, one condensed LR patch of each, and its two HR versions.

idc condense quickstart
idc regenerate runs/quickstart --teacher bicubic --name bicubic
python docs/make_picture.py runs/quickstart docs/condensed.png
"""

import sys
from pathlib import Path

import skimage
from datasets import load_dataset
from PIL import Image, ImageDraw, ImageFont

ROWS = {"astronaut": 1, "coffee": 0}
"""Photographs of scikit-image, and which of their patches is drawn."""
TEACHERS = ("edsr-small", "bicubic")
SIDE = 192  # of a patch, the HR side of the quickstart: HR pixels are drawn one to one
GAP = 16
HEADER = 30


def draw(run: Path) -> Image.Image:
    """The picture of a finished quickstart that has both HR versions."""
    photographs = {
        name: Image.open(Path(skimage.__file__).parent / "data" / f"{name}.png").convert("RGB") for name in ROWS
    }
    for photograph in photographs.values():
        photograph.thumbnail((2 * SIDE, SIDE), Image.Resampling.LANCZOS)
    versions = {
        teacher: {
            (row["instance_id"], row["patch_index"]): row
            for row in load_dataset(str(run / "repo"), teacher, split="train")
        }
        for teacher in TEACHERS
    }
    left = max(photograph.width for photograph in photographs.values()) + 2 * GAP
    columns = [left + position * (SIDE + GAP) for position in range(1 + len(TEACHERS))]
    picture = Image.new("RGB", (columns[-1] + SIDE + GAP, HEADER + len(ROWS) * (SIDE + GAP)), "white")
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(16)
    titles = ("photograph", "condensed LR, 48 x 48", *(f"HR by {teacher}" for teacher in TEACHERS))
    for x, title in zip((GAP, *columns), titles, strict=True):
        pen.text((x, 6), title, fill="black", font=font)
    for position, (name, patch) in enumerate(ROWS.items()):
        top = HEADER + position * (SIDE + GAP)
        picture.paste(photographs[name], (GAP, top))
        lr = versions[TEACHERS[0]][name, patch]["lr"].resize((SIDE, SIDE), Image.Resampling.NEAREST)
        tiles = [lr, *(versions[teacher][name, patch]["hr"] for teacher in TEACHERS)]
        for x, tile in zip(columns, tiles, strict=True):
            picture.paste(tile, (x, top))
    return picture


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(Path(sys.argv[1])).save(sys.argv[2], optimize=True)
