"""The time that a condensation will take: its parts, how they add up, and a calibration on a small photograph."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import idc_hub
from idc_hub.images.files import write_png
from idc_hub.recipe import Recipe
from idc_hub.runs import forecast
from idc_hub.runs.forecast import Sample, shortened


def recipe(path: Path | str = "photographs", **optimizer: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "forecast",
            "source": {"path": str(path)},
            "patches": {"size": 16, "stride": 16, "ratio": 0.2, "complexity": "all"},
            "transform": {"kernel_size": 3, "channels": 8},
            "loss": {"frequencies": 8, "bank_size": 4},
            "assignment": {"groups": 2, "warmup": 0.2, "interval": 0.02, "events": 20},
            "optimizer": {"steps": 1000, "initial": "real", **optimizer},
            "workers": {"log_every": 100},
        }
    )


def test_the_parts_add_up() -> None:
    few = Sample(fixed=1.5, draw=0.4, plain=0.1, event=0.3, partners=0.02, paired=0.12)
    many = Sample(fixed=2.0, draw=0.5, plain=0.3, event=0.5, partners=0.06, paired=0.36)
    # 64 real patches where 16 and 32 were measured, 5 synthetic ones where 1 and 3 were, 1,000 steps. Tiles are paired
    # at events 2 .. 21, after a fifth of the steps: 59 % of them in the mean.
    fixed = 3.0 + (4 + 4) * 0.7
    steps = 1000 * (0.41 * 0.5 + 0.59 * 0.6) * 1.02
    partners = (4 * 20 / 2 + 4) * 0.10
    events = 21 * 0.9
    measured = 4 * 5 * 0.5 / 4
    found = forecast._seconds(64, 5, {(16, 1): [few], (32, 3): [many]}, recipe())
    assert found == pytest.approx(fixed + steps + partners + events + measured)


def test_what_is_cut_into_pieces_takes_a_third_longer_and_makes_partners_again_at_every_step() -> None:
    sample = Sample(fixed=0, draw=0, plain=3.0, event=0, partners=0.5, paired=3.0)
    spec = recipe().model_copy(update={"patches": recipe().patches.model_copy(update={"size": 64})})
    # One size was measured: everything grows in proportion.
    plain, measured = 3.0 * 20, 4 * 5 / 4
    expected = 1000 * plain * 1.02 * 4 / 3 + 0.59 * 1000 * 0.5 * 20 + measured * plain
    assert forecast._seconds(64, 20, {(16, 1): [sample]}, spec) == pytest.approx(expected)


def test_where_nothing_is_grouped_or_paired_all_steps_are_plain() -> None:
    sample = Sample(fixed=0, draw=0, plain=0.1, event=0.5, partners=0.5, paired=0.9)
    spec = recipe()
    spec = spec.model_copy(update={"loss": spec.loss.model_copy(update={"group_weight": 0, "pair_weight": 0})})
    expected = 1000 * 0.1 * 1.02 + 4 * 5 * 0.1 / 4
    assert forecast._seconds(16, 1, {(16, 1): [sample]}, spec) == pytest.approx(expected)


def test_choosing_the_first_patches_looks_at_the_real_side_of_four_draws_more() -> None:
    sample = Sample(fixed=1.0, draw=0.4, plain=0.1, event=0.3, partners=0.02, paired=0.12)
    chosen, drawn = (
        forecast._seconds(16, 1, {(16, 1): [sample]}, recipe(initial=initial)) for initial in ("cf-greedy", "real")
    )
    assert chosen - drawn == pytest.approx(4 * 0.4)
    spec = shortened(recipe(initial="cf-greedy"))  # what is counted here must not be in the samples
    assert spec.optimizer.initial == "real"


def test_the_shortened_recipe_groups_and_pairs_everything_before_its_last_steps() -> None:
    spec = shortened(recipe())
    assert spec.assignment.event_steps(spec.optimizer.steps) == (3, 4)
    assert spec.patches == recipe().patches
    assert spec.transform == recipe().transform


def test_a_dry_run_predicts_seconds_and_writes_nothing(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (192, 192, 3), dtype=np.uint8)
    (tmp_path / "photographs").mkdir()
    write_png(tmp_path / "photographs" / "noise.png", picture)
    run_dir = tmp_path / "run"

    def predicted(steps: int) -> float:
        spec = recipe(tmp_path / "photographs", steps=steps)
        return float(idc_hub.condense(spec, run_dir=run_dir, dry_run=True, progress=False).predicted_seconds)

    assert 0 < predicted(1000) < predicted(100_000)
    assert not run_dir.exists()


def test_workers_share_the_photographs_but_not_one_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    lr, places = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(4, 2, dtype=torch.int64)
    monkeypatch.setattr(forecast, "real_patches", lambda *ignored: (lr, places))
    monkeypatch.setattr(forecast, "open_source", lambda **ignored: None)
    monkeypatch.setattr(Sample, "take", lambda *ignored: Sample(0, 0, 0.01, 0, 0, 0.01))
    shares: Any = [SimpleNamespace(count=1, patches=4) for _ in range(3)]

    def seconds(processes: int) -> float:
        return forecast.predict_seconds(recipe(), shares, torch.nn.Identity(), processes, torch.device("cpu"))

    assert seconds(1) == pytest.approx(30.75)
    assert seconds(2) == pytest.approx(15.375)
    assert seconds(8) == pytest.approx(10.25)


@pytest.mark.parametrize(("limit", "sides", "scale"), [(1e9, [8, 16, 16], 1), (-1.0, [8, 8, 8], 4)])
def test_a_slow_extractor_is_tried_on_a_quarter_of_the_pixels(
    monkeypatch: pytest.MonkeyPatch, limit: float, sides: list[int], scale: int
) -> None:
    import torch

    seen: list[int] = []

    def take(lr: torch.Tensor, *ignored: object) -> Sample:
        seen.append(lr.shape[-1])
        return Sample(0, 0, 0, 0, 0, 0)

    monkeypatch.setattr(forecast, "SLOW", limit)
    monkeypatch.setattr(forecast, "ROUNDS", 1)
    monkeypatch.setattr(Sample, "take", take)
    lr = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    samples, found = forecast._calibrate(lr, torch.nn.Identity(), recipe())
    assert list(samples) == [(16, 1), (32, 2)]
    assert seen == sides
    assert found == scale
