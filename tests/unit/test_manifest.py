"""idc.json: round trip, exact bytes, and a sentence for every invalid value."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from idc_hub.dataset.manifest import HRVersion, Manifest, TeacherRecord, is_version_name
from idc_hub.errors import IncompleteError, NetworkError, RunError
from idc_hub.images.sources import is_instance_id

DIGEST = "0123456789abcdef" * 4
VERSION: dict[str, Any] = {
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
        hr_versions={"edsr": HRVersion.model_validate(VERSION)},
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
    version = VERSION | {"teacher": VERSION["teacher"] | settings}
    manifest.hr_versions["edsr"] = HRVersion.model_validate(version)
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    written = json.loads((tmp_path / "idc.json").read_text(encoding="utf-8"))
    assert written["hr_versions"]["edsr"] == version


def test_the_file_is_sorted_indented_json_with_format_and_version(tmp_path: Path) -> None:
    make_manifest().save(tmp_path)
    text = (tmp_path / "idc.json").read_text(encoding="utf-8")
    facts = {
        "format": "idc",
        "format_version": 1,
        "name": "div2k-x4",
        "scale": 4,
        "patch_size": 64,
        "lr_recipe_hash": DIGEST,
        "lr_digest": DIGEST,
        "instances": 3,
        "patches": 10,
        "default": "edsr",
        "hr_versions": {"edsr": VERSION},
        "packages": {"torch": "2.13.0"},
        "condensation": {"device": "Größe 1"},
    }
    assert text == json.dumps(facts, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


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
        ("surprise", 1, "the key surprise is unknown"),
        ("name", "../evil", "name should match"),
        ("scale", 5, "scale should be less than or equal to 4"),
        ("patch_size", 0, "patch_size should be greater"),
        ("patches", -1, "patches should be greater"),
        ("patches", True, "patches should be a valid integer"),
        ("patches", 10.0, "patches should be a valid integer"),
        ("patches", 2, "patches is 2, too few for 3 instances"),
        ("patches", 11, "hr_versions.edsr.patches is 10, not 11"),
        ("lr_recipe_hash", "xyz", "lr_recipe_hash"),
        ("lr_digest", DIGEST[:63], "lr_digest"),
        ("lr_digest", DIGEST.upper(), "lr_digest"),
        ("packages", [], "packages should be an object"),
        ("default", "hat", "default is 'hat', which is not one of hr_versions"),
        ("default", None, "default is None, which is not one of hr_versions"),
        ("default", ["edsr"], "default should be a valid string"),
        ("hr_versions", {}, "not one of hr_versions"),
        ("hr_versions", {"../../x": VERSION}, "hr_versions.../../x is not allowed"),
        ("hr_versions", {"default": VERSION}, "hr_versions.default is not allowed"),
        ("hr_versions/edsr", "x", "hr_versions.edsr should be an object"),
        ("hr_versions/edsr/surprise", 1, "the key hr_versions.edsr.surprise is unknown"),
        ("hr_versions/edsr/bytes", -1, "hr_versions.edsr.bytes should be greater"),
        ("hr_versions/edsr/teacher/path", "/home/ada", "the key hr_versions.edsr.teacher.path is unknown"),
        ("hr_versions/edsr/teacher/name", 3, "teacher.name should be a valid string"),
        ("hr_versions/edsr/teacher/weights_sha256", "abc", "teacher.weights_sha256 should match"),
        ("hr_versions/edsr/teacher/license", ["mit"], "teacher.license should be a valid string"),
        ("hr_versions/edsr/teacher/steps", "75", "teacher.steps should be a valid integer"),
        ("hr_versions/edsr/teacher/steps", True, "teacher.steps should be a valid integer"),
        ("hr_versions/edsr/teacher/guidance", None, "teacher.guidance is null"),
        ("hr_versions/edsr/teacher/prompt", 7, "teacher.prompt should be a valid string"),
        ("hr_versions/edsr/teacher/scale", 2, "hr_versions.edsr.teacher.scale is 2, not 4"),
        ("hr_versions/edsr/lr_digest", "f" * 64, "hr_versions.edsr.lr_digest names other LR patches"),
        ("hr_versions/edsr/date", "yesterday", "hr_versions.edsr.date should match"),
    ],
)
def test_an_invalid_value_is_refused_with_the_file_and_the_key(
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
    assert "\n" not in caught.value.message


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


@pytest.mark.parametrize("key", ["lr_digest", "default", "packages", "hr_versions/edsr/teacher/license"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    make_manifest().save(tmp_path)
    facts = json.loads((tmp_path / "idc.json").read_text(encoding="utf-8"))
    *parents, last = key.split("/")
    holder = facts
    for parent in parents:
        holder = holder[parent]
    del holder[last]
    (tmp_path / "idc.json").write_text(json.dumps(facts))
    with pytest.raises(RunError, match=f"the key {key.replace('/', '.')} is missing"):
        Manifest.load(tmp_path)


def test_a_teacher_that_describes_itself_wrongly_is_refused() -> None:
    with pytest.raises(
        NetworkError, match="The teacher edsr describes itself wrongly: license should be a valid string"
    ):
        TeacherRecord.of(VERSION["teacher"] | {"license": ["mit"]})


def test_teachers_are_the_same_by_weights_and_settings_or_else_by_name() -> None:
    by_weights = TeacherRecord.of(VERSION["teacher"])
    by_name = TeacherRecord.of(VERSION["teacher"] | {"weights_sha256": None})
    assert by_weights.is_same(TeacherRecord.of(VERSION["teacher"] | {"name": "a copy", "license": "mit"}))
    assert not by_weights.is_same(TeacherRecord.of(VERSION["teacher"] | {"weights_sha256": "f" * 64}))
    assert not by_weights.is_same(TeacherRecord.of(VERSION["teacher"] | {"steps": 3}))
    assert not by_weights.is_same(by_name)
    assert by_name.is_same(TeacherRecord.of(VERSION["teacher"] | {"weights_sha256": None}))
    assert not by_name.is_same(TeacherRecord.of(VERSION["teacher"] | {"weights_sha256": None, "name": "hat"}))


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
    with pytest.raises(IncompleteError, match=r"idc\.json could not be written: disk full"):
        changed.save(tmp_path)
    assert (tmp_path / "idc.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["idc.json"]
