"""The Run directory: claims, damaged and half-made files, and what an interrupted start leaves behind."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from idc_hub.errors import IncompleteError, Interrupted, RecipeError, RunError
from idc_hub.images.sources import Instance
from idc_hub.recipe import Recipe
from idc_hub.runs import claims
from idc_hub.runs.claims import Lock, claim, claimed_by_others, living_holder
from idc_hub.runs.follow import Follower
from idc_hub.runs.launch import cores, default_num_processes
from idc_hub.runs.run import DamagedError, Run
from idc_hub.runs.worker import stop_on_signal

PHOTOGRAPHS = [Instance(name, f"{name}.png", name * 64, 64, 64, patches=9, count=2) for name in ("a", "b")]


def recipe(**changes: Any) -> Recipe:
    return Recipe.from_dict({"name": "unit", "source": {"path": "photographs"}, "scale": 4, **changes})


def patches(seed: int) -> torch.Tensor:
    return torch.randint(256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", recipe(), PHOTOGRAPHS, {})


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that answers every request for a lock with an error."""

    class Refused:
        def __init__(self, *args: object, **options: object) -> None:
            pass

        def __enter__(self) -> None:
            raise OSError(37, "No locks available")

        def __exit__(self, *args: object) -> None:
            raise AssertionError("it was never entered")

    monkeypatch.setattr(claims, "FileLock", Refused)


def held(folder: Path, *, host: str, pid: int, age: float) -> Path:
    path = folder / "a.json"
    path.write_text(json.dumps({"host": host, "pid": pid, "time": time.time() - age}))
    return path


@pytest.fixture
def dead_pid() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_claim_is_exclusive_and_leaves_no_heartbeat(tmp_path: Path) -> None:
    with claim(tmp_path, "a") as first, claim(tmp_path, "a") as second, claim(tmp_path, "b") as other:
        assert (first, second, other) == (True, False, True)
        assert living_holder(tmp_path, "a")
    assert not living_holder(tmp_path, "a")
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(("age", "free"), [(0, False), (100, False), (140, True)])
def test_without_locks_a_claim_of_another_node_is_free_after_two_minutes(
    age: float, free: bool, no_locks: None, tmp_path: Path
) -> None:
    held(tmp_path, host="another-node", pid=os.getpid(), age=age)
    assert bool(living_holder(tmp_path, "a")) == claimed_by_others(tmp_path) == (not free)
    with claim(tmp_path, "a") as mine:
        assert mine == free


def test_without_locks_a_dead_process_of_this_machine_holds_nothing(
    no_locks: None, dead_pid: int, tmp_path: Path
) -> None:
    held(tmp_path, host=platform.node(), pid=dead_pid, age=0)
    assert not living_holder(tmp_path, "a")
    with claim(tmp_path, "a") as mine:
        assert mine
    held(tmp_path, host=platform.node(), pid=os.getppid(), age=0)
    with claim(tmp_path, "a") as mine:
        assert not mine


def test_a_heartbeat_is_refreshed_and_left_to_whoever_took_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.05)
    path = tmp_path / "a.json"
    with claim(tmp_path, "a"):
        first = json.loads(path.read_text())["time"]
        end = time.monotonic() + 10
        while json.loads(path.read_text())["time"] == first and time.monotonic() < end:
            time.sleep(0.02)
        assert json.loads(path.read_text())["time"] > first
        held(tmp_path, host="another-node", pid=1, age=0)
        time.sleep(0.3)
        assert json.loads(path.read_text())["host"] == "another-node"
    assert path.is_file()


def test_the_first_finished_file_stands(run: Run) -> None:
    run.write_patches(PHOTOGRAPHS[0], patches(0), {"steps": 1})
    run.write_patches(PHOTOGRAPHS[0], patches(1), {"steps": 2})
    assert torch.equal(run.read_patches(PHOTOGRAPHS[0]), patches(0))
    assert [path.name for path in (run.path / "instances").iterdir()] == ["a.safetensors"]


def test_without_hard_links_the_first_finished_file_stands(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_the_first_finished_file_stands(run)


@pytest.mark.parametrize("place", range(0, 4000, 37))
def test_no_flipped_bit_of_a_checkpoint_is_believed(place: int, run: Run) -> None:
    state = {"step": torch.tensor(7), "patches": torch.rand(2, 3, 8, 8), "adam.exp_avg": torch.rand(2, 3, 8, 8)}
    run.write_partial(PHOTOGRAPHS[0], state)
    path = run.path / "partial" / "a.safetensors"
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 4
    path.write_bytes(content)
    try:
        found = run.read_partial(PHOTOGRAPHS[0])
    except RunError:
        return
    assert found is not None
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_damaged_instance_file_is_shown_and_dropped(run: Run) -> None:
    run.write_patches(PHOTOGRAPHS[0], patches(0), {"steps": 1})
    path = run.instance_file("a")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    status = Follower(run).status()
    assert (status["damaged"], status["finished"], status["waiting"]) == (1, 0, 1)
    assert "a.safetensors is damaged" in status["instances"][0]["error"]
    assert "a.safetensors is damaged" in str(run.drop_damaged(PHOTOGRAPHS[0]))
    assert not path.exists()
    assert run.drop_damaged(PHOTOGRAPHS[0]) is None


@pytest.mark.filterwarnings("ignore")
def test_no_flipped_bit_of_an_instance_file_is_believed(run: Run) -> None:
    run.write_patches(PHOTOGRAPHS[0], patches(0), {"steps": 1, "nearest_real": [3.25, 4.5]})
    sound, facts = run.instance_file("a").read_bytes(), run.read_facts(PHOTOGRAPHS[0])
    for place in range(len(sound)):
        content = bytearray(sound)
        content[place] ^= 1 << place % 8
        run.instance_file("a").write_bytes(content)
        try:
            damage = run.drop_damaged(PHOTOGRAPHS[0])
        except RunError:
            continue
        if damage is None:
            found = run.read_facts(PHOTOGRAPHS[0])
            assert {key: found[key] for key in facts} == facts, place
            assert torch.equal(run.read_patches(PHOTOGRAPHS[0]), patches(0)), place


def test_a_sound_file_of_another_photograph_is_not_dropped(run: Run) -> None:
    run.write_patches(PHOTOGRAPHS[0], patches(0), {"steps": 1})
    run.instance_file("a").rename(run.instance_file("b"))
    with pytest.raises(RunError, match="belongs to another photograph"):
        run.drop_damaged(PHOTOGRAPHS[1])
    assert run.instance_file("b").is_file()


@pytest.mark.parametrize("left", [[], ["locks"], ["locks", "recipe.yaml", ".run.json.0123abcd.partial"]])
def test_an_interrupted_start_continues(left: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    for name in left:
        if name == "locks":
            (path / name).mkdir()
        else:
            (path / name).write_bytes(recipe().to_yaml().encode())
            os.utime(path / name, (0, 0))
    Run.create(path, recipe(), PHOTOGRAPHS, {})
    assert Run.open(path).instances == PHOTOGRAPHS
    assert not list(path.glob(".*"))


@pytest.mark.parametrize("name", ["recipe.yaml", "thesis.tex", "instances/a.safetensors", "repo/idc.json"])
def test_a_directory_with_files_of_somebody_else_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(RecipeError, match=f"has no run.json, but {name.split('/')[0]}"):
        Run.create(tmp_path / "run", recipe(), PHOTOGRAPHS, {})
    assert file.read_text() == "mine"
    assert sum(path.is_file() for path in (tmp_path / "run").rglob("*")) == 1


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml"])
def test_a_damaged_description_is_written_again_unless_something_else_was_finished(name: str, run: Run) -> None:
    run.write_patches(PHOTOGRAPHS[0], patches(0), {"steps": 1})
    whole = (run.path / name).read_bytes()
    (run.path / name).write_bytes(whole[: whole.rindex(b":")])  # what is left is neither JSON nor YAML
    with pytest.raises(DamagedError, match=f"{name} is damaged"):
        Run.open(run.path)
    with pytest.raises(RecipeError, match=r"another recipe or from other photographs: a\.safetensors"):
        Run.create(run.path, recipe(seed=1), PHOTOGRAPHS, {})
    with pytest.raises(RecipeError, match=r"another recipe or from other photographs: a\.safetensors"):
        Run.create(run.path, recipe(), PHOTOGRAPHS[1:], {})
    Run.create(run.path, recipe(), PHOTOGRAPHS, {})
    assert Run.open(run.path).instances == PHOTOGRAPHS
    assert torch.equal(run.read_patches(PHOTOGRAPHS[0]), patches(0))


def test_a_photograph_is_tried_twice(run: Run) -> None:
    run.record_failure(PHOTOGRAPHS[0], "KeyError: 'x'")
    assert not run.is_settled(PHOTOGRAPHS[0])
    run.record_failure(PHOTOGRAPHS[0], "KeyError: 'y'")
    assert run.is_settled(PHOTOGRAPHS[0])
    assert run.failure(PHOTOGRAPHS[0]) == "KeyError: 'y'"


def test_cores_are_those_of_the_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert cores() == 3
    assert default_num_processes(recipe(workers={"threads": 1}), 800) == 3
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert default_num_processes(recipe(workers={"threads": 1}), 800) == 1


def die_with(run: Run, pid: int) -> None:
    """Leave the claim of a process that was killed."""
    (run.path / "locks" / "a.json").write_text(json.dumps({"host": platform.node(), "pid": pid, "time": time.time()}))


def test_a_photograph_whose_process_dies_twice_from_the_same_checkpoint_fails(run: Run, dead_pid: int) -> None:
    first, second = PHOTOGRAPHS
    die_with(run, dead_pid)
    assert run.was_tried(first)
    assert not run.was_tried(second)
    with run.claim("a") as mine:
        assert mine
        run.write_partial(first, {"step": torch.tensor(5)})
    die_with(run, dead_pid)
    with run.claim("a"):
        assert not run.is_settled(first), "it had come further"
    die_with(run, dead_pid)
    with run.claim("a"):
        assert run.is_settled(first)
    with pytest.raises(IncompleteError, match=rf"a: The process that condensed it \({dead_pid} on .*\) was killed"):
        run.require_finished()
    run.clear_failures()
    assert not run.is_settled(first)


def test_what_died_after_the_file_was_written_is_no_failure(run: Run, dead_pid: int) -> None:
    run.write_patches(PHOTOGRAPHS[0], patches(0), {"steps": 1})
    die_with(run, dead_pid)
    with run.claim("a"):
        run.require_finished()


@pytest.mark.parametrize(
    ("error", "raised"), [(AttributeError("half imported"), Interrupted), (RunError("It is damaged."), RunError)]
)
def test_a_signal_that_a_package_swallowed_is_not_lost(error: Exception, raised: type[BaseException]) -> None:
    def work() -> None:
        with stop_on_signal() as stopping:
            stopping.at_once = True
            with suppress(Interrupted):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            raise error

    with pytest.raises(raised):
        work()


def test_what_a_kill_left_beside_a_finished_file_is_removed_and_nothing_else(run: Run) -> None:
    for instance in PHOTOGRAPHS:
        run.write_partial(instance, {"step": torch.tensor(5)})
        run.record_failure(instance, "KeyError: 'x'")
    (run.path / "instances" / "a.safetensors").touch()
    run.forget_work()
    assert [path.name for path in (run.path / "partial").iterdir()] == ["b.safetensors"]
    assert [path.name for path in (run.path / "failed").iterdir()] == ["b.json"]


def test_a_failure_that_is_written_after_another_process_has_finished_is_none(run: Run) -> None:
    run.write_patches(PHOTOGRAPHS[0], patches(0), {"steps": 1})
    run.record_failure(PHOTOGRAPHS[0], "The process that condensed it was killed.")
    run.require_finished()
    run.record_failure(PHOTOGRAPHS[1], "KeyError: 'x'")
    with pytest.raises(IncompleteError, match="1 of 2 photographs failed:\n  b: KeyError: 'x'"):
        run.require_finished()


def test_who_comes_late_clears_no_failures_and_restarts_nothing(run: Run) -> None:
    run.record_failure(PHOTOGRAPHS[1], "KeyError: 'x'")
    path = held(run.path / "locks", host="another-node", pid=1, age=0)
    run.clear_failures()
    assert run.failure(PHOTOGRAPHS[1]) == "KeyError: 'x'"
    with pytest.raises(RunError, match="Another process is working on"):
        Run.discard(run.path)
    assert Run.open(run.path).instances == PHOTOGRAPHS
    path.unlink()
    run.clear_failures()
    assert run.failure(PHOTOGRAPHS[1]) is None
    (run.path / "repo").symlink_to(run.path.parent, target_is_directory=True)
    Run.discard(run.path)
    assert list(run.path.iterdir()) == []
    Run.create(run.path, recipe(), PHOTOGRAPHS, {})


def test_a_lock_waits_says_for_whom_and_may_be_entered_again(tmp_path: Path) -> None:
    path = held(tmp_path, host="another-node", pid=77, age=0)
    threading.Timer(0.7, path.unlink).start()
    lock = Lock(tmp_path, "a", "the repository")
    with pytest.warns(UserWarning, match="Waiting for process 77 on another-node, which is writing the repository"):
        lock.__enter__()
    with lock:
        assert living_holder(tmp_path, "a")
    assert living_holder(tmp_path, "a")
    lock.__exit__()
    assert not living_holder(tmp_path, "a")


@pytest.mark.parametrize("odd", ["folder", "link"])
def test_a_lock_that_is_no_file_leaves_the_decision_to_the_heartbeat(odd: str, tmp_path: Path) -> None:
    if odd == "folder":
        (tmp_path / "a.lock").mkdir()
    else:
        (tmp_path / "a.lock").symlink_to(tmp_path / "elsewhere")
    with claim(tmp_path, "a") as mine:
        assert mine
    assert not (tmp_path / "elsewhere").exists()
    held(tmp_path, host="another-node", pid=1, age=0)
    with claim(tmp_path, "a") as mine:
        assert not mine


def test_a_heartbeat_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(IncompleteError, match=r"a\.json could not be written"), claim(tmp_path, "a"):
        pass


def test_an_instance_file_that_is_a_folder_is_refused(run: Run) -> None:
    run.instance_file("a").mkdir()
    with pytest.raises(RunError, match=r"a\.safetensors is not a file"):
        run.drop_damaged(PHOTOGRAPHS[0])
    with pytest.raises(IncompleteError, match="could not be written"):
        run.write_patches(PHOTOGRAPHS[0], patches(0), {"steps": 1})


def test_an_id_that_leads_out_of_the_run_is_damage(run: Run) -> None:
    text = (run.path / "run.json").read_text()
    (run.path / "run.json").write_text(text.replace('"id": "a"', '"id": "../../a"'))
    with pytest.raises(DamagedError, match="is no id of a photograph"):
        Run.open(run.path)


def test_a_torn_line_of_metrics_hides_no_other(run: Run) -> None:
    run.append_metrics("a", {"event": "start", "step": 0})
    with (run.path / "metrics" / "a.jsonl").open("ab") as file:
        file.write(b'{"event": "lo')
    run.append_metrics("a", {"event": "start", "step": 5})
    assert [line["step"] for line in run.read_metrics("a")] == [0, 5]
    assert Follower(run).status()["instances"][0]["resumed_from"] == 5


def test_a_process_ends_with_the_one_that_started_its_launcher() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    wait = "import time; from idc_hub.runs.worker import end_with_parent; end_with_parent(); time.sleep(120)"
    left = subprocess.run([sys.executable, "-c", wait], env={**os.environ, "IDC_PARENT": str(gone.pid)}, check=False)
    assert left.returncode == 128 + signal.SIGTERM
