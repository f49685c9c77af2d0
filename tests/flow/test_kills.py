"""Every command, disturbed at random and run again, ends like one that nothing disturbed: `make test-long`.

A disturbance is a signal at a random moment, a kill at a call of the system that changes files, or an error of such a
call. `IDC_LONG` is their number, `IDC_SEED` the seed. Commands run in forks of a process that has imported everything,
since starting Python would take most of the time.
"""

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from skimage import data

from idc_hub.images.files import write_png

KILLS = int(os.environ.get("IDC_LONG", "0"))
SEED = int(os.environ.get("IDC_SEED", "0"))
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CALLS = ("mkdir", "replace", "rename", "link", "unlink", "rmdir", "fsync")
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
RECIPE = """
name: flow
source: {{path: "{photographs}"}}
patches: {{size: 32, stride: 16, ratio: 0.2, min_per_image: 1}}
transform: {{kernel_size: 3, channels: 16}}
loss: {{frequencies: 32, bank_size: 2}}
assignment: {{groups: 4, events: 4, interval: 0.1}}
optimizer: {{steps: 40}}
workers: {{checkpoint_every: 5, log_every: 5, threads: 1}}
teacher: {{network: bicubic}}
"""
PLAN = """
name: tiny
source: {photographs}
set: [patches.size=24, patches.stride=24]
ratios: [0.2]
hr: {{bicubic: bicubic, real: real}}
sets: {{random: {{method: random, hr: [bicubic, real]}}}}
students: [edsr-small]
training: {{steps: 2, batch_size: 2, crop: 8, log_every: 1, checkpoint_every: 1}}
seeds: [0]
testsets: [{photographs}]
"""
DIFFERING = ("worker_seconds", "workers", "seconds", "created", "learning_rates", "date")
"""Facts about how a result was made, which a kill may change; everything else must be equal."""


class Command:
    """A command line with the folder that it writes to, and what it leaves there undisturbed."""

    def __init__(self, name: str, *arguments: object) -> None:
        self.name = name
        self.arguments = list(map(str, arguments))
        self.before: Path | None = None
        self.expected: dict[str, Any] = {}
        self.seconds = 0.0
        self.calls = 0

    def start(self, out: Path, *, at: int = 0, fault: int = 0) -> int:
        """Run the command in a fork; returns the process id.

        Args:
            out: The folder that it writes to.
            at: Which of the `CALLS` to disturb; 0: none.
            fault: The error that the call ends with; 0: the process is killed instead.
        """
        line = [argument.replace("OUT", str(out)) for argument in self.arguments]
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)  # pytest-timeout's
            for number in set(SIGNALS):
                signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with (out.parent / "output").open("ab") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            if line[0] == "torchrun":
                from torch.distributed.run import main
            else:
                from idc_cli.main import main

            _disturb(at, fault, out.parent / "calls")
            sys.argv = line if line[0] == "torchrun" else ["idc", *line]
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else bool(ended.code)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _disturb(at: int, fault: int, count: Path) -> None:
    """Disturb this process at one of its `CALLS`, and count them in the size of a file."""

    def disturbed(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            with count.open("ab") as file:
                file.write(b".")
            if at and count.stat().st_size == at:
                if not fault:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(fault, os.strerror(fault), str(arguments[0]))
            return real(*arguments, **options)

        return call

    count.unlink(missing_ok=True)
    for name in CALLS:
        setattr(os, name, disturbed(getattr(os, name)))


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def without(facts: Any) -> Any:
    if isinstance(facts, dict):
        return {key: without(value) for key, value in facts.items() if key not in DIFFERING}
    return [without(value) for value in facts] if isinstance(facts, list) else facts


def left(out: Path) -> dict[str, Any]:
    """What a command left behind: bytes, and for facts about how it was made, those that a kill may not change."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        # Locks, logs of the work and other state that no result consists of.
        if not path.is_file() or any(part in ("locks", "metrics", ".training") for part in path.parts):
            continue
        if path.suffix in (".lock", ".log", ".partial") or name.startswith(".") or "/." in name:
            continue
        if name.endswith("-seconds.png"):  # a plot against the time that the work took
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            found[name] = without(json.loads(content))
        elif name.endswith("training.yaml"):
            found[name] = without(yaml.safe_load(content))
        elif path.suffix == ".jsonl":
            found[name] = [json.loads(line)["step"] for line in content.splitlines()]
        elif path.suffix == ".md":
            # The card and the table name the time that the work took, and the card's marker is a digest of it.
            lines = content.decode().splitlines()
            found[name] = [line for line in lines if not any(sign in line for sign in (" min ", "-->", "| CPU"))]
        else:
            found[name] = content
    return found


@pytest.mark.skipif(not KILLS, reason="takes minutes: `make test-long`")
def test_no_kill_costs_anything(tmp_path: Path) -> None:
    import idc_cli.main  # noqa: F401
    import idc_hub

    for verb in idc_hub.__all__:
        getattr(idc_hub, verb)  # imports everything
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name, (top, start) in {"astronaut": (0, 120), "coffee": (60, 150), "chelsea": (40, 60)}.items():
        write_png(photographs / f"{name}.png", getattr(data, name)()[top : top + 160, start : start + 160])
    (tmp_path / "flow.yaml").write_text(RECIPE.format(photographs=photographs))
    (tmp_path / "plan.yaml").write_text(PLAN.format(photographs=photographs))
    condense = ("condense", tmp_path / "flow.yaml", "--run-dir", "OUT", "--quiet", "--num-processes")
    select = ("select", "cf-greedy", photographs, "--run-dir", "OUT", "--quiet")
    small = ("batch_size=2", "crop=8", "steps=12", "checkpoint_every=2", "log_every=1")
    train = ("train", "edsr-small", "--data", photographs, "--out", "OUT", *small, "--num-processes")
    commands = [
        Command("condense, 1 worker", *condense, 1),
        Command("condense, 2 workers", *condense, 2),
        Command(
            "condense, torchrun", "torchrun", "--standalone", "--nproc-per-node=2", "-m", "idc_cli.main", *condense, 1
        ),
        Command("select", *select, "patches.size=32", "patches.stride=32"),
        Command("regenerate", "regenerate", "OUT", "--teacher", "bicubic", "--name", "again", "--quiet"),
        Command("train, 1 process", *train, 1, "--quiet"),
        Command("train, 2 processes", *train, 2, "--quiet"),
        Command("benchmark", "benchmark", tmp_path / "plan.yaml", "--out", "OUT", "--quiet"),
    ]
    weights = (6, 1, 1, 4, 5, 5, 1, 2)
    for number, command in enumerate(commands):
        folder = tmp_path / f"undisturbed-{number}"
        folder.mkdir()
        if command.name == "regenerate":
            command.before = tmp_path / "undisturbed-0" / "run"
            shutil.copytree(command.before, folder / "run")
        begun = time.monotonic()
        assert wait(command.start(folder / "run")) == 0, (folder / "output").read_text()
        command.seconds = time.monotonic() - begun
        command.calls = (folder / "calls").stat().st_size
        command.expected = left(folder / "run")
        print(f"{command.name}: {command.seconds:.1f} s undisturbed, {command.calls} calls", flush=True)

    rng = random.Random(SEED)
    tries: Counter[str] = Counter()
    faults = []
    begun, rounds = time.monotonic(), 0
    while sum(tries.values()) < KILLS:
        command = rng.choices(commands, weights)[0]
        folder = tmp_path / f"round-{rounds}"
        rounds += 1
        folder.mkdir()
        if command.before:
            shutil.copytree(command.before, folder / "run")
        codes = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            kind = rng.choice(("signal", "signal", "kill at a call", "error of a call"))
            tries[f"{command.name}: {kind}"] += 1
            if kind == "signal":
                number = rng.choice(SIGNALS)
                pid = command.start(folder / "run")
                time.sleep(rng.random() * command.seconds)
                os.kill(pid, number)
                codes.append((number.name, wait(pid)))
            else:
                fault = rng.choice(ERRORS) if kind == "error of a call" else 0
                at = rng.randint(1, command.calls)
                codes.append(
                    (errno.errorcode.get(fault, f"call {at}"), wait(command.start(folder / "run", at=at, fault=fault)))
                )
        code = wait(command.start(folder / "run"))
        output = (folder / "output").read_text(errors="replace")
        found = left(folder / "run")
        differing = sorted(
            name for name in command.expected.keys() | found.keys() if command.expected.get(name) != found.get(name)
        )
        if code or differing or "Traceback" in output or "This is a bug" in output:
            faults.append(f"{command.name}, {codes}: exit {code}, differing {differing}, in {folder}")
            print(faults[-1], output[-1500:], sep="\n", flush=True)
        else:
            print(f"{sum(tries.values())}/{KILLS} {command.name} {codes}", flush=True)
            shutil.rmtree(folder)
    print(f"{dict(tries)}: {rounds} rounds, {time.monotonic() - begun:.0f} s, {len(faults)} faults", flush=True)
    assert not faults
