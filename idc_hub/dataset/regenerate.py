"""Add an HR version, made by a teacher or cut from the photographs, to a condensed set."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import torch

from idc_hub.dataset import parquet
from idc_hub.dataset.card import write_card
from idc_hub.dataset.check import check_contents, check_repository, check_version
from idc_hub.dataset.condensed_set import CondensedSet, LRPatch
from idc_hub.dataset.hr import HRSource
from idc_hub.dataset.manifest import FileRecord, HRVersion, Manifest, TeacherRecord, is_version_name
from idc_hub.dataset.pictures import draw_patches
from idc_hub.errors import RecipeError, RunError
from idc_hub.images.figures import rms_residual
from idc_hub.images.files import encode_png
from idc_hub.runs.progress import Reporting, counting

_ENCODERS = min(16, max(2, os.cpu_count() or 2))
"""Threads that make rows (PNG, residual) while the teacher works on the next batch; enough to keep up with a GPU."""


@dataclass(frozen=True)
class AddedVersion:
    """The result of `regenerate`.

    Attributes:
        hr_version: Name of the version.
        written: False if the version existed already, made by the same teacher from the same patches.
        default: The version that `load_dataset` gives without a config name.
        patches: Rows of the version.
        bytes: Size of its parquet files.
    """

    hr_version: str
    written: bool
    default: str
    patches: int
    bytes: int


def add_version(
    condensed: CondensedSet, source: HRSource, name: str, *, set_default: bool, progress: Reporting = True
) -> AddedVersion:
    """Add an HR version (see `regenerate`), update the pictures and the card, and check that everything loads.

    Raises:
        RecipeError: See `regenerate`.
        RunError: See `regenerate`; or the set does not pass `check_contents` before, or `check_repository` after.
        NetworkError: See `regenerate`.
    """
    with condensed.lock():  # another call for the same set waits
        condensed.manifest = Manifest.load(condensed.folder)  # another call may have added a version meanwhile
        check_contents(condensed, except_for=name)
        with counting(f"HR version {name}", progress) as count:
            added = regenerate(condensed, source, name, set_default=set_default, on_progress=count)
        draw_patches(condensed)
        write_card(condensed)
        check_repository(condensed)
    return added


def regenerate(
    condensed: CondensedSet,
    source: HRSource,
    name: str,
    *,
    set_default: bool = False,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
    date: str | None = None,
) -> AddedVersion:
    """Write the HR version `name` into a set, leaving its LR patches unchanged.

    The parquet files appear together, and idc.json is written last, so an interrupted call leaves no partial version;
    call it again to start over. If the version is complete and undamaged, another call writes nothing.

    Args:
        condensed: The set.
        source: Makes the HR patches.
        name: Name of the version.
        set_default: Whether `load_dataset` without a config name gives this version; the first version of a set is
            always the default.
        batch_size: Patches per call of the source; a teacher that runs out of memory divides them further.
        on_progress: Called with the number of patches done and their total.
        date: ISO date to record; None: today (UTC).

    Returns:
        What was done.

    Raises:
        RecipeError: The name is not allowed or belongs to another teacher, or the teacher has another scale.
        RunError: The repository folder is damaged, or its LR patches differ from those that idc.json describes.
        NetworkError: The teacher's output contains NaN or Inf or has another shape or dtype, or a single patch does not
            fit into memory.
    """
    _check_request(condensed.manifest, source, name)
    teacher = TeacherRecord.of(source.describe())
    existing = condensed.manifest.hr_versions.get(name)
    # If its folder was deleted because the version was bad, another teacher may take the name.
    if existing and condensed.data(name).is_dir() and not existing.teacher.is_same(teacher):
        raise RecipeError(
            f"{condensed.folder} already has an HR version {name!r}, made by {existing.teacher.name}.",
            "Existing versions are never replaced: choose another name.",
        )
    made: dict[str, HRVersion] = {}
    if not (existing and _is_sound(condensed, name)):
        condensed.check_lr()
        size = parquet.write_rows(condensed.data(name), _make_rows(condensed, source, batch_size, on_progress))
        made[name] = HRVersion(
            teacher=teacher,
            lr_digest=condensed.manifest.lr_digest,
            date=date or datetime.now(UTC).date().isoformat(),
            patches=size.rows,
            bytes=size.file_bytes,
            files={path.name: FileRecord.of(path) for path in parquet.files_of(condensed.data(name))},
        )
    with condensed.updating() as manifest:
        manifest.hr_versions |= made
        if set_default or manifest.default is None:
            manifest.default = name
    version, default = manifest.hr_versions[name], condensed.hr_version()
    return AddedVersion(name, bool(made), default, version.patches, version.bytes)


def _check_request(manifest: Manifest, source: HRSource, name: str) -> None:
    if not is_version_name(name):
        raise RecipeError(
            f"An HR version may not be called {name!r}.",
            'Use lower-case letters, digits and "-"; "data" and "default" are reserved.',
        )
    if source.scale != manifest.scale:
        raise RecipeError(
            f"The teacher {source.name} enlarges {source.scale} times, not {manifest.scale} times.",
            "Choose a teacher of that scale.",
        )


def _is_sound(condensed: CondensedSet, name: str) -> bool:
    """Whether a recorded version passes its check; if not, it is written again."""
    try:
        if not condensed.is_checked(name, "read"):
            check_version(condensed, name)
    except RunError:
        return False
    return True


def _make_rows(
    condensed: CondensedSet,
    source: HRSource,
    batch_size: int,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[parquet.Row]:
    """The rows in order; while the teacher works on a batch, threads make the rows of the previous one."""
    patches = condensed.lr_patches()
    waiting: deque[Future[parquet.Row]] = deque()
    done = 0
    with ThreadPoolExecutor(_ENCODERS) as pool:
        while batch := list(islice(patches, batch_size)):
            keys = [(patch.instance_id, patch.patch_index) for patch in batch]
            hr_patches = source.make_hr(keys, torch.stack([patch.pixels for patch in batch]))
            previous = len(waiting)
            waiting.extend(pool.submit(_make_row, lr, hr) for lr, hr in zip(batch, hr_patches, strict=True))
            for _ in range(previous):
                yield waiting.popleft().result()
            done += len(batch)
            if on_progress:
                on_progress(done, condensed.manifest.patches)
        while waiting:
            yield waiting.popleft().result()


def _make_row(patch: LRPatch, hr_patch: torch.Tensor) -> parquet.Row:
    lr, hr = (image.permute(1, 2, 0).contiguous().cpu().numpy() for image in (patch.pixels, hr_patch))
    return parquet.Row(
        patch.instance_id,
        patch.patch_index,
        encode_png(lr),
        encode_png(hr),
        patch.source_sha256,
        patch.nearest_real,
        rms_residual(lr, hr),
    )
