"""Exports: bytes of the set, in the layouts that trainers read, under names that their parsers survive."""

import ast
import json
import re
import shutil
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.export import FORMATS, safe_names
from idc_hub.dataset.manifest import HRVersion, Manifest, TeacherRecord
from idc_hub.dataset.parquet import Row, write_rows
from idc_hub.dataset.regenerate import regenerate
from idc_hub.dataset.shards import write_shards
from idc_hub.errors import RecipeError, RunError
from idc_hub.images.files import encode_png
from idc_hub.networks.teachers import Teacher
from idc_hub.training.pairs import read_pairs
from idc_hub.verbs.export import export

IDS = ("0801.crop", "a b", "a-b", "A B", "Cat", "cat", "...", "猫", "{0}", "%(x)s", "it's")


@pytest.fixture
def named() -> dict[str, np.ndarray]:
    """LR patches of photographs whose names are traps: uint8 [n, 3, 8, 8]."""
    random = np.random.default_rng(7)
    return {name: random.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8) for name in sorted(IDS)}


@pytest.fixture
def odd(tmp_path: Path, named: dict[str, np.ndarray], make_teacher: Callable[..., Teacher]) -> CondensedSet:
    """Their set, with the HR versions repeat and darken (the default)."""
    folder = tmp_path / "run" / "repo"
    digest = write_shards(folder / "lr", named.items(), metadata={})
    Manifest(
        name="odd",
        scale=2,
        patch_size=8,
        lr_recipe_hash="a" * 64,
        lr_digest=digest,
        instances=len(named),
        patches=2 * len(named),
    ).save(folder)
    for answer in ("repeat", "darken"):
        regenerate(CondensedSet(folder), make_teacher(answer), answer, set_default=answer == "darken")
    return CondensedSet(folder)


@pytest.fixture
def expected(named: dict[str, np.ndarray]) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """LR and HR (version darken) of each patch, uint8 [h, w, 3]."""
    pairs = {}
    for name, patches in named.items():
        for index, patch in enumerate(patches):
            lr = patch.transpose(1, 2, 0)
            pairs[name, index] = lr, lr.repeat(2, 0).repeat(2, 1) // 2
    return pairs


def keys_of(out: Path) -> dict[str, tuple[str, int]]:
    lines = map(json.loads, (out / "names.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["name"]: (line["instance_id"], line["patch_index"]) for line in lines}


def test_names_survive_the_parsers() -> None:
    names = safe_names(IDS)
    assert set(names) == set(IDS)
    assert all(re.fullmatch("[A-Za-z0-9_-]+", name) for name in names.values())
    assert len({name.lower() for name in names.values()}) == len(IDS)
    assert names["a-b"] == "a-b"
    assert names["a b"].startswith("a-b-")
    assert safe_names(reversed(IDS)) == names
    assert safe_names(["0801", "bird_2"]) == {"0801": "0801", "bird_2": "bird_2"}


def test_basicsr_reads_pairs_by_the_lines_of_meta_info(
    odd: CondensedSet, expected: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]], tmp_path: Path
) -> None:
    """The lines are parsed as BasicSR parses them: the name ends at the first blank, the suffix at the last dot."""
    result = export(odd.folder.parent, tmp_path / "out put", progress=False)
    out = Path(result.out)
    assert (result.hr_version, result.pairs) == ("darken", len(expected))
    assert result.bytes == sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    keys = keys_of(out)
    lines = (out / "meta_info.txt").read_text().splitlines()
    assert len(lines) == len({line.split(".")[0] for line in lines}) == len(expected)
    for line in lines:
        name, shape = line.strip().split(" ")
        lr, hr = expected[keys[Path(name).stem]]
        assert ast.literal_eval(shape) == hr.shape
        for folder, pixels in (("gt", hr), ("lq", lr)):
            np.testing.assert_array_equal(np.asarray(Image.open(out / folder / name)), pixels)
    assert {path.name for path in out.iterdir()} == {"gt", "lq", "meta_info.txt", "names.jsonl", "README.md"}


def test_options_point_to_the_export(odd: CondensedSet, tmp_path: Path) -> None:
    out = tmp_path / "it's: a #test"
    result = export(odd.folder, out, progress=False)
    gt, lq = str(out / "gt"), str(out / "lq")
    basicsr = yaml.safe_load(result.options["BasicSR"])
    train = basicsr["datasets"]["train"]
    assert (train["dataroot_gt"], train["dataroot_lq"], train["gt_size"], basicsr["scale"]) == (gt, lq, 16, 2)
    assert Path(train["meta_info_file"]).is_file()
    redux = yaml.safe_load(result.options["traiNNer-redux"])["datasets"]["train"]
    assert (redux["dataroot_gt"], redux["dataroot_lq"], redux["lq_size"]) == ([gt], [lq], 8)
    neosr = tomllib.loads(result.options["neosr"])["datasets"]["train"]
    assert (neosr["dataroot_gt"], neosr["dataroot_lq"], neosr["patch_size"]) == (gt, lq, 8)
    kair = json.loads(result.options["KAIR"])["datasets"]["train"]
    assert (kair["dataroot_H"], kair["dataroot_L"], kair["H_size"]) == (gt, lq, 16)
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert all(text in readme for text in result.options.values())


def test_folder_is_what_idc_train_reads(
    odd: CondensedSet, expected: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]], tmp_path: Path
) -> None:
    export(odd.folder, tmp_path / "out", format="folder", progress=False)
    keys = keys_of(tmp_path / "out")
    pairs = dict(read_pairs(tmp_path / "out" / "HR", 2, lr_location=tmp_path / "out" / "LR"))
    assert len(pairs) == len(expected)
    for name, (lr, hr) in pairs.items():
        for found, wanted in zip((lr, hr), expected[keys[Path(name).stem]], strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_webdataset_groups_by_what_is_before_the_first_dot(
    odd: CondensedSet,
    expected: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("idc_hub.dataset.export._TAR_BYTES", 20_000)
    export(odd.folder, tmp_path / "out", format="webdataset", progress=False)
    shards = sorted((tmp_path / "out").glob("*.tar"))
    assert [shard.name for shard in shards[:2]] == ["pairs-000000.tar", "pairs-000001.tar"]
    found = {}
    for shard in shards:
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(shard) as archive:
            for member in archive:
                name, suffix = member.name.split(".", 1)
                samples.setdefault(name, {})[suffix] = archive.extractfile(member).read()  # type: ignore[union-attr]
        for sample in samples.values():
            assert sample.keys() == {"lr.png", "hr.png", "json"}
            key = json.loads(sample["json"])
            assert key.keys() == {"instance_id", "patch_index", "source_sha256", "nearest_real", "teacher_residual"}
            assert isinstance(key["teacher_residual"], float)
            found[key["instance_id"], key["patch_index"]] = sample["lr.png"], sample["hr.png"]
    assert found == {key: tuple(map(encode_png, pair)) for key, pair in expected.items()}


def test_lmdb_has_the_layout_of_basicsr(
    odd: CondensedSet, expected: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]], tmp_path: Path
) -> None:
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed (the `lmdb` extra)")
    result = export(odd.folder, tmp_path / "out", lmdb=True, progress=False)
    keys = keys_of(tmp_path / "out")
    for number, side in enumerate(("lq", "gt")):
        folder = tmp_path / "out" / f"{side}.lmdb"
        with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as data:
            lines = (folder / "meta_info.txt").read_text().splitlines()
            assert data.stat()["entries"] == len(lines) == len(expected)
            for line in lines:
                name, shape, _ = line.split(" ")
                pixels = expected[keys[name.split(".")[0]]][number]
                assert ast.literal_eval(shape) == pixels.shape
                assert data.get(name.split(".")[0].encode("ascii")) == encode_png(pixels)
    train = yaml.safe_load(result.options["BasicSR"])["datasets"]["train"]
    assert result.options.keys() == {"BasicSR"}
    assert (train["io_backend"], train["dataroot_gt"][-8:]) == ({"type": "lmdb"}, "/gt.lmdb")


def test_a_set_on_the_hub_is_pulled_first(odd: CondensedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(repo_id: str, *, run_dir: Path, only: str | None) -> None:
        assert (repo_id, only) == ("org/odd", "repeat")
        shutil.copytree(odd.folder, run_dir / "repo")

    monkeypatch.setattr("idc_hub.verbs.export.pull", pull)
    monkeypatch.setenv("IDC_RUNS", str(tmp_path / "runs"))
    result = export("org/odd", tmp_path / "out", hr_version="repeat", format="folder", progress=False)
    assert (result.hr_version, len(list((tmp_path / "out" / "LR").iterdir()))) == ("repeat", result.pairs)
    assert (tmp_path / "runs" / "odd" / "repo" / "idc.json").is_file()


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_left_of_an_export_that_fails(repo: Path, tmp_path: Path, format: str) -> None:
    rows = [Row("cat", number, encode_png(np.zeros((8, 8, 3), np.uint8)), b"no image") for number in range(6)]
    size = write_rows(repo / "data" / "bad", rows)
    manifest = Manifest.load(repo)
    record = TeacherRecord.of({"name": "x", "kind": "network", "scale": 2, "weights_sha256": None, "license": None})
    manifest.hr_versions["bad"] = HRVersion(
        teacher=record, lr_digest=manifest.lr_digest, date="2026-11-21", patches=6, bytes=size.file_bytes
    )
    manifest.default = "bad"
    manifest.save(repo)
    with pytest.raises(RunError, match=r"patch_index 0 of instance_id cat cannot be decoded .*Run `idc verify`"):
        export(repo, tmp_path / "made" / "out", format=format, progress=False)
    assert not list((tmp_path / "made").iterdir())


def test_what_is_there_is_never_overwritten(repo: Path, make_teacher: Callable[..., Teacher], tmp_path: Path) -> None:
    regenerate(CondensedSet(repo), make_teacher("repeat"), "repeat")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"mine exists already\. Choose another --out"):
        export(repo, mine, progress=False)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    with pytest.raises(RecipeError, match=r"There is no format 'zip'\. The formats: basicsr, webdataset, folder\."):
        export(repo, tmp_path / "out", format="zip", progress=False)
    with pytest.raises(RecipeError, match="Only the format basicsr can be an LMDB"):
        export(repo, tmp_path / "out", format="folder", lmdb=True, progress=False)
    with pytest.raises(RunError, match="has no HR version 'other'"):
        export(repo, tmp_path / "out", hr_version="other", progress=False)
