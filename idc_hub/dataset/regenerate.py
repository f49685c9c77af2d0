"""The HR side of a repository: a new HR version, by a teacher or real, beside those that are there."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from idc_hub.dataset import parquet, shards
from idc_hub.dataset.manifest import Manifest, is_version_name
from idc_hub.errors import RecipeError, RunError
from idc_hub.images.files import encode_png

_ENCODERS = min(16, max(2, os.cpu_count() or 2))
"""Threads that write PNG while the teacher works on the next batch: more than a GPU outruns."""


class HRSource(Protocol):
    """What makes HR patches: a `Teacher` from LR alone, `RealHR` from the photographs that the patches come from."""

    name: str
    scale: int

    def answer(self, keys: Sequence[tuple[str, int]], lr: torch.Tensor) -> torch.Tensor:
        """HR uint8 `[B, 3, scale*h, scale*w]` of LR uint8 `[B, 3, h, w]`; keys: (instance id, patch index)."""
        ...

    def describe(self) -> dict[str, Any]:
        """The facts for `idc.json`."""
        ...


def regenerate(
    repo: Path,
    teacher: HRSource,
    name: str,
    *,
    set_default: bool = True,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
    date: str | None = None,
) -> dict[str, Any]:
    """Write the HR version `name` into a repository tree; the LR patches are read and never touched.

    The rows appear all at once and idc.json names them last, so that an interrupted call leaves nothing half
    written; the same call again starts over. Calling it again after it has finished writes nothing.

    Args:
        repo: The repository tree: idc.json and lr/ are there, data/`name` is made.
        teacher: What makes HR patches.
        name: What to call the version.
        set_default: Whether `load_dataset` without a config name gives this version from now on; the first
            version of a repository always is the default.
        batch_size: Patches that the teacher gets at a time; where memory is short it takes fewer.
        on_progress: Called with the patches done and the patches in all.
        date: ISO date to record; today (UTC) where it is None.

    Returns:
        `{"hr_version", "written", "default", "patches", "bytes", "lr_digest", "teacher"}`: written is False
        where the version was there already, made by the same teacher from the same patches.

    Raises:
        RecipeError: A name that is not allowed or is taken by another teacher, or a teacher of another scale.
        RunError: The repository is damaged, or its LR patches are not those that idc.json names.
        NetworkError: The teacher gave something else than HR patches, or a patch does not fit into memory.
    """
    manifest = Manifest.load(repo)
    folder = repo / "data" / name
    _check_request(manifest, teacher, name)
    taken = manifest.hr_versions.get(name)
    if taken and not same_teacher(taken["teacher"], teacher):
        raise RecipeError(
            f"{repo} already has an HR version {name!r}, made by {taken['teacher']['name']}.",
            "Published versions stay as they are: choose another name.",
        )
    written = not (taken and _is_complete(folder, taken))
    if written:
        shards.verify_lr(repo / "lr", manifest)
        rows = _make_rows(repo / "lr", manifest, teacher, batch_size, on_progress)
        size = parquet.write_rows(folder, rows)
        manifest = _reload(repo, manifest)
        manifest.hr_versions[name] = {
            "teacher": teacher.describe(),
            "lr_digest": manifest.lr_digest,
            "date": date or datetime.now(UTC).date().isoformat(),
            "patches": size.rows,
            "bytes": size.file_bytes,
        }
    if set_default or manifest.default is None:
        manifest.default = name
    manifest.save(repo)
    version = manifest.hr_versions[name]
    facts = {key: version[key] for key in ("patches", "bytes", "lr_digest", "teacher")}
    return {"hr_version": name, "written": written, "default": manifest.default, **facts}


def _check_request(manifest: Manifest, teacher: HRSource, name: str) -> None:
    if not is_version_name(name):
        raise RecipeError(
            f"An HR version may not be called {name!r}.",
            'Use lower-case letters, digits and "-"; "data" and "default" are taken.',
        )
    if teacher.scale != manifest.scale:
        raise RecipeError(
            f"The teacher {teacher.name} enlarges {teacher.scale} times, not {manifest.scale} times.",
            "Choose a teacher of that scale.",
        )


def same_teacher(recorded: dict[str, Any], teacher: HRSource) -> bool:
    """Whether weights and settings are the same; what has no weights goes by its name."""
    told = set() if recorded["weights_sha256"] is None else {"name", "license"}
    facts = teacher.describe()
    return recorded.keys() == facts.keys() and all(recorded[key] == facts[key] for key in facts.keys() - told)


def _is_complete(folder: Path, version: dict[str, Any]) -> bool:
    """Whether the files of a recorded version are all there; a version that lost some is written again."""
    try:
        size = parquet.measure(folder)
    except RunError:
        return False
    return (size.rows, size.file_bytes) == (version["patches"], version["bytes"])


def _reload(repo: Path, started_with: Manifest) -> Manifest:
    """The manifest as it is now: another HR version may have been added while this one was made."""
    manifest = Manifest.load(repo)
    if manifest.lr_digest != started_with.lr_digest:
        raise RunError(f"The LR patches in {repo} were replaced meanwhile.", "Run the same command again.")
    return manifest


def _make_rows(
    lr: Path,
    manifest: Manifest,
    teacher: HRSource,
    batch_size: int,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[parquet.Row]:
    """The rows in order: the teacher works on one batch while the PNGs of the one before are written."""
    patches = (
        (instance_id, index, patch)
        for instance_id, tensor in shards.iterate_lr(lr)
        for index, patch in enumerate(tensor)
    )
    waiting: deque[tuple[str, int, Future[bytes], Future[bytes]]] = deque()
    done = 0
    with ThreadPoolExecutor(_ENCODERS) as pool:
        while batch := list(islice(patches, batch_size)):
            keys = [(instance_id, index) for instance_id, index, _ in batch]
            hr_patches = teacher.answer(keys, torch.stack([patch for *_, patch in batch]))
            previous = len(waiting)
            for (instance_id, index, lr_patch), hr_patch in zip(batch, hr_patches, strict=True):
                waiting.append((instance_id, index, pool.submit(_png, lr_patch), pool.submit(_png, hr_patch)))
            yield from _finished(waiting, previous)
            done += len(batch)
            if on_progress:
                on_progress(done, manifest.patches)
        yield from _finished(waiting, len(waiting))


def _finished(waiting: deque[tuple[str, int, Future[bytes], Future[bytes]]], count: int) -> Iterator[parquet.Row]:
    for _ in range(count):
        instance_id, index, lr_png, hr_png = waiting.popleft()
        yield parquet.Row(instance_id, index, lr_png.result(), hr_png.result())


def _png(patch: torch.Tensor) -> bytes:
    return encode_png(patch.permute(1, 2, 0).contiguous().cpu().numpy())
