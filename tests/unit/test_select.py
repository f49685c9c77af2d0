"""`idc_hub.select`: a selection as a Run, from photographs to pairs, and what it refuses."""

import hashlib
import io
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import idc_hub
from idc_hub.dataset.card import render_card
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.manifest import Manifest
from idc_hub.dataset.parquet import Row, read_rows
from idc_hub.errors import ImageError, NetworkError, RecipeError, RunError
from idc_hub.images.files import decode_png, read_image, write_png
from idc_hub.images.leaves import dead_leaves
from idc_hub.images.patches import windows
from idc_hub.images.resize import imresize
from idc_hub.networks.teachers import load_teacher
from idc_hub.recipe import Recipe
from idc_hub.runs.run import Run
from idc_hub.selection import pool as module
from idc_hub.training.pairs import read_data
from idc_hub.verbs.select import SelectResult

# 46 HR and 23 LR pixels by 50 and 25: windows of 8 every 4, the last ones flush with the edge.
SIZES = {"bridge": (46, 50), "cat": (46, 34), "tower": (80, 50)}
WINDOWS = {"bridge": 5 * 6, "cat": 5 * 4, "tower": 9 * 6}
SMALL = ("patches.size=8", "patches.stride=4", "transform.kernel_size=3", "transform.channels=8")
SMALL += ("loss.frequencies=8", "loss.bank_size=2", "assignment.groups=3")
SHORT = ("optimizer.steps=10", "assignment.interval=0.1", "assignment.events=3")
METHODS = ("whole", "random", "herding", "herding-deepcore", "k-center", "dcsr", "cf-greedy", "hardness")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three photographs of noise on slopes, of odd sizes: LR and HR crops of another place are never the same."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "My photos"
    folder.mkdir()
    for name, (height, width) in SIZES.items():
        slope = np.linspace(0, 120, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
        write_png(folder / f"{name}.png", (slope + rng.integers(0, 70, (height, width, 3))).astype(np.uint8))
    return folder


def choose(photographs: Path, method: str = "random", *overrides: str, **options: Any) -> SelectResult:
    run_dir = options.pop("run_dir", photographs.parent / "run")
    options = {"ratio": 0.2, "scale": 2} | options
    recipe = idc_hub.selection_recipe(method, photographs, overrides=(*SMALL, *overrides), **options)
    return idc_hub.select(recipe, run_dir=run_dir, progress=False)


def rows(run: Path, version: str) -> list[Row]:
    return list(read_rows(run / "repo" / "data" / version))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("method", METHODS)
def test_pairs_are_the_photographs_own_crops_byte_for_byte(photographs: Path, method: str) -> None:
    result = choose(photographs, method)
    run = photographs.parent / "run"
    total = sum(WINDOWS.values())
    assert result.real_patches == total == 104
    assert result.patches == (total if method == "whole" else 20)
    assert result.hr_version == "real"
    shares = {instance.id: instance for instance in Run.open(run).instances}
    chosen = {name: Run.open(run).read_facts(instance)["places"] for name, instance in shares.items()}
    pairs = rows(run, "real")
    assert len(pairs) == sum(map(len, chosen.values())) == result.patches
    for pair in pairs:
        hr = read_image((photographs / f"{pair.instance_id}.png").read_bytes(), pair.instance_id).pixels
        lr = imresize(hr, 1 / 2)
        top, left = chosen[pair.instance_id][pair.patch_index]
        assert np.array_equal(decode_png(pair.lr_png), lr[top : top + 8, left : left + 8])
        assert np.array_equal(decode_png(pair.hr_png), hr[2 * top : 2 * top + 16, 2 * left : 2 * left + 16])
        photograph = (photographs / f"{pair.instance_id}.png").read_bytes()
        assert (pair.source_sha256, pair.nearest_real) == (hashlib.sha256(photograph).hexdigest(), 0)
    for name, places in chosen.items():
        height, width = SIZES[name]
        assert len({tuple(place) for place in places}) == len(places)
        assert all(0 <= top <= height // 2 - 8 and 0 <= left <= width // 2 - 8 for top, left in places)
        assert places == sorted(places)
    assert idc_hub.verify(run).patches == result.patches
    assert idc_hub.status(run).finished == 3


def test_pairs_of_smaller_photographs_are_crops_of_the_resized_ones(photographs: Path) -> None:
    result = choose(photographs, "herding", "patches.scales=[1,0.5]", ratio=0.5)
    assert result.patches == sum(WINDOWS.values()) // 2
    run = Run.open(photographs.parent / "run")
    # bridge 23 x 25 becomes 11 x 12 LR pixels, cat 11 x 8, tower 20 x 12.
    assert result.real_patches == sum(WINDOWS.values()) + 2 * 2 + 2 * 1 + 4 * 2
    chosen = {instance.id: run.read_facts(instance)["places"] for instance in run.instances}
    assert {zoom for places in chosen.values() for _, _, zoom in places} == {1, 0.5}
    for pair in rows(run.path, "real"):
        top, left, zoom = chosen[pair.instance_id][pair.patch_index]
        hr = imresize(read_image((photographs / f"{pair.instance_id}.png").read_bytes(), pair.instance_id).pixels, zoom)
        hr = hr[: len(hr) // 2 * 2, : hr.shape[1] // 2 * 2]
        assert np.array_equal(decode_png(pair.lr_png), imresize(hr, 1 / 2)[top : top + 8, left : left + 8])
        assert np.array_equal(decode_png(pair.hr_png), hr[2 * top : 2 * top + 16, 2 * left : 2 * left + 16])
    assert "from the photographs at 1, 0.5 of their size" in (run.repo / "README.md").read_text()
    idc_hub.regenerate(run.path, teacher="bicubic", name="bicubic", progress=False)
    assert idc_hub.verify(run.path).patches == result.patches
    assert Path(idc_hub.report(run.path, progress=False).path).is_file()


def test_condensing_represents_smaller_photographs(photographs: Path) -> None:
    values = {"name": "small", "scale": 2, "source": {"path": str(photographs)}, "teacher": {"network": "bicubic"}}
    recipe = Recipe.from_dict(values, [*SMALL, *SHORT, "patches.ratio=0.2", "patches.scales=0.5"])
    result = idc_hub.condense(recipe, run_dir=photographs.parent / "condensed", num_processes=1, progress=False)
    assert (result.real_patches, result.patches) == (14, 2)


def test_what_costs_more_than_choosing_is_measured_on_a_sample(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = choose(photographs, "random")
    monkeypatch.setattr(module, "MEASURED", 2)
    sampled = choose(photographs, "random", run_dir=photographs.parent / "sampled")
    assert sampled.lr_digest == everything.lr_digest
    run, whole = Run.open(photographs.parent / "sampled"), Run.open(photographs.parent / "run")
    measured = [facts for instance in run.instances if "held_out" in (facts := run.read_facts(instance))]
    assert len(measured) == 2
    assert sampled.held_out == pytest.approx(np.mean([facts["held_out"] for facts in measured]))
    every = [whole.read_facts(instance)["held_out"] for instance in whole.instances]
    assert everything.held_out == pytest.approx(np.mean(every))
    assert {facts["held_out"] for facts in measured} < set(every)
    assert sampled.quality["held_out"]["set"] == pytest.approx(sampled.held_out)


def test_as_many_random_patches_as_there_are_have_the_figures_of_all_real_ones(photographs: Path) -> None:
    result = choose(photographs, "whole")
    # Random ones are then the same patches in another order, with the photographs' own HR as well.
    for figure in ("residual", "chroma_over_luma", "saturated", "color_distance", "spectrum_distance", "coverage"):
        assert result.quality[figure]["set"] == pytest.approx(result.quality[figure]["real"], rel=1e-9)
    kept = json.loads((photographs.parent / "run" / "quality.json").read_text())
    assert kept["hr_versions"]["real"]["figures"] == result.quality


def test_cf_greedy_shares_as_condensing_does_and_lies_nearer_than_chance(photographs: Path) -> None:
    result = choose(photographs, "cf-greedy")
    # Cumulative floors of 0.2 x 30, 50 and 104.
    assert [instance.count for instance in Run.open(photographs.parent / "run").instances] == [6, 4, 10]
    assert result.held_out < 0.8 * result.held_out_random
    choose(photographs, "cf-greedy", "patches.min_per_image=5", run_dir=photographs.parent / "more")
    assert [instance.count for instance in Run.open(photographs.parent / "more").instances] == [6, 5, 10]


def test_a_photograph_may_be_left_without_patches_by_the_others(photographs: Path) -> None:
    result = choose(photographs, "random", ratio=0.01)
    assert result.patches == 1
    shares = Run.open(photographs.parent / "run").instances
    assert sorted(instance.count for instance in shares) == [0, 0, 1]
    assert Manifest.load(photographs.parent / "run" / "repo").instances == 1
    assert idc_hub.status(photographs.parent / "run").finished == 3


def test_held_out_figures_are_those_that_condensing_gives(photographs: Path) -> None:
    choose(photographs, "cf-greedy")
    selected = Run.open(photographs.parent / "run")
    # Condensing that begins with these very patches and hardly moves them.
    still = ("optimizer.learning_rate=1e-9", "optimizer.initial=cf-greedy", "teacher.network=bicubic", "method=idc")
    recipe = Recipe.load(selected.path, [*SHORT, *still])
    idc_hub.condense(recipe, run_dir=photographs.parent / "condensed", num_processes=1, progress=False)
    condensed = Run.open(photographs.parent / "condensed")
    for mine, theirs in zip(selected.instances, condensed.instances, strict=True):
        found, expected = selected.read_facts(mine), condensed.read_facts(theirs)
        for figure in ("held_out", "held_out_random"):
            assert found[figure] == pytest.approx(expected[figure], rel=1e-5)
        patches, initial = selected.read_patches(mine), condensed.read_patches(theirs)
        assert sorted(patch.numpy().tobytes() for patch in patches) == sorted(p.numpy().tobytes() for p in initial)


def test_the_same_call_again_does_nothing_and_an_interrupted_one_is_continued(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = choose(photographs, "k-center")
    run = photographs.parent / "run"
    before = contents(run / "repo") | contents(run / "instances")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was done again")

    with monkeypatch.context() as patch:
        for name in ("_choose", "_finish", "real_patches"):
            patch.setattr(module, name, refuse)
        again = choose(photographs, "k-center")
    assert replace(again, seconds=0) == replace(first, seconds=0)
    assert contents(run / "repo") | contents(run / "instances") == before
    (run / "instances" / "cat.safetensors").unlink()
    shutil.rmtree(run / "repo")
    monkeypatch.setattr(module, "_choose", refuse)  # what was chosen is not chosen again
    choose(photographs, "k-center")
    assert contents(run / "instances") == {k: v for k, v in before.items() if k in contents(run / "instances")}


def test_another_selection_in_the_same_place_is_refused(photographs: Path) -> None:
    choose(photographs, "random")
    with pytest.raises(RecipeError, match="method random -> herding") as refused:
        choose(photographs, "herding")
    assert "--restart" not in str(refused.value)  # `idc select` has no such option
    with pytest.raises(RecipeError, match="seed 0 -> 1"):
        choose(photographs, "random", seed=1)
    write_png(photographs / "new.png", np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(RecipeError, match="new: new"):
        choose(photographs, "random")


def test_a_teacher_makes_hr_and_real_hr_can_follow(photographs: Path) -> None:
    assert choose(photographs, teacher="bicubic").hr_version == "bicubic"
    run = photographs.parent / "run"
    teacher = load_teacher("bicubic", scale=2)
    lr = np.stack([decode_png(row.lr_png).transpose(2, 0, 1) for row in rows(run, "bicubic")])
    for row, hr in zip(rows(run, "bicubic"), teacher(torch.from_numpy(lr)), strict=True):
        assert np.array_equal(decode_png(row.hr_png), hr.permute(1, 2, 0).numpy())
    idc_hub.regenerate(run, teacher="real", name="own", set_default=False, progress=False)
    facts = Manifest.load(run / "repo")
    assert facts.default == "bicubic"
    assert facts.hr_versions["own"].teacher.kind == "photographs"
    fresh = photographs.parent / "fresh"
    choose(photographs, run_dir=fresh)
    assert rows(run, "own") == rows(fresh, "real")


def test_real_hr_needs_the_photographs_as_they_were(photographs: Path) -> None:
    choose(photographs, teacher="bicubic")
    run = photographs.parent / "run"
    before = contents(run / "repo")
    pixels = read_image((photographs / "tower.png").read_bytes(), "tower").pixels.copy()
    pixels[0, 0] ^= 1
    write_png(photographs / "tower.png", pixels)
    with pytest.raises(ImageError, match=r"tower.png .* is not the file"):
        idc_hub.regenerate(run, teacher="real", name="real", progress=False)
    photographs.rename(photographs.parent / "elsewhere")
    with pytest.raises(ImageError, match="no folder"):
        idc_hub.regenerate(run, teacher="real", name="real", progress=False)
    assert contents(run / "repo") == before


def test_real_hr_of_synthetic_or_pulled_patches_is_refused(photographs: Path, tmp_path: Path) -> None:
    condensed = tmp_path / "condensed"
    values = {"name": "small", "scale": 2, "source": {"path": str(photographs)}, "teacher": {"network": "bicubic"}}
    spec = Recipe.from_dict(values, [*SMALL, *SHORT, "patches.ratio=0.02"])
    idc_hub.condense(spec, run_dir=condensed, num_processes=1, progress=False)
    with pytest.raises(RunError, match="synthetic"):
        idc_hub.regenerate(condensed, teacher="real", name="real", progress=False)
    choose(photographs)
    shutil.copytree(tmp_path / "run" / "repo", tmp_path / "pulled" / "repo")
    with pytest.raises(RunError, match="does not record where its patches were cut out"):
        idc_hub.regenerate(tmp_path / "pulled", teacher="real", name="again", progress=False)
    with pytest.raises(NetworkError):
        idc_hub.condense(
            spec.model_copy(update={"teacher": spec.teacher.model_copy(update={"network": "real"})}),
            run_dir=tmp_path / "other",
            progress=False,
        )


@pytest.mark.parametrize(("network", "scale", "ratio"), [("bicubic", 2, 0.012), ("edsr-small", 4, 0.07)])
def test_hardness_takes_what_upscaling_gets_wrong(photographs: Path, network: str, scale: int, ratio: float) -> None:
    """One photograph is noise on its left half and flat on its right one, the others are flat."""
    for name, (height, width) in SIZES.items():
        pixels = np.full((height, width, 3), 90, np.uint8)
        if name == "tower":
            pixels[:, : width // 2] = np.random.default_rng(1).integers(0, 256, (height, width // 2, 3))
        write_png(photographs / f"{name}.png", pixels)
    overrides = (f"selection.hardness={network}", "selection.drop_top=0", "patches.stride=2")
    result = choose(photographs, "hardness", *overrides, ratio=ratio, scale=scale)
    run = Run.open(Path(result.run))
    places = {instance.id: run.read_facts(instance)["places"] for instance in run.instances}
    assert [len(places[name]) for name in ("bridge", "cat")] == [0, 0]
    assert len(places["tower"]) == result.patches > 1
    assert all(left * scale < SIZES["tower"][1] / 2 for _, left in places["tower"])
    for one, other in itertools.combinations(places["tower"], 2):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) >= 8


def test_a_ratio_beyond_what_hardness_leaves_is_refused(photographs: Path) -> None:
    with pytest.raises(RecipeError, match=r"is 93 of 104 real patches, but hardness leaves 84"):
        choose(photographs, "hardness", "selection.drop_top=0.2", ratio=0.9)


def test_cf_greedy_represents_the_patches_above_the_mean_hardness(photographs: Path) -> None:
    choose(photographs, "cf-greedy", "patches.complexity=hardness", ratio=0.3)
    run = Run.open(photographs.parent / "run")
    for instance in run.instances:
        hr = read_image((photographs / f"{instance.id}.png").read_bytes(), instance.id).pixels
        lr = imresize(hr, 1 / 2)
        errors = {}
        for top, left in windows(*lr.shape[:2], 8, 4):
            upscaled = imresize(lr[top : top + 8, left : left + 8], 2).astype(float)
            own = hr[2 * top : 2 * top + 16, 2 * left : 2 * left + 16]
            errors[top, left] = np.sqrt(np.mean((upscaled - own) ** 2))
        mean = np.mean(list(errors.values()))
        chosen = [errors[tuple(place)] for place in run.read_facts(instance)["places"]]
        assert min(chosen) >= mean > min(errors.values())


def test_filtered_leaves_out_the_patches_of_a_compressed_photograph(photographs: Path) -> None:
    shutil.rmtree(photographs)
    photographs.mkdir()
    (clean,) = dead_leaves(1, 128, 0).transpose(0, 2, 3, 1)
    write_png(photographs / "clean.png", clean)
    file = io.BytesIO()
    Image.fromarray(clean).save(file, "JPEG", quality=40)
    write_png(photographs / "compressed.png", np.array(Image.open(file)))
    size = ("patches.size=32", "patches.stride=8", "selection.max_aliasing=1", "selection.max_sharpness=1e6")
    result = choose(photographs, "filtered", *size, ratio=0.4)
    assert [instance.count for instance in Run.open(Path(result.run)).instances] == [20, 0]
    other = choose(photographs, "filtered", *size, ratio=0.4, seed=1, run_dir=photographs.parent / "other")
    assert other.lr_digest != result.lr_digest
    with pytest.raises(RecipeError, match=r"ratio of 0.6 is 30 of 50 real patches, but filtered leaves 25"):
        choose(photographs, "filtered", *size, ratio=0.6, run_dir=photographs.parent / "more")
    with pytest.raises(RecipeError, match="40 x 40, not 16 x 16"):
        choose(photographs, "filtered", run_dir=photographs.parent / "small")


def test_dead_leaves_depend_on_no_pixel_of_a_photograph(photographs: Path) -> None:
    with pytest.raises(RecipeError, match="Name a teacher"):
        choose(photographs, "leaves")
    result = choose(photographs, "leaves", teacher="bicubic")
    assert [instance.count for instance in Run.open(Path(result.run)).instances] == [6, 4, 10]
    pairs = rows(Path(result.run), "bicubic")
    assert all(pair.nearest_real > 5 for pair in pairs)
    assert len({pair.lr_png for pair in pairs}) == 20
    for verb in (idc_hub.verify, idc_hub.status):
        verb(result.run)
    assert Path(idc_hub.report(result.run, progress=False).path).is_file()
    with pytest.raises(RunError, match="synthetic"):
        idc_hub.regenerate(result.run, teacher="real", name="real", progress=False)
    card = (Path(result.run) / "repo" / "README.md").read_text()
    for claim in ("were chosen", "Nothing was optimized", "parts of the photographs", "coreset", "replace", "extended"):
        assert claim not in card, claim
    for fact in (
        "no pixel of a photograph is used",
        "show no photograph",
        "- synthetic",
        " --teacher TEACHER",
        "Drawn",
    ):
        assert fact in card, fact
    for name, (height, width) in SIZES.items():
        write_png(photographs / f"{name}.png", np.full((height, width, 3), 50, np.uint8))
    assert choose(photographs, "leaves", teacher="bicubic", run_dir=photographs.parent / "other").lr_digest == (
        result.lr_digest
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "idc"}, "idc condense"),
        ({"method": "nearest"}, "method is nearest"),
        ({"ratio": 0}, "patches.ratio is 0"),
        ({"ratio": 0.001}, "A ratio of 0.001 of 104 real patches is less than one patch"),
        ({"scale": 5}, "scale is 5"),
        ({"name": "My photos"}, "name is My photos"),
    ],
)
def test_what_cannot_be_selected_is_said(photographs: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        choose(photographs, **arguments)
    assert not (photographs.parent / "run").exists()


def test_condensing_a_selections_recipe_names_the_right_command(photographs: Path) -> None:
    choose(photographs, "herding")
    with pytest.raises(RecipeError, match="idc select herding"):
        idc_hub.condense(photographs.parent / "run", run_dir=photographs.parent / "other")


def test_the_name_and_the_place_are_made_of_source_and_method(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDC_RUNS", str(photographs.parent / "here"))
    assert choose(photographs, "random", run_dir=None).run == str(photographs.parent / "here" / "my-photos-random")


def test_nothing_of_a_large_pool_stays_in_memory_but_descriptors(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every photograph's patches are read anew when they are written, and die before the next one's are read."""
    import gc
    import weakref

    alive: list[weakref.ref] = []
    original = module.real_patches

    def read(*arguments: Any, **settings: Any) -> Any:
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 1
        real = original(*arguments, **settings)
        alive.append(weakref.ref(real.lr))
        return real

    monkeypatch.setattr(module, "real_patches", read)
    choose(photographs, "dcsr")
    assert len(alive) >= 4


def test_the_card_tells_what_it_is(photographs: Path) -> None:
    choose(photographs, "herding")
    repo = photographs.parent / "run" / "repo"
    card = (repo / "README.md").read_text()
    for claim in ("synthetic", "optimized by", "the teacher's output", "not ground truth", "condensed", "distillation"):
        assert claim not in card, claim
    for fact in ("by herding (Welling 2009)", "Nothing was optimized", "coreset-selection", "(19.2 %)"):
        assert fact in card, fact
    command = next(line for line in card.splitlines() if line.startswith("idc select"))
    assert command.startswith("idc select herding /path/to/the/photographs --scale 2 --ratio 0.2 --seed 0 ")
    for override in SMALL[:6]:
        assert f" {override}" in command
    idc_hub.regenerate(repo.parent, teacher="bicubic", name="bicubic", progress=False)
    both = render_card(CondensedSet(repo))
    assert "HR patches of `real` are the same crops" in both
    assert "HR patches of the other versions are the teacher's output" in both
    assert "machine-generated" in both
    (repo / "recipe.yaml").write_text("method: <script>\n")  # a foreign file
    assert "<script>" not in render_card(CondensedSet(repo))


def test_selecting_again_with_another_teacher_leaves_the_default(photographs: Path) -> None:
    choose(photographs)
    assert choose(photographs, teacher="bicubic").hr_version == "bicubic"
    facts = Manifest.load(photographs.parent / "run" / "repo")
    assert (set(facts.hr_versions), facts.default) == ({"real", "bicubic"}, "real")


def test_a_network_trained_on_it_will_not_say_condensed(photographs: Path) -> None:
    choose(photographs, "random")
    pairs = read_data(str(photographs.parent / "run"), 2)
    assert len(pairs) == len(list(pairs)) == 20
    assert pairs.facts["selection"] == "my-photos-random"
    assert "condensed_set" not in pairs.facts


def test_the_lr_hash_covers_the_method(photographs: Path) -> None:
    choose(photographs, "random")
    run = Run.open(photographs.parent / "run")
    assert run.recipe.lr_keys()["method"] == "random"
    assert run.recipe.model_copy(update={"method": "idc"}).lr_recipe_hash != run.recipe.lr_recipe_hash
    assert (
        json.loads((photographs.parent / "run" / "run.json").read_text())["lr_recipe_hash"] == run.recipe.lr_recipe_hash
    )
