"""What trackers get of a Run, against the interface that Accelerate uses of trackio, which need not be installed."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import tracking as accelerate_tracking

from idc_hub.errors import RecipeError
from idc_hub.images.sources import Instance
from idc_hub.recipe import Recipe
from idc_hub.runs import tracking
from idc_hub.runs.run import Run

PHOTOGRAPHS = [Instance(name, f"{name}.png", name * 64, 64, 64, patches=9, count=2) for name in ("a", "b", "c")]
LOSSES = {"instance": 0.5, "group": 1.5, "pair": 2.5}


def stand_in_for_trackio(monkeypatch: pytest.MonkeyPatch, *, broken: bool = False) -> list[Any]:
    """Makes Accelerate believe in an installed trackio; returns the list that its calls are appended to."""
    said: list[Any] = []

    def init(**options: str) -> SimpleNamespace:
        print("trackio prints")
        said.append(("init", options))
        return run

    def log(values: dict[str, float], step: int) -> None:
        said.append(("log", step, values))
        if broken:
            raise ConnectionError("no route to the tracker")

    run = SimpleNamespace(log=log, finish=lambda: said.append("finish"))
    stand_in = SimpleNamespace(
        init=init,
        finish=lambda: None,
        config=SimpleNamespace(update=lambda values, **_: said.append(("config", values))),
    )
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    monkeypatch.setattr(tracking, "version", lambda package: "1.0")
    monkeypatch.setattr(accelerate_tracking, "_available_trackers", [accelerate_tracking.LoggerType.TRACKIO])
    return said


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A Run whose first photograph is finished."""
    recipe = Recipe.from_dict({"name": "unit", "source": {"path": "photographs"}, "seed": 7})
    made = Run.create(tmp_path / "run", recipe, PHOTOGRAPHS, {})
    finish(made, 0)
    return made


def finish(run: Run, number: int) -> None:
    facts = {"held_out": number / 10, "held_out_random": 0.9, "losses": LOSSES, "steps": 200}
    run.write_patches(run.instances[number], torch.zeros(2, 3, 8, 8, dtype=torch.uint8), facts)


def test_a_condensation_reports_each_photograph_that_is_finished(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = stand_in_for_trackio(monkeypatch)
    monkeypatch.setattr(tracking, "REFRESH_SECONDS", 0.01)
    with tracking.track(run, ["trackio"]):
        finish(run, 2)
        while len(said) < 3:
            time.sleep(0.01)
        finish(run, 1)
    assert said[0] == ("init", {"project": "idc-hub", "name": "run"})
    assert said[1][1]["optimizer.steps"] == "200"
    assert said[1][1]["seed"] == "7"
    terms = {f"loss/{term}": value for term, value in LOSSES.items()}
    assert said[2:] == [
        ("log", 2, {"held_out": 0.2, "held_out_random": 0.9, **terms}),
        ("log", 3, {"held_out": 0.1, "held_out_random": 0.9, **terms}),
        "finish",
    ]
    assert capsys.readouterr() == ("", "trackio prints\n")


def test_a_tracker_that_fails_does_not_stop_the_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said = stand_in_for_trackio(monkeypatch, broken=True)
    with (
        pytest.warns(UserWarning, match="The trackers get no more reports: no route to the tracker"),
        tracking.track(run, ["trackio"]),
    ):
        finish(run, 1)
    assert said[-1] == "finish"


def test_trackers_refuse_one_of_several_processes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_trackio(monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(RecipeError, match="Trackers need a single `idc condense`, and this is one of several"),
        tracking.track(run, ["trackio"]),
    ):
        pass
