"""Checks of a repository folder that `push` and `idc verify` make offline."""

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
    with pytest.raises(RunError, match=r"config edsr has 5 rows, idc.json says 6"):
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
