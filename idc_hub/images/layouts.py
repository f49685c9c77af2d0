"""How the field stores LR beside HR, so that LR images are never taken for photographs.

DIV2K (`DIV2K_train_HR`, `DIV2K_train_LR_bicubic/X4/0001x4.png`), KAIR (`trainH`, `trainL`), BasicSR (`GTmod12`,
`LRbicx4`) and SelfExSR (`img_001_SRF_4_HR.png` beside `img_001_SRF_4_LR.png`) all mark LR by a folder or by the end of
the file name, and give LR the name of its HR image. Both together are the evidence: a photograph `x4.png`, or a folder
of LR images alone, is no pair.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

_LR_FOLDER = re.compile(
    r"(?<![a-z])(lr|lq)(?![a-z])|(?<![a-z])(lr|lq)[-_]?(bic|bicubic|bd|dn|unknown|mild|wild|difficult)|low[-_ ]?res"
    r"|^(train|test|valid|val)[-_]?l$",
    re.IGNORECASE,
)
_HR_FOLDER = re.compile(
    r"(?<![a-z])(hr|gt|hq)(?![a-z])|(?<![a-z])gt[-_]?mod|high[-_ ]?res|^(train|test|valid|val)[-_]?h$", re.IGNORECASE
)
_SCALE_FOLDER = re.compile(r"^(bicubic[-_]?)?x[-_]?([23468])([-_].*)?$", re.IGNORECASE)
_LR_STEM = re.compile(r"[-_](lr|lq)([23468]|[-_]?x[23468])?$", re.IGNORECASE)
_HR_STEM = re.compile(r"[-_](hr|gt|hq)$", re.IGNORECASE)
_SCALE_STEM = re.compile(r"[-_]?x[23468][a-z]?$", re.IGNORECASE)  # DIV2K's 0001x4, 0001x4m, 0001x4d


@dataclass(frozen=True)
class Pair:
    """An image that is stored with its LR version, or with another of another scale.

    Attributes:
        hr: Name of the HR image.
        lr: Name of the LR image.
    """

    hr: str
    lr: str


@dataclass(frozen=True)
class _Name:
    """What a path says of its image.

    Attributes:
        name: The path.
        key: What an LR image shares with its HR image.
        lr: Its folder says LR.
        hr: Its folder or file name says HR.
        hint: Its file name says LR, or there is a scale: this may be a coincidence.
    """

    name: str
    key: str
    lr: bool
    hr: bool
    hint: str


def find_pair(names: Iterable[str], is_smaller: Callable[[str, str], bool]) -> Pair | None:
    """The first HR image whose LR version is among the names too; None if there is none.

    Args:
        names: Relative paths, with `/`.
        is_smaller: Whether the first image is a smaller version of the second. Called only if a bare scale, such as
            `x4`, or a bare `_LR` is all that marks LR.
    """
    for group in _groups(names):
        original = min(group, key=lambda one: (one.lr, bool(one.hint), not one.hr))
        for other in group:
            if other is original or original.lr or other.hr or (original.hint and not original.hr):
                continue
            if other.lr or (other.hint and (original.hr or is_smaller(other.name, original.name))):
                return Pair(original.name, other.name)
    return None


def find_scales(names: Iterable[str], is_smaller: Callable[[str, str], bool]) -> tuple[str, str] | None:
    """Two LR images of one photograph at different scales, such as `X2/0001x2.png` and `X4/0001x4.png`, or None."""
    for group in _groups(names):
        first = group[0]
        for other in group[1:]:
            if first.hint != other.hint and any(
                is_smaller(*pair) for pair in ((first.name, other.name), (other.name, first.name))
            ):
                return first.name, other.name
    return None


def hr_folder(pair: Pair) -> str | None:
    """The uppermost folder that says HR, else any, and has the HR image of a pair but not the LR image, or None."""
    hr, lr = PurePosixPath(pair.hr), PurePosixPath(pair.lr)
    own = [folder for folder in reversed(hr.parents) if not lr.is_relative_to(folder)]
    telling = [folder for folder in own if _HR_FOLDER.search(folder.name)]
    return str((telling or own)[0]) if own else None


def hr_ending(pair: Pair) -> str | None:
    """The pattern that chooses HR where both sides share a folder, such as `*_HR.png`; None if there is none."""
    hr, lr = PurePosixPath(pair.hr), PurePosixPath(pair.lr)
    marked = _HR_STEM.search(hr.stem)
    return f"*{marked[0]}{hr.suffix}" if marked and hr.parent == lr.parent else None


def lr_pattern(pair: Pair) -> str:
    """A pattern that leaves the LR images of a pair's kind out."""
    hr, lr = PurePosixPath(pair.hr), PurePosixPath(pair.lr)
    for depth, folder in enumerate(lr.parent.parts):
        if hr.parent.parts[depth : depth + 1] != (folder,):
            return "/".join((*lr.parent.parts[: depth + 1], "*"))
    marked = _LR_STEM.search(lr.stem) or _SCALE_STEM.search(lr.stem)
    return f"*{marked[0]}{lr.suffix}" if marked else lr.name


def _groups(names: Iterable[str]) -> list[list[_Name]]:
    """Names that may be versions of one image."""
    groups: dict[str, list[_Name]] = defaultdict(list)
    for name in names:
        parsed = _parse(name)
        groups[parsed.key].append(parsed)
    return [group for group in groups.values() if len(group) > 1]


def _parse(name: str) -> _Name:
    path = PurePosixPath(name)
    stem, folders = path.stem, path.parent.parts
    hint = "".join(folder.lower() for folder in folders if _SCALE_FOLDER.match(folder))
    telling = next(
        (folder for folder in reversed(folders) if _LR_FOLDER.search(folder) or _HR_FOLDER.search(folder)), ""
    )
    hr = bool(_HR_FOLDER.search(telling))
    lr = bool(telling) and not hr
    if ending := _HR_STEM.search(stem):
        stem, hr = stem[: ending.start()], True
    elif (ending := _LR_STEM.search(stem) or _SCALE_STEM.search(stem)) and ending.start():
        stem, hint = stem[: ending.start()], hint + ending[0].lower()
        hr = hr and not _LR_STEM.fullmatch(ending[0])
    return _Name(name, stem.casefold(), lr, hr, hint)
