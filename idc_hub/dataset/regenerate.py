"""The HR side of a repository: a new HR version, by a teacher or real, beside those that are there."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from idc_hub.dataset import parquet
from idc_hub.dataset.card import write_card
from idc_hub.dataset.check import check_repository
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.hr import HRSource
from idc_hub.dataset.manifest import Manifest, is_version_name
from idc_hub.dataset.pictures import draw_patches
from idc_hub.errors import RecipeError, RunError
from idc_hub.images.files import encode_png
from idc_hub.runs.progress import Reporting, counting

_ENCODERS = min(16, max(2, os.cpu_count() or 2))
"""Threads that write PNG while the teacher works on the next batch: more than a GPU outruns."""


@dataclass(frozen=True)
class Added:
    """What `regenerate` did.

    Attributes:
        hr_version: Name of the version.
        written: False where the version was there already, made by the same teacher from the same patches.
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
) -> Added:
    """Make an HR version, then the pictures and the card that go with it, and check that all of it loads.

    Raises:
        RecipeError, RunError, NetworkError: As of `regenerate`.
    """
    with counting(f"HR version {name}", progress) as count:
        added = regenerate(condensed, source, name, set_default=set_default, on_progress=count)
    with condensed.lock():
        draw_patches(condensed)
        write_card(condensed)
        check_repository(condensed)
    return added


def regenerate(
    condensed: CondensedSet,
    source: HRSource,
    name: str,
    *,
    set_default: bool = True,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
    date: str | None = None,
) -> Added:
    """Write the HR version `name` into a set; the LR patches are read and never touched.

    The rows appear all at once and idc.json names them last, so that an interrupted call leaves nothing half
    written; the same call again starts over. Calling it again after it has finished writes nothing.

    Args:
        condensed: The set.
        source: What makes HR patches.
        name: What to call the version.
        set_default: Whether `load_dataset` without a config name gives this version from now on; the first
            version of a repository always is the default.
        batch_size: Patches that the source gets at a time; where memory is short it takes fewer.
        on_progress: Called with the patches done and the patches in all.
        date: ISO date to record; today (UTC) where it is None.

    Returns:
        What was done.

    Raises:
        RecipeError: A name that is not allowed or is taken by another teacher, or a teacher of another scale.
        RunError: The repository is damaged, or its LR patches are not those that idc.json names.
        NetworkError: The teacher gave NaN, Inf or something else than HR patches, or a patch does not fit into memory.
    """
    _check_request(condensed.manifest, source, name)
    taken = condensed.manifest.hr_versions.get(name)
    # A version whose folder somebody deleted, since it was bad, may be made by another teacher.
    if taken and condensed.data(name).is_dir() and not same_teacher(taken["teacher"], source):
        raise RecipeError(
            f"{condensed.folder} already has an HR version {name!r}, made by {taken['teacher']['name']}.",
            "Published versions stay as they are: choose another name.",
        )
    made: dict[str, Any] = {}
    if not (taken and _is_complete(condensed.data(name), taken)):
        condensed.check_lr()
        size = parquet.write_rows(condensed.data(name), _make_rows(condensed, source, batch_size, on_progress))
        made[name] = {
            "teacher": source.describe(),
            "lr_digest": condensed.manifest.lr_digest,
            "date": date or datetime.now(UTC).date().isoformat(),
            "patches": size.rows,
            "bytes": size.file_bytes,
        }
    with condensed.updating() as manifest:
        manifest.hr_versions |= made
        if set_default or manifest.default is None:
            manifest.default = name
    version = manifest.hr_versions[name]
    assert manifest.default is not None
    return Added(name, bool(made), manifest.default, version["patches"], version["bytes"])


def _check_request(manifest: Manifest, source: HRSource, name: str) -> None:
    if not is_version_name(name):
        raise RecipeError(
            f"An HR version may not be called {name!r}.",
            'Use lower-case letters, digits and "-"; "data" and "default" are taken.',
        )
    if source.scale != manifest.scale:
        raise RecipeError(
            f"The teacher {source.name} enlarges {source.scale} times, not {manifest.scale} times.",
            "Choose a teacher of that scale.",
        )


def same_teacher(recorded: dict[str, Any], source: HRSource) -> bool:
    """Whether weights and settings are the same; what has no weights goes by its name."""
    ignored = set() if recorded["weights_sha256"] is None else {"name", "license"}
    facts = source.describe()
    return recorded.keys() == facts.keys() and all(recorded[key] == facts[key] for key in facts.keys() - ignored)


def _is_complete(folder: Path, version: dict[str, Any]) -> bool:
    """Whether the files of a recorded version are all there; a version that lost some is written again."""
    try:
        size = parquet.measure(folder)
    except RunError:
        return False
    return (size.rows, size.file_bytes) == (version["patches"], version["bytes"])


def _make_rows(
    condensed: CondensedSet,
    source: HRSource,
    batch_size: int,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[parquet.Row]:
    """The rows in order: the teacher works on one batch while the PNGs of the one before are written."""
    patches = (
        (instance_id, index, patch) for instance_id, tensor in condensed.patches() for index, patch in enumerate(tensor)
    )
    waiting: deque[tuple[str, int, Future[bytes], Future[bytes]]] = deque()
    done = 0
    with ThreadPoolExecutor(_ENCODERS) as pool:
        while batch := list(islice(patches, batch_size)):
            keys = [(instance_id, index) for instance_id, index, _ in batch]
            hr_patches = source.make_hr(keys, torch.stack([patch for *_, patch in batch]))
            previous = len(waiting)
            for (instance_id, index, lr_patch), hr_patch in zip(batch, hr_patches, strict=True):
                waiting.append((instance_id, index, pool.submit(_png, lr_patch), pool.submit(_png, hr_patch)))
            yield from _finished(waiting, previous)
            done += len(batch)
            if on_progress:
                on_progress(done, condensed.manifest.patches)
        yield from _finished(waiting, len(waiting))


def _finished(waiting: deque[tuple[str, int, Future[bytes], Future[bytes]]], count: int) -> Iterator[parquet.Row]:
    for _ in range(count):
        instance_id, index, lr_png, hr_png = waiting.popleft()
        yield parquet.Row(instance_id, index, lr_png.result(), hr_png.result())


def _png(patch: torch.Tensor) -> bytes:
    return encode_png(patch.permute(1, 2, 0).contiguous().cpu().numpy())
