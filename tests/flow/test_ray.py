"""`idc launch ray` on a cluster of three nodes on this machine, each with processes of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flow.test_condense_flow import IDC, idc, lr_bytes, metrics, photographs, recipe, undisturbed, wait_for

__all__ = ["photographs", "undisturbed"]

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs the extra `ray`")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster whose head has no cores; its nodes find modules in the test's folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield made
    made.shutdown()


def start(run: Path, spec: Path, cluster: Any, workers: int) -> subprocess.Popen[str]:
    command = [*IDC, "launch", "ray", str(spec), "--run-dir", str(run), "--workers", str(workers), "--quiet"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [*command, "--address", cluster.address], env=environment, stderr=subprocess.PIPE, text=True
    )


def kill(node: Any) -> None:
    """End a node as a power cut does: every process at once, without a word."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in [*raylet.children(recursive=True), raylet]:
        process.kill()


def test_a_node_is_killed_and_one_joins_and_the_bytes_are_those_of_one_worker(
    cluster: Any, photographs: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    launched = start(run, recipe(tmp_path, photographs, steps=250), cluster, 2)
    wait_for(lambda: len(list((run / "partial").glob("*.safetensors"))) == 2)
    kill(nodes[0])
    cluster.add_node(num_cpus=1)
    assert launched.wait(timeout=200) == 0, launched.stderr and launched.stderr.read()
    assert lr_bytes(run) == lr_bytes(undisturbed)
    starts = [line for line in metrics(run) if line["event"] == "start"]
    assert len(starts) > 3, "nothing was killed"
    assert any(line["step"] for line in starts), "it began again instead of continuing at a checkpoint"
    assert (run / "repo" / "idc.json").is_file()
    assert json.loads(idc("status", run, "--json").stdout)["finished"] == 3


def test_an_interrupted_launch_keeps_its_checkpoints(
    cluster: Any, photographs: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    spec = recipe(tmp_path, photographs, steps=250)
    cluster.add_node(num_cpus=1)
    launched = start(run, spec, cluster, 1)
    wait_for(lambda: list((run / "partial").glob("*.safetensors")))
    launched.send_signal(signal.SIGTERM)
    assert launched.wait(timeout=60) == 143
    assert list((run / "partial").glob("*.safetensors"))
    assert not list((run / "locks").glob("*.json"))
    idc("condense", spec, "--run-dir", run, "--num-processes", 1, "--quiet")
    assert lr_bytes(run) == lr_bytes(undisturbed)


def test_a_photograph_that_fails_on_a_node_is_named(cluster: Any, photographs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    spec = recipe(tmp_path, photographs, steps=20)
    (tmp_path / "odd.py").write_text(
        "from torch import nn\n"
        "class Odd(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = nn.Conv2d(3, 16, 3, padding=1)\n"
        "    def forward(self, x):\n"
        "        if x.mean() > 0.55:\n            raise KeyError('bright')\n"
        "        return self.conv(x)\n"
        "def build(scale):\n    return Odd()\n"
    )
    cluster.add_node(num_cpus=1)
    changed = ("features.network=odd:build", "features.layer=conv", "optimizer.initial=real")
    options = ("--run-dir", run, "--workers", 1, "--quiet", "--address", cluster.address)
    failed = idc("launch", "ray", spec, *changed, *options, check=False)
    assert failed.returncode == 3, failed.stderr
    assert "KeyError: 'bright'" in failed.stderr
    failures = [json.loads(path.read_text()) for path in (run / "failed").iterdir()]
    assert {failure["attempts"] for failure in failures} == {2}
    assert len(list((run / "instances").iterdir())) == 3 - len(failures) > 0
