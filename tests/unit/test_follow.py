"""What is seen of a Run from outside: states, workers, speed, silence; and what looking costs."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import idc_hub
from idc_hub.dataset.pack import pack
from idc_hub.images.sources import Instance
from idc_hub.recipe import Recipe
from idc_hub.runs import progress, worker
from idc_hub.runs.claims import this_process
from idc_hub.runs.follow import SILENT_SECONDS, Follower
from idc_hub.runs.run import Run

opened: Counter[str] = Counter()
"""Opened files and listed folders, by the name of the folder that they are in; `sys.addaudithook` has no way back."""


def count_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "os.scandir") and isinstance(arguments[0], str | os.PathLike):
        opened[Path(arguments[0]).parent.name] += 1


sys.addaudithook(count_opened)


def photographs(number: int) -> list[Instance]:
    return [Instance(f"{n:05d}", f"{n:05d}.png", "0" * 64, 64, 64, 4, 1) for n in range(number)]


def make_run(path: Path, number: int, **workers: int) -> Run:
    recipe = Recipe.from_dict(
        {"name": "far", "source": {"path": "/nowhere"}, "optimizer": {"steps": 1000}, "workers": {"batch": 1} | workers}
    )
    return Run.create(path, recipe, photographs(number), {})


def finish(run: Run, instance: Instance) -> None:
    run.append_metrics(instance.id, {"event": "start", "step": 0, **this_process()})
    run.write_patches(
        instance, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {"steps": 1000, "held_out": 1.0, "held_out_random": 1.0}
    )
    run.append_metrics(instance.id, {"event": "end", "seconds": 1.0})


def test_speed_and_time_left_are_those_of_the_latest_lines(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3)
    finish(run, run.instances[0])
    follower = Follower(run)
    with run.claim("00001"):
        for line in (
            {"event": "start", "step": 0},
            {"event": "log", "step": 100, "seconds": 90.0, "pair": 4.0},
            {"event": "log", "step": 200, "seconds": 100.0, "pair": 3.0},
            {"event": "stop"},
            {"event": "start", "step": 150},
        ):
            run.append_metrics("00001", {**this_process(), **line})
        resumed = follower.status()["instances"][1]
        assert (resumed["state"], resumed["step"], resumed["resumed_from"]) == ("running", 150, 150)
        assert (resumed["steps_per_second"], resumed["eta_seconds"]) == (None, None), "two lines of different starts"
        run.append_metrics("00001", {"event": "log", "step": 200, "seconds": 30.0, "pair": 2.0})
        run.append_metrics("00001", {"event": "log", "step": 300, "seconds": 50.0, "pair": 1.0})
        found = follower.status()
    entry = found["instances"][1]
    assert (entry["step"], entry["steps_per_second"], entry["eta_seconds"]) == (300, 5.0, 140)
    assert (entry["host"], entry["pid"]) == (this_process()["host"], os.getpid())
    assert entry["last"] == {"seconds": 50.0, "pair": 1.0}
    assert (found["finished"], found["running"], found["waiting"], found["workers"]) == (1, 1, 1, 1)
    assert found["eta_seconds"] == (700 + 1000) / 5
    assert follower.status()["running"] == 0, "the claim is over"


def test_the_forecast_does_not_take_preparing_for_the_speed_of_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", 1)
    run.append_metrics("00000", {"event": "start", "step": 0, **this_process()})
    now = 0.0

    class Over:
        """A hundred seconds pass between two looks; the first 500 steps are logged after 600 s, then 100 per look."""

        looks = 0

        def wait(self, seconds: float) -> bool:
            nonlocal now
            now += 100
            self.looks += 1
            if self.looks > 5:
                run.append_metrics("00000", {"event": "log", "step": 100 * (self.looks - 1), "seconds": now})
            return self.looks == 8

    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    progress._lines(run, Over())  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert [("left" in line) for line in lines] == [False] * 6 + [True] * 2, "one line with steps has no speed yet"
    assert "70 %, 800 s, about 300 s left" in lines[-1], "300 steps left of 1,000, at one a second"


def test_a_step_that_hangs_is_seen(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1, log_every=100)
    metrics = run.path / "metrics" / "00000.jsonl"
    run.append_metrics("00000", {"event": "start", "step": 0})
    run.append_metrics("00000", {"event": "log", "step": 100, "seconds": 60.0})
    run.append_metrics("00000", {"event": "log", "step": 200, "seconds": 120.0})
    with run.claim("00000"):

        def silence(seconds: float) -> int | None:
            os.utime(metrics, (0, time.time() - seconds))
            return Follower(run).status()["instances"][0]["silent_seconds"]

        assert silence(SILENT_SECONDS + 30) is None, "a line a minute, and five minutes are not over"
        assert silence(400) == pytest.approx(400, abs=20)


def test_a_look_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", 300)
    for instance in run.instances[:290]:
        finish(run, instance)
    follower = Follower(run)
    first = follower.status()
    assert (first["finished"], first["waiting"]) == (290, 10)
    finish(run, run.instances[290])
    opened.clear()
    checked: list[Instance] = []
    monkeypatch.setattr(run, "check_patches", checked.append)
    assert follower.status()["finished"] == 291
    assert checked == [run.instances[290]]
    assert opened["metrics"] == 1
    assert sum(opened.values()) < 20


def test_watching_ends_when_nothing_is_left(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3)
    states = []
    for found in idc_hub.watch(run.path, every=0.01):
        states.append((found.finished, found.failed, found.waiting))
        if len(states) < 3:
            finish(run, run.instances[len(states) - 1])
        else:
            run.record_failure(run.instances[2], "no memory")
    assert states == [(0, 0, 3), (1, 0, 2), (2, 0, 1), (2, 1, 0)]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """A worker whose photographs take no time."""
    import idc_hub.images.sources
    import idc_hub.networks.extractors

    class Nothing:
        network = None

    monkeypatch.setattr(idc_hub.networks.extractors, "load_extractor", lambda *_, **__: Nothing())
    monkeypatch.setattr(idc_hub.images.sources, "open_source", lambda **_: None)
    monkeypatch.setattr(worker, "condense_claimed", lambda run, taken, *_: finish(run, *taken))
    return lambda run: worker.work(run, torch.device("cpu"))


def test_what_a_worker_opens_does_not_depend_on_how_many_others_have_finished(
    tmp_path: Path, work: Callable[[Run], None]
) -> None:
    needed = []
    for number in (2, 400):
        run = make_run(tmp_path / f"run-{number}", number)
        for instance in run.instances[1:]:
            finish(run, instance)
        opened.clear()
        work(Run.open(run.path))
        needed.append(sum(opened.values()))
    assert needed[0] == needed[1]


def test_many_photographs_are_condensed_and_packed(tmp_path: Path, work: Callable[[Run], None]) -> None:
    run = make_run(tmp_path / "run", 500)
    work(run)
    assert pack(run, workers=1).manifest.patches == 500
    assert idc_hub.status(run.path).finished == 500
