"""Regeneration: exact pixels, untouched LR, refusals, repeated and interrupted calls, what consumers load."""

import math
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor

from idc_hub.dataset.card import write_card
from idc_hub.dataset.check import check_repository
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import Manifest
from idc_hub.dataset.parquet import read_keys, read_rows
from idc_hub.dataset.regenerate import add_version, regenerate
from idc_hub.dataset.shards import Facts, write_shards
from idc_hub.errors import NetworkError, RecipeError, RunError
from idc_hub.images.files import decode_png
from idc_hub.images.resize import imresize
from idc_hub.networks.teachers import Teacher, load_teacher

MakeTeacher = Callable[..., Teacher]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_rows_hold_the_lr_patches_and_the_teachers_answers(
    repo: Path, make_teacher: MakeTeacher, instances: dict[str, np.ndarray], batch_size: int
) -> None:
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest", batch_size=batch_size)
    rows = list(read_rows(repo / "data" / "nearest"))
    expected = [(name, index) for name in ("bridge", "cat", "tower") for index in range(len(instances[name]))]
    assert [(row.instance_id, row.patch_index) for row in rows] == expected
    for row in rows:
        lr = instances[row.instance_id][row.patch_index].transpose(1, 2, 0)
        assert np.array_equal(decode_png(row.lr_png), lr)
        assert np.array_equal(decode_png(row.hr_png), np.kron(lr, np.ones((2, 2, 1), np.uint8)))


def test_rows_have_the_facts_of_the_index_and_the_residual_of_their_own_hr(
    repo: Path, make_teacher: MakeTeacher, instances: dict[str, np.ndarray]
) -> None:
    nearest_real = {"bridge": [0.5, 12.125], "cat": [3.0, 0.0, 7.25]}
    facts = {name: Facts(source_sha256=name[0] * 64, nearest_real=nearest_real.get(name)) for name in ("bridge", "cat")}
    metadata = {"format": "idc", "format_version": 1, "scale": 2, "lr_recipe_hash": "a" * 64}
    write_shards(repo / "lr", instances.items(), metadata=metadata, facts=facts | {"tower": Facts()})
    for name, teacher in (("nearest", "repeat"), ("dark", "darken")):
        regenerate(CondensedSet(repo), make_teacher(teacher), name)
        for row in read_rows(repo / "data" / name):
            assert row.source_sha256 == (row.instance_id[0] * 64 if row.instance_id != "tower" else None)
            known = nearest_real.get(row.instance_id)
            assert row.nearest_real == (known[row.patch_index] if known else None)
            hr, enlarged = decode_png(row.hr_png), imresize(decode_png(row.lr_png), 2)
            squares = [(int(a) - int(b)) ** 2 for a, b in zip(hr.ravel(), enlarged.ravel(), strict=True)]
            assert row.teacher_residual == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=1e-6)


def test_without_facts_in_the_index_the_columns_are_null(repo: Path) -> None:
    regenerate(CondensedSet(repo), load_teacher("bicubic", scale=2), "bicubic")
    for row in read_rows(repo / "data" / "bicubic"):
        assert (row.source_sha256, row.nearest_real, row.teacher_residual) == (None, None, 0)


def test_the_bytes_do_not_depend_on_the_batch_size(repo: Path, make_teacher: MakeTeacher) -> None:
    regenerate(CondensedSet(repo), make_teacher("repeat"), "one", batch_size=1)
    regenerate(CondensedSet(repo), make_teacher("repeat"), "four", batch_size=4)
    assert contents(repo / "data" / "one") == contents(repo / "data" / "four")


def test_idc_json_names_teacher_digest_date_and_counts(repo: Path, make_teacher: MakeTeacher) -> None:
    before = Manifest.load(repo)
    result = regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest", date="2026-02-03")
    after = Manifest.load(repo)
    [(file, data)] = contents(repo / "data" / "nearest").items()
    assert {name: version.model_dump() for name, version in after.hr_versions.items()} == {
        "nearest": {
            "teacher": {
                "name": "repeat",
                "kind": "network",
                "scale": 2,
                "weights_sha256": "1" * 64,
                "license": "Apache-2.0",
            },
            "lr_digest": before.lr_digest,
            "date": "2026-02-03",
            "patches": 6,
            "bytes": len(data),
            "files": {file: {"bytes": len(data), "sha256": sha256(data).hexdigest()}},
        }
    }
    assert after.default == result.default == "nearest"
    assert (result.written, result.patches) == (True, 6)


def test_without_a_date_it_is_today(repo: Path, make_teacher: MakeTeacher) -> None:
    days = {datetime.now(UTC).date().isoformat()}
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest")
    days.add(datetime.now(UTC).date().isoformat())
    assert Manifest.load(repo).hr_versions["nearest"].date in days


def test_a_second_version_leaves_lr_and_the_first_one_as_they_are(repo: Path, make_teacher: MakeTeacher) -> None:
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest")
    assert Manifest.load(repo).default == "nearest"  # there must be exactly one
    before = contents(repo)
    regenerate(CondensedSet(repo), make_teacher("darken"), "dark")
    after = contents(repo)
    assert {path for path in after if after[path] != before.get(path)} == {
        "idc.json",
        "data/dark/train-00000-of-00001.parquet",
    }
    assert Manifest.load(repo).default == "nearest"
    regenerate(CondensedSet(repo), make_teacher("darken"), "dark", set_default=True)
    assert Manifest.load(repo).default == "dark"
    assert read_keys(repo / "data" / "nearest") == read_keys(repo / "data" / "dark")


def test_progress_counts_patches(repo: Path, make_teacher: MakeTeacher) -> None:
    seen: list[tuple[int, int]] = []
    regenerate(
        CondensedSet(repo),
        make_teacher("repeat"),
        "nearest",
        batch_size=4,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 6), (6, 6)]


def test_the_same_call_again_writes_nothing_and_asks_no_teacher(repo: Path, make_teacher: MakeTeacher) -> None:
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest")
    before = contents(repo)

    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("the teacher was asked")

    result = regenerate(CondensedSet(repo), make_teacher("repeat", upscale=refuse, name="a copy elsewhere"), "nearest")
    assert result.written is False
    assert contents(repo) == before


def test_a_version_that_lost_a_file_is_written_again(repo: Path, make_teacher: MakeTeacher) -> None:
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest", date="2026-02-03")
    before = contents(repo)
    (repo / "data" / "nearest" / "train-00000-of-00001.parquet").unlink()
    assert regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest", date="2026-02-03").written
    assert contents(repo) == before


def test_a_name_that_another_teacher_has_is_refused(repo: Path, make_teacher: MakeTeacher) -> None:
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest")
    before = contents(repo)
    with pytest.raises(RecipeError, match="choose another name"):
        regenerate(CondensedSet(repo), make_teacher("darken"), "nearest")
    with pytest.raises(RecipeError, match="choose another name"):
        regenerate(CondensedSet(repo), make_teacher("repeat", weights_sha256=None), "nearest")
    assert contents(repo) == before


@pytest.mark.parametrize("name", ["data", "default", "../escape", "a/b", "", "UPPER", ".hidden"])
def test_names_that_are_not_allowed_are_refused(repo: Path, make_teacher: MakeTeacher, name: str) -> None:
    before = contents(repo.parent)
    with pytest.raises(RecipeError, match=re.escape(repr(name))):
        regenerate(CondensedSet(repo), make_teacher("repeat"), name)
    assert contents(repo.parent) == before


def test_a_teacher_of_another_scale_is_refused(repo: Path, make_teacher: MakeTeacher) -> None:
    with pytest.raises(RecipeError, match="3 times, not 2 times"):
        regenerate(CondensedSet(repo), make_teacher("repeat", scale=3), "nearest")


@pytest.mark.parametrize(
    "upscale",
    [lambda lr: lr, lambda lr: torch.zeros(len(lr), 3, 16, 16), lambda lr: torch.zeros(1, 3, 16, 16).byte()],
    ids=["not larger", "float", "another number"],
)
def test_a_teacher_that_gives_something_else_is_refused(
    repo: Path, make_teacher: MakeTeacher, upscale: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(NetworkError, match=r"not uint8 \[4, 3, 16, 16\]"):
        regenerate(CondensedSet(repo), make_teacher("repeat", upscale=upscale), "nearest", batch_size=4)
    assert not Manifest.load(repo).hr_versions


def test_damaged_lr_is_found_before_the_teacher_starts(repo: Path, make_teacher: MakeTeacher) -> None:
    path = repo / "lr" / "lr-00001-of-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("the teacher was asked")

    with pytest.raises(RunError, match="digest differs"):
        regenerate(CondensedSet(repo), make_teacher("repeat", upscale=refuse), "nearest")


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), KeyboardInterrupt()])
def test_an_interruption_leaves_the_folder_as_it_was(
    repo: Path, make_teacher: MakeTeacher, error: BaseException
) -> None:
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest")
    before = contents(repo)
    calls = []

    def break_down(lr: Tensor) -> Tensor:
        calls.append(len(lr))
        if len(calls) == 3:
            raise error
        return make_teacher("darken")(lr)

    teacher = make_teacher("darken", upscale=break_down)
    with pytest.raises(type(error)):
        regenerate(CondensedSet(repo), teacher, "dark", batch_size=1)
    assert contents(repo) == before
    assert [path.name for path in (repo / "data").iterdir()] == ["nearest"]
    regenerate(CondensedSet(repo), teacher, "dark", batch_size=1)
    assert len(read_keys(repo / "data" / "dark")) == 6


def test_a_version_that_another_process_adds_meanwhile_is_kept(repo: Path, make_teacher: MakeTeacher) -> None:
    def upscale(lr: Tensor) -> Tensor:
        regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest", set_default=False)
        return make_teacher("darken")(lr)

    regenerate(CondensedSet(repo), make_teacher("darken", upscale=upscale), "dark", set_default=False)
    assert sorted(Manifest.load(repo).hr_versions) == ["dark", "nearest"]


def test_versions_with_similar_names_can_be_made_at_the_same_time(repo: Path, make_teacher: MakeTeacher) -> None:
    def upscale(lr: Tensor) -> Tensor:
        regenerate(CondensedSet(repo), make_teacher("repeat"), "near")
        return make_teacher("darken")(lr)

    regenerate(CondensedSet(repo), make_teacher("darken", upscale=upscale), "near-m")
    assert read_keys(repo / "data" / "near") == read_keys(repo / "data" / "near-m")


def test_calls_at_the_same_time_all_end_and_the_card_names_every_version(repo: Path, make_teacher: MakeTeacher) -> None:
    def add(kind: str, name: str) -> bool:
        return add_version(CondensedSet(repo), make_teacher(kind), name, set_default=False, progress=False).written

    with ThreadPoolExecutor(4) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those that wait say so
        calls = [("repeat", "nearest"), ("repeat", "nearest"), ("darken", "negative"), ("darken", "other")]
        written = [call.result() for call in [pool.submit(add, *arguments) for arguments in calls]]
    assert sorted(written[:2]) == [False, True]
    assert written[2:] == [True, True]
    check_repository(CondensedSet(repo), again=True)
    assert sorted(Manifest.load(repo).hr_versions) == ["nearest", "negative", "other"]


def test_a_real_teacher(repo: Path) -> None:
    teacher = load_teacher("bicubic", scale=2)
    assert regenerate(CondensedSet(repo), teacher, "bicubic").written
    assert not regenerate(CondensedSet(repo), teacher, "bicubic").written
    row = next(read_rows(repo / "data" / "bicubic"))
    lr = torch.from_numpy(decode_png(row.lr_png)).permute(2, 0, 1)[None]
    assert np.array_equal(decode_png(row.hr_png), teacher(lr)[0].permute(1, 2, 0).numpy())


def test_consumers_load_every_version_whole_and_streaming(
    repo: Path,
    make_teacher: MakeTeacher,
    instances: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest")
    regenerate(CondensedSet(repo), make_teacher("darken"), "dark", set_default=False)
    write_card(CondensedSet(repo))
    cache = str(tmp_path / "cache")
    assert sorted(datasets.get_dataset_config_names(str(repo))) == ["dark", "nearest"]
    assert datasets.get_dataset_default_config_name(str(repo)) == "nearest"
    default = datasets.load_dataset(str(repo), split="train", cache_dir=cache)
    dark = datasets.load_dataset(str(repo), "dark", split="train", cache_dir=cache)
    assert default.num_rows == dark.num_rows == 6
    assert default.info.splits["train"].num_examples == 6
    assert default["instance_id"] == ["bridge", "bridge", "cat", "cat", "cat", "tower"]
    for one, other in zip(default, dark, strict=True):
        lr = instances[one["instance_id"]][one["patch_index"]].transpose(1, 2, 0)
        hr = np.kron(lr, np.ones((2, 2, 1), np.uint8))
        assert np.array_equal(np.asarray(one["lr"]), lr)
        assert np.array_equal(np.asarray(one["hr"]), hr)
        assert np.array_equal(np.asarray(other["lr"]), lr)
        assert np.array_equal(np.asarray(other["hr"]), hr // 2)
    streamed = list(datasets.load_dataset(str(repo), "dark", split="train", streaming=True))
    assert [row["patch_index"] for row in streamed] == [0, 1, 0, 1, 2, 0]
    assert np.array_equal(np.asarray(streamed[3]["hr"]), np.asarray(dark[3]["hr"]))
