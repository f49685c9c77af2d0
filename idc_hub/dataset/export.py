"""Write an HR version of a set as image files, for trainers that do not read it with `datasets`.

The image files are those of the set, byte for byte. Names are what the parsers of these trainers survive: BasicSR cuts
the lines of `meta_info.txt` at a blank and the keys of an LMDB at the first dot, and webdataset cuts at the first dot.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from idc_hub.atomic import replace_folder
from idc_hub.dataset import parquet
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.errors import ImageError, RecipeError, RunError, one_line
from idc_hub.images.files import decode_png

FORMATS = ("basicsr", "webdataset", "folder")

_PNG = b"\x89PNG\r\n\x1a\n"
_CROP = 48  # LR pixels: what the field trains with
_TAR_BYTES = 100_000_000


@dataclass(frozen=True)
class File:
    """One pair, with its name in the export.

    Attributes:
        name: Its name without suffix: ASCII letters, digits, "_" and "-".
        row: The pair.
        sizes: Height and width of LR and of HR.
    """

    name: str
    row: parquet.Row
    sizes: tuple[tuple[int, int], tuple[int, int]]


def export_version(
    condensed: CondensedSet,
    version: str,
    out: Path,
    layout: str,
    *,
    lmdb: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Write an HR version to a new folder, which appears complete or not at all.

    Args:
        condensed: The set.
        version: An HR version of it.
        out: The folder; missing or empty.
        layout: One of `FORMATS`.
        lmdb: For basicsr: `gt.lmdb` and `lq.lmdb` instead of folders.
        on_progress: Called with the number of pairs done and their total.

    Returns:
        For each trainer that reads the export, what to paste into its options.

    Raises:
        RecipeError: `out` is not empty, there is no such layout, `lmdb` is not for this layout or not installed.
        RunError: The HR version is damaged.
    """
    if layout not in FORMATS:
        raise RecipeError(f"There is no format {layout!r}.", f"The formats: {', '.join(FORMATS)}.")
    if lmdb and layout != "basicsr":
        raise RecipeError("Only the format basicsr can be an LMDB.", "Leave --lmdb out, or say --format basicsr.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"{out} exists already.", "Choose another --out, or delete it.")
    total = condensed.manifest.patches
    options = _options(condensed, version, out.resolve(), lmdb=lmdb) if layout == "basicsr" else {}
    with replace_folder(out) as folder:
        files = _counted(_files(condensed, version), total, on_progress)
        match layout:
            case "webdataset":
                written = _write_tars(folder, files)
            case "basicsr" if lmdb:
                written = _write_lmdb(folder, files, parquet.size_of_version(condensed.data(version)))
            case "basicsr":
                written = _write_folders(folder, files, lr="lq", hr="gt")
                lines = [f"{file.name}.png {_shape(file.sizes[1])}\n" for file in written]
                (folder / "meta_info.txt").write_text("".join(lines), encoding="ascii")
            case _:
                written = _write_folders(folder, files, lr="LR", hr="HR")
        if len(written) != total:
            raise RunError(
                f"{condensed.data(version)} has {len(written)} rows, not {total}.", "Run `idc verify` on the set."
            )
        _write_names(folder / "names.jsonl", written)
        (folder / "README.md").write_text(_readme(condensed, version, options), encoding="utf-8")
    return options


def safe_names(instance_ids: Iterable[str]) -> dict[str, str]:
    """For each instance id a name of ASCII letters, digits, "_" and "-", different even where case does not count.

    An id that needs no change, and that no other one equals but for case, is its own name. Others end in eight digits
    of their SHA-256.
    """
    ids = list(instance_ids)
    lower = Counter(instance_id.lower() for instance_id in ids)
    names = {}
    for instance_id in ids:
        plain = unicodedata.normalize("NFKD", instance_id).encode("ascii", "ignore").decode()
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-")
        if name != instance_id or lower[instance_id.lower()] > 1:
            name = f"{name or 'photograph'}-{sha256(instance_id.encode()).hexdigest()[:8]}"
        names[instance_id] = name
    return names


def _files(condensed: CondensedSet, version: str) -> Iterator[File]:
    """The pairs of an HR version with their names; raises a RunError if one is not two PNG images that fit."""
    folder, scale = condensed.data(version), condensed.manifest.scale
    names = safe_names(dict.fromkeys(instance_id for instance_id, _ in parquet.read_keys(folder)))
    for row in parquet.read_rows(folder):
        what = f"{folder}: patch_index {row.patch_index} of instance_id {row.instance_id}"
        try:
            lr, hr = (decode_png(png, what).shape[:2] for png in (row.lr_png, row.hr_png))
        except ImageError as error:
            raise RunError(f"{what} cannot be decoded ({error.message})", "Run `idc verify` on the set.") from error
        if hr != (lr[0] * scale, lr[1] * scale) or not all(p.startswith(_PNG) for p in (row.lr_png, row.hr_png)):
            raise RunError(f"{what} is not a pair of PNG images for x{scale}.", "Run `idc verify` on the set.")
        yield File(f"{names[row.instance_id]}_{row.patch_index:04}", row, (lr, hr))


def _counted(files: Iterable[File], total: int, on_progress: Callable[[int, int], None] | None) -> Iterator[File]:
    for done, file in enumerate(files, start=1):
        yield file
        if on_progress:
            on_progress(done, total)


def _bare(file: File) -> File:
    """The file without its images, which need not stay in memory once they are written."""
    return File(file.name, replace(file.row, lr_png=b"", hr_png=b""), file.sizes)


def _write_folders(folder: Path, files: Iterable[File], *, lr: str, hr: str) -> list[File]:
    written = []
    for side in (lr, hr):
        (folder / side).mkdir()
    for file in files:
        (folder / lr / f"{file.name}.png").write_bytes(file.row.lr_png)
        (folder / hr / f"{file.name}.png").write_bytes(file.row.hr_png)
        written.append(_bare(file))
    return written


def _write_lmdb(folder: Path, files: Iterable[File], size: parquet.Size) -> list[File]:
    """Two LMDBs as BasicSR makes them: the name is the key, and `meta_info.txt` lists name, shape and compression."""
    try:
        import lmdb
    except ImportError as error:
        raise RecipeError("lmdb is not installed.", "Install it with `pip install 'idc-hub[lmdb]'`.") from error
    most = 2 * size.data_bytes + 2**14 * size.rows + 2**24  # values fill whole pages; the file grows as it is needed
    written = []
    with ExitStack() as stack:
        sides = []
        for side in ("lq", "gt"):
            environment = stack.enter_context(lmdb.open(str(folder / f"{side}.lmdb"), map_size=most))
            sides.append(stack.enter_context(environment.begin(write=True)))
        for file in files:
            for side, png in zip(sides, (file.row.lr_png, file.row.hr_png), strict=True):
                side.put(file.name.encode(), png)
            written.append(_bare(file))
    for number, side in enumerate(("lq", "gt")):
        lines = [f"{file.name}.png {_shape(file.sizes[number])} 6\n" for file in written]
        (folder / f"{side}.lmdb" / "meta_info.txt").write_text("".join(lines), encoding="ascii")
    return written


def _write_tars(folder: Path, files: Iterable[File]) -> list[File]:
    """Shards `pairs-000000.tar`: for each pair `NAME.lr.png`, `NAME.hr.png` and `NAME.json` with the other columns."""
    written: list[File] = []
    with ExitStack() as stack:
        shard, number = None, 0
        for file in files:
            if shard is None:
                shard = stack.enter_context(tarfile.open(folder / f"pairs-{number:06}.tar", "w"))
            facts = json.dumps(file.row.facts).encode()
            for suffix, content in (("lr.png", file.row.lr_png), ("hr.png", file.row.hr_png), ("json", facts)):
                entry = tarfile.TarInfo(f"{file.name}.{suffix}")
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
            written.append(_bare(file))
            if shard.offset >= _TAR_BYTES:
                shard.close()
                shard, number = None, number + 1
    return written


def _write_names(path: Path, files: Iterable[File]) -> None:
    """Which patch each name is, with its other columns: a JSON object a line."""
    entries = ({"name": file.name, **file.row.facts} for file in files)
    path.write_text("".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries), encoding="utf-8")


def _shape(size: tuple[int, int]) -> str:
    return f"({size[0]},{size[1]},3)"


def _options(condensed: CondensedSet, version: str, out: Path, *, lmdb: bool) -> dict[str, str]:
    """What to paste for each trainer. An LMDB is read by BasicSR only."""
    manifest = condensed.manifest
    suffix = ".lmdb" if lmdb else ""
    gt, lq = str(out / f"gt{suffix}"), str(out / f"lq{suffix}")
    name, scale, crop = f"{manifest.name}-{version}", manifest.scale, min(_CROP, manifest.patch_size)
    roots = {"dataroot_gt": gt, "dataroot_lq": lq}
    turns = {"use_hflip": True, "use_rot": True}
    disk = {} if lmdb else {"meta_info_file": str(out / "meta_info.txt")}
    basicsr = _train_block(
        {"name": name, "type": "PairedImageDataset", **roots, **disk}
        | {"io_backend": {"type": "lmdb" if lmdb else "disk"}, "gt_size": crop * scale, **turns}
        | {"num_worker_per_gpu": 4, "batch_size_per_gpu": 16, "dataset_enlarge_ratio": 100}
    )
    if lmdb:
        return {"BasicSR": f"scale: {scale}\n{basicsr}"}
    redux = _train_block(
        {"name": name, "type": "pairedimagedataset", "dataroot_gt": [gt], "dataroot_lq": [lq], "lq_size": crop}
        | {**turns, "num_worker_per_gpu": 4, "batch_size_per_gpu": 16}
    )
    quoted_gt, quoted_lq = (json.dumps(path, ensure_ascii=False) for path in (gt, lq))
    neosr = (
        f'scale = {scale}\n\n[datasets.train]\ntype = "paired"\ndataroot_gt = {quoted_gt}\n'
        f"dataroot_lq = {quoted_lq}\npatch_size = {crop}\nbatch_size = 16\n"
    )
    kair = {"name": name, "dataset_type": "sr", "dataroot_H": gt, "dataroot_L": lq, "H_size": crop * scale}
    kair |= {"dataloader_shuffle": True, "dataloader_num_workers": 4, "dataloader_batch_size": 16}
    kair_text = json.dumps({"scale": scale, "datasets": {"train": kair}}, indent=2, ensure_ascii=False)
    return {
        "BasicSR": f"scale: {scale}\n{basicsr}",
        "traiNNer-redux": f"scale: {scale}\n{redux}",
        "neosr": neosr,
        "KAIR": f"{kair_text}\n",
    }


def _train_block(train: dict[str, Any]) -> str:
    block: dict[str, Any] = {"datasets": {"train": train}}
    return yaml.safe_dump(block, sort_keys=False, allow_unicode=True, width=10_000)


def _readme(condensed: CondensedSet, version: str, options: dict[str, str]) -> str:
    manifest = condensed.manifest
    teacher = manifest.hr_versions[version].teacher
    lines = [
        f"# {manifest.name}, HR version {version}\n",
        f"{manifest.patches} LR/HR pairs for x{manifest.scale}, exported by idc-hub from the set with the LR digest",
        f"`{manifest.lr_digest}`. HR was made by `{one_line(teacher.name)}`; license of its weights: "
        f"`{one_line(teacher.license or 'not stated')}`.",
        "The terms of the photographs and of the set apply. `names.jsonl` says which patch each name is.",
    ]
    languages = {"neosr": "toml", "KAIR": "json"}
    for trainer, text in options.items():
        lines.append(f"\n## {trainer}\n\n```{languages.get(trainer, 'yaml')}\n{text}```")
    return "\n".join(lines) + "\n"
