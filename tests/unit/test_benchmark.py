"""The statistics of a benchmark against figures computed by hand, and what plans are refused for."""

import csv
import io
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from idc_hub.benchmarking.ladder import Ladder, draw_plots
from idc_hub.benchmarking.plan import Cell, Plan
from idc_hub.benchmarking.plots import _quality_figure, draw
from idc_hub.benchmarking.statistics import (
    Result,
    beyond_spread,
    by_seed,
    paired_differences,
    rank_correlation,
    regret,
    spread,
    worth,
    worth_in_random,
)
from idc_hub.benchmarking.tables import Findings, to_csv, to_markdown
from idc_hub.errors import RecipeError
from idc_hub.networks import create

PLAN = """\
name: small
source: photographs
ratios: [0.01, 0.04]
hr: {bicubic: bicubic, real: real}
sets:
  whole: {method: whole}
  random: {method: random, ratios: [0.01, 0.02]}
  idc: {recipe: small-x4, set: [preset=paper, optimizer.steps=900], seeds: 2}
students: [edsr-small]
training: {steps: 20, crop: 24}
seeds: [0, 1, 2]
testsets: [tests/Set5, tests/Set14]
"""


@pytest.fixture
def load(tmp_path: Path):
    """A function that reads a plan from text."""

    def load_text(text: str) -> Plan:
        path = tmp_path / "plan.yaml"
        path.write_text(text)
        return Plan.load(path)

    return load_text


class TestStatistics:
    def test_the_deviation_is_that_of_a_sample(self) -> None:
        assert spread([30.0, 31.0, 35.0]) == (32.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2)))
        assert spread([30.0]) == (30.0, None)

    def test_differences_are_paired_by_seed_and_lonely_seeds_are_left_out(self) -> None:
        assert paired_differences({2: 7.0, 0: 5.0, 9: 1.0}, {0: 4.5, 2: 7.25, 5: 0.0}) == [0.5, -0.25]

    def test_three_differences_need_4_303_standard_errors(self) -> None:
        """Mean .2, deviation .1, so the 95 % interval is .2 ± 4.303 x .1 / sqrt(3) = .2 ± .248."""
        assert not beyond_spread([0.1, 0.2, 0.3])
        assert beyond_spread([0.15, 0.2, 0.25])  # ± .124
        assert beyond_spread([-0.15, -0.2, -0.25])
        assert not beyond_spread([5.0])
        assert not beyond_spread([])

    def test_two_differences_need_12_706_standard_errors(self) -> None:
        """Deviation of a and b: |a - b| / sqrt(2); half width 12.706 |a - b| / 2."""
        assert not beyond_spread([1.0, 1.2])  # 1.1 ± 1.271
        assert beyond_spread([1.0, 1.17])  # 1.085 ± 1.080

    def test_a_ranking_with_one_swapped_pair_of_six_has_a_tau_of_two_thirds(self) -> None:
        reference = {"a": 30.1, "b": 30.2, "c": 30.3, "d": 30.4}
        swapped = {"a": 27.0, "c": 28.0, "b": 28.5, "d": 29.0, "only here": 1.0}
        assert rank_correlation(swapped, reference) == pytest.approx((5 - 1) / 6)
        assert rank_correlation({name: -quality for name, quality in reference.items()}, reference) == -1
        assert rank_correlation({"a": 1.0, "b": 2.0}, reference) is None
        assert rank_correlation(dict.fromkeys("abcd", 1.0), reference) is None

    def test_regret_is_what_the_wrong_choice_costs(self) -> None:
        reference = {"a": 30.0, "b": 30.5, "c": 29.0}
        assert regret({"a": 25.0, "b": 24.0, "c": 23.0, "d": 99.0}, reference) == 0.5
        assert regret({"b": 25.0, "c": 20.0}, reference) == 0

    def test_worth_is_interpolated_in_the_logarithm_of_the_patches(self) -> None:
        curve = [(10, 20.0), (40, 22.0), (160, 23.0)]
        assert worth(21.0, 10, curve) == (pytest.approx(2.0), "")  # half way from 10 to 40 is 20
        assert worth(22.5, 40, curve) == (pytest.approx(2.0), "")  # half way from 40 to 160 is 80
        assert worth(20.0, 20, curve) == (0.5, "")
        assert worth(23.0, 10, curve) == (pytest.approx(16.0), "")
        assert worth(23.1, 40, curve) == (4.0, ">")
        assert worth(19.9, 40, curve) == (0.25, "<")
        assert worth(21.0, 10, curve[:1]) is None

    def test_a_curve_that_falls_again_counts_where_it_first_reaches_the_quality(self) -> None:
        assert worth(21.0, 10, [(10, 20.0), (40, 22.0), (160, 20.5)]) == (pytest.approx(2.0), "")
        assert worth(22.5, 10, [(10, 20.0), (40, 22.0), (160, 20.5)]) == (16.0, ">")

    def test_worth_compares_equal_seeds(self) -> None:
        """Only seed 1 is there for the set; random at 160 lacks it."""
        random = {10: {0: 99.0, 1: 20.0}, 40: {0: 0.0, 1: 22.0}, 160: {0: 50.0}}
        assert worth_in_random({1: 21.0}, 10, random) == (pytest.approx(2.0), "")
        assert worth_in_random({}, 10, random) is None

    def test_the_mean_over_test_sets_waits_for_all_of_them(self) -> None:
        def result(seed: int, testset: str, psnr: float) -> Result:
            return Result("random", "real", "edsr-small", seed, 0.1, testset, psnr, 0.0, 0.0)

        results = [result(0, "Set5", 30.0), result(0, "Set14", 26.0), result(1, "Set5", 31.0)]
        assert by_seed(results, "psnr_rgb", ["Set5", "Set14"]) == {0: 28.0}
        assert by_seed(results, "psnr_rgb", ["Set5"]) == {0: 30.0, 1: 31.0}


class TestPlan:
    def test_cells_come_seed_by_seed_and_sets_are_used_again(self, load) -> None:
        plan = load(PLAN)
        cells = plan.cells()
        assert len(cells) == 3 * (2 + 2 * 2 + 2 * 1)
        assert [cell.seed for cell in cells] == [0] * 8 + [1] * 8 + [2] * 8
        assert cells[0] == Cell("whole", "real", "edsr-small", 0, 1.0, 0)
        assert {cell.hr for cell in cells if cell.set == "idc"} == {"bicubic"}, "condensed patches have no real HR"
        assert [c.set_seed for c in cells if c.set == "idc"] == [0, 0, 1, 1, 0, 0]
        assert [c.set_seed for c in cells if (c.set, c.hr, c.ratio) == ("random", "real", 0.02)] == [0, 1, 2]
        assert {c.run_name for c in cells if c.set == "whole"} == {"whole-1-s0"}
        assert str(cells[0].student_path) == "whole-1-s0/real/edsr-small-s0"

    def test_dead_leaves_have_no_real_hr(self, load) -> None:
        plan = load(PLAN.replace("{method: random,", "{method: leaves,"))
        assert {cell.hr for cell in plan.cells() if cell.set == "random"} == {"bicubic"}
        with pytest.raises(RecipeError, match="synthetic patches have no real HR"):
            load(PLAN.replace("{method: random,", "{method: leaves, hr: real,"))

    def test_learning_rates_add_one_run_for_each_set_at_the_end(self, load) -> None:
        plan = load(PLAN + "learning_rates: [1e-4, 1e-3]\n")
        curves = plan.cells()[24:]
        assert [(cell.set, cell.hr, cell.ratio, cell.learning_rate) for cell in curves] == [
            (name, "bicubic", ratio, rate)
            for rate in (1e-4, 1e-3)
            for name, ratio in (("whole", 1.0), ("random", 0.01), ("idc", 0.01))
        ]
        assert plan.training_of(curves[-1]).learning_rate == 1e-3
        assert str(curves[0].student_path) == "whole-1-s0/bicubic/edsr-small-lr0.0001-s0"

    def test_a_set_has_its_recipe_and_a_student_its_settings(self, load) -> None:
        plan = load(PLAN.replace("[edsr-small]", "{edsr-small: {training: {crop: 32}}}"))
        cell = next(cell for cell in plan.cells() if (cell.set, cell.seed, cell.ratio) == ("idc", 1, 0.04))
        recipe = plan.recipe_of(cell)
        assert (recipe.preset, recipe.optimizer.steps, recipe.patches.ratio) == ("paper", 900, 0.04)
        assert (recipe.patches.size, recipe.patches.min_per_image) == (64, 0), "as a selection has, not as small-x4"
        assert (recipe.seed, recipe.source.path) == (1, "photographs")
        assert (recipe.teacher.network, recipe.teacher.hr_version) == ("bicubic", "bicubic")
        training = plan.training_of(cell)
        assert (training.steps, training.crop, training.seed) == (20, 32, 1)

    def test_every_problem_is_named_with_its_line(self, load) -> None:
        text = PLAN.replace("ratios: [0.01, 0.04]", "ratioz: [0.01]").replace("whole}", "whole, ratios: 0.1}")
        text = text.replace("random, ratios: [0.01, 0.02]", "randm").replace("steps: 20", "stepz: 20")
        text = text.replace("{recipe: small-x4, ", "{recipe: small-x4, method: random, ")
        with pytest.raises(RecipeError) as caught:
            load(text)
        lines = str(caught.value).splitlines()
        assert lines[0] == "plan.yaml:3  ratioz is not a recipe key. Did you mean ratios?"
        assert lines[1].startswith("plan.yaml:6  sets.whole: it should have neither ratios nor seeds")
        assert lines[2].startswith("plan.yaml:7  sets.random: method is randm; it should be 'whole', 'random'")
        assert lines[3] == "plan.yaml:8  sets.idc: it should name either a method or a recipe."
        assert lines[4] == "plan.yaml:10  training.stepz is not a recipe key. Did you mean training.steps?"
        assert len(lines) == 5

    @pytest.mark.parametrize(
        ("old", "new", "sentence"),
        [
            ("real: real", "own: real", "hr.own is real; the name real is for the photographs' own pixels"),
            ("whole}", "whole, hr: [swin]}", "sets.whole: there is no HR version swin; the plan's `hr` has bicubic"),
            ("seeds: 2}", "hr: [real]}", "sets.idc: synthetic patches have no real HR"),
            ("bicubic: bicubic, ", "", "synthetic patches have no real HR, and the plan's `hr` names no teacher"),
            ("steps=900", "stepz=900", "sets.idc: override optimizer.stepz=900  optimizer.stepz is not a recipe key"),
            ("small-x4", "smal-x4", "sets.idc: There is no recipe smal-x4"),
            ("[edsr-small]", "[edsr-smal]", "students.edsr-smal: There is no network 'edsr-smal'"),
            ("[edsr-small]", "{edsr-small: {stepz: 1}}", "students.edsr-small: stepz is not a recipe key"),
            ("[edsr-small]", "{edsr-small: {training: {stepz: 1}}}", "edsr-small: stepz is not a recipe key"),
            ("[edsr-small]", "{edsr-small: {training: {seed: 1}}}", "edsr-small: training.seed is not used"),
            ("[edsr-small]", "{thin: {arguments: {channels: 8}}}", "students.thin: There is no network 'thin'"),
            ("[edsr-small]", "{thin: {network: edsr, arguments: {width: 8}}}", "students.thin: edsr: EDSR can't be"),
            ("[edsr-small]", "{thin: {network: edsr, arguments: {channels: 0}}}", 'edsr: "channels" is 0: no network'),
            ("steps: 20", "seed: 20", "training.seed is not used"),
            ("tests/Set14", "more/Set5", "testsets has two folders called Set5"),
            ("[0, 1, 2]", "[0, 1, 0]", "it should be a list of different values"),
            ("{method: whole}", "whole", "sets.whole should be a mapping"),
            ("[edsr-small]", "{long run: {network: edsr}}", "plan.yaml:9  students.long run: the name should"),
        ],
    )
    def test_contradictions(self, load, old: str, new: str, sentence: str) -> None:
        assert old in PLAN
        with pytest.raises(RecipeError) as caught:
            load(PLAN.replace(old, new))
        assert sentence in str(caught.value)


@pytest.fixture
def findings(load) -> Findings:
    """Made-up results: random gains 1 dB with twice the patches; idc is 1 dB (seeds: .98, 1, 1.02) above it."""
    found = Findings(load(PLAN.replace("Set5, tests/", "")))
    for seed in (0, 1, 2):
        for ratio, patches in ((0.01, 10), (0.02, 20)):
            quality = 26.0 + seed + (ratio == 0.02)
            found.results.append(Result("random", "bicubic", "edsr-small", seed, ratio, "Set14", quality, 28.0, 0.8))
            facts = {"set": "random", "ratio": ratio, "patches": patches, "seconds": 0.2, "device": "CPU"}
            found.sets[f"random-{ratio}-s{seed}"] = facts
        gain = 0.98 + 0.02 * seed
        found.results.append(
            Result("idc", "bicubic", "edsr-small", seed, 0.01, "Set14", 26.0 + seed + gain, 28.0 + 0.1 * seed, 0.8)
        )
        found.sets[f"idc-0.01-s{seed % 2}"] = {
            "set": "idc", "ratio": 0.01, "patches": 10, "seconds": 100.0, "device": "CPU"
        }  # fmt: skip
    found.teachers |= {"real": "real", "bicubic": "bicubic"}
    found.failures["whole-1-s0 | real | edsr-small, seed 0"] = "It did\nnot work."
    return found


class TestTables:
    def test_the_csv_has_one_line_for_each_run_and_test_set(self, findings: Findings) -> None:
        text = to_csv(findings.results)
        rows = list(csv.reader(io.StringIO(text)))
        assert ",".join(rows[0]) == "set,hr,student,seed,ratio,testset,psnr_rgb,psnr_y,ssim_rgb"
        assert rows[1] == ["idc", "bicubic", "edsr-small", "0", "0.01", "Set14", "26.9800", "28.0000", "0.8000"]
        assert len(rows) == 10
        assert to_csv(findings.results[::-1]) == text

    def test_the_report_does_not_depend_on_the_order_of_the_work(self, findings: Findings) -> None:
        text = to_markdown(findings)
        findings.teachers = dict(reversed(findings.teachers.items()))
        findings.sets = dict(reversed(findings.sets.items()))
        findings.results = findings.results[::-1]
        assert to_markdown(findings) == text

    def test_the_report_has_means_differences_and_worth(self, findings: Findings) -> None:
        """Mean of 26, 27, 28 plus .98, 1, 1.02; the differences vary by .02; 1 dB more is twice the patches."""
        lines = to_markdown(findings).splitlines()
        assert "## edsr-small: PSNR (dB), x4, RGB, border 4, 8-bit" in lines
        assert "| random | bicubic | 0.01 | 10 | 3 | 27.000 ± 1.000 | – |" in lines
        assert "| idc | bicubic | 0.01 | 10 | 3 | 28.000 ± 1.020 | 2.00 x |" in lines
        assert "| idc | bicubic | 0.01 | 10 | **+1.000 ± 0.020** | **+1.000 ± 0.020** |" in lines
        assert "| idc | bicubic | 0.01 | 10 | +0.100 ± 0.100 | +0.100 ± 0.100 |" in lines, "luma: 0, .1 and .2"
        assert "| idc-0.01-s0 | 10 | 100.0 | CPU |" in lines
        assert "- whole-1-s0 | real | edsr-small, seed 0: It did not work." in lines

    def test_the_report_compares_the_ranking_of_students_with_that_by_the_whole_set(self, load) -> None:
        """By hand: of three students, idc orders all as whole does, random swaps the best two, which cost .5 dB."""
        text = PLAN.replace("[edsr-small]", "{a: {network: edsr-tiny}, b: {network: edsr-tiny}, edsr-tiny: {}}")
        found = Findings(load(text.replace("Set5, tests/", "")))
        qualities = {
            ("whole", 1.0): {0: (30.0, 31.0, 31.4), 1: (30.0, 31.0, 31.6)},
            ("random", 0.01): {0: (27.0, 27.4, 27.3)},
            ("idc", 0.01): {0: (27.0, 27.1, 27.2), 1: (28.0, 28.1, 28.2)},
        }
        for (name, ratio), seeds in qualities.items():
            found.sets[f"{name}-{ratio}"] = {"set": name, "ratio": ratio, "patches": 1, "seconds": 1, "device": "CPU"}
            for seed, luma in seeds.items():
                found.results += [
                    Result(name, "bicubic", student, seed, ratio, "Set14", 20.0, quality, 0.8)
                    for student, quality in zip(("a", "b", "edsr-tiny"), luma, strict=True)
                ]
        lines = to_markdown(found).splitlines()
        assert "| whole | bicubic | 1 | 3 | 2 | 1.000 ± 0.000 | 0.000 ± 0.000 |" in lines
        assert "| random | bicubic | 0.01 | 3 | 1 | 0.333 | 0.500 |" in lines, "2 of 3 pairs agree: (2 - 1) / 3"
        assert "| idc | bicubic | 0.01 | 3 | 2 | 1.000 ± 0.000 | 0.000 ± 0.000 |" in lines

    def test_pictures_show_what_was_measured(self, findings: Findings, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="pictures need the extra `report`")
        curves = {"edsr-small": {1e-3: {"random": [(10, 0.1), (20, 0.05)]}}}
        files = draw(findings, curves, tmp_path / "plots")
        names = ["edsr-small-patches.png", "edsr-small-seconds.png", "edsr-small-curves.png"]
        assert [path.name for path in files] == names
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)

    def test_a_set_far_below_the_others_is_told_in_words(self, findings: Findings) -> None:
        pytest.importorskip("matplotlib", reason="pictures need the extra `report`")
        far = [
            result._replace(psnr_rgb=result.psnr_rgb - 8) if result.set != "random" else result
            for result in findings.results
        ]
        near, cut = (
            _quality_figure(shown, shown.rows("edsr-small"), by_seconds=False).axes[0]
            for shown in (findings, replace(findings, results=far))
        )
        assert not near.texts
        assert cut.texts[0].get_text().startswith("below:\n")
        assert cut.get_ylim()[0] > min(result.psnr_rgb for result in far) + 1

    def test_without_matplotlib_a_sentence_says_how_to_get_the_pictures(
        self, findings: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        nothing = lambda *arguments: None  # noqa: E731
        said = draw_plots(Ladder(findings.plan, tmp_path, nothing, nothing, nothing), findings)
        assert said.startswith("left out: matplotlib is not installed. Run `pip install 'idc-hub[report]'`")


REPOSITORY = Path(__file__).parents[2]


def test_the_example_plan_is_right() -> None:
    plan = Plan.load(REPOSITORY / "benchmarks" / "ladder.yaml")
    # ten selections with two HR versions at two ratios, three sets with the teacher's alone, the whole with two
    assert len(plan.cells()) == 3 * (10 * 2 * 2 + 3 * 2 + 2)


def test_the_ranked_students_are_six_different_networks() -> None:
    plan = Plan.load(REPOSITORY / "benchmarks" / "ranking.yaml")
    networks = [create(student.network or name, arguments=student.arguments) for name, student in plan.students.items()]
    assert len({sum(weight.numel() for weight in network.parameters()) for network in networks}) == 6
    assert {type(network).__name__ for network in networks} == {"EDSR", "SwinIR"}
    # on the whole, and on three sets of two sizes
    assert len(plan.cells()) == 3 * 6 * (1 + 3 * 2)


def test_the_levers_are_pulled_one_at_a_time() -> None:
    plan = Plan.load(REPOSITORY / "benchmarks" / "levers.yaml")
    assert len(plan.cells()) == 3 * len(plan.sets)
    recipes = {cell.set: plan.recipe_of(cell) for cell in plan.cells() if plan.sets[cell.set].recipe}
    changed = {
        name: [line.split()[0] for line in recipes["leaves"].differing(recipe)] for name, recipe in recipes.items()
    }
    assert changed == {
        "leaves": [],
        "idc-edges": ["optimizer.learning_rate", "optimizer.initial"],
        "idc-hard": ["patches.complexity", "optimizer.learning_rate", "optimizer.initial"],
        "idc-scales": ["optimizer.learning_rate", "optimizer.initial", "patches.scales"],
        "idc-hard-scales": ["patches.complexity", "optimizer.learning_rate", "optimizer.initial", "patches.scales"],
        "real-fourier": ["optimizer.learning_rate", "optimizer.initial", "optimizer.parametrization"],
        "noise": ["optimizer.initial"],
        "leaves-400": ["optimizer.steps"],
        "phase": ["loss.phase_penalty"],
        "range": ["loss.frequency_scale"],
        "layers": ["features.layer"],
        "residual": ["features.layer"],
        "layers-range": ["features.layer", "loss.frequency_scale"],
        "fourier": ["optimizer.parametrization"],
        "fourier-hard": ["patches.complexity", "optimizer.parametrization"],
        "fourier-noise": ["optimizer.initial", "optimizer.parametrization"],
        "fourier-layers": ["features.layer", "optimizer.parametrization"],
        "maco": ["optimizer.learning_rate", "optimizer.parametrization"],
        "maco-noise": ["optimizer.learning_rate", "optimizer.initial", "optimizer.parametrization"],
    }


def test_published_rows_agree_where_two_tables_print_the_same_experiment() -> None:
    """SwinIR at 10 % stands in tables 1 and 8, the default variant in 2, 4 and 7, teacher MambaIRv2 in 1 and 5."""

    def table(number: int, *columns: str, **only: str) -> set[tuple[str, ...]]:
        with (REPOSITORY / "benchmarks" / "published" / f"idc-table-{number}.csv").open(newline="") as file:
            return {
                tuple(row[column] for column in columns)
                for row in csv.DictReader(file)
                if all(row[key] == value for key, value in only.items())
            }

    figures = ("testset", "psnr_rgb", "ssim_rgb")
    for name in ("Random", "IDC"):  # of DCSR the two print different figures twice
        assert table(1, *figures, set=name, student="SwinIR") == table(8, *figures, set=name, ratio="0.1")
    assert table(1, *figures, set="Whole", student="SwinIR") == table(8, *figures, set="Whole")
    default = table(2, *figures, variant="IDC")
    assert default == table(4, *figures, variant="a0") == table(7, *figures, transform="rlff")
    own = ("student", "testset", "psnr_rgb")
    assert table(1, *own, set="IDC") == table(5, *own, teacher="MambaIRv2")
    assert len(table(1, "set", "student", "testset")) == 6 * 3 * 5
