"""The yardstick of benchmarks/speed.py at a tiny size: it measures, and refuses to measure what disagrees."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from idc_hub.recipe import Recipe

TINY = ["--network", "edsr-small", "-N", "4", "-n", "2", "-T", "16", "--channels", "8", "--kernel", "3", "--size", "16"]


@pytest.fixture(scope="module")
def speed() -> Iterator[ModuleType]:
    path = Path(__file__).parents[2] / "benchmarks" / "speed.py"
    sys.path.insert(0, str(path.parent))  # speed.py imports its neighbor
    spec = importlib.util.spec_from_file_location("speed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["speed"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(path.parent))


def test_it_measures_every_part(speed: ModuleType) -> None:
    result = speed.Bench(speed.options([*TINY, "--repeats", "1"])).run()
    for key in ("paper_over_ours", "paper_over_ours_without_extractor", "rest_over_extractor"):
        assert result[key] > 0
    assert result["agreement"]["fp32"] <= 1e-4
    assert {"paper losses", "bf16 losses", "fp32 losses", "bf16 pair", "events"} <= result["ms"].keys()
    assert result["hours_for_div2k"]["paper"] == pytest.approx(result["ms"]["paper"] * 800 * 20_000 / 3.6e6)


def test_equal_noise_takes_the_fewest_frequencies_that_are_no_noisier(
    speed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def gradients(lr: Tensor, network: object, spec: Recipe, draws: int, *, same_filters: bool) -> Tensor:
        asked.append((spec.loss.frequency_kind, spec.loss.frequencies, draws, same_filters))
        # As noisy as independent frequencies are, and orthogonal ones as if they were half as many again.
        gain = 1.5 if spec.loss.frequency_kind == "orthogonal" else 1
        return 5 + torch.tensor([[-1.0], [1.0]]) / (gain * spec.loss.frequencies) ** 0.5

    monkeypatch.setattr(importlib.import_module("frequencies"), "gradients", gradients)
    bench = speed.Bench(speed.options([*TINY, "--repeats", "1", "--draws", "2"]))
    assert asked == [("iid", 16, 2, True), *(("orthogonal", count, 2, True) for count in (4, 8, 12))]
    result = bench.run()
    assert result["noise_over_papers"] == pytest.approx({n: (16 / (1.5 * n)) ** 0.5 for n in (4, 8, 12)}, rel=1e-4)
    assert len(bench.objectives["equal noise"].inputs(0, bench.real["equal noise"].statistics).draw.freqs) == 12
    assert result["paper_over_ours_equal_noise"] == result["ms"]["paper"] / result["ms"]["ours_equal_noise"]
    assert result["ms"]["ours_equal_noise"] > result["ms"]["equal noise losses"]


def test_noise_of_frequencies_falls_as_their_number_grows(speed: ModuleType) -> None:
    frequencies = importlib.import_module("frequencies")
    chosen = speed.options(TINY)
    lr, network = speed.photograph(chosen), speed.network("edsr-small").requires_grad_(False)
    specs = [
        frequencies.recipe("iid", count, ["patches.size=16", "patches.stride=16", "transform.channels=8"])
        for count in (16, 256)
    ]
    few, many = (frequencies.gradients(lr, network, spec, 8, same_filters=True) for spec in specs)
    noisy, calm = frequencies.noises([few, many])
    assert 2 < noisy / calm < 8  # 4 in the mean
    mean = torch.cat([few, many]).double().numpy().mean(0)
    expected = [np.sqrt(((row.double().numpy() - mean) ** 2).sum(1).mean()) for row in (few, many)]
    assert [noisy, calm] == pytest.approx(expected / np.linalg.norm(mean), rel=1e-4)


@pytest.mark.parametrize("term", ["instance", "group", "pair"])
def test_it_refuses_losses_that_disagree(speed: ModuleType, term: str) -> None:
    bench = speed.Bench(speed.options([*TINY, "--transform", "fp32"]))
    right = bench.paper.__class__.__call__

    class Wrong(speed.Paper):
        def __call__(self, *arguments: object) -> dict:
            terms = right(self, *arguments)
            return terms | {term: terms[term] * 1.0005}

    bench.paper.__class__ = Wrong
    with pytest.raises(AssertionError, match="losses differ"):
        bench.run()
    assert not any("paper" in part for part in bench.clock.times)


def test_scaling_has_three_points_of_each(speed: ModuleType) -> None:
    result = speed.scaling(speed.options([*TINY, "--repeats", "1"]))
    assert {row: list(points) for row, points in result.items()} == {
        "n: a step": ["2", "4", "8"],
        "N: a step": ["4", "8", "16"],
        "N: the real side at one draw": ["4", "8", "16"],
        "photographs, 50 steps each": ["1", "2", "4"],
    }
    assert all(seconds > 0 for points in result.values() for seconds in points.values())
