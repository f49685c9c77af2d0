"""The photographs to condense: from a folder, a zip, an installed Python package or a Hub dataset.

A `Source` lists its photographs and reads their bytes; `survey` looks at every one of them once and tells all
that is wrong before any work starts; `load_hr` and `load_lr_patches` give the pixels of one instance.
"""

import fnmatch
import hashlib
import importlib.util
import os
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from idc_hub.errors import HubError, ImageError
from idc_hub.images.files import MAX_FILE_BYTES, read_file, read_image, too_many_bytes
from idc_hub.images.patches import cut, windows
from idc_hub.images.resize import imresize, mod_crop

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PACKAGE_PREFIX = "package:"
MAX_ID_BYTES = 200
MAX_THREADS = 8


@dataclass(frozen=True)
class Entry:
    """One photograph of a source.

    Attributes:
        id: The instance id: the file's name without folder and suffix.
        name: What messages call it: its path inside the source, or its row.
    """

    id: str
    name: str


@dataclass(frozen=True)
class Instance:
    """One source image with all its LR patches, as the survey found it.

    Attributes:
        id: Instance id, unique in its source.
        name: Name inside the source.
        sha256: Hex digest of the file's bytes.
        width: Width of the HR image after the mod-crop.
        height: Height of the HR image after the mod-crop.
        patches: Number of its real LR patches.
        count: Patches that stand for it in the set, synthetic or chosen; 0 before they are counted, and where the
            ratio leaves it none.
        notes: One sentence for each thing that reading the file changed.
    """

    id: str
    name: str
    sha256: str
    width: int
    height: int
    patches: int
    count: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A place with photographs.

    Attributes:
        location: What the user called it.
        entries: Its photographs, sorted by id.
        reader: Gives the bytes of the photograph of a name.
    """

    location: str
    entries: tuple[Entry, ...]
    reader: Callable[[str], bytes]

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(entry.name for entry in self.entries)

    def read(self, photograph: Entry | Instance) -> bytes:
        """The bytes of one photograph's file.

        Raises:
            ImageError: The source does not list it, or its file cannot be read.
        """
        if photograph.name not in self._names:  # a name from a foreign file must not lead out of the source
            raise ImageError(f"{photograph.name} is not among the photographs of {self.location}.")
        return self.reader(photograph.name)


def open_source(
    path: str,
    *,
    include: Sequence[str] = (),
    split: str = "train",
    column: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> Source:
    """List the photographs of a source. No photograph is opened yet.

    Files that are not named as PNG, JPEG or WebP, and hidden files and folders, are passed over.

    Args:
        path: A folder (searched with its subfolders), a zip, `package:NAME/SUBFOLDER` for a folder inside an
            installed Python package, or a Hub dataset id `org/name`. What exists on this machine comes first.
        include: Glob patterns for names inside the source, of which one must fit; `*` also spans `/`.
        split: Split of a Hub dataset.
        column: Image column of a Hub dataset; may be left out where there is only one.
        revision: Branch, tag or commit of a Hub dataset.
        limit: Take only the first so many photographs, in the order of their ids.

    Returns:
        The source, its entries sorted by id.

    Raises:
        ImageError: No such source, no photographs in it, or a pattern that fits none.
        HubError: The Hub dataset exists but cannot be loaded.
    """
    local = Path(path).expanduser()
    if path.startswith(PACKAGE_PREFIX):
        folder = _package_folder(path)
        entries, reader = _folder_entries(folder), _folder_reader(folder)
    elif local.is_dir():
        entries, reader = _folder_entries(local), _folder_reader(local)
    elif local.is_file():
        entries, reader = _open_zip(local)
    elif re.fullmatch(r"[A-Za-z0-9_-][\w.-]*/[\w.-]+", path, re.ASCII):
        entries, reader = _open_hub_dataset(path, split, column, revision)
    else:
        raise ImageError(
            f"There is no folder, zip or Hub dataset {path}.",
            "Check the path; a Hub dataset is named org/name.",
        )
    chosen = sorted(_choose(entries, include, path), key=lambda entry: (entry.id, entry.name))
    if not chosen:
        raise ImageError(f"{path} holds no photographs.", "Put PNG, JPEG or WebP files there.")
    return Source(path, tuple(chosen[:limit]), reader)


def survey(
    source: Source,
    *,
    scale: int,
    size: int,
    stride: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Instance]:
    """Decode every photograph once and describe it.

    Args:
        source: The photographs.
        scale: Super-resolution scale.
        size: Side of an LR patch.
        stride: Distance between LR patches.
        progress: Called with (photographs done, photographs in all) after each.

    Returns:
        The instances, in the order of the source's entries.

    Raises:
        ImageError: Some photographs cannot be used; one error that lists every one of them, a line for each.
    """

    def describe(entry: Entry) -> Instance | ImageError:
        try:
            return _describe(source, entry, scale, size, stride)
        except ImageError as error:
            return error

    problems = _shared_ids(source.entries)
    instances = []
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for done, outcome in enumerate(pool.map(describe, source.entries), start=1):
            if isinstance(outcome, ImageError):
                problems.append(str(outcome))
            else:
                instances.append(outcome)
            if progress:
                progress(done, len(source.entries))
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise ImageError(f"Some photographs of {source.location} cannot be used:{listed}")
    return instances


def load_hr(source: Source, instance: Instance, *, scale: int) -> np.ndarray:
    """The HR image of an instance, held to the digest that the survey found.

    Args:
        source: Where the instance was found.
        instance: What `survey` returned for it.
        scale: Super-resolution scale.

    Returns:
        uint8 RGB `[height, width, 3]`, mod-cropped to `scale`.

    Raises:
        ImageError: The photograph is gone or has changed.
    """
    data = source.read(instance)
    if hashlib.sha256(data).hexdigest() != instance.sha256:
        raise ImageError(
            f"{instance.name} in {source.location} is not the file that this run began with.",
            "Put the original back, or start a new run.",
        )
    return mod_crop(read_image(data, instance.name).pixels, scale)


def load_lr_patches(source: Source, instance: Instance, *, scale: int, size: int, stride: int) -> np.ndarray:
    """The LR patches of an instance: photograph, mod-crop, MATLAB bicubic, windows.

    Args:
        source: Where the instance was found.
        instance: What `survey` returned for it.
        scale: Super-resolution scale.
        size: Side of an LR patch.
        stride: Distance between LR patches.

    Returns:
        uint8 `[instance.patches, 3, size, size]`.

    Raises:
        ImageError: The photograph is gone or has changed.
    """
    lr = imresize(load_hr(source, instance, scale=scale), 1 / scale)
    return cut(lr, size, stride)


def _describe(source: Source, entry: Entry, scale: int, size: int, stride: int) -> Instance:
    if not is_instance_id(entry.id):
        raise ImageError(
            f"{entry.name!r} cannot name an instance: rename it, with at most {MAX_ID_BYTES} bytes before "
            "the suffix and without backslash or control characters."
        )
    data = source.read(entry)
    photograph = read_image(data, entry.name)
    height, width = mod_crop(photograph.pixels, scale).shape[:2]
    places = windows(height // scale, width // scale, size, stride)
    if not places:
        side = size * scale
        raise ImageError(
            f"{entry.name} is {width}x{height} after mod-crop; one HR patch needs {side}x{side}: "
            "leave it out or make patches.size smaller."
        )
    digest = hashlib.sha256(data).hexdigest()
    return Instance(entry.id, entry.name, digest, width, height, len(places), notes=photograph.notes)


def is_instance_id(text: str) -> bool:
    """Whether `text` can be an instance id: it becomes a key, a table cell and part of file names."""
    odd = any(letter in "/\\" or unicodedata.category(letter) in ("Cc", "Cs") for letter in text)
    return not odd and text not in ("", ".", "..") and len(text.encode()) <= MAX_ID_BYTES


def _shared_ids(entries: Iterable[Entry]) -> list[str]:
    """A sentence for each id that several photographs share."""
    names: dict[str, list[str]] = {}
    for entry in entries:
        names.setdefault(entry.id.casefold(), []).append(entry.name)  # some file systems ignore case
    return [
        f"{' and '.join(same)} have the same name up to the suffix: rename all but one."
        for same in names.values()
        if len(same) > 1
    ]


def _choose(entries: list[Entry], include: Sequence[str], location: str) -> list[Entry]:
    if not include:
        return entries
    chosen: set[Entry] = set()
    for pattern in include:
        fitting = {entry for entry in entries if fnmatch.fnmatchcase(entry.name, pattern)}
        if not fitting:
            raise ImageError(
                f"No photograph of {location} fits the pattern {pattern} of source.include.",
                "Patterns are for paths inside the source, and upper and lower case differ.",
            )
        chosen |= fitting
    return list(chosen)


def _entry_of_path(name: str) -> Entry | None:
    """The entry for a relative path, or None where it is hidden or not named as a photograph."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != ".." for part in path.parts)
    return None if hidden or path.suffix.lower() not in SUFFIXES else Entry(path.stem, name)


def _folder_entries(root: Path) -> list[Entry]:
    return [entry for name in _walk(root) if (entry := _entry_of_path(name))]


def _folder_reader(root: Path) -> Callable[[str], bytes]:
    return lambda name: read_file(root / name, name)


def _walk(root: Path) -> Iterator[str]:
    """Relative paths of all files under a folder, links followed, every folder visited once."""

    def refuse(error: OSError) -> None:
        raise ImageError(f"The folder {error.filename} cannot be read: {error.strerror}.") from error

    visited = set()
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # a link back up, or a second way in
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for file in files:
            yield Path(folder, file).relative_to(root).as_posix()


def _package_folder(location: str) -> Path:
    """The folder that `package:NAME/SUBFOLDER` means, found without importing the package."""
    package, _, subfolder = location.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ImageError(f"There is no installed Python package {package!r} for {location}.", "Install it.")
    for place in spec.submodule_search_locations:
        folder = Path(place, subfolder).resolve()
        if folder.is_dir() and folder.is_relative_to(Path(place).resolve()):
            return folder
    raise ImageError(f"The Python package {package} has no folder {subfolder!r} for {location}.")


def _open_zip(path: Path) -> tuple[list[Entry], Callable[[str], bytes]]:
    """Entries and reader of a zip. Members are read into memory; their names never become paths."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ImageError(
            f"{path} cannot be opened as a zip ({error}).", "Give a folder, a zip or a Hub dataset id."
        ) from error

    def read(name: str) -> bytes:
        info = archive.getinfo(name)
        if info.file_size > MAX_FILE_BYTES:
            raise too_many_bytes(name, info.file_size)
        try:
            return archive.read(info)
        # RuntimeError: a password is needed; NotImplementedError: a compression that Python lacks
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise ImageError(f"{name} cannot be unpacked ({error}): make the zip anew.") from error

    names = (info.filename for info in archive.infolist() if not info.is_dir())
    return [entry for name in names if (entry := _entry_of_path(name))], read


def _open_hub_dataset(
    repo_id: str, split: str, column: str | None, revision: str | None
) -> tuple[list[Entry], Callable[[str], bytes]]:
    """Entries and reader of a Hub dataset; named after its files if every file has a name of its own."""
    import datasets

    try:
        dataset = datasets.load_dataset(repo_id, split=split, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ImageError(
            f"There is no folder or zip {repo_id} here, and on the Hub no such dataset that you may read.",
            "Check the name and the revision; for a private dataset log in first (hf auth login).",
        ) from error
    except Exception as error:  # network, split, broken files: the library has no common class for them
        reason = " ".join(str(error).split())
        raise HubError(f"The Hub dataset {repo_id} cannot be loaded: {reason}") from error
    column = _image_column(dataset.features, column, repo_id)
    stored = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    files = [PurePosixPath(path or "").name for path in stored.flatten()[f"{column}.path"]]
    entries = [Entry(PurePosixPath(file).stem, file) for file in files]
    unique = len({entry.id.casefold() for entry in entries}) == len(entries)
    if not unique or not all(is_instance_id(entry.id) for entry in entries):
        digits = max(4, len(str(len(entries))))
        entries = [Entry(f"{row:0{digits}}", f"row {row}") for row in range(len(entries))]
    rows = {entry.name: row for row, entry in enumerate(entries)}
    return entries, lambda name: _stored_bytes(stored[rows[name]][column], name)


def _image_column(features: "datasets.Features", column: str | None, repo_id: str) -> str:
    import datasets

    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if column is not None and column in columns:
        return column
    if column is None and len(columns) == 1:
        return columns[0]
    problem = f"no image column {column!r}" if column else f"{len(columns)} image columns"
    raise ImageError(
        f"The Hub dataset {repo_id} has {problem}; its image columns: {', '.join(columns) or 'none'}.",
        "Name one of them as source.column.",
    )


def _stored_bytes(cell: dict | None, name: str) -> bytes:
    """The bytes of an undecoded image cell: embedded, or in a file that was downloaded with the dataset."""
    import datasets
    from huggingface_hub import constants

    if not cell or (cell["bytes"] is None and cell["path"] is None):
        raise ImageError(f"{name} has no image: leave it out.")
    if cell["bytes"] is not None:
        return cell["bytes"]
    path = Path(cell["path"]).resolve()
    config = datasets.config
    caches = (constants.HF_HUB_CACHE, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH)
    if not any(path.is_relative_to(Path(cache).resolve()) for cache in caches):
        raise ImageError(f"{name} has no bytes and names a file outside the download cache: leave it out.")
    return read_file(path, name)
