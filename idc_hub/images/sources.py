"""The photographs to condense: from a folder, a zip, an installed Python package or a Hub dataset.

A `Source` lists its photographs and reads their bytes. `survey` decodes each of them once and reports every problem
before any work starts. `load_hr` gives the pixels of one instance.
"""

import fnmatch
import hashlib
import importlib.util
import os
import re
import unicodedata
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from idc_hub.errors import ImageError, LeftOutWarning, first_few
from idc_hub.images import layouts
from idc_hub.images.defects import first_sight
from idc_hub.images.files import FORMATS, SUFFIXES, image_size, read_file, read_image, read_member
from idc_hub.images.patches import places
from idc_hub.images.resize import mod_crop

PACKAGE_PREFIX = "package:"
MAX_ID_BYTES = 200
MAX_THREADS = 8
_OF_THE_SYSTEM = ("Thumbs.db", "desktop.ini", "__MACOSX")


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
        count: Number of its patches in the set, synthetic or chosen; 0 before they are counted, or if the ratio leaves
            none.
        notes: A phrase for each conversion that reading the file took, as `Photograph.notes`.
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
        left_out: Names of the files that are no photographs by their suffix, sorted; hidden files do not count.
    """

    location: str
    entries: tuple[Entry, ...]
    reader: Callable[[str], bytes]
    left_out: tuple[str, ...] = ()

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(entry.name for entry in self.entries)

    def warn_of_left_out(self) -> None:
        """Warn of the files that are left out: how many, and at most five names."""
        count = len(self.left_out)
        if count:
            what = "1 file is not a photograph and is" if count == 1 else f"{count} files are not photographs and are"
            sentence = f"{what} left out of {self.location}: {first_few(self.left_out, 5)}."
            warnings.warn(sentence, LeftOutWarning, stacklevel=2)

    def read(self, photograph: Entry | Instance) -> bytes:
        """The bytes of one photograph's file.

        Raises:
            ImageError: The source does not list it, or its file cannot be read.
        """
        if photograph.name not in self._names:  # a name from a foreign file must not lead out of the source
            raise ImageError(f"{photograph.name} is not among the photographs of {self.location}.")
        return self.reader(photograph.name)


def count_conversions(instances: Iterable[Instance]) -> dict[str, int]:
    """How many photographs took each conversion, by the phrases of `Instance.notes`, the most frequent first."""
    return dict(Counter(note for instance in instances for note in instance.notes).most_common())


def open_source(
    path: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    config: str | None = None,
    split: str = "train",
    column: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    lr_allowed: bool = False,
) -> Source:
    """List the photographs of a source. Images are opened only where their names suggest that some are LR versions.

    Hidden files and folders are ignored; other files without the suffix of a photograph are in `Source.left_out`.

    Args:
        path: A folder (searched with its subfolders), a zip, `package:NAME/SUBFOLDER` for a folder inside an
            installed Python package, or a Hub dataset id `org/name`. What exists on this machine comes first.
        include: Glob patterns for names inside the source, of which one must fit; `*` also spans `/`.
        exclude: Glob patterns for names inside the source, of which none may fit.
        config: Config of a Hub dataset; may be left out where there is only one.
        split: Split of a Hub dataset.
        column: Image column of a Hub dataset; may be left out where there is only one.
        revision: Branch, tag or commit of a Hub dataset.
        limit: Take only the first so many photographs, in the order of their ids.
        lr_allowed: Accept LR images beside HR images: for a source of LR, of which names tell later what is what.

    Returns:
        The source, its entries sorted by id.

    Raises:
        ImageError: No such source, no photographs in it, a pattern that fits none, or LR images beside HR images.
        HubError: The Hub dataset exists but cannot be loaded.
    """
    local = Path(path).expanduser()
    if path.startswith(PACKAGE_PREFIX):
        folder = _package_folder(path)
        names, reader = list(_walk(folder)), _folder_reader(folder)
    elif local.is_dir():
        names, reader = list(_walk(local)), _folder_reader(local)
    elif local.is_file():
        names, reader = _open_zip(local)
    elif re.fullmatch(r"[A-Za-z0-9_-][\w.-]*/[\w.-]+", path, re.ASCII):
        from idc_hub.images.hub_dataset import open_hub_dataset

        entries, reader = open_hub_dataset(path, config=config, split=split, column=column, revision=revision)
        return _source(path, entries, [], reader, include, exclude, limit, lr_allowed)
    else:
        raise ImageError(
            f"There is no folder, zip or Hub dataset {path}.",
            "Check the path; a Hub dataset is named org/name.",
        )
    visible = [name for name in names if not _is_hidden(name)]
    entries = [Entry(PurePosixPath(name).stem, name) for name in visible if _is_photograph(name)]
    others = [name for name in visible if not _is_photograph(name)]
    return _source(path, entries, others, reader, include, exclude, limit, lr_allowed)


def _source(
    location: str,
    entries: list[Entry],
    others: list[str],
    reader: Callable[[str], bytes],
    include: Sequence[str],
    exclude: Sequence[str],
    limit: int | None,
    lr_allowed: bool,
) -> Source:
    """The source of the entries that are chosen, if they are photographs and not LR images beside them."""
    chosen = _choose(entries, others, include, exclude, location)
    if not chosen:
        found = f" ({len(others)} other files, such as {sorted(others)[0]})" if others else ""
        raise ImageError(f"{location} holds no photographs{found}.", f"Put {FORMATS} files there.")
    if not lr_allowed:
        _refuse_lr_beside_hr(location, sorted(entry.name for entry in chosen), reader)
    chosen.sort(key=lambda entry: (entry.id, entry.name))
    left_out = sorted(name for name in others if (not include or _fits(name, include)) and not _fits(name, exclude))
    return Source(location, tuple(chosen[:limit]), reader, tuple(left_out))


def _refuse_lr_beside_hr(location: str, names: list[str], reader: Callable[[str], bytes]) -> None:
    """Refuse a source that has the LR version of an image beside it, and say how to choose HR."""

    def is_smaller(one: str, other: str) -> bool:
        try:
            (width, height), (full_width, full_height) = (image_size(reader(name), name) for name in (one, other))
        except ImageError:  # the survey says what is wrong with it
            return False
        return full_width >= 1.5 * width and abs(full_width / width - full_height / height) < 0.2

    pair = layouts.find_pair(names, is_smaller)
    if pair:
        what = f"{location} holds LR images beside their HR images ({pair.lr} beside {pair.hr})"
        folder = layouts.hr_folder(pair)
        if folder and Path(location).expanduser().is_dir():
            raise ImageError(f"{what}: give the folder of the HR images, {Path(location, folder)}.")
        chosen = f"{folder}/*" if folder else layouts.hr_ending(pair)
        if chosen:
            raise ImageError(f"{what}: choose HR with source.include={chosen} (or --include '{chosen}').")
        pattern = layouts.lr_pattern(pair)
        raise ImageError(f"{what}: leave LR out with source.exclude={pattern} (or --exclude '{pattern}').")
    scales = layouts.find_scales(names, is_smaller)
    if scales:
        raise ImageError(
            f"{location} holds the same photographs at several scales ({' and '.join(scales)}): give the folder of one."
        )


def survey(
    source: Source,
    *,
    scale: int,
    size: int,
    stride: int,
    zooms: Sequence[float] = (1.0,),
    progress: Callable[[int, int], None] | None = None,
) -> list[Instance]:
    """Decode every photograph once and describe it. One warning names photographs that look like poor originals.

    Args:
        source: The photographs.
        scale: Super-resolution scale.
        size: Side of an LR patch.
        stride: Distance between LR patches.
        zooms: Sizes of the photographs to cut from, see `places`.
        progress: Called with (photographs done, photographs in all) after each.

    Returns:
        The instances, in the order of the source's entries.

    Raises:
        ImageError: Some photographs cannot be used; one error that lists every one of them, a line for each.
    """

    def describe(entry: Entry) -> tuple[Instance, str | None] | ImageError:
        try:
            return _describe(source, entry, scale=scale, size=size, stride=stride, zooms=zooms)
        except ImageError as error:
            return error

    problems = _shared_ids(source.entries)
    instances = []
    poor: dict[str, list[str]] = {}
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for done, outcome in enumerate(pool.map(describe, source.entries), start=1):
            if isinstance(outcome, ImageError):
                problems.append(str(outcome))
            else:
                instance, look = outcome
                instances.append(instance)
                if look:
                    poor.setdefault(look, []).append(instance.name)
            if progress:
                progress(done, len(source.entries))
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise ImageError(f"Some photographs of {source.location} cannot be used:{listed}")
    if poor:
        looks = [
            f"{len(names)} {'looks' if len(names) == 1 else 'look'} {look} ({first_few(names)})"
            for look, names in sorted(poor.items())
        ]
        warnings.warn(
            f"Of {len(instances)} photographs, {' and '.join(looks)}. Use better originals, or leave them out "
            "(source.exclude): networks learn such faults.",
            stacklevel=1,
        )
    return instances


def load_hr(source: Source, instance: Instance, *, scale: int) -> np.ndarray:
    """The HR image of an instance, checked against the digest that the survey found.

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


def _describe(
    source: Source, entry: Entry, *, scale: int, size: int, stride: int, zooms: Sequence[float]
) -> tuple[Instance, str | None]:
    """A photograph's instance, and what it looks like if it is a poor original."""
    if not is_instance_id(entry.id):
        raise ImageError(
            f"{entry.name!r} cannot name an instance: rename it, with at most {MAX_ID_BYTES} bytes before "
            "the suffix and without backslash or control characters."
        )
    data = source.read(entry)
    photograph = read_image(data, entry.name)
    height, width = mod_crop(photograph.pixels, scale).shape[:2]
    patches = len(places(height, width, scale=scale, size=size, stride=stride, zooms=zooms))
    if not patches:
        side = size * scale
        raise ImageError(
            f"{entry.name} is {width}x{height} after mod-crop; one HR patch needs {side}x{side}"
            f"{'' if max(zooms) == 1 else f' at {max(zooms):g} of that size'}: "
            "leave it out or make patches.size smaller."
        )
    digest = hashlib.sha256(data).hexdigest()
    instance = Instance(entry.id, entry.name, digest, width, height, patches, notes=photograph.notes)
    return instance, first_sight(photograph.pixels)


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


def _choose(
    entries: list[Entry], others: list[str], include: Sequence[str], exclude: Sequence[str], location: str
) -> list[Entry]:
    names = [entry.name for entry in entries]
    for key, patterns, choice in (("include", include, names), ("exclude", exclude, [*names, *others])):
        for pattern in patterns:
            if not fnmatch.filter(choice, pattern):
                raise ImageError(
                    f"No photograph of {location} fits the pattern {pattern} of source.{key}.",
                    "Patterns are for paths inside the source, and upper and lower case differ.",
                )
    included = [entry for entry in entries if not include or _fits(entry.name, include)]
    chosen = [entry for entry in included if not _fits(entry.name, exclude)]
    if included and not chosen:
        raise ImageError(f"source.exclude leaves no photograph of {location}.", "Give narrower patterns.")
    return chosen


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any((part.startswith(".") and part != "..") or part in _OF_THE_SYSTEM for part in parts)


def _is_photograph(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


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


def _open_zip(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Names and reader of a zip. Members are read into memory; their names never become paths."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ImageError(
            f"{path} cannot be opened as a zip ({error}).", "Give a folder, a zip or a Hub dataset id."
        ) from error

    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    return names, lambda name: read_member(archive, name, name)
