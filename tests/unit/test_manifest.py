"""idc.json: round trip, the exact file, and a sentence for everything that cannot be used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from idc_hub.dataset.manifest import Manifest, is_version_name
from idc_hub.errors import RunError
from idc_hub.images.sources import is_instance_id

DIGEST = "0123456789abcdef" * 4
VERSION = {
    "teacher": {"name": "edsr", "kind": "network", "scale": 4, "weights_sha256": DIGEST, "license": None},
    "lr_digest": DIGEST,
    "date": "2026-11-21",
    "patches": 10,
    "bytes": 12345,
}


def make_manifest() -> Manifest:
    return Manifest(
        name="div2k-x4",
        scale=4,
        patch_size=64,
        lr_recipe_hash=DIGEST,
        lr_digest=DIGEST,
        instances=3,
        patches=10,
        default="edsr",
        hr_versions={"edsr": json.loads(json.dumps(VERSION))},
        packages={"torch": "2.13.0"},
        condensation={"device": "Größe 1"},
    )


def test_a_manifest_survives_the_disk(tmp_path: Path) -> None:
    make_manifest().save(tmp_path)
    assert Manifest.load(tmp_path) == make_manifest()
    assert [path.name for path in tmp_path.iterdir()] == ["idc.json"]


def test_the_settings_of_a_diffusion_teacher_survive_the_disk(tmp_path: Path) -> None:
    manifest = make_manifest()
    settings = {"pipeline": "P", "scheduler": "S", "steps": 75, "seed": 0, "prompt": "", "guidance": 1.5}
    manifest.hr_versions["edsr"]["teacher"] |= settings
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_the_file_is_sorted_indented_json_with_format_and_version(tmp_path: Path) -> None:
    make_manifest().save(tmp_path)
    text = (tmp_path / "idc.json").read_text(encoding="utf-8")
    facts = json.loads(text)
    assert (facts["format"], facts["format_version"]) == ("idc", 1)
    assert list(facts) == sorted(facts)
    assert text.startswith('{\n  "condensation"')
    assert text.endswith("}\n")


def set_path(facts: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split("/")
    for key in parents:
        facts = facts[key]
    facts[last] = value


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("format", "lerobot", '"format": "idc"'),
        ("format_version", 2, "Install a newer idc-hub"),
        ("format_version", "1", "format_version is not a number"),
        ("format_version", True, "format_version is not a number"),
        ("surprise", 1, "unknown keys: surprise"),
        ("name", "../evil", "other characters"),
        ("scale", 5, "out of range"),
        ("patch_size", 0, "out of range"),
        ("patches", -1, "patches is not a whole number"),
        ("patches", 2, "too few for 3 instances"),
        ("patches", 11, "counts do not fit"),
        ("lr_recipe_hash", "xyz", "lr_recipe_hash"),
        ("lr_digest", DIGEST[:63], "lr_digest"),
        ("lr_digest", DIGEST.upper(), "lr_digest"),
        ("packages", [], "packages is not an object"),
        ("default", "hat", "not one of its HR versions"),
        ("default", None, "not one of its HR versions"),
        ("default", ["edsr"], "not one of its HR versions"),
        ("hr_versions", {}, "not one of its HR versions"),
        ("hr_versions", {"../../x": VERSION}, "name is not allowed"),
        ("hr_versions", {"default": VERSION}, "name is not allowed"),
        ("hr_versions/edsr", "x", "needs exactly the keys"),
        ("hr_versions/edsr/teacher/path", "/home/ada", "teacher needs exactly the keys"),
        ("hr_versions/edsr/teacher/name", 3, "not a string"),
        ("hr_versions/edsr/teacher/weights_sha256", "abc", "weights_sha256"),
        ("hr_versions/edsr/teacher/steps", "75", "teacher.steps is not a number"),
        ("hr_versions/edsr/teacher/steps", True, "teacher.steps is not a number"),
        ("hr_versions/edsr/teacher/guidance", None, "teacher.guidance is not a number"),
        ("hr_versions/edsr/teacher/prompt", 7, "teacher.prompt is not a string"),
        ("hr_versions/edsr/teacher/scale", 2, "scale 2, not 4"),
        ("hr_versions/edsr/lr_digest", "f" * 64, "other LR patches"),
        ("hr_versions/edsr/date", "yesterday", "date"),
    ],
)
def test_what_cannot_be_is_refused_with_the_file_and_the_reason(
    tmp_path: Path, path: str, value: object, sentence: str
) -> None:
    make_manifest().save(tmp_path)
    facts = json.loads((tmp_path / "idc.json").read_text(encoding="utf-8"))
    set_path(facts, path, value)
    (tmp_path / "idc.json").write_text(json.dumps(facts))
    with pytest.raises(RunError) as caught:
        Manifest.load(tmp_path)
    assert sentence in str(caught.value)
    assert str(tmp_path / "idc.json") in caught.value.message


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("{", "not JSON"), ("[]", '"format"'), ("\xff", "not JSON"), (b"\xff\xfe", "not JSON")],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, content: str | bytes, sentence: str) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "idc.json").write_bytes(data)
    with pytest.raises(RunError, match=sentence):
        Manifest.load(tmp_path)


def test_a_folder_without_a_manifest_says_what_to_name_instead(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="idc condense"):
        Manifest.load(tmp_path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    make_manifest().save(tmp_path)
    facts = json.loads((tmp_path / "idc.json").read_text(encoding="utf-8"))
    del facts["lr_digest"]
    (tmp_path / "idc.json").write_text(json.dumps(facts))
    with pytest.raises(RunError, match="keys: lr_digest"):
        Manifest.load(tmp_path)


def test_nothing_is_written_that_could_not_be_read(tmp_path: Path) -> None:
    make_manifest().save(tmp_path)
    before = (tmp_path / "idc.json").read_bytes()
    wrong = make_manifest()
    wrong.default = "hat"
    with pytest.raises(RunError, match="was not written"):
        wrong.save(tmp_path)
    assert (tmp_path / "idc.json").read_bytes() == before


@pytest.mark.parametrize("name", ["edsr", "x4-hat", "2", "a--b"])
def test_version_names_that_are_allowed(name: str) -> None:
    assert is_version_name(name)


@pytest.mark.parametrize("name", ["", "-a", "EDSR", "a_b", "a/b", "..", "data", "default", "a\n", "é", "a b"])
def test_version_names_that_are_not(name: str) -> None:
    assert not is_version_name(name)


@pytest.mark.parametrize("name", ["0001", "a photograph", "..a", "猫", "x" * 200, "a|b", "---"])
def test_instance_ids_that_are_allowed(name: str) -> None:
    assert is_instance_id(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0b", "a\nb", "x" * 201, "猫" * 67, "\ud800"])
def test_instance_ids_that_are_not(name: str) -> None:
    assert not is_instance_id(name)


def test_the_atomic_write_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_manifest().save(tmp_path)
    before = (tmp_path / "idc.json").read_bytes()

    def fail(*_: object) -> Callable[[], None]:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    changed = make_manifest()
    changed.packages = {}
    with pytest.raises(OSError, match="disk full"):
        changed.save(tmp_path)
    assert (tmp_path / "idc.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["idc.json"]
