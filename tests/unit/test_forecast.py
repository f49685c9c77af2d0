"""The time that a condensation will take: its parts, how they add up, and a calibration on a small photograph."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import idc_hub
from idc_hub.condensation.condense import Photograph, condense_batch
from idc_hub.images.files import write_png
from idc_hub.recipe import Recipe
from idc_hub.runs import forecast
from idc_hub.runs.forecast import Sample, shortened
from idc_hub.runs.memory import Memory, _Cpu, batch_size
from idc_hub.runs.worker import find_photographs
from idc_hub.verbs.condense import CondensePlan


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
    changed = recipe().model_copy(update={"patches": recipe().patches.model_copy(update={"size": 64})})
    # One size was measured: everything grows in proportion.
    plain, measured = 3.0 * 20, 4 * 5 / 4
    expected = 1000 * plain * 1.02 * 4 / 3 + 0.59 * 1000 * 0.5 * 20 + measured * plain
    assert forecast._seconds(64, 20, {(16, 1): [sample]}, changed) == pytest.approx(expected)


def test_where_nothing_is_grouped_or_paired_all_steps_are_plain() -> None:
    sample = Sample(fixed=0, draw=0, plain=0.1, event=0.5, partners=0.5, paired=0.9)
    changed = recipe()
    changed = changed.model_copy(update={"loss": changed.loss.model_copy(update={"group_weight": 0, "pair_weight": 0})})
    expected = 1000 * 0.1 * 1.02 + 4 * 5 * 0.1 / 4
    assert forecast._seconds(16, 1, {(16, 1): [sample]}, changed) == pytest.approx(expected)


def test_choosing_the_first_patches_looks_at_the_real_side_of_four_draws_more() -> None:
    sample = Sample(fixed=1.0, draw=0.4, plain=0.1, event=0.3, partners=0.02, paired=0.12)
    chosen, drawn = (
        forecast._seconds(16, 1, {(16, 1): [sample]}, recipe(initial=initial)) for initial in ("cf-greedy", "real")
    )
    assert chosen - drawn == pytest.approx(4 * 0.4)
    changed = shortened(recipe(initial="cf-greedy"))  # what is counted here must not be in the samples
    assert changed.optimizer.initial == "real"


def test_the_shortened_recipe_groups_and_pairs_everything_before_its_last_steps() -> None:
    changed = shortened(recipe())
    assert changed.assignment.event_steps(changed.optimizer.steps) == (3, 4)
    assert changed.patches == recipe().patches
    assert changed.transform == recipe().transform


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three photographs of noise, each with 9 real patches."""
    rng = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for name in ("a", "b", "c"):
        picture = rng.integers(0, 256, (192, 192, 3), dtype=np.uint8)
        write_png(tmp_path / "photographs" / f"{name}.png", picture)
    return tmp_path / "photographs"


def test_a_dry_run_predicts_seconds_and_writes_nothing(photographs: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def predicted(steps: int) -> float:
        plan = idc_hub.condense(recipe(photographs, steps=steps), run_dir=run_dir, dry_run=True, progress=False)
        assert isinstance(plan, CondensePlan)
        return plan.predicted_seconds

    assert 0 < predicted(1000) < predicted(100_000)
    assert not run_dir.exists()


def test_workers_share_the_photographs_but_not_one_photograph(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the clock is replaced: a step takes .01 s, all else nothing.
    monkeypatch.setattr(Sample, "take", lambda *ignored: Sample(0, 0, 0.01, 0, 0, 0.01))
    monkeypatch.setattr(Memory, "measure", lambda *ignored: Memory(0, 0, 0, 0, 0, 0, 0))
    network = torch.nn.Conv2d(3, 3, 3)
    found, _ = find_photographs(recipe(photographs), progress=False)
    instances = [replace(instance, count=1) for instance in found]

    def seconds(processes: int) -> float:
        return forecast.predict(recipe(photographs), instances, network, processes, torch.device("cpu")).seconds

    # 1,000 steps, 2 % more for logging, 5 held-out sets at 4 draws for a quarter of a step each: 10.25 s a photograph.
    assert seconds(1) == pytest.approx(30.75)
    assert seconds(2) == pytest.approx(15.375)
    assert seconds(8) == pytest.approx(10.25)


def test_photographs_of_a_batch_share_its_time_and_the_price_follows(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def take(lr: torch.Tensor, count: int, network: torch.nn.Module, recipe: Recipe, batch: int) -> Sample:
        batches.append(batch)
        return Sample(0, 0, 3.6 / batch, 0, 0, 3.6 / batch)

    monkeypatch.setattr(Sample, "take", take)

    def plan(batch: int, processes: int) -> CondensePlan:
        values = recipe(photographs).model_dump(mode="json") | {"workers": {"batch": batch}}
        spec = Recipe.from_dict(values, ["patches.ratio=0.1", "patches.min_per_image=1"])
        found = idc_hub.condense(spec, num_processes=processes, dry_run=True, price_per_hour=2, progress=False)
        assert isinstance(found, CondensePlan)
        return found

    alone, together, shared = plan(1, 1), plan(3, 1), plan(3, 3)
    assert set(batches) == {1, 3}
    assert (alone.batch, together.batch, shared.batch) == (1, 3, 1)
    assert alone.predicted_seconds == pytest.approx(3 * together.predicted_seconds, rel=1e-3)
    assert shared.worker_hours == pytest.approx(alone.worker_hours, rel=1e-3)
    assert alone.price == pytest.approx(2 * alone.worker_hours, abs=0.01)
    assert together.peak_memory_gb > alone.peak_memory_gb > 0


class Convolutions(torch.nn.Module):
    """Two convolutions with a wide map between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 64, 3, padding=1)
        self.second = torch.nn.Conv2d(64, 8, 3, padding=1)
        self.requires_grad_(False)

    def features(self, lr: torch.Tensor, layer: int | str) -> torch.Tensor:
        return self.second(self.first(lr).sigmoid())


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (4, 1), (20, 1), (2, 6)])
def test_the_predicted_memory_is_that_of_a_condensation(count: int, batch: int) -> None:
    values = recipe().model_dump(mode="json")
    values["optimizer"] |= {"steps": 12, "initial": "noise"}
    values["assignment"] |= {"events": 2, "interval": 0.1}
    values["patches"] |= {"size": 64, "stride": 64}
    values["loss"] |= {"frequencies": 64}
    values["workers"] |= {"log_every": 4}
    spec, network = Recipe.from_dict(values), Convolutions()
    rng = torch.Generator().manual_seed(0)
    lr = torch.randint(256, (12, 3, 64, 64), dtype=torch.uint8, generator=rng)
    predicted = Memory.measure(network, spec).peak(spec, len(lr), count, batch, on_gpu=False)
    with _Cpu() as counted:
        for _, outcome in condense_batch([Photograph(lr, count, str(n)) for n in range(batch)], network, spec):
            assert not isinstance(outcome, Exception)
    # Patches in pieces leave cycles of references, which Python frees at random moments.
    assert (0.5 if count == 20 else 0.8) < predicted / counted.most < 1.6


def test_a_batch_fits_into_the_memory_of_a_gpu_and_leaves_work_for_all_workers(photographs: Path) -> None:
    memory = Memory(network=1e9, real=1e6, kept=1e7, partners=0, shared=1e8, losses=2e8, begin=0)
    spec = recipe(photographs)
    # A photograph: .1 + .1 GB between steps; its step: twice 1 GB with others, and 2 GB for one of them at a time.
    assert memory.peak(spec, 100, 10, 8, on_gpu=True) == pytest.approx(1e9 + 8 * 0.2e9 + 2 * (8 * 1e9 + 2e9))
    assert memory.largest_batch(spec, 100, 10, (1 + 8 * 0.2 + 2 * 10) * 1e9 / 0.8 + 1) == 8
    assert memory.largest_batch(spec, 100, 10, (1 + 8 * 0.2 + 2 * 10) * 1e9 / 0.8 - 1) == 7
    assert memory.largest_batch(spec, 100, 10, 0) == 1
    found, _ = find_photographs(spec, progress=False)
    instances = [replace(found[0], count=1)] * 7
    for batch, workers, expected in ((5, 1, 5), (5, 2, 4), (5, 9, 1), ("auto", 1, 1)):
        chosen = spec.model_copy(update={"workers": spec.workers.model_copy(update={"batch": batch})})
        assert batch_size(chosen, instances, Convolutions(), workers) == expected


@pytest.mark.parametrize(("limit", "sides", "scale"), [(1e9, [8, 16, 16], 1), (-1.0, [8, 8, 8], 4)])
def test_a_slow_extractor_is_tried_on_a_quarter_of_the_pixels(
    monkeypatch: pytest.MonkeyPatch, limit: float, sides: list[int], scale: int
) -> None:
    seen: list[int] = []

    def take(lr: torch.Tensor, *ignored: object) -> Sample:
        seen.append(lr.shape[-1])
        return Sample(0, 0, 0, 0, 0, 0)

    monkeypatch.setattr(forecast, "SLOW", limit)
    monkeypatch.setattr(forecast, "ROUNDS", 1)
    monkeypatch.setattr(Sample, "take", take)
    lr = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    samples, found = forecast._calibrate(lr, torch.nn.Identity(), recipe(), 1)
    assert list(samples) == [(16, 1), (32, 2)]
    assert seen == sides
    assert found == scale
