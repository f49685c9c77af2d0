"""Workers that are started, killed, suspended and damaged: what one held goes to the others."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.flow.test_condense_flow import (
    idc,
    lr_bytes,
    metrics,
    photographs,
    recipe,
    start,
    under_way,
    undisturbed,
    wait_for,
    workers_of,
)

__all__ = ["photographs", "undisturbed"]


def status_of(run: Path) -> dict[str, object]:
    return json.loads(idc("status", run, "--json").stdout)


@pytest.fixture
def begun(photographs: Path, tmp_path: Path) -> tuple[Path, tuple[object, ...]]:
    """A Run whose only worker was killed in its first photograph, and the command that made it."""
    run = tmp_path / "run"
    command = ("condense", recipe(tmp_path, photographs, steps=250), "--run-dir", run, "--num-processes", 1)
    process = start(*command)
    wait_for(lambda: under_way(run))
    process.kill()
    process.wait()
    return run, command


def test_workers_started_by_hand_share_a_run_and_the_environment_multiplies_nobody(
    begun: tuple[Path, tuple[object, ...]], undisturbed: Path
) -> None:
    run, command = begun
    environment = {**os.environ, "WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}
    launchers = [
        [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "-m", "idc_cli.main"],
        [sys.executable, "-m", "idc_cli.main"],
        [sys.executable, "-m", "idc_cli.main"],
    ]
    started = [
        subprocess.Popen([*launcher, "work", str(run), "--quiet"], env={**environment, "RANK": str(rank)})
        for rank, launcher in enumerate(launchers)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    assert lr_bytes(run) == lr_bytes(undisturbed)
    pids = {line["pid"] for line in metrics(run) if line["event"] == "start"}
    assert len(pids) <= 1 + len(started), "somebody started workers of its own"
    idc(*command)


def test_torchrun_starts_workers(begun: tuple[Path, tuple[object, ...]], undisturbed: Path) -> None:
    run, _ = begun
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    subprocess.run([*torchrun, "idc_cli.main", "work", str(run), "--quiet"], check=True, timeout=180)
    assert lr_bytes(run) == lr_bytes(undisturbed)


def test_a_personal_configuration_of_accelerate_changes_nothing(
    undisturbed: Path, photographs: Path, tmp_path: Path
) -> None:
    configuration = tmp_path / "home" / "accelerate" / "default_config.yaml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\nnum_machines: 2\nmachine_rank: 1\n"
        "main_process_ip: 192.0.2.1\nmain_process_port: 1\nnum_processes: 16\nmixed_precision: bf16\n"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "TMPDIR": str(temporary)}
    spec = recipe(tmp_path, photographs, steps=250)
    idc("condense", spec, "--run-dir", tmp_path / "run", "--num-processes", 2, "--quiet", env=environment)
    assert lr_bytes(tmp_path / "run") == lr_bytes(undisturbed)
    # torch keeps one cache for each user there; a launcher of several processes would add a folder of its own.
    assert not [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]


def test_a_second_ctrl_c_ends_everything_at_once(photographs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("condense", recipe(tmp_path, photographs, steps=4000), "--run-dir", run, "--num-processes", 2)
    wait_for(lambda: under_way(run))
    family = workers_of(process)
    for worker in family:
        worker.suspend()  # it cannot save and leave
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in family), seconds=10)


def test_nobody_is_left_behind_when_the_command_is_killed_while_workers_start(
    photographs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start("condense", recipe(tmp_path, photographs, steps=4000), "--run-dir", run, "--num-processes", 2)
    family = wait_for(lambda: workers_of(process))
    process.kill()
    process.wait()
    wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in family), seconds=60)


def test_what_a_dead_node_held_is_taken_when_its_heartbeat_is_old(
    begun: tuple[Path, tuple[object, ...]], undisturbed: Path
) -> None:
    run, command = begun
    names = ("astronaut", "coffee", "chelsea")
    for name, age in zip(names, (10, 200, 10), strict=True):
        heartbeat = {"host": "another-node", "pid": 1, "time": time.time() - age}
        (run / "locks" / f"{name}.json").write_text(json.dumps(heartbeat))
    assert status_of(run)["running"] == 2
    process = start(*command)
    wait_for(lambda: (run / "instances" / "coffee.safetensors").is_file())
    time.sleep(2)
    assert list(lr_bytes(run)) == ["coffee.safetensors"], "it took what another node holds"
    for name in names:
        (run / "locks" / f"{name}.json").unlink(missing_ok=True)
    assert process.wait(timeout=120) == 0
    assert lr_bytes(run) == lr_bytes(undisturbed)


def test_a_checkpoint_with_a_flipped_bit_is_dropped_by_name(
    begun: tuple[Path, tuple[object, ...]], undisturbed: Path
) -> None:
    run, command = begun
    checkpoint = under_way(run)[0]
    content = bytearray(checkpoint.read_bytes())
    content[-1000] ^= 1
    checkpoint.write_bytes(content)
    again = idc(*command)
    assert f"{checkpoint.name} is damaged" in " ".join(again.stderr.split())
    dropped = [line for line in metrics(run) if line["event"] == "dropped"]
    assert [f"{checkpoint.name} is damaged" in line["error"] for line in dropped] == [True]
    assert lr_bytes(run) == lr_bytes(undisturbed)


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 300])
def test_a_damaged_description_strands_nothing(
    name: str, content: bytes, undisturbed: Path, photographs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "instances").mkdir(parents=True)
    for file in ("run.json", "recipe.yaml", "instances/astronaut.safetensors", "instances/coffee.safetensors"):
        (run / file).write_bytes((undisturbed / file).read_bytes())
    (run / name).write_bytes(content)
    before = {path.name: path.stat().st_mtime_ns for path in (run / "instances").iterdir()}
    shown = idc("status", run, check=False)
    assert shown.returncode == 1
    assert f"{name} is damaged" in " ".join(shown.stderr.split())
    spec = recipe(tmp_path, photographs, steps=250)
    other = idc("condense", spec, "seed=1", "--run-dir", run, "--num-processes", 1, "--quiet", check=False)
    assert other.returncode == 2
    assert "astronaut.safetensors" in other.stderr
    idc("condense", spec, "--run-dir", run, "--num-processes", 1, "--quiet")
    assert lr_bytes(run) == lr_bytes(undisturbed)
    after = {path.name: path.stat().st_mtime_ns for path in (run / "instances").iterdir()}
    assert {key: after[key] for key in before} == before


def test_status_of_a_run_that_may_only_be_read(undisturbed: Path, tmp_path: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    assert status_of(undisturbed)["finished"] == 3
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == files


def test_an_unusual_error_fails_one_photograph_and_another_worker_tries_it_once_more(
    photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "odd.py").write_text(
        "from torch import nn\n"
        "class Odd(nn.Module):\n"
        "    calls = 0\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = nn.Conv2d(3, 16, 3, padding=1)\n"
        "    def forward(self, x):\n"
        "        if x.mean() > 0.55:\n            raise KeyError('bright')\n"
        "        return self.conv(x)\n"
        "def build(scale):\n    import torch\n    torch.manual_seed(0)\n    return Odd()\n"
    )
    spec = recipe(tmp_path, photographs, steps=20)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    overrides = ("features.network=odd:build", "features.layer=conv", "optimizer.initial=real")
    for workers in (1, 2):
        run = tmp_path / f"run-{workers}"
        command = ("condense", spec, *overrides, "--run-dir", run, "--num-processes", workers)
        failed = idc(*command, check=False, env=environment)
        assert failed.returncode == 3, failed.stderr
        assert "KeyError: 'bright'" in failed.stderr
        failures = [json.loads(path.read_text()) for path in (run / "failed").iterdir()]
        assert {failure["attempts"] for failure in failures} == {2}
        assert 0 < len(failures) < 3
        assert len(list((run / "instances").iterdir())) == 3 - len(failures)


def test_a_photograph_that_kills_its_process_ends_neither_the_run_nor_all_workers(
    photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os\nimport signal\nfrom torch import nn\n"
        "class Deadly(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = nn.Conv2d(3, 16, 3, padding=1)\n"
        "    def forward(self, x):\n"
        "        if x.mean() > 0.55 and 'IDC_PARENT' in os.environ:\n            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return self.conv(x)\n"
        "def build(scale):\n    import torch\n    torch.manual_seed(0)\n    return Deadly()\n"
    )
    spec = recipe(tmp_path, photographs, steps=20)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    overrides = ("features.network=deadly:build", "features.layer=conv", "optimizer.initial=real")
    failed = idc(
        "condense", spec, *overrides, "--run-dir", tmp_path / "run", "--num-processes", 3, check=False, env=environment
    )
    assert failed.returncode == 3, failed.stderr
    said = " ".join(failed.stderr.split())
    assert "was killed, perhaps for lack of memory" in said
    failures = [json.loads(path.read_text()) for path in (tmp_path / "run" / "failed").iterdir()]
    assert [failure["attempts"] for failure in failures] == [2]
    assert len(lr_bytes(tmp_path / "run")) == 2
    assert status_of(tmp_path / "run")["failed"] == 1


def test_a_run_is_watched_from_outside_until_it_is_finished_or_nobody_wants_to_know(
    begun: tuple[Path, tuple[object, ...]],
) -> None:
    run, command = begun
    watch = [sys.executable, "-m", "idc_cli.main", "status", str(run), "--watch"]
    patient, impatient = (subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) for _ in range(2))
    for process in (patient, impatient):
        assert process.stdout is not None
        assert process.stdout.readline() == "0/3 finished, 1 interrupted, 2 waiting\n"
    impatient.send_signal(signal.SIGINT)
    assert impatient.wait(timeout=60) == 0
    idc(*command)
    *_, last = patient.communicate(timeout=120)[0].splitlines()
    assert (patient.returncode, last) == (0, "3/3 finished")


def test_a_suspended_worker_does_not_hold_up_the_others(begun: tuple[Path, tuple[object, ...]]) -> None:
    run, _ = begun
    held = subprocess.Popen([sys.executable, "-m", "idc_cli.main", "work", str(run), "--quiet"])
    heartbeat = wait_for(lambda: list((run / "locks").glob("*.json")))[0]
    wait_for(lambda: held.pid == json.loads(heartbeat.read_text())["pid"])
    psutil.Process(held.pid).suspend()
    facts = json.loads(heartbeat.read_text())
    heartbeat.write_text(json.dumps({**facts, "time": facts["time"] - 200}))
    idc("work", run, "--quiet")
    finished = lr_bytes(run)
    assert len(finished) == 3
    held.send_signal(signal.SIGCONT)
    assert held.wait(timeout=120) == 0
    assert lr_bytes(run) == finished
