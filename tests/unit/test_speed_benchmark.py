"""The yardstick of benchmarks/speed.py at a tiny size: it measures, and refuses to measure what disagrees."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TINY = ["--network", "edsr-small", "-N", "4", "-n", "2", "-T", "16", "--channels", "8", "--kernel", "3", "--size", "16"]


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "speed.py"
    spec = importlib.util.spec_from_file_location("speed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["speed"] = module
    spec.loader.exec_module(module)
    return module


def test_it_measures_every_part(speed: ModuleType) -> None:
    result = speed.Bench(speed.options([*TINY, "--repeats", "1"])).run()
    for key in ("paper_over_ours", "paper_over_ours_without_extractor", "rest_over_extractor"):
        assert result[key] > 0
    assert result["agreement"]["fp32"] <= 1e-4
    assert {"paper losses", "bf16 losses", "fp32 losses", "bf16 pair", "events"} <= result["ms"].keys()
    assert result["hours_for_div2k"]["paper"] == pytest.approx(result["ms"]["paper"] * 800 * 20_000 / 3.6e6)


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
