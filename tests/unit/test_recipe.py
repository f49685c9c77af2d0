"""Recipes: what they accept, what they refuse and how they say it, and what their hash covers."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from idc_hub import recipe_reader
from idc_hub.errors import HubError, RecipeError
from idc_hub.recipe import PRESETS, Loss, Recipe, recipe_schema
from idc_hub.recipe_reader import bundled_recipes, find_recipe

MINIMAL = {"name": "mine", "source": {"path": "photos"}}
LR_SECTIONS = ("patches", "features", "transform", "loss", "assignment", "optimizer")
DIGEST = "ab" * 32


def make(**sections: Any) -> Recipe:
    return Recipe.from_dict({**MINIMAL, **sections})


def problems(text: str, tmp_path: Path, *overrides: str) -> list[str]:
    """Lines of the RecipeError that a file with `text` causes, without the folder's name."""
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, overrides)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def complaint(**sections: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        make(**sections)
    return str(caught.value)


class TestSchedule:
    """Appendix C.1: 20k steps, 4k warm-up, 25 events every 400 steps, decays at 15k, 17k and 19k."""

    def test_events_of_the_paper(self) -> None:
        steps = make().assignment.event_steps(20_000)
        assert steps[:-1] == tuple(4000 + 400 * (k - 1) for k in range(1, 26))
        assert steps[-2:] == (13_600, 14_000)  # the last grouping, and the pairing that follows it

    def test_milestones_of_the_paper(self) -> None:
        assert make(preset="paper").optimizer.milestone_steps() == (15_000, 17_000, 19_000)

    def test_short_runs_keep_the_fractions(self) -> None:
        recipe = make(optimizer={"steps": 300}, assignment={"events": 5, "interval": 0.1})
        assert recipe.assignment.event_steps(300) == (60, 90, 120, 150, 180, 210)
        assert recipe.optimizer.milestone_steps() == (225, 255, 285)

    @pytest.mark.parametrize("steps", [50, 51, 77, 99, 170, 333])
    def test_every_event_has_a_step_of_its_own(self, steps: int) -> None:
        found = make(optimizer={"steps": steps}).assignment.event_steps(steps)
        assert len(set(found)) == 26
        assert max(found) <= steps

    def test_too_few_steps(self) -> None:
        assert "assignment.interval 0.02 is less than one of 49 optimizer.steps" in complaint(
            optimizer={"steps": 49, "milestones": [0.5]}
        )

    def test_events_that_end_too_late(self) -> None:
        assert "41 assignment.events last from step 40 to 204" in complaint(assignment={"events": 41})
        make(assignment={"events": 40})  # 0.2 + 40 x 0.02 = 1

    @pytest.mark.parametrize("milestones", [[0.9, 0.8], [0.8, 0.8], [0.80001, 0.80002]])
    def test_milestones_that_do_not_increase(self, milestones: list[float]) -> None:
        assert "should increase" in complaint(optimizer={"milestones": milestones})

    @pytest.mark.parametrize("milestone", [0, 1, 1.5, -0.1])
    def test_milestones_outside_the_run(self, milestone: float) -> None:
        assert "optimizer.milestones[1] is" in complaint(optimizer={"milestones": [0.5, milestone]})


class TestPresets:
    def test_what_the_paper_says(self) -> None:
        recipe = make(preset="paper")
        assert recipe.loss.pair_weight == 300_000
        assert recipe.loss.draws == "fresh"
        assert recipe.transform.rows == "literal"
        assert recipe.transform.padding == "zero"
        assert recipe.optimizer.initial == "noise"
        assert (recipe.loss.alpha, recipe.loss.beta) == (0.2, 0.8)

    def test_the_default(self) -> None:
        recipe = make()
        assert (recipe.loss.pair_weight, recipe.loss.draws, recipe.transform.rows) == (1000, "bank", "unique")
        assert (recipe.transform.padding, recipe.optimizer.initial) == ("reflect", "cf-greedy")
        assert (recipe.optimizer.steps, recipe.optimizer.learning_rate) == (200, 1e-3)
        assert recipe.patches.complexity == "hardness"

    def test_written_keys_win(self) -> None:
        recipe = make(preset="paper", loss={"pair_weight": 5})
        assert recipe.loss.pair_weight == 5
        assert recipe.loss.draws == "fresh"

    def test_preset_on_the_command_line(self) -> None:
        recipe = Recipe.load("quickstart", ["preset=paper"])
        assert recipe.loss.pair_weight == 300_000
        assert recipe.loss.frequencies == 256  # from the file

    def test_the_label_alone_changes_no_hash(self) -> None:
        written_out = yaml.safe_load(make(preset="paper").to_yaml())
        assert (
            Recipe.from_dict({**written_out, "preset": "default"}).lr_recipe_hash == make(preset="paper").lr_recipe_hash
        )

    @pytest.mark.parametrize("preset", PRESETS)
    def test_presets_change_keys_that_exist(self, preset: str) -> None:
        default, changed = make().model_dump(), make(preset=preset).model_dump()
        for section, values in PRESETS[preset].items():
            for key, value in values.items():
                assert changed[section][key] == value != default[section][key]


class TestSpellings:
    @pytest.mark.parametrize("spelling", ["1e-2", "1E-2", "0.01", ".01", 0.01, "10e-3"])
    def test_real_numbers(self, spelling: object) -> None:
        assert make(optimizer={"learning_rate": spelling}).optimizer.learning_rate == 0.01

    @pytest.mark.parametrize("spelling", ["20k", "2e4", 20_000, 20_000.0, "0.02M", "20000"])
    def test_whole_numbers(self, spelling: object) -> None:
        assert make(optimizer={"steps": spelling}).optimizer.steps == 20_000

    def test_suffixes(self) -> None:
        assert make(loss={"pair_weight": "300k"}).loss.pair_weight == 300_000
        assert make(loss={"pair_weight": "1.5M"}).loss.pair_weight == 1_500_000

    def test_yaml_reads_none_as_a_word_and_null_as_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "r.yaml"
        path.write_text("name: r\nsource: {path: p, revision: null}\nfeatures: {statistics: none}\npatches:\n")
        recipe = Recipe.load(path)
        assert recipe.features.statistics == "none"
        assert recipe.source.revision is None
        assert recipe.patches == make().patches  # an empty section

    def test_one_pattern_is_a_list_of_one(self) -> None:
        assert Recipe.load("quickstart", ["source.include=*.png"]).source.include == ("*.png",)

    @pytest.mark.parametrize("layer", [1, "3", "first", "last", "body", "layers.3", "conv_first"])
    def test_layers(self, layer: object) -> None:
        expected = int(layer) if layer in (1, "3") else layer  # type: ignore[call-overload]
        assert make(features={"layer": layer}).features.layer == expected

    stacked = make(features={"layer": ["pixels", "3", "layers.1"]})
    assert stacked.features.layer == ("pixels", 3, "layers.1")
    assert Recipe.from_dict(yaml.safe_load(stacked.to_yaml())) == stacked
    assert stacked.lr_recipe_hash != make(features={"layer": ["pixels", 3]}).lr_recipe_hash


class TestFrequencyScale:
    @pytest.mark.parametrize(
        ("given", "scale"), [(1, 1.0), ("2e-2", 0.02), ([0.5], 0.5), (["0.02", 1], (0.02, 1.0)), ((0.1, 3), (0.1, 3.0))]
    )
    def test_a_number_or_a_range(self, given: object, scale: object) -> None:
        recipe = make(loss={"frequency_scale": given})
        assert recipe.loss.frequency_scale == scale
        assert Recipe.from_dict(yaml.safe_load(recipe.to_yaml())) == recipe
        assert jsonschema.Draft202012Validator(recipe_schema()).is_valid(yaml.safe_load(recipe.to_yaml()))

    @pytest.mark.parametrize(
        "given", [0, -1, [], [1, 0.5], [1, 1], [0, 1], [0.1, 0.2, 0.3], [0.1, "1e999"], float("nan")]
    )
    def test_nothing_else(self, given: object) -> None:
        with pytest.raises(
            RecipeError, match=r"loss\.frequency_scale .*should be a number above 0, or two in ascending"
        ):
            make(loss={"frequency_scale": given})


class TestBatch:
    @pytest.mark.parametrize(("given", "batch"), [(1, 1), ("8", 8), ("1e1", 10), ("auto", "auto")])
    def test_a_number_or_auto(self, given: object, batch: object) -> None:
        assert make(workers={"batch": given}).workers.batch == batch

    @pytest.mark.parametrize("given", [0, -1, 1.5, "all", True, None])
    def test_nothing_else(self, given: object) -> None:
        with pytest.raises(RecipeError, match=r"workers\.batch .*should be auto or a whole number from 1"):
            make(workers={"batch": given})


class TestRefusals:
    @pytest.mark.parametrize(
        ("section", "key", "value", "sentence"),
        [
            ("patches", "size", "1.5", "patches.size is 1.5; it should be a whole number."),
            ("patches", "size", True, "patches.size is true; it should be a number."),
            ("patches", "size", None, "patches.size is null; it should be a number."),
            ("patches", "size", 0, "patches.size is 0; it should be greater than or equal to 1."),
            ("patches", "size", "64px", "patches.size is 64px; it should be a number."),
            ("patches", "size", "1e999999999", "it should be a number."),
            ("patches", "ratio", 0, "patches.ratio is 0; it should be greater than 0."),
            ("patches", "ratio", 1.1, "patches.ratio is 1.1; it should be less than or equal to 1."),
            ("loss", "alpha", float("nan"), "it should be a finite number."),
            ("loss", "pair_weight", "1e999", "it should be a finite number."),
            ("loss", "row_norm", "rows", "loss.row_norm is rows; it should be 'row', 'global' or 'none'."),
            ("transform", "kernel_size", 6, "transform.kernel_size is 6; it should be odd."),
            ("features", "layer", 0, "the number of a block, from 1."),
            ("features", "layer", "layers..3", "the number of a block, from 1."),
            ("features", "layer", "3.layers", "the number of a block, from 1."),
            ("features", "weights_sha256", "AB" * 32, "it should be 64 hexadecimal digits."),
            ("source", "path", 2024, 'source.path is 2024; it should be text: put it in quotes, "2024".'),
            ("source", "path", "", "source.path is"),
            ("source", "include", ["a.png", 7], "source.include[1] is 7; it should be text"),
            ("teacher", "hr_version", "data", "it should be another name"),
            ("teacher", "hr_version", "EDSR", "it should consist of lower case letters"),
        ],
    )
    def test_values(self, section: str, key: str, value: object, sentence: str) -> None:
        sections = {section: {**MINIMAL.get(section, {}), key: value}}  # type: ignore[dict-item]
        assert sentence in complaint(**sections)

    @pytest.mark.parametrize(
        ("key", "value"), [("scale", 5), ("seed", -1), ("seed", 2**63), ("name", "Mine"), ("name", "../x")]
    )
    def test_top_level_values(self, key: str, value: object) -> None:
        assert f"{key} is {value};" in complaint(**{key: value})

    @pytest.mark.parametrize(
        ("sections", "sentence"),
        [
            ({"patches": {"stride": 65}}, "patches.stride 65 is more than patches.size 64"),
            ({"patches": {"size": 5, "stride": 1}}, "transform.kernel_size 7 is more than patches.size 5"),
            ({"assignment": {"tile": 65}}, "assignment.tile 65 does not fit into a feature map of 64 x 64"),
            (
                {"assignment": {"tile": 59}, "transform": {"padding": "valid"}},
                "assignment.tile 59 does not fit into a feature map of 58 x 58",
            ),
            ({"loss": {"alpha": 0, "beta": 0}}, "nothing would be compared"),
            (
                {"loss": dict.fromkeys(("instance_weight", "group_weight", "pair_weight"), 0)},
                "nothing would be optimized",
            ),
            ({"loss": {"phase_penalty": 0.3, "distance": "mmd"}}, "loss.phase_penalty is part of loss.distance ncfd"),
            ({"transform": {"unfold": "patches"}}, "leaves no tiles to group and pair"),
        ],
    )
    def test_values_that_contradict_each_other(self, sections: dict[str, Any], sentence: str) -> None:
        assert sentence in complaint(**sections)

    def test_a_transform_that_sees_less_fits_into_smaller_patches(self) -> None:
        small = {"size": 5, "stride": 1}
        assert make(patches=small, transform={"kind": "identity"}).transform.neighborhood == 1
        assert make(patches=small, transform={"kind": "dwt"}).transform.neighborhood == 3
        without_groups = {"group_weight": 0, "pair_weight": 0}
        assert make(transform={"unfold": "patches"}, loss=without_groups).transform.unfold == "patches"

    @pytest.mark.parametrize(
        "make_one",
        [
            lambda values: Recipe(**values),
            Recipe.from_dict,
            Recipe.model_validate,
            lambda values: Recipe.model_validate_json(json.dumps(values)),
            lambda values: Recipe(**{**values, "loss": Loss(**values["loss"])}),
        ],
        ids=["constructor", "from_dict", "model_validate", "model_validate_json", "sections"],
    )
    def test_every_way_to_make_a_recipe_raises_the_same_error(
        self, make_one: Callable[[dict[str, Any]], Recipe]
    ) -> None:
        values = {**MINIMAL, "seed": "x", "loss": {"alpha": 0, "beta": 0}, "patchs": {}}
        with pytest.raises(RecipeError) as caught:
            make_one(values)
        assert str(caught.value).splitlines() == [
            "recipe  seed is x; it should be a number.",
            "recipe  patchs is not a recipe key. Did you mean patches?",
            "recipe  loss.alpha and loss.beta are both 0: nothing would be compared.",
        ]
        valid = make_one({**MINIMAL, "preset": "paper", "loss": {"alpha": 0.5}})
        assert (valid.loss.alpha, valid.loss.pair_weight) == (0.5, 300_000)
        assert valid == make(preset="paper", loss={"alpha": 0.5})

    @pytest.mark.parametrize("values", [5, None, ["name"]])
    def test_what_has_no_keys_is_no_recipe(self, values: object) -> None:
        with pytest.raises(RecipeError, match="A recipe consists of keys and values"):
            Recipe.model_validate(values)

    def test_recipes_do_not_change(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            make().patches.size = 3  # type: ignore[misc]


class TestMessages:
    def test_all_problems_at_once_with_their_lines(self, tmp_path: Path) -> None:
        text = """\
name: mine
source: {path: photos}
features:
  kernal_size: 3
patches:
  size: abc
  ratio: 0.1
  ratio: 2
assignment:
  events: 60
featurs: {}
"""
        assert problems(text, tmp_path, "loss.alhpa=1", "optimizer.gamma=yes") == [
            "my.yaml:4  features.kernal_size is not a recipe key. Did you mean transform.kernel_size?",
            "my.yaml:6  patches.size is abc; it should be a number.",
            "my.yaml:8  patches.ratio is repeated; it was first written in line 7.",
            "my.yaml:8  patches.ratio is 2; it should be less than or equal to 1.",
            "my.yaml:10  60 assignment.events last from step 40 to 280 of 200 optimizer.steps. "
            "Keep warmup + events x interval at 1 or below.",
            "my.yaml:11  featurs is not a recipe key. Did you mean features?",
            "override loss.alhpa=1  loss.alhpa is not a recipe key. Did you mean loss.alpha?",
            "override optimizer.gamma=yes  optimizer.gamma is true; it should be a number.",
        ]

    def test_a_value_that_is_wrong_causes_no_contradictions(self, tmp_path: Path) -> None:
        text = "name: mine\nsource: {path: p}\npatches: {size: x, stride: 500}\n"
        assert problems(text, tmp_path) == ["my.yaml:3  patches.size is x; it should be a number."]

    @pytest.mark.parametrize("text", ["name: mine", "name: mine\nsource: {limit: 3}", "name: mine\nsource:"])
    def test_a_missing_source(self, text: str, tmp_path: Path) -> None:
        (line,) = problems(text, tmp_path)
        assert "source.path is missing. Where the photographs are: a folder, a zip" in line
        assert "source.path=..." in line

    def test_sections_that_are_none(self, tmp_path: Path) -> None:
        (line,) = problems("name: mine\nsource: {path: p}\nworkers: 5", tmp_path)
        assert line == (
            "my.yaml:3  workers is 5; it should be a section with the keys threads, batch, cuda_graph, tf32, "
            "fused, checkpoint_every, log_every."
        )

    def test_keys_of_another_section_and_of_none(self, tmp_path: Path) -> None:
        text = "name: mine\nsource: {path: p}\nsteps: 3\nloss: {zzz: 1}\n1: x\n"
        lines = problems(text, tmp_path)
        assert lines[0] == "my.yaml:3  steps is not a recipe key. Did you mean optimizer.steps?"
        assert lines[1].startswith("my.yaml:4  loss.zzz is not a recipe key. Keys of loss: distance, alpha, beta,")
        assert lines[2].startswith("my.yaml:5  1 is not a recipe key. Keys: name, preset,")

    @pytest.mark.parametrize(
        ("text", "start"),
        [
            ("name: [1, 2", "my.yaml:1  is not YAML: "),
            ("name: mine\n\tscale: 4", "my.yaml:2  is not YAML: "),
            ("name: !!python/object/apply:os.getcwd []", "my.yaml:1  is not YAML: "),
            ("a: 1\n---\nb: 2", "my.yaml:2  is not YAML: "),
            ("name: 2024-99-99", "my.yaml  is not YAML: "),
            ("- a\n- b", "my.yaml holds no recipe keys."),
            ("just words", "my.yaml holds no recipe keys."),
            ("", "my.yaml holds no recipe keys."),
            ("a: &x [1]\nb: *x", "my.yaml uses a YAML alias"),
            ("[" * 90_000, "my.yaml is nested more deeply"),
            ("a" * 100_001, "my.yaml is larger than a recipe can be"),
        ],
    )
    def test_files_that_are_no_recipes(self, text: str, start: str, tmp_path: Path) -> None:
        assert problems(text, tmp_path)[0].startswith(start)

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "my.yaml"
        path.write_bytes(b"name: \xff\xfe")
        with pytest.raises(RecipeError, match="is not YAML"):
            Recipe.load(path)

    @pytest.mark.parametrize("override", ["patches", "patches=3", "=3", ""])
    def test_overrides_that_are_none(self, override: str) -> None:
        with pytest.raises(RecipeError, match=re.escape(f"override {override}  should read section.key=value")):
            Recipe.load("quickstart", [override])

    def test_overrides_of_keys_that_do_not_exist(self) -> None:
        with pytest.raises(
            RecipeError, match=r"override patchs\.size=3  patchs is not a recipe key\. Did you mean pat"
        ):
            Recipe.load("quickstart", ["patchs.size=3"])
        with pytest.raises(RecipeError, match=r"loss\.alpha\.x is not a recipe key\. Did you mean loss\.alpha\?"):
            Recipe.load("quickstart", ["loss.alpha.x=3"])

    @pytest.mark.parametrize("path", ["*.png", "photos #1", "#1", "a: b", "[x] photos", "C:\\photos"])
    def test_paths_of_any_kind_are_text(self, path: str) -> None:
        assert Recipe.load("quickstart", [f"source.path={path}"]).source.path == path

    def test_no_such_recipe(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="Did you mean quickstart"):
            Recipe.load("quikstart")
        with pytest.raises(RecipeError, match="Did you mean ablations/table2-v"):
            Recipe.load("ablations/table2-v9")  # no dataset of that name is asked for
        with pytest.raises(RecipeError, match=r"There is no recipe nowhere/my\.yaml"):
            Recipe.load("nowhere/my.yaml")
        with pytest.raises(RecipeError, match=r"holds no recipe\.yaml"):
            Recipe.load(tmp_path)


@pytest.mark.parametrize("scales", [[], [1, 1], [0.3], [1, 2], [0], "half"])
def test_scales_are_a_few_fractions(scales: Any) -> None:
    with pytest.raises(RecipeError, match=r"patches\.scales"):
        make(patches={"scales": scales})
    assert make(patches={"scales": "0.5"}).patches.scales == (0.5,)


class TestHash:
    def test_the_value_is_stable(self) -> None:
        """Written out by hand: when this fails, all published sets have lost their recipe."""
        keys = {
            **{"method": "idc", "scale": 4, "seed": 0},
            **{"patches.size": 64, "patches.stride": 32, "patches.ratio": 0.1},
            **{"patches.min_per_image": 0, "patches.complexity": "hardness"},
            **{"features.weights_sha256": DIGEST, "features.layer": "first"},
            **{"features.statistics": "real", "features.precision": "fp32"},
            **{"transform.kind": "rlff", "transform.unfold": "pixels", "transform.kernel_size": 7},
            **{"transform.channels": 256, "transform.rows": "unique", "transform.padding": "reflect"},
            "transform.precision": "fp32",
            **{"loss.distance": "ncfd", "loss.alpha": 0.2, "loss.beta": 0.8, "loss.row_norm": "global"},
            **{"loss.frequencies": 1024, "loss.frequency_scale": 1.0, "loss.draws": "bank", "loss.bank_size": 16},
            **{"loss.instance_weight": 300.0, "loss.group_weight": 300.0, "loss.group_reduction": "mean"},
            **{"loss.pair_weight": 1000.0, "loss.pair_reduction": "mean"},
            **{"assignment.groups": 16, "assignment.tile": 4, "assignment.warmup": 0.2},
            **{"assignment.interval": 0.02, "assignment.events": 25},
            **{"optimizer.steps": 200, "optimizer.learning_rate": 0.001, "optimizer.gamma": 0.1},
            **{"optimizer.milestones": [0.75, 0.85, 0.95], "optimizer.initial": "cf-greedy"},
        }
        expected = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()
        assert make().with_extractor(DIGEST).lr_recipe_hash == expected

    @pytest.mark.parametrize(
        "key",
        [key for key in make(features={"weights_sha256": DIGEST}).lr_keys() if "." in key],
    )
    def test_every_key_counts(self, key: str) -> None:
        section, name = key.split(".")
        before = make(features={"weights_sha256": DIGEST})
        value = before.model_dump(mode="json")[section][name]
        other: dict[str, Any] = {
            **{"patches.stride": 16, "features.weights_sha256": "cd" * 32},
            **{"features.layer": 1, "features.statistics": "own"},
            **{"transform.kernel_size": 5, "transform.rows": "literal", "transform.padding": "zero"},
            **{"loss.row_norm": "none", "loss.draws": "fresh", "loss.group_reduction": "sum"},
            **{"loss.pair_reduction": "literal", "assignment.events": 9},
            **{"optimizer.milestones": [0.5], "optimizer.initial": "noise"},
            **{"assignment.warmup": 0.1, "assignment.interval": 0.01},
            **{"features.precision": "bf16", "transform.precision": "bf16"},
            **{
                "patches.complexity": "all",
                "transform.kind": "dct",
                "transform.unfold": "tiles",
                "loss.distance": "mmd",
            },
        }
        changed = other.get(key, not value if isinstance(value, bool) else value * 2 if value else 1)
        sections = {"features": {"weights_sha256": DIGEST}}
        after = make(**{**sections, section: {**sections.get(section, {}), name: changed}})
        assert after.lr_recipe_hash != before.lr_recipe_hash
        assert [line.split()[0] for line in before.differing(after)] == [key]

    @pytest.mark.parametrize("change", [{"scale": 2}, {"seed": 1}, {"features": {"network": "edsr"}}])
    def test_scale_seed_and_an_unknown_extractor_count(self, change: dict[str, Any]) -> None:
        assert make(**change).lr_recipe_hash != make().lr_recipe_hash

    def test_all_keys_of_the_sections_are_covered(self) -> None:
        values = make().model_dump()
        expected = {f"{section}.{key}" for section in LR_SECTIONS for key in values[section]}
        expected |= {"method", "scale", "seed"}
        later: dict[str, Any] = {
            "loss": {"frequency_kind": "orthogonal", "phase_penalty": 0.3},
            "optimizer": {"parametrization": "maco"},
            "patches": {"scales": [1, 0.5]},
        }
        assert make(**later).lr_keys().keys() == expected
        # Runs from before these keys keep their hash.
        assert make().lr_keys().keys() == expected - {f"{s}.{key}" for s, keys in later.items() for key in keys}

    def test_limits_of_a_selection_count_for_the_method_that_uses_them(self) -> None:
        for method, key in {"hardness": "drop_top", "filtered": "max_blockiness"}.items():
            before, after = (make(method=method, selection={key: value}) for value in (0.1, 0.2))
            assert before.differing(after) == [f"selection.{key} 0.1 -> 0.2"]
            for other in {"random", "hardness", "filtered", "leaves", "idc"} - {method}:
                assert make(method=other, selection={key: 0.1}).lr_recipe_hash == make(method=other).lr_recipe_hash

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "other"},
            {"source": {"path": "elsewhere", "limit": 3}},
            {"teacher": {"network": "bicubic", "hr_version": "b"}},
            {"workers": {"threads": 7, "batch": 4, "tf32": True, "checkpoint_every": 1, "log_every": 1}},
        ],
    )
    def test_what_does_not_count(self, change: dict[str, Any]) -> None:
        assert make(**change).lr_recipe_hash == make().lr_recipe_hash

    def test_neither_order_nor_spelling_counts(self, tmp_path: Path) -> None:
        path = tmp_path / "r.yaml"
        path.write_text(
            "optimizer: {gamma: 1e-1, steps: .2k, learning_rate: 1e-3}\nseed: 0\n"
            "loss:\n  pair_weight: 1k\n  alpha: 2e-1\nsource: {path: x}\nname: r\n"
        )
        assert Recipe.load(path).lr_recipe_hash == make().lr_recipe_hash

    def test_the_digest_stands_for_the_extractor(self) -> None:
        named = make(features={"network": "somewhere/edsr"}).with_extractor(DIGEST)
        assert named.lr_recipe_hash == make().with_extractor(DIGEST).lr_recipe_hash
        assert named.features.network == "somewhere/edsr"

    def test_another_extractor_is_refused(self) -> None:
        recipe = make(features={"weights_sha256": DIGEST})
        assert recipe.with_extractor(DIGEST) == recipe
        with pytest.raises(RecipeError, match=r"cdcd.* was made with abab"):
            recipe.with_extractor("cd" * 32)

    def test_differing_reads_from_old_to_new(self) -> None:
        changed = make(loss={"alpha": 0.5}, seed=7, name="other")
        assert make().differing(changed) == ["seed 0 -> 7", "loss.alpha 0.2 -> 0.5"]


class TestFiles:
    def test_what_is_written_reads_the_same(self, tmp_path: Path) -> None:
        recipe = Recipe.load(
            "quickstart",
            [
                "preset=paper",
                "source.path=1e3 ümlaut: #x",
                "teacher.hr_version='123'",
                "features.weights_sha256=" + DIGEST,
            ],
        )
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe.to_yaml(), encoding="utf-8")
        assert Recipe.load(path) == recipe
        assert Recipe.load(tmp_path) == recipe  # the folder of a Run
        assert Recipe.load(path).to_yaml() == recipe.to_yaml()
        assert list(yaml.safe_load(recipe.to_yaml())) == list(Recipe.model_fields)

    def test_a_pulled_run(self, tmp_path: Path) -> None:
        (tmp_path / "repo").mkdir()
        (tmp_path / "repo" / "recipe.yaml").write_text(make().to_yaml())
        assert Recipe.load(tmp_path).name == "mine"

    @pytest.mark.parametrize("name", sorted(bundled_recipes()))
    def test_bundled_recipes_are_valid(self, name: str) -> None:
        recipe = Recipe.load(name, ["source.path=photos"])
        assert recipe.name == Path(name).name
        first = find_recipe(name).read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ")  # what `idc recipes ls` shows

    def test_bundled_names(self) -> None:
        assert {"quickstart", "small-x4"} <= bundled_recipes().keys()
        with pytest.raises(RecipeError, match=r"small-x4\.yaml  source\.path is missing"):
            Recipe.load("small-x4")

    def test_quickstart_names_photographs_that_are_there(self) -> None:
        import skimage

        source = Recipe.load("quickstart").source
        assert source.path == "package:skimage/data"
        for name in source.include:
            assert (Path(skimage.__file__).parent / "data" / name).is_file()

    def test_the_readme_tells_the_truth(self) -> None:
        text = (bundled_recipes()["quickstart"].parent / "README.md").read_text(encoding="utf-8")
        for name in bundled_recipes():
            assert f"[`{name}`]({name}.yaml)" in text
        rows = re.findall(r"^\| `(\w+)\.(\w+)` \| (\S+) \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
        changed = {(s, k) for sections in PRESETS.values() for s, keys in sections.items() for k in keys}
        assert {(section, key) for section, key, *_ in rows} == changed
        for section, key, *values in rows:
            for preset, value in zip(("default", "paper", "synthetic"), values, strict=True):
                expected = make(preset=preset).model_dump()[section][key]
                assert value.replace(",", "") == f"{expected}".removesuffix(".0")

    @pytest.mark.parametrize("name", [name for name in bundled_recipes() if name.startswith("ablations/")])
    def test_an_ablation_changes_what_it_writes_and_nothing_else(self, name: str) -> None:
        written = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))
        recipe, base = Recipe.load(name).model_dump(mode="json"), Recipe.load(written["base"]).model_dump(mode="json")
        sections = recipe_reader.sections_of(Recipe)
        changed = {(s, key) for s in sections for key in recipe[s] if recipe[s][key] != base[s][key]}
        assert changed == {(s, key) for s in sections for key in written.get(s, {})}
        assert {key for key in recipe.keys() - sections.keys() if recipe[key] != base[key]} == {"name"}
        assert written.keys() - sections.keys() == {"name", "base"}

    def test_the_rows_of_the_papers_tables_are_there(self) -> None:
        rows = {2: ["idc", *(f"v{n}" for n in range(1, 8))], 4: [f"a{n}" for n in range(12)]}
        rows |= {5: ["edsr", "swinir", "mambairv2"], 7: ["x1", "x2", "x3"]}
        expected = {f"ablations/table{table}-{row}" for table, names in rows.items() for row in names}
        assert {name for name in bundled_recipes() if "/" in name} == expected

    def test_ablations_say_what_the_paper_says(self) -> None:
        """Ticks and crosses of table 2, numbers of table 4."""
        ticks = {
            "v1": "xx+xx",
            "v2": "+x+xx",
            "v3": "+++xx",
            "v4": "++++x",
            "v5": "x++++",
            "v6": "+x+++",
            "v7": "++x++",
        }
        for row, expected in {"idc": "+++++", **ticks}.items():
            recipe = Recipe.load(f"ablations/table2-{row}")
            weights = (recipe.loss.instance_weight, recipe.loss.group_weight, recipe.loss.pair_weight)
            found = (recipe.transform.kind == "rlff", recipe.transform.unfold == "pixels", *map(bool, weights))
            assert "".join("+" if there else "x" for there in found) == expected, row
            assert (recipe.source.limit, recipe.patches.ratio, recipe.preset) == (80, 0.1, "paper")
        numbers: dict[str, tuple[object, ...]] = {
            "a0": (4, 7, 256, "last", 300, 300_000),
            "a1": (2, 7, 256, "last", 300, 300_000),
            "a2": (8, 7, 256, "last", 300, 300_000),
            "a3": (4, 5, 256, "last", 300, 300_000),
            "a4": (4, 9, 256, "last", 300, 300_000),
            "a5": (4, 7, 128, "last", 300, 300_000),
            "a6": (4, 7, 512, "last", 300, 300_000),
            "a7": (4, 7, 256, "last", 30, 300_000),
            "a8": (4, 7, 256, "last", 3000, 300_000),
            "a9": (4, 7, 256, "last", 300, 30_000),
            "a10": (4, 7, 256, "last", 300, 3_000_000),
            "a11": (4, 7, 256, "first", 300, 300_000),
        }
        for row, expected_values in numbers.items():
            recipe = Recipe.load(f"ablations/table4-{row}")
            assert (
                *(recipe.assignment.tile, recipe.transform.kernel_size, recipe.transform.channels),
                *(recipe.features.layer, recipe.loss.group_weight, recipe.loss.pair_weight),
            ) == expected_values, row
        assert [Recipe.load(f"ablations/table7-x{n}").transform.kind for n in (1, 2, 3)] == ["identity", "dct", "dwt"]

    def test_teachers_change_no_lr_patches(self) -> None:
        paper = Recipe.load("div2k-x4-paper")
        for teacher in ("edsr", "swinir", "mambairv2"):
            assert Recipe.load(f"ablations/table5-{teacher}").lr_recipe_hash == paper.lr_recipe_hash

    def test_every_key_is_described(self) -> None:
        for name, field in Recipe.model_fields.items():
            nested = recipe_reader.sections_of(Recipe).get(name)
            for key, inner in (nested.model_fields if nested else {name: field}).items():
                assert inner.description, f"{name}.{key}"


class TestSchema:
    """The JSON schema accepts what the reader accepts, and rejects unknown keys and wrong values."""

    schema = jsonschema.Draft202012Validator(recipe_schema())

    def test_it_is_a_schema(self) -> None:
        jsonschema.Draft202012Validator.check_schema(recipe_schema())

    @pytest.mark.parametrize("name", sorted(bundled_recipes()))
    def test_bundled_recipes(self, name: str) -> None:
        self.schema.validate(yaml.safe_load(find_recipe(name).read_text(encoding="utf-8")))

    def test_what_is_written_out(self) -> None:
        for preset in ("default", "paper"):
            recipe = make(preset=preset, features={"layer": ["pixels", 3], "weights_sha256": DIGEST})
            self.schema.validate(yaml.safe_load(recipe.to_yaml()))

    @pytest.mark.parametrize(
        "text",
        [
            "optimizer: {steps: 20k, learning_rate: 2e-4, milestones: 0.5, gamma: 1}",
            "optimizer: {steps: 2e4, milestones: [75e-2, '0.9']}",
            "optimizer: {steps: 20000.0}",
            "optimizer: {steps: ' .02M '}",
            "loss: {pair_weight: 300k, alpha: 0, group_weight: 0}",
            "source: {path: photos, include: '*.png', limit: null}",
            "source: {path: photos, include: [a.png, b.png]}",
            "scale: '4'",
            "features: {layer: 3}",
            "features: {layer: '3'}",
            "features: {layer: layers.3}",
            "features: {layer: [pixels, 1, 2e0]}",
            "features: {statistics: none}",
            "base: quickstart",
            "preset: paper\nloss:\npatches: null",
            "teacher: {network: bicubic, hr_version: null}",
        ],
    )
    def test_every_spelling(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "my.yaml"
        path.write_text(f"name: my\n{text}\n", encoding="utf-8")
        Recipe.load(path, [] if "source:" in text else ["source.path=photos"])
        self.schema.validate(yaml.safe_load(path.read_text(encoding="utf-8")))

    @pytest.mark.parametrize(
        "text",
        [
            "featurs: {}",
            "loss: {alhpa: 1}",
            "loss: {pair_weight: much}",
            "loss: {pair_weight: true}",
            "loss: {alpha: -0.1}",
            "loss: {row_norm: rows}",
            "patches: {size: 1.5}",
            "patches: {size: 0}",
            "patches: {size: null}",
            "patches: {ratio: 1.1}",
            "patches: 5",
            "optimizer: {milestones: [0.5, 1]}",
            "scale: 5",
            "seed: -1",
            "features: {layer: []}",
            "features: {layer: layers..3}",
            "features: {weights_sha256: abc}",
            "source: {path: 2024}",
            "source: {path: ''}",
            "teacher: {hr_version: EDSR}",
        ],
    )
    def test_what_the_reader_rejects(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "my.yaml"
        path.write_text(f"name: my\n{text}\n", encoding="utf-8")
        with pytest.raises(RecipeError):
            Recipe.load(path, [] if "source:" in text else ["source.path=photos"])
        assert not self.schema.is_valid(yaml.safe_load(path.read_text(encoding="utf-8")))

    def test_a_recipe_has_a_name(self) -> None:
        assert not self.schema.is_valid({"source": {"path": "photos"}})
        assert not self.schema.is_valid({**MINIMAL, "name": "Mine"})

    def test_every_key_is_described(self) -> None:
        found = recipe_schema()
        for name, kind in recipe_reader.sections_of(Recipe).items():
            assert found["properties"][name]["anyOf"][0] == {"$ref": f"#/$defs/{kind.__name__}"}
            assert all(key["description"] for key in found["$defs"][kind.__name__]["properties"].values())


class TestBase:
    BELOW = "name: below\npreset: paper\nsource: {path: photos}\nloss: {alpha: 0.5, beta: 0.5}\nworkers: {threads: 3}\n"

    def write(self, folder: Path, **files: str) -> Path:
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        return folder / "my.yaml"

    def test_overrides_win_over_the_file_over_the_base_over_the_preset(self, tmp_path: Path) -> None:
        mine = "name: my\nbase: below.yaml\nloss:\n  beta: 0.7\nworkers:\nseed: 3\n"
        recipe = Recipe.load(self.write(tmp_path, below=self.BELOW, my=mine), ["workers.threads=2"])
        assert (recipe.name, recipe.seed, recipe.source.path) == ("my", 3, "photos")
        assert (recipe.loss.alpha, recipe.loss.beta, recipe.loss.pair_weight) == (0.5, 0.7, 300_000)
        assert recipe.workers.threads == 2
        assert Recipe.load(tmp_path / "my.yaml").workers.threads == 3  # an empty section takes nothing away

    def test_the_files_preset_wins_and_keys_of_the_base_over_it(self, tmp_path: Path) -> None:
        mine = "name: my\nbase: below.yaml\npreset: default\n"
        recipe = Recipe.load(self.write(tmp_path, below=self.BELOW, my=mine))
        assert (recipe.preset, recipe.loss.pair_weight, recipe.loss.alpha) == ("default", 1000, 0.5)

    def test_what_is_written_out_has_no_base_and_is_the_same(self, tmp_path: Path) -> None:
        recipe = Recipe.load(self.write(tmp_path, below=self.BELOW, my="name: my\nbase: below.yaml\n"))
        (tmp_path / "alone").mkdir()
        (tmp_path / "alone" / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        assert "base" not in yaml.safe_load(recipe.to_yaml())
        assert Recipe.load(tmp_path / "alone") == recipe

    def test_a_base_may_have_a_base_and_be_a_bundled_recipe(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path, my="name: my\nbase: middle.yaml\n", middle="base: quickstart\npatches: {size: 32, stride: 16}\n"
        )
        recipe, bundled = Recipe.load(path), Recipe.load("quickstart")
        assert (recipe.patches.size, recipe.patches.ratio) == (32, bundled.patches.ratio)
        assert recipe.loss == bundled.loss

    def test_its_name_is_not_taken_over(self, tmp_path: Path) -> None:
        self.write(tmp_path, below=self.BELOW)
        assert problems("base: below.yaml\n", tmp_path)[0].startswith("my.yaml  name is missing.")

    def test_problems_name_the_line_of_the_file_that_has_them(self, tmp_path: Path) -> None:
        self.write(tmp_path, below=self.BELOW + "optimizer: {stps: 3}\n")
        found = problems("name: my\nbase: below.yaml\nloss: {alpha: much}\n", tmp_path, "seed=x")
        assert [line.partition("  ")[0] for line in found] == ["below.yaml:6", "my.yaml:3", "override seed=x"]

    @pytest.mark.parametrize(
        ("base", "sentence"),
        [
            ("nothing.yaml", "my.yaml:2  base is nothing.yaml; there is no such file beside my.yaml."),
            ("quikstart", "base is quikstart; there is no bundled recipe of that name. Did you mean quickstart?"),
            ("../outside.yaml", "base is ../outside.yaml; the file is not in the folder of my.yaml or below it."),
            ("/etc/passwd.yaml", "base is /etc/passwd.yaml; the file is not in the folder of my.yaml"),
            ("link.yaml", "base is link.yaml; the file is not in the folder of my.yaml"),
            ("[quickstart]", 'base is ["quickstart"]; it should be the name of a bundled recipe or of a YAML file.'),
            ("", "base is null; it should be the name"),
            ("my.yaml", "base my.yaml is circular: my.yaml -> my.yaml."),
            (
                "a.yaml",
                "b.yaml:1  base my.yaml is circular: my.yaml -> a.yaml -> b.yaml -> my.yaml",
            ),
            ("1.yaml", "4.yaml:1  base 5.yaml is one too many: a chain has at most 4."),
            ("list.yaml", "list.yaml holds no recipe keys."),
        ],
    )
    def test_bases_that_are_none(self, base: str, sentence: str, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        (tmp_path / "outside.yaml").write_text(self.BELOW)
        (folder / "link.yaml").symlink_to(tmp_path / "outside.yaml")
        chain = {str(n): f"base: {n + 1}.yaml\n" for n in range(1, 6)}
        self.write(folder, a="base: b.yaml\n", b="base: my.yaml\n", list="- 1\n", **chain)
        assert sentence in problems(f"name: my\nbase: {base}\nsource: {{path: x}}\n", folder)[0]

    def test_the_recipe_of_a_run_or_a_published_set_has_none(self, tmp_path: Path) -> None:
        (tmp_path / "recipe.yaml").write_text("name: my\nbase: quickstart\n")
        with pytest.raises(RecipeError, match=r"recipe\.yaml:2  base is quickstart; recipe\.yaml records how a Run or"):
            Recipe.load(tmp_path)

    def test_overrides_name_no_base(self) -> None:
        with pytest.raises(RecipeError, match="base is not a recipe key"):
            Recipe.load("quickstart", ["base=small-x4"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """A server that answers downloads as the Hub does; maps "org/name" to its recipe.yaml."""
    recipes: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            match = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/main/recipe\.yaml", self.path)
            repo = match[1] if match else ""
            content = recipes.get(repo)
            self.send_response(200 if content else 503 if repo == "org/down" else 404)
            if content is None:
                code = "EntryNotFound" if repo == "org/other" else "RepoNotFound"
                self.send_header("X-Error-Code", code)
            else:
                self.send_header("X-Repo-Commit", "1" * 40)
                self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if body and content:
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    from huggingface_hub import constants

    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield recipes
    server.shutdown()
    server.server_close()


class TestHub:
    def test_the_recipe_of_a_published_set(self, hub: dict[str, bytes]) -> None:
        recipe = make(seed=5).with_extractor(DIGEST)
        hub["org/set"] = recipe.to_yaml().encode()
        assert Recipe.load("org/set") == recipe
        assert Recipe.load("org/set", ["source.path=mine"]).lr_recipe_hash == recipe.lr_recipe_hash

    def test_sets_that_are_none(self, hub: dict[str, bytes]) -> None:
        with pytest.raises(RecipeError, match="There is no recipe org/nobody: no local file"):
            Recipe.load("org/nobody")
        with pytest.raises(RecipeError, match=r"org/other has no recipe\.yaml"):
            Recipe.load("org/other")

    def test_a_published_recipe_names_no_base(self, hub: dict[str, bytes]) -> None:
        hub["org/set"] = b"name: my\nbase: quickstart\n"
        with pytest.raises(RecipeError, match="base is quickstart"):
            Recipe.load("org/set")

    def test_no_answer(self, hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="org/set could not be fetched"):
            Recipe.load("org/set")
