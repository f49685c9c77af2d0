"""Checks of a repository folder that `push` and `idc verify` make offline."""

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import idc_hub
from idc_hub.dataset.check import check_repository
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.errors import RunError
from tests.flow.hub_tools import make_repository


def test_a_folder_as_documented_is_valid(tmp_path: Path) -> None:
    found = idc_hub.verify(make_repository(tmp_path / "repo", {"swinir-m": 1, "edsr": 0}))
    assert (found.patches, found.instances, found.default) == (6, 3, "swinir-m")
    assert found.hr_versions == ["edsr", "swinir-m"]


def test_rows_that_are_missing(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "repo", {"edsr": 0})
    path = folder / "data/edsr/train-00001-of-00002.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(RunError, match=r"data/edsr has \d+ bytes; idc.json says \d+"):
        check_repository(CondensedSet(folder), again=True)


def test_configs_that_are_not_the_hr_versions(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "repo", {"edsr": 0, "bicubic": 1})
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("default: true", "default: false"))
    with pytest.raises(RunError, match=r"README\.md are bicubic, edsr with the default \(none\)"):
        check_repository(CondensedSet(folder), again=True)
    (folder / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(RunError, match="YAML block at the top"):
        check_repository(CondensedSet(folder), again=True)


def test_a_version_whose_files_are_missing(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "repo", {"edsr": 0, "bicubic": 1})
    shutil.rmtree(folder / "data" / "bicubic")
    with pytest.raises(RunError, match=r"holds the HR versions edsr; idc.json names bicubic, edsr"):
        check_repository(CondensedSet(folder), again=True)


def test_links_are_not_followed(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "repo", {"edsr": 0})
    secret = tmp_path / "secret"
    secret.write_text("name: tiny-x2\n")
    (folder / "recipe.yaml").unlink()
    (folder / "recipe.yaml").symlink_to(secret)
    with pytest.raises(RunError, match="not a plain file"):
        check_repository(CondensedSet(folder), again=True)


def cached_snapshot(folder: Path, cache: Path) -> Path:
    """The layout of the Hub's cache, made by hand: files in blobs, links to them in a snapshot."""
    repository = cache / "datasets--ada--bridges"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / ("ab" * 20)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = repository / "blobs" / f"{number:040}"
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_snapshot_in_the_hubs_cache(tmp_path: Path) -> None:
    snapshot = cached_snapshot(make_repository(tmp_path / "repo", {"edsr": 0}), tmp_path / "hub")
    found = idc_hub.verify(snapshot)
    assert found.patches == 6
    assert set(found.checked or {}) == {
        "README.md",
        "idc.json",
        "recipe.yaml",
        "lr/lr-00001-of-00001.safetensors",
        "lr/lr.safetensors.index.json",
        "data/edsr/train-00000-of-00002.parquet",
        "data/edsr/train-00001-of-00002.parquet",
    }
    for target in (tmp_path / "secret", tmp_path / "hub" / "datasets--bob--other" / "blobs" / "0"):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("name: tiny-x2\n")
        (snapshot / "recipe.yaml").unlink()
        (snapshot / "recipe.yaml").symlink_to(target)
        with pytest.raises(RunError, match="not a plain file"):
            idc_hub.verify(snapshot)


def test_a_clone_with_other_line_ends(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "repo", {"edsr": 0})
    for path in folder.rglob("*"):
        if path.suffix in (".md", ".json", ".yaml"):
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert idc_hub.verify(folder).patches == 6  # text means the same
    path = folder / "data/edsr/train-00000-of-00002.parquet"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(RunError, match=r"git changed the line ends in .*train-00000-of-00002\.parquet"):
        idc_hub.verify(folder)


def test_a_clone_without_its_large_files(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "repo", {"edsr": 0})
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234\n"
    (folder / "lr/lr-00001-of-00001.safetensors").write_text(pointer)
    with pytest.raises(RunError, match="pointer of Git LFS"):
        idc_hub.verify(folder)


def test_a_card_with_a_byte_order_mark(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "repo", {"edsr": 0})
    (folder / "README.md").write_text("\ufeff" + (folder / "README.md").read_text())
    with pytest.raises(RunError, match="byte order mark"):
        idc_hub.verify(folder)
