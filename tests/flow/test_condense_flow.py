"""Real processes on real photographs: the same bytes whoever works, and whatever is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file
from skimage import data

from idc_hub.images.files import write_png
from tests import forked

IDC = [sys.executable, "-m", "idc_cli.main"]


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three crops of the photographs that scikit-image carries."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, (top, left) in {"astronaut": (0, 120), "coffee": (60, 150), "chelsea": (40, 60)}.items():
        pixels = getattr(data, name)()
        write_png(folder / f"{name}.png", pixels[top : top + 200, left : left + 240])
    return folder


def recipe(folder: Path, photographs: Path, *, steps: int = 40) -> Path:
    path = folder / "flow.yaml"
    path.write_text(
        f"""
name: flow
source: {{path: "{photographs}"}}
patches: {{size: 32, stride: 16, ratio: 0.2, min_per_image: 1}}
transform: {{kernel_size: 3, channels: 16}}
loss: {{frequencies: 32, bank_size: 2}}
assignment: {{groups: 4, events: 4, interval: 0.1}}
optimizer: {{steps: {steps}}}
workers: {{checkpoint_every: 5, log_every: 5}}
"""
    )
    return path


def idc(*arguments: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    result = forked.run([*map(str, arguments)], **options)
    assert not check or result.returncode == 0, result.stderr
    return result


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*IDC, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lr_bytes(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "instances").glob("*.safetensors"))}


def metrics(run: Path) -> list[dict[str, Any]]:
    texts = [path.read_text() for path in (run / "metrics").iterdir()]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def wait_for(condition: Callable[[], object], *, seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "work" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def under_way(run: Path) -> list[Path]:
    """Photographs that have a checkpoint and are not finished: a kill now hits the middle of an image."""
    return list((run / "partial").glob("*.safetensors"))


@pytest.fixture(scope="session")
def undisturbed(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Run of one worker that nothing interrupts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    idc(
        "condense", recipe(folder, photographs, steps=250), "--run-dir", folder / "run", "--num-processes", 1, "--quiet"
    )
    return folder / "run"


def test_a_run_holds_patches_and_a_dataset_that_loads(undisturbed: Path) -> None:
    status = json.loads(idc("status", undisturbed, "--json").stdout)
    assert status["finished"] == status["photographs"] == 3
    assert all(entry["resumed_from"] == 0 for entry in status["instances"])
    patches = {
        name: load_file(undisturbed / "instances" / f"{name}.safetensors")[name] for name in ("astronaut", "coffee")
    }
    assert all(tensor.shape[1:] == (3, 32, 32) for tensor in patches.values())
    code = (
        "import sys, datasets\nds = datasets.load_dataset(sys.argv[1], split='train', cache_dir=sys.argv[2])\n"
        "print(len(ds), ds[0]['lr'].size, ds[0]['hr'].size, ds[0]['instance_id'], ds[0]['patch_index'])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code, str(undisturbed / "repo"), str(undisturbed / "cache")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.split("\n")[0] == f"{status['patches']} (32, 32) (128, 128) astronaut 0"


def test_two_workers_write_the_same_bytes_as_one(undisturbed: Path, photographs: Path, tmp_path: Path) -> None:
    made = idc(
        "condense",
        recipe(tmp_path, photographs, steps=250),
        "--run-dir",
        tmp_path / "run",
        "--num-processes",
        2,
        "--json",
    )
    pids = {line["pid"] for line in metrics(tmp_path / "run") if line["event"] == "start"}
    assert len(pids) == 2, "one worker did everything"
    assert lr_bytes(tmp_path / "run") == lr_bytes(undisturbed)
    index = json.loads((undisturbed / "repo/lr/lr.safetensors.index.json").read_text())
    assert json.loads(made.stdout)["lr_digest"] == index["metadata"]["lr_digest"]


@pytest.mark.parametrize("victim", ["the only worker", "one of two workers", "idc itself"])
def test_kill_9_in_the_middle_of_an_image_costs_nothing_finished(
    victim: str, undisturbed: Path, photographs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    number = 1 if victim == "the only worker" else 2
    command = ("condense", recipe(tmp_path, photographs, steps=250), "--run-dir", run, "--num-processes", number)
    process = start(*command)
    wait_for(lambda: under_way(run))
    family = psutil.Process(process.pid).children(recursive=True)
    if victim == "one of two workers":
        # One whose photograph has a checkpoint: the other may not have come so far.
        checkpoint = next((run / "partial").glob("[!.]*.safetensors"))
        lines = (run / "metrics" / f"{checkpoint.stem}.jsonl").read_text().splitlines()
        worker = next(line["pid"] for line in map(json.loads, lines) if line["event"] == "start")
        assert worker in {process.pid for process in family}
        os.kill(worker, signal.SIGKILL)
        assert process.wait(timeout=120) == 0, "one dead worker ended the others"
    else:
        process.kill()
        process.wait(timeout=60)
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in family), seconds=30)
    interrupted = json.loads(idc("status", run, "--json").stdout)
    if victim != "one of two workers":
        assert interrupted["interrupted"] >= 1
        assert interrupted["running"] == 0, "somebody still holds a lock"
        again = idc(*command)
        assert again.returncode == 0
        assert "was killed, perhaps for lack of memory" in " ".join(again.stderr.split())
    resumed = json.loads(idc("status", run, "--json").stdout)
    assert any(entry["resumed_from"] > 0 for entry in resumed["instances"])
    assert lr_bytes(run) == lr_bytes(undisturbed)


def test_ctrl_c_while_a_photograph_is_prepared_does_not_wait_for_its_first_step(
    photographs: Path, tmp_path: Path
) -> None:
    long = ("loss.bank_size=256", "loss.frequencies=1024", "transform.channels=64", "workers.log_every=1")
    run = tmp_path / "run"
    process = start("condense", recipe(tmp_path, photographs), *long, "--run-dir", run, "--num-processes", 1)
    wait_for(lambda: (run / "metrics").is_dir() and any((run / "metrics").iterdir()))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    assert {line["event"] for line in metrics(run)} <= {"start", "stop"}
    assert not under_way(run)


def test_ctrl_c_saves_the_state_and_exits_130(undisturbed: Path, photographs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("condense", recipe(tmp_path, photographs, steps=250), "--run-dir", run, "--num-processes", 1)
    process = start(*command)
    wait_for(lambda: under_way(run))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    idc(*command)
    assert lr_bytes(run) == lr_bytes(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_saves_the_state_of_all_workers(
    workers: int, number: signal.Signals, photographs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start("condense", recipe(tmp_path, photographs, steps=4000), "--run-dir", run, "--num-processes", workers)
    wait_for(lambda: under_way(run))
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    assert not any(child.is_running() and child.status() != "zombie" for child in family)
    stops = [line for line in metrics(run) if line["event"] == "stop"]
    assert stops, "no worker saved its state"


def test_running_a_finished_run_again_changes_nothing(undisturbed: Path, photographs: Path, tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in undisturbed.rglob("*")
            if path.is_file() and "cache" not in path.parts
        }

    before = files()
    idc("condense", recipe(tmp_path, photographs, steps=250), "--run-dir", undisturbed, "--num-processes", 1, "--quiet")
    after = files()
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


def test_a_run_of_another_recipe_is_refused_with_the_keys_that_differ(
    undisturbed: Path, photographs: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, photographs, steps=250)
    before = lr_bytes(undisturbed)
    refused = idc("condense", path, "loss.alpha=0.5", "seed=3", "--run-dir", undisturbed, check=False)
    assert refused.returncode == 2
    assert "loss.alpha 0.2 -> 0.5" in " ".join(refused.stderr.split())
    assert "seed 0 -> 3" in " ".join(refused.stderr.split())
    assert lr_bytes(undisturbed) == before


def test_other_photographs_are_refused_by_name(undisturbed: Path, photographs: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for name in ("astronaut", "coffee"):
        (fewer / f"{name}.png").write_bytes((photographs / f"{name}.png").read_bytes())
    refused = idc("condense", recipe(tmp_path, fewer, steps=250), "--run-dir", undisturbed, check=False)
    assert refused.returncode == 2
    assert "missing now: chelsea" in " ".join(refused.stderr.split())


def test_a_corrupted_instance_file_is_named_and_costs_that_photograph_only(photographs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("condense", recipe(tmp_path, photographs), "--run-dir", run, "--num-processes", 1, "--quiet")
    idc(*command)
    good = lr_bytes(run)
    damaged = run / "instances" / "coffee.safetensors"
    flipped = bytearray(good["coffee.safetensors"])
    flipped[-100] ^= 255
    for content in (bytes(flipped), good["coffee.safetensors"][:50], b""):
        damaged.write_bytes(content)
        status = json.loads(idc("status", run, "--json").stdout)
        assert (status["damaged"], status["finished"]) == (1, 2)
        others = [run / "instances" / f"{name}.safetensors" for name in ("astronaut", "chelsea")]
        times = [path.stat().st_mtime_ns for path in others]
        again = idc(*command)
        assert "coffee.safetensors is damaged" in " ".join(again.stderr.split())
        assert lr_bytes(run) == good
        assert [path.stat().st_mtime_ns for path in others] == times


def test_a_photograph_that_fails_is_recorded_and_the_others_are_kept(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in photographs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    run = tmp_path / "run"
    command = ("condense", recipe(tmp_path, folder, steps=250), "--run-dir", run, "--num-processes", 1)
    process = start(*command)
    wait_for(lambda: under_way(run))
    original = (folder / "coffee.png").read_bytes()
    (folder / "coffee.png").write_bytes((folder / "astronaut.png").read_bytes())
    assert process.wait(timeout=120) == 3
    status = json.loads(idc("status", run, "--json").stdout)
    assert (status["failed"], status["finished"]) == (1, 2)
    (folder / "coffee.png").write_bytes(original)
    idc(*command)
    assert json.loads(idc("status", run, "--json").stdout)["finished"] == 3
