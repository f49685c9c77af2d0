"""The quality gate of a Run: measured at the end, recorded, shown on the card, and reproducible."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import idc_hub
from idc_hub.dataset import gate
from idc_hub.dataset.card import write_card
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.judgment import FIGURES
from idc_hub.dataset.manifest import Manifest
from idc_hub.errors import ImageError, IncompleteError, RunError
from idc_hub.images.files import write_png
from idc_hub.images.sources import Instance
from idc_hub.recipe import Recipe
from idc_hub.runs.run import Run
from idc_hub.verbs.condense import CondenseResult


def recipe(folder: Path, **optimizer: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "gate",
            "source": {"path": str(folder)},
            "patches": {"size": 16, "stride": 16, "ratio": 1.0, "complexity": "all"},
            "transform": {"kernel_size": 3, "channels": 8},
            "loss": {"frequencies": 8, "bank_size": 2},
            "assignment": {"groups": 2, "warmup": 0.2, "interval": 0.2, "events": 2},
            "optimizer": {"steps": 5, "milestones": [], **optimizer},
            "workers": {"log_every": 1},
            "teacher": {"network": "bicubic"},
        }
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two crops of photographs with 16 windows each."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("coffee", "astronaut"):
        pixels = np.asarray(Image.open(Path(spec.origin).parent / "data" / f"{name}.png").convert("RGB"))
        write_png(folder / f"{name}.png", pixels[60:316, 150:406])
    return folder


@pytest.fixture(scope="module")
def bad(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CondenseResult]:
    """A Run that is still close to its initial noise, and the result of `condense`."""
    run_dir = tmp_path_factory.mktemp("runs") / "bad"
    spec = recipe(photographs, initial="noise")
    return run_dir, idc_hub.condense(spec, run_dir=run_dir, num_processes=1, progress=False)


def test_condense_says_which_figures_fail(bad: tuple[Path, CondenseResult]) -> None:
    result = bad[1]
    failed = {key for key, figure in result.quality.items() if figure["passed"] is False}
    assert {"chroma_over_luma", "spectrum_distance", "coverage"} <= failed
    assert len(result.warnings) == len(failed)
    assert any("the patches carry color noise" in warning for warning in result.warnings)
    assert result.quality.keys() == FIGURES.keys()
    assert result.quality["held_out"]["set"] == pytest.approx(result.held_out)
    assert result.quality["held_out"]["real"] == pytest.approx(result.held_out_random)


def test_the_result_is_in_the_run_in_idc_json_and_on_the_card(bad: tuple[Path, CondenseResult]) -> None:
    run_dir, result = bad
    kept = json.loads((run_dir / "quality.json").read_text())["hr_versions"]["bicubic"]
    assert kept["figures"] == result.quality
    assert (kept["photographs"], kept["patches"], kept["draws"]) == (2, 32, 4)
    assert len(kept["spectra"]["set"]) == len(kept["spectra"]["real"]) == 8
    assert kept["gradient_norms"].keys() == {"gradient_instance", "gradient_group", "gradient_pair"}
    digest = Manifest.load(run_dir / "repo").condensation["quality"]["bicubic"]
    assert digest == {key: {side: figure[side] for side in ("set", "real")} for key, figure in kept["figures"].items()}
    card = (run_dir / "repo" / "README.md").read_text()
    assert f"The patches failed {len(result.warnings)} of these checks" in card
    assert idc_hub.verify(run_dir).patches == 32


def test_steps_that_were_logged_twice_count_once(bad: tuple[Path, CondenseResult], tmp_path: Path) -> None:
    shutil.copytree(bad[0], tmp_path / "run")
    run = Run.open(tmp_path / "run")
    whole = gate._gradient_norms(run)
    for instance in run.instances:
        lines = [line for line in run.read_metrics(instance.id) if line["event"] == "log"]
        for line in 3 * lines[-1:]:
            run.append_metrics(instance.id, line)
    assert gate._gradient_norms(run) == whole


def test_a_full_disk_is_no_measurement_that_can_be_left_out(
    bad: tuple[Path, CondenseResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object, **__: object) -> None:
        raise IncompleteError("quality.json could not be written: No space left on device.")

    shutil.copytree(bad[0], tmp_path / "run")
    again = {"teacher": "bicubic", "name": "again", "progress": False}
    with monkeypatch.context() as full:
        full.setattr(gate, "measure", fill)
        with pytest.raises(IncompleteError, match="No space left"):
            idc_hub.regenerate(tmp_path / "run", **again)
    idc_hub.regenerate(tmp_path / "run", **again)
    assert "again" in Manifest.load(tmp_path / "run" / "repo").condensation["quality"]


def test_condensing_again_measures_nothing_again(
    bad: tuple[Path, CondenseResult], photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(gate, "measure", refuse)
    spec = recipe(photographs, initial="noise")
    again = idc_hub.condense(spec, run_dir=bad[0], num_processes=1, progress=False)
    assert again.warnings == bad[1].warnings


def test_a_kill_between_the_two_files_of_a_measurement_costs_the_card_nothing(
    bad: tuple[Path, CondenseResult], photographs: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(bad[0], run_dir)
    before = {name: (run_dir / "repo" / name).read_bytes() for name in ("idc.json", "README.md")}
    condensed = CondensedSet.open(run_dir)
    with condensed.updating() as manifest:
        del manifest.condensation["quality"]
    write_card(condensed)
    assert (run_dir / "repo" / "README.md").read_bytes() != before["README.md"]
    idc_hub.condense(recipe(photographs, initial="noise"), run_dir=run_dir, num_processes=1, progress=False)
    assert {name: (run_dir / "repo" / name).read_bytes() for name in before} == before


def test_measuring_again_gives_the_same_result_and_keeps_other_versions(
    bad: tuple[Path, CondenseResult],
) -> None:
    run_dir = bad[0]
    before = (run_dir / "quality.json").read_bytes()
    assert idc_hub.quality(run_dir, progress=False).figures == bad[1].quality
    assert (run_dir / "quality.json").read_bytes() == before
    versions = Manifest.load(run_dir / "repo").hr_versions
    idc_hub.regenerate(run_dir, teacher="edsr-small", name="sharper", set_default=False, progress=False)
    with pytest.raises(RunError, match=r"was made by edsr-small, not by bicubic.*--teacher"):
        idc_hub.quality(run_dir, hr_version="sharper", progress=False)
    sharper = idc_hub.quality(run_dir, hr_version="sharper", teacher="edsr-small", progress=False)
    assert bad[1].quality["residual"]["real"] == 0
    assert sharper.figures["residual"]["real"] > 0
    assert gate.recorded(Run.open(run_dir), CondensedSet.open(run_dir)).keys() == {"bicubic", "sharper"}
    assert Manifest.load(run_dir / "repo").hr_versions["bicubic"] == versions["bicubic"]  # no new release of the pairs
    with pytest.raises(RunError, match="no HR version 'other'"):
        idc_hub.quality(run_dir, hr_version="other")


def test_the_real_patches_themselves_pass_and_count_as_copied(photographs: Path, tmp_path: Path) -> None:
    spec = recipe(photographs, initial="real", learning_rate=1e-9)
    result = idc_hub.condense(spec, run_dir=tmp_path / "run", num_processes=1, progress=False)
    assert result.warnings == []
    found = {key: figure["set"] for key, figure in result.quality.items()}
    assert (found["copied"], found["nearest"], found["coverage"]) == (1, 0, 1)
    for key in ("luma_hf", "chroma_over_luma", "residual", "saturated"):
        assert found[key] == pytest.approx(result.quality[key]["real"]), key
    assert "The patches passed all of these checks" in (tmp_path / "run" / "repo" / "README.md").read_text()


def test_a_set_without_its_photographs_is_a_sentence(bad: tuple[Path, CondenseResult], tmp_path: Path) -> None:
    shutil.copytree(bad[0] / "repo", tmp_path / "repo")
    with pytest.raises(RunError, match=r"without its photographs.*The card shows"):
        idc_hub.quality(tmp_path)
    with pytest.raises(RunError, match="holds no condensed set"):
        idc_hub.quality(tmp_path / "nowhere")


def test_a_damaged_file_is_a_sentence(bad: tuple[Path, CondenseResult]) -> None:
    path = bad[0] / "quality.json"
    before = path.read_bytes()
    try:
        for content, sentence in ((b"{", "is damaged"), (b'{"format": "idc-quality", "format_version": 3}', "format")):
            path.write_bytes(content)
            with pytest.raises(RunError, match=sentence):
                gate.recorded(Run.open(bad[0]), CondensedSet.open(bad[0]))
        older = json.loads(before) | {"format_version": 1}
        path.write_text(json.dumps(older))
        assert gate.recorded(Run.open(bad[0]), CondensedSet.open(bad[0])) == {}, (
            "measurements of an older format are ignored"
        )
    finally:
        path.write_bytes(before)


def test_photographs_that_are_gone_are_named(bad: tuple[Path, CondenseResult], photographs: Path) -> None:
    moved = photographs.with_name("moved")
    photographs.rename(moved)
    try:
        with pytest.raises(ImageError, match="no folder"):
            idc_hub.quality(bad[0], progress=False)
    finally:
        moved.rename(photographs)


def test_at_most_64_photographs_and_256_patches_are_measured(tmp_path: Path) -> None:
    photographs = [
        Instance(f"{number:03}", f"{number:03}.png", "0" * 64, 64, 64, 16, count=15 * (number != 3))
        for number in range(100)
    ]
    spec = recipe(tmp_path)
    run = Run(tmp_path, spec, photographs)
    chosen = gate._choose(run)
    assert len(chosen) == 64
    assert sum(len(numbers) for _, numbers in chosen) == 256
    assert all(len(set(numbers)) == 4 and max(numbers) < 15 for _, numbers in chosen)
    assert gate._choose(Run(tmp_path, spec, photographs)) == chosen
    few = Run(tmp_path, spec, photographs[:4])
    assert [(instance.id, len(numbers)) for instance, numbers in gate._choose(few)] == [
        ("000", 15),
        ("001", 15),
        ("002", 15),
    ]
