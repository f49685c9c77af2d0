"""`idc train` as people type it: on one process and on two, interrupted, and on everything that it takes for data."""

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
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from skimage import data

from idc_hub.images.files import write_png
from tests import forked
from tests.flow.hub_tools import REPOSITORY, Client, make_repository
from tests.hub_server import HubServer

IDC = [sys.executable, "-m", "idc_cli.main"]
SMALL = ["batch_size=4", "crop=8", "learning_rate=1e-3", "log_every=1"]


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of two photographs that scikit-image carries."""
    folder = tmp_path_factory.mktemp("photographs")
    write_png(folder / "astronaut.png", data.astronaut()[:96, 180:280])
    write_png(folder / "coffee.png", data.coffee()[100:200, 200:320])
    return folder


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny x2 network, so that the processes' own start is all that takes time."""
    import torch

    from idc_hub import networks
    from idc_hub.networks.edsr import EDSR

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start") / "tiny"
    networks.save(EDSR(channels=8, blocks=1, scale=2), folder)
    return folder


def environment(**more: str) -> dict[str, str]:
    paths = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'cli'}"
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | more


def train(network: object, source: object, out: Path, *options: object, **more: str) -> dict[str, Any]:
    line = ["train", network, "--data", source, "--out", out, "--scale", 2, "--json", *SMALL, *options]
    result = forked.run(list(map(str, line)), env=environment(**more))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout) | {"stderr": result.stderr}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_the_network_that_one_trains(photographs: Path, start: Path, tmp_path: Path) -> None:
    """The same global batch, in two parts on each process; all that differs is the order of sums."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(start, photographs, one, "steps=4", "accumulate=2")
    (tmp_path / "tmp").mkdir()
    more = ("--num-processes", 2)
    said = train(start, photographs, two, "steps=4", "accumulate=2", *more, TMPDIR=str(tmp_path / "tmp"))
    assert "step 4/4" in said["stderr"]
    before = load_file(start / "model.safetensors")
    weights = [load_file(folder / "model.safetensors") for folder in (one, two)]
    for key, value in weights[0].items():
        assert (weights[1][key] - value).abs().max() < 1e-5
        assert (value - before[key]).abs().max() > 1e-4, "and it did train"
    losses = [[line["loss"] for line in metrics(folder)] for folder in (one, two)]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)

    facts = [yaml.safe_load((folder / "training.yaml").read_text()) for folder in (one, two)]
    assert [fact["device"] for fact in facts] == ["1 x CPU", "2 x CPU"]
    assert facts[0]["data"] == facts[1]["data"]
    assert (facts[0]["data"]["photographs"], facts[0]["data"]["pairs"]) == (photographs.name, 2)
    names = {"config.json", "metrics.jsonl", "model.safetensors", "training.yaml"}
    assert {path.name for path in two.iterdir()} == names, "nothing is left of what the processes needed"
    assert not list((tmp_path / "tmp").glob("torchelastic*"))


def test_two_processes_that_are_stopped_continue(photographs: Path, start: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", ["steps=120", "checkpoint_every=100", "--num-processes", 2]
    line = [*IDC, "train", start, "--data", photographs, "--out", out, "--scale", 2, *SMALL, *options]
    process = subprocess.Popen(list(map(str, line)), stderr=subprocess.PIPE, text=True, env=environment())
    try:
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() or len(metrics(out)) < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "error: interrupted (SIGTERM). Run the same command again: it continues" in said
    assert not psutil.wait_procs(family, timeout=30)[1], "no process is left behind"
    assert not (out / "model.safetensors").exists()

    with safe_open(out / "checkpoint.safetensors", "pt") as file:
        saved = json.loads(json.loads(file.metadata()["idc"])["facts"])["step"]
    assert saved == metrics(out)[-1]["step"] < 100, "saved at the signal, long before the next checkpoint"
    told = train(start, photographs, out, *options)["stderr"]
    assert "step 1/120" not in told
    assert "step 120/120" in told
    assert [line["step"] for line in metrics(out)] == list(range(1, 121))


def test_what_goes_wrong_in_the_processes_is_the_sentence_that_one_would_say(
    photographs: Path, start: Path, tmp_path: Path
) -> None:
    line = ["train", start, "--data", photographs, "--out", tmp_path / "out", "--scale", 2, *SMALL]
    options = ["--num-processes", 2, "learning_rate=1e30", "log_every=50", "steps=20", "checkpoint_every=1"]
    result = forked.run(list(map(str, [*line, *options])), env=environment())
    assert result.returncode == 1
    said = " ".join(result.stderr.split())
    # The first step is one of finite numbers, if of large ones.
    assert "diverged: NaN or Inf from step 2 on. The same command with a lower learning_rate (it is 1e+30)" in said
    assert "continues from the checkpoint of step 1 (or remove that, to start again)." in said
    assert "Traceback" not in result.stderr


def test_a_condensed_set_on_the_hub_trains_with_one_command(
    hub: HubServer, alice: Client, make_client: Callable[..., Client], start: Path, tmp_path: Path
) -> None:
    folder = make_repository(tmp_path / "repo", {"edsr": 0, "swinir-m": 1})
    alice("push", folder=folder, repo_id="alice/to-train", license="mit")
    client = hub.environment("hf_alice", tmp_path / "home")
    train(start, folder, tmp_path / "local", "steps=1", "--hr-version", "swinir-m")
    train(start, "alice/to-train", tmp_path / "hub", "steps=1", "--hr-version", "swinir-m", **client)
    facts = [yaml.safe_load((tmp_path / name / "training.yaml").read_text())["data"] for name in ("local", "hub")]
    assert facts[0]["condensed_set"] == "tiny-x2"
    assert (facts[1]["hub"], facts[1]["hr_version"], facts[1]["pairs"]) == ("alice/to-train", "swinir-m", 6)
    assert facts[0]["sha256"] == facts[1]["sha256"], "the same pixels"
    assert metrics(tmp_path / "local")[0]["loss"] == metrics(tmp_path / "hub")[0]["loss"]
