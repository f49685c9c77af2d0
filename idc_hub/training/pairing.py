"""Which LR file belongs to which HR file, and what a data set is called: the naming habits of the field.

DIV2K writes `X4/0001x4.png` for `0001.png`, SelfExSR `img_001_SRF_4_LR.png` for `img_001_SRF_4_HR.png`, BasicSR
`LRbicx4/baby.png` for `GTmod12/baby.png`, RCAN `baby_LRBI_x4.png` for `baby_HR_x4.png`.
"""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from idc_hub.errors import ImageError, first_few
from idc_hub.images.sources import Entry

_GENERIC_FOLDER = re.compile(r"HR|GT|GTmod\d+|LR|LR_?bic(ubic)?|LR_?bicx?\d|LR_?x?\d|X\d|image_SRF_\d", re.IGNORECASE)
_SCALE_OF_FOLDER = re.compile(r"(?:^|[_-]|bic|LR)(?:x|SRF_)(\d)$", re.IGNORECASE)


def set_name(location: str | Path) -> str:
    """What to call a data set: its folder, or the one above where that only says HR, GTmod12, X4 or the like."""
    path = Path(location).expanduser()
    if not path.exists():  # a Hub dataset or a folder of a package
        return path.name
    return _named_folder(path.resolve()).name if path.is_dir() else path.stem


def folder_name(location: str | Path) -> str:
    """`set_name` and the folders below it, such as DIV2K_train_LR_bicubic/X4."""
    path = Path(location).expanduser()
    if not path.is_dir():
        return set_name(location)
    return path.resolve().relative_to(_named_folder(path.resolve()).parent).as_posix()


def _named_folder(path: Path) -> Path:
    """The folder, or the nearest one above it, whose name says more than HR, LR or a scale."""
    return next((folder for folder in (path, *path.parents) if not _GENERIC_FOLDER.fullmatch(folder.name)), path)


def pair_files(
    hr: Sequence[Entry], lr: Sequence[Entry], scale: int, *, location: str, lr_location: str
) -> list[tuple[Entry, Entry]]:
    """Find the LR file of every HR file.

    Suffixes do not matter, nor does the folder that all files of a source share. LR files in a folder of another scale
    (`X2`) are no candidates. HR and LR may be in one folder if their names end in `_HR` and `_LR`.

    Args:
        hr: HR files.
        lr: LR files; there may be more of them.
        scale: HR pixels per LR pixel.
        location: Where the HR files are, for messages.
        lr_location: Where the LR files are, for messages.

    Returns:
        (HR file, LR file) for every HR file, in its order.

    Raises:
        ImageError: HR files without an LR file, or with several; they are named.
    """
    hr, lr = _without(hr, "LR", scale), [entry for entry in _without(lr, "HR", scale) if _is_of_scale(entry, scale)]
    root, lr_root = (_common_folder(entries) for entries in (hr, lr))
    keys: tuple[tuple[Callable[[Entry], str], Callable[[Entry], str]], ...] = (
        (lambda entry: _below(entry, root), lambda entry: _below(entry, lr_root)),
        (lambda entry: _bare(_below(entry, root), scale), lambda entry: _bare(_below(entry, lr_root), scale)),
        (lambda entry: _stem(entry), lambda entry: _stem(entry)),
        (lambda entry: _bare(_stem(entry), scale), lambda entry: _bare(_stem(entry), scale)),
    )
    best: list[list[Entry]] = []
    for hr_key, lr_key in keys:
        of_key: dict[str, list[Entry]] = defaultdict(list)
        for entry in lr:
            of_key[lr_key(entry)].append(entry)
        shared = Counter(map(hr_key, hr))
        partners = [of_key[hr_key(entry)] if shared[hr_key(entry)] == 1 else [] for entry in hr]
        if all(len(found) == 1 for found in partners):
            return [(entry, found[0]) for entry, found in zip(hr, partners, strict=True)]
        if not best or sum(map(bool, partners)) > sum(map(bool, best)):
            best = partners
    several = [(entry, found) for entry, found in zip(hr, best, strict=True) if len(found) > 1]
    if several:
        entry, found = several[0]
        raise ImageError(
            f"{entry.name} of {location} has {len(found)} LR images in {lr_location}: "
            f"{first_few((each.name for each in found), 5)}.",
            "Name the folder that has only one for each HR image.",
        )
    missing = [entry.name for entry, found in zip(hr, best, strict=True) if not found]
    raise ImageError(
        f"{lr_location} has no LR image for {len(missing)} of the {len(hr)} HR images of {location}: "
        f"{first_few(missing, 5)}.",
        f"An LR image has the name of its HR image, or that name with x{scale} or _LR.",
    )


def _without(entries: Sequence[Entry], role: str, scale: int) -> Sequence[Entry]:
    """The files that are not of a role, HR or LR, where file names say so."""
    other = {"LR": "HR", "HR": "LR"}[role]
    if not any(_has_role(entry, other, scale) for entry in entries):
        return entries
    return [entry for entry in entries if not _has_role(entry, role, scale)]


def _has_role(entry: Entry, role: str, scale: int) -> bool:
    return re.search(rf"[_-]{role}(BI|bic)?([_-]?x{scale})?$", _stem(entry), re.IGNORECASE) is not None


def _is_of_scale(entry: Entry, scale: int) -> bool:
    folders = PurePosixPath(entry.name).parent.parts
    found = [match[1] for folder in folders if (match := _SCALE_OF_FOLDER.search(folder))]
    return not found or str(scale) in found


def _common_folder(entries: Sequence[Entry]) -> str:
    """The folder that all files of a source are in, "" for the source itself."""
    folders = [PurePosixPath(entry.name).parent.as_posix() for entry in entries]
    return posixpath.commonpath(folders) if folders else ""


def _below(entry: Entry, root: str) -> str:
    return PurePosixPath(entry.name).with_suffix("").relative_to(root or ".").as_posix()


def _stem(entry: Entry) -> str:
    return PurePosixPath(entry.name).stem


def _bare(name: str, scale: int) -> str:
    """A file's name without what says that it is HR or LR and of which scale."""
    mark = re.compile(rf"([_-]?x{scale}|[_-](HR|GT|LR|LRBI|LRbic|bicubic|SRF[_-]{scale}))$", re.IGNORECASE)
    while (shorter := mark.sub("", name)) not in (name, ""):
        name = shorter
    return name
