"""All pixels of a training in one file, mapped into memory: a training needs pairs in random order, at once.

The system keeps in memory what is read often, as long as there is room, and the processes of a machine share one copy.
The memory of a process does not grow with the number of photographs.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from mmap import ACCESS_READ, ALLOCATIONGRANULARITY, mmap
from pathlib import Path
from typing import Any

import numpy as np

from idc_hub.atomic import writing
from idc_hub.errors import ImageError, IncompleteError
from idc_hub.training.pairs import Pair, Pairs

WORK = ".training"
"""Folder inside a network's folder for what only a training in progress needs; never published."""

_PIXELS = "pixels"
_RESERVE = 2**28  # bytes that must stay free on the disk, for checkpoints and whatever else is written


@dataclass(frozen=True)
class PixelFile:
    """What a pixel file contains.

    Attributes:
        path: The file: LR and HR of each pair, uint8 `[h, w, 3]`, one after the other.
        scale: HR pixels per LR pixel.
        sizes: Height and width of each LR image, by name.
        sha256: Digest of all pixels: `pixels_sha256`.
    """

    path: str
    scale: int
    sizes: dict[str, tuple[int, int]]
    sha256: str

    def map(self) -> "MappedPairs":
        """The pairs, read-only, by name; nothing is read from the disk before it is used."""
        return MappedPairs(self)

    def facts(self) -> dict[str, Any]:
        """The fields, ready for JSON; `PixelFile(**facts)` is the same file."""
        return asdict(self)


class MappedPairs(Mapping[str, Pair]):
    """The pairs of a pixel file: each is mapped into memory when it is looked up, and unmapped when it is dropped.

    One mapping of the whole file would count as the process's memory, page by page, until all of it had been read.
    """

    def __init__(self, file: PixelFile) -> None:
        self._path = Path(file.path)
        self._scale = file.scale
        self._places: dict[str, tuple[int, int, int]] = {}
        start = 0
        for name, (height, width) in file.sizes.items():
            self._places[name] = start, height, width
            start += height * width * 3 * (1 + file.scale**2)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, name: str) -> Pair:
        start, height, width = self._places[name]
        lr_bytes = height * width * 3
        count = lr_bytes * (1 + self._scale**2)
        before = start % ALLOCATIONGRANULARITY  # mappings begin at multiples of it
        with self._path.open("rb") as file:  # the mapping outlives it
            memory = mmap(file.fileno(), before + count, access=ACCESS_READ, offset=start - before)
        pixels = np.frombuffer(memory, np.uint8, count, before)
        lr = pixels[:lr_bytes].reshape(height, width, 3)
        return lr, pixels[lr_bytes:].reshape(height * self._scale, width * self._scale, 3)


@contextmanager
def work_folder(folder: Path, part: str = "") -> Iterator[Path]:
    """`WORK` inside a network's folder, empty; removed at the end of the block.

    What a killed training left behind is cleared first. Folders that are empty at the end, because nothing was written
    to the network's folder, are removed as well.

    Args:
        folder: The network's folder.
        part: A folder inside `WORK`, where several machines share a disk.
    """
    work = folder / WORK / part
    missing = [parent for parent in (work, *work.parents) if not parent.exists()]
    shutil.rmtree(work, ignore_errors=True)
    with writing(work):
        work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        for parent in (folder / WORK, *missing):
            with suppress(OSError):  # not empty, or gone
                parent.rmdir()


def write_pixels(
    pairs: Pairs,
    folder: Path,
    *,
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PixelFile:
    """Decode all pairs and write their pixels to a file in `folder`.

    Args:
        pairs: What to decode; a few pairs are in memory at a time.
        folder: Where to write the file.
        say: Called with a sentence: how many bytes will be written, and where.
        progress: Called with (pairs done, pairs in all) after each.

    Raises:
        ImageError: There are no pairs, or some cannot be used; all of them are named.
        IncompleteError: The disk is too full.
    """
    if not len(pairs):
        raise ImageError("There is no image to train on.")
    needed, free = pairs.bytes_of_pixels(), shutil.disk_usage(folder).free
    where = f"The pixels of {len(pairs):,} pairs need {_size(needed)} in {folder} until the training ends"
    if needed + _RESERVE > free:
        raise IncompleteError(
            f"{where}; only {_size(free)} are free there.", "Make room, or choose a folder on another disk."
        )
    if say:
        say(f"{where}.")
    path, sizes, digest = folder / _PIXELS, {}, hashlib.sha256()
    try:
        with path.open("wb") as file:
            for name, pair in pairs:
                if name in sizes:
                    raise ImageError(f"There are two images called {name}.", "Rename one of them.")
                sizes[name] = (pair[0].shape[0], pair[0].shape[1])
                for image in pair:
                    _add(digest, image)
                    file.write(np.ascontiguousarray(image).data)
                if progress:
                    progress(len(sizes), len(pairs))
    except OSError as error:
        raise IncompleteError(
            f"The pixels could not be written to {path}: {error.strerror}.",
            f"About {_size(needed)} are needed there.",
        ) from error
    return PixelFile(str(path.resolve()), pairs.scale, sizes, digest.hexdigest())


def pixels_sha256(pairs: Iterable[tuple[str, Pair]] | Mapping[str, Pair]) -> str:
    """Hex SHA-256 of pairs: for each LR and HR image in order its shape, as Python writes it, and its pixels."""
    digest = hashlib.sha256()
    for _, pair in pairs.items() if isinstance(pairs, Mapping) else pairs:
        for image in pair:
            _add(digest, image)
    return digest.hexdigest()


def _add(digest: Any, image: np.ndarray) -> None:
    digest.update(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
