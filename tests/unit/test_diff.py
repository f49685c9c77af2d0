"""diff: recipes, photographs, LR patches and HR versions of two sets."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import Manifest
from idc_hub.dataset.regenerate import regenerate
from idc_hub.dataset.shards import write_shards
from idc_hub.errors import RunError
from idc_hub.networks.teachers import Teacher
from idc_hub.verbs.diff import diff

RGB, Y = "x2, RGB, border 2, 8-bit", "x2, Y, border 2, 8-bit"


@pytest.fixture
def run(repo: Path, make_teacher: Callable[..., Teacher]) -> Path:
    """A set with the HR versions repeat and darken."""
    for name in ("repeat", "darken"):
        regenerate(CondensedSet(repo), make_teacher(name), name)
    return repo


def test_a_set_equals_its_copy(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    found = diff(run, copy, progress=False)
    assert (found.recipe, found.only_a, found.only_b) == ({}, [], [])
    assert (found.a.photographs, found.a.patches, found.a.default) == (3, 6, "repeat")
    assert found.a.hr_versions == found.b.hr_versions == {"repeat": "repeat", "darken": "darken"}
    assert [(hr.a, hr.b, hr.equal, hr.psnr) for hr in found.hr] == [
        (name, name, 6, {RGB: None, Y: None}) for name in ("darken", "repeat")
    ]


def test_psnr_between_two_versions_of_one_set(run: Path, instances: dict[str, np.ndarray]) -> None:
    lr = np.concatenate(list(instances.values())).astype(np.float64)
    hr = lr.repeat(2, axis=2).repeat(2, axis=3)[:, :, 2:-2, 2:-2]
    luma = np.array([65.481, 128.553, 24.966]) / 255
    errors = (hr - hr // 2) ** 2, np.tensordot(hr - hr // 2, luma, axes=(1, 0)) ** 2
    expected = [float(np.mean([10 * math.log10(255**2 / patch.mean()) for patch in error])) for error in errors]
    (found,) = diff(f"{run}:repeat", f"{run}:darken", progress=False).hr
    assert (found.a, found.b, found.equal) == ("repeat", "darken", 0)
    assert found.psnr == pytest.approx(dict(zip((RGB, Y), expected, strict=True)))
    assert diff(run, f"{run}:darken", progress=False).hr == [found]  # the default against a named version


def test_only_patches_that_differ_count(
    run: Path, tmp_path: Path, instances: dict[str, np.ndarray], make_teacher: Callable[..., Teacher]
) -> None:
    copy, seen = tmp_path / "copy", []

    def almost(lr: object) -> object:
        hr = make_teacher("repeat").upscale(lr)
        if not seen:
            hr[0] ^= 1  # one patch, by one gray level
        seen.append(lr)
        return hr

    shutil.copytree(run, copy)
    regenerate(CondensedSet(run), make_teacher("repeat"), "tried")
    regenerate(CondensedSet(copy), make_teacher("darken", upscale=almost), "tried")
    (found,) = (hr for hr in diff(run, copy, progress=False).hr if hr.a == "tried")
    assert found.equal == 5
    assert found.psnr[RGB] == pytest.approx(10 * math.log10(255**2))


def test_other_patches_photographs_and_recipes(run: Path, tmp_path: Path, instances: dict[str, np.ndarray]) -> None:
    other = tmp_path / "other"
    others = {"bridge": instances["bridge"], "dog": instances["cat"]}
    digest = write_shards(other / "lr", others.items(), metadata={})
    recipe = (run / "recipe.yaml").read_text().replace("steps: 300", "steps: 400") + "seed: 3\n"
    (other / "recipe.yaml").write_text(recipe)
    manifest = Manifest.load(run)
    changes = {"lr_digest": digest, "instances": 2, "patches": 5, "hr_versions": {}, "default": None}
    manifest.model_copy(update=changes).save(other)
    found = diff(run, other, progress=False)
    assert found.recipe == {"optimizer.steps": [300, 400], "seed": [None, 3]}
    assert (found.only_a, found.only_b) == (["cat", "tower"], ["dog"])
    assert (found.a.lr_digest, found.b.lr_digest) == (manifest.lr_digest, digest)
    assert (found.b.patches, found.b.default, found.hr) == (5, None, [])


def test_progress_counts_patches(run: Path) -> None:
    events = []
    diff(f"{run}:repeat", f"{run}:darken", progress=events.append)
    assert [(event.done, event.total) for event in events] == [(done, 6) for done in range(1, 7)]


def test_what_there_is_not(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no HR version 'edsr'\. Its HR versions: darken, repeat"):
        diff(f"{run}:edsr", run, progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no condensed set"):
        diff(run, tmp_path / "empty", progress=False)
    assert json.loads((run / "idc.json").read_text())["default"] == "repeat"
