"""A benchmark from the plan to the tables: made once, continued after a failure, left alone when it is finished."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skimage import data

import idc_hub
from idc_hub.benchmarking import ladder as running
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.errors import ImageError, IncompleteError, RunError
from idc_hub.images.files import write_png
from idc_hub.recipe import Recipe
from idc_hub.runs.progress import Progress
from idc_hub.verbs import benchmark
from idc_hub.verbs.select import SelectResult

PLAN = """\
name: tiny
source: {photographs}
set: [patches.size=24, patches.stride=24, loss.frequencies=16, loss.bank_size=2, transform.channels=16]
ratios: [0.1]
hr: {{bicubic: bicubic, real: real}}
sets:
  random: {{method: random, hr: [bicubic, real]}}
  broken: {{method: dcsr, hr: bicubic}}
  idc:
    recipe: quickstart
    set: [source.include=*, optimizer.steps=20]
    seeds: 1
students: [edsr-small]
training: {{steps: 3, batch_size: 2, crop: 8, log_every: 1, checkpoint_every: 1}}
learning_rates: [0.001]
seeds: [0]
testsets: [{photographs}/../Five]
"""
COLUMNS = ["set", "hr", "student", "seed", "ratio", "testset", "psnr_rgb", "psnr_y", "ssim_rgb"]


class Selector:
    """`idc_hub.select` that records its calls; the method dcsr fails until `repaired` is set."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, int, str]] = []
        self.repaired = False
        self.real = idc_hub.select

    def __call__(self, recipe: Recipe, **options: Any) -> SelectResult:
        self.calls.append((recipe.method, recipe.patches.ratio, recipe.seed, recipe.teacher.network))
        if recipe.method == "dcsr" and not self.repaired:
            raise RunError("The selector is broken.")
        return self.real(recipe, **options)


@pytest.fixture
def selector(monkeypatch: pytest.MonkeyPatch) -> Selector:
    noting = Selector()
    monkeypatch.setattr(benchmark, "select", noting)
    return noting


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Crops of two photographs to train on, one to test on, and the plan."""
    for folder in ("photographs", "Five"):
        (tmp_path / folder).mkdir()
    write_png(tmp_path / "photographs" / "astronaut.png", data.astronaut()[:384, :384])
    write_png(tmp_path / "photographs" / "coffee.png", data.coffee()[:384, :384])
    write_png(tmp_path / "Five" / "chelsea.png", data.chelsea()[:64, 100:180])
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.format(photographs=tmp_path / "photographs"))
    return path


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The students that are trained, in order."""
    folders: list[str] = []
    real = running.train_network

    def train(spec: str, pairs: Any, folder: Path, *others: Any, **settings: Any) -> None:
        folders.append(f"{folder.parents[1].name}/{folder.parent.name}/{folder.name}")
        real(spec, pairs, folder, *others, **settings)

    monkeypatch.setattr(running, "train_network", train)
    return folders


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def rows(out: Path) -> list[list[str]]:
    with (out / "ladder.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_a_benchmark_is_finished_in_two_goes(
    plan: Path, selector: Selector, counted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ladder"
    before = idc_hub.benchmark(plan, out=out, dry_run=True)
    assert (before.runs, before.finished) == (7, 0)
    assert not out.exists()

    with pytest.raises(IncompleteError) as caught:
        idc_hub.benchmark(plan, out=out)
    assert "2 of 7 single runs failed" in str(caught.value)
    assert str(caught.value).count("The selector is broken.") == 2
    assert [call[0] for call in selector.calls].count("dcsr") == 1, "not tried again for the learning rate"
    assert "[2/7] random-0.1-s0 | bicubic | edsr-small, seed 0 (about" in capsys.readouterr().err

    found = rows(out)
    assert found[0] == COLUMNS
    assert found[1:] == sorted(found[1:])
    runs = [("idc", "bicubic"), ("random", "bicubic"), ("random", "real")]
    assert [(row[0], row[1], row[3]) for row in found[1:]] == [(*run, "0") for run in runs]
    assert all(row[2] == "edsr-small" and row[4:6] == ["0.1", "Five"] for row in found[1:])
    assert selector.calls[0] == ("random", 0.1, 0, "real"), "real HR comes with the set, the teacher's after it"
    assert {path.name for path in (out / "sets").iterdir()} == {"idc-0.1-s0", "random-0.1-s0"}
    report = (out / "ladder.md").read_text()
    assert "## Not finished" in report
    assert "x4, Y, border 4, 8-bit" in report

    first, trained = files(out / "students"), len(counted)
    assert trained == 5
    selector.repaired = True
    result = idc_hub.benchmark(plan, out=out, progress=False)
    assert result.finished == 7
    assert set(counted[trained:]) == {
        "broken-0.1-s0/bicubic/edsr-small-s0",
        "broken-0.1-s0/bicubic/edsr-small-lr0.001-s0",
    }
    assert {path: files(out / "students")[path] for path in first} == first, "what was finished is left alone"
    assert len(rows(out)) == 5

    everything = files(out / "sets") | files(out / "students")
    tables = [(out / name).read_bytes() for name in ("ladder.csv", "ladder.md")]
    idc_hub.benchmark(plan, out=out, progress=False)
    assert files(out / "sets") | files(out / "students") == everything
    assert [(out / name).read_bytes() for name in ("ladder.csv", "ladder.md")] == tables
    states = idc_hub.benchmark(plan, out=out, dry_run=True)
    assert states.finished == 7


@pytest.fixture
def small(plan: Path, selector: Selector, tmp_path: Path) -> Callable[..., Any]:
    """A function that carries out a plan of one random set; old and new text in pairs change it."""
    text = plan.read_text()
    start, end = text.index("  broken:"), text.index("students:")
    text = (text[:start] + text[end:]).replace("hr: [bicubic, real]", "hr: [bicubic]")
    text = text.replace("learning_rates: [0.001]\n", "")

    def run(*changes: tuple[str, str], dry_run: bool = False) -> Any:
        changed = text
        for old, new in changes:
            assert old in changed
            changed = changed.replace(old, new)
        plan.write_text(changed)
        return idc_hub.benchmark(plan, out=tmp_path / "ladder", dry_run=dry_run, progress=False)

    return run


def test_figures_are_those_of_the_students_own_evaluation(small: Callable[..., Any], tmp_path: Path) -> None:
    small()
    [row] = rows(tmp_path / "ladder")[1:]
    student = tmp_path / "ladder" / "students" / "random-0.1-s0" / "bicubic" / "edsr-small-s0"
    [result] = json.loads((student / "results.json").read_text())["results"]
    rgb, luma = (result["protocols"][f"x4, {channel}, border 4, 8-bit"] for channel in ("RGB", "Y"))
    assert row[6:] == [f"{value:.4f}" for value in (rgb["psnr"], luma["psnr"], rgb["ssim"])]


def test_a_training_that_was_killed_goes_on_from_its_checkpoint(
    small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any, **settings: Any) -> None:
        def stop(event: Progress) -> None:
            if event.stage == "training" and event.done == 2:
                raise KeyboardInterrupt

        real(*arguments, **settings, progress=stop)

    real = running.train_network
    monkeypatch.setattr(running, "train_network", killed)
    with pytest.raises(KeyboardInterrupt):
        small()
    [state] = small(dry_run=True).states.values()
    assert state == {"set": "done", "hr": "done", "student": "begun", "evaluation": "to do"}

    events: list[Progress] = []
    monkeypatch.setattr(running, "train_network", lambda *a, **s: real(*a, **s, progress=events.append))
    assert small().finished == 1
    assert [event.done for event in events if event.stage == "training"] == [2, 3]


def test_a_new_test_set_costs_an_evaluation_only(small: Callable[..., Any], counted: list[str], tmp_path: Path) -> None:
    small()
    (tmp_path / "More").mkdir()
    write_png(tmp_path / "More" / "rocket.png", data.rocket()[:64, 300:364])
    assert small(("/../Five]", f"/../Five, {tmp_path / 'More'}]")).finished == 1
    assert [row[5] for row in rows(tmp_path / "ladder")[1:]] == ["Five", "More"]
    assert len(counted) == 1


def test_a_student_of_other_arguments_is_another_network(small: Callable[..., Any], tmp_path: Path) -> None:
    thin = ("students: [edsr-small]", "students: {thin: {network: edsr-tiny, arguments: {channels: 8, blocks: 1}}}")
    assert small(thin).finished == 1
    config = json.loads((tmp_path / "ladder/students/random-0.1-s0/bicubic/thin-s0/config.json").read_text())
    assert (config["arguments"]["channels"], config["arguments"]["blocks"]) == (8, 1)
    [state] = small((thin[0], thin[1].replace("8", "16")), dry_run=True).states.values()
    assert "was trained differently: channels 8 instead of 16. Delete it to train again" in state["problem"]


def test_a_student_that_was_trained_differently_is_refused(small: Callable[..., Any]) -> None:
    small()
    change = ("steps: 3", "steps: 4")
    [state] = small(change, dry_run=True).states.values()
    assert "was trained differently: steps 3 instead of 4. Delete it to train again" in state["problem"]
    with pytest.raises(IncompleteError, match="trained differently"):
        small(change)


@pytest.mark.parametrize("content", [b"{", None])
def test_damaged_files_of_its_own_are_made_again_or_named(
    content: bytes | None, small: Callable[..., Any], counted: list[str], tmp_path: Path
) -> None:
    small()
    student = tmp_path / "ladder" / "students" / "random-0.1-s0" / "bicubic" / "edsr-small-s0"
    table = (tmp_path / "ladder" / "ladder.csv").read_bytes()
    results = (student / "results.json").read_bytes()
    for path in (student / "results.json", tmp_path / "ladder" / "ladder.csv"):
        path.write_bytes(content) if content is not None else path.unlink()
    small()
    assert (student / "results.json").read_bytes() == results
    assert (tmp_path / "ladder" / "ladder.csv").read_bytes() == table
    (student / "training.yaml").write_bytes(content) if content is not None else (student / "training.yaml").unlink()
    with pytest.raises(IncompleteError, match=r"training\.yaml is missing or damaged.*Delete .* to train again"):
        small()
    assert len(counted) == 1


def test_a_checkpoint_that_a_kill_left_behind_is_removed(
    small: Callable[..., Any], counted: list[str], tmp_path: Path
) -> None:
    small()
    student = tmp_path / "ladder" / "students" / "random-0.1-s0" / "bicubic" / "edsr-small-s0"
    weights = (student / "model.safetensors").read_bytes()
    (student / "checkpoint.safetensors").write_bytes(b"")
    small()
    assert not (student / "checkpoint.safetensors").exists()
    assert (student / "model.safetensors").read_bytes() == weights


def test_a_version_that_a_kill_left_unmeasured_is_measured(small: Callable[..., Any], tmp_path: Path) -> None:
    gate = ("seeds: [0]", "seeds: [0]\ngate: true")
    small(gate)
    condensed = CondensedSet.open(tmp_path / "ladder" / "sets" / "random-0.1-s0")
    quality = condensed.manifest.condensation["quality"]
    with condensed.updating() as manifest:
        manifest.condensation["quality"] = {"another": quality["bicubic"]}
    [state] = small(gate, dry_run=True).states.values()
    assert (state["set"], state["hr"], state["evaluation"]) == ("done", "begun", "done")
    small(gate)
    measured = CondensedSet.open(condensed.folder.parent).manifest.condensation["quality"]
    assert measured["bicubic"] == quality["bicubic"]


def test_selections_are_not_measured_unless_the_plan_says_so(small: Callable[..., Any], tmp_path: Path) -> None:
    small()
    condensed = CondensedSet.open(tmp_path / "ladder" / "sets" / "random-0.1-s0")
    assert "quality" not in condensed.manifest.condensation
    [state] = small(dry_run=True).states.values()
    assert set(state.values()) == {"done"}
    with condensed.updating() as manifest:  # a kill before the first HR version was finished
        manifest.hr_versions.clear()
        manifest.default = None
    [state] = small(dry_run=True).states.values()
    assert (state["set"], state["hr"]) == ("begun", "to do")


def test_a_set_of_other_photographs_is_refused(small: Callable[..., Any], tmp_path: Path) -> None:
    small()
    write_png(tmp_path / "photographs" / "coffee.png", data.coffee()[16:400, :384])
    [state] = small(dry_run=True).states.values()
    assert f"is another set: other photographs than {tmp_path / 'photographs'}" in state["problem"]


def test_a_missing_test_set_is_noticed_before_anything_is_trained(
    small: Callable[..., Any], counted: list[str]
) -> None:
    with pytest.raises(ImageError, match="There is no folder, zip or Hub dataset"):
        small(("/../Five]", "/../Fife]"))
    assert counted == []
