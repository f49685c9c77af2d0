"""benchmarks/gpu.py in its smallest form, on the CPU, so that it works where a GPU is at hand for minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from idc_hub.images.files import write_png

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def gpu(*arguments: object) -> None:
    command = [sys.executable, BENCHMARKS / "gpu.py", *map(str, arguments)]
    path = os.pathsep.join([str(BENCHMARKS.parent), str(BENCHMARKS)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_all_photographs_are_condensed_in_one_batch_in_two_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_png(tmp_path / f"{name}.png", rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    out, state = tmp_path / "out", tmp_path / "state.safetensors"
    gpu("prepare", tmp_path, "--folder", tmp_path / "folder", "--size", 16)
    tiny = ["--steps", 60, "--channels", 8, "--frequencies", 8, "--bank", 2, "--device", "cpu"]
    command = ["condense", "--folder", tmp_path / "folder", "--out", out, "--state", state, *tiny]
    gpu(*command, "--minutes", 0)
    assert "stopped" in json.loads((out / "condense.json").read_text())
    assert [int(load_file(state)[f"{name}/step"]) for name in ("a", "b")] == [0, 0]
    gpu(*command)
    facts = json.loads((out / "condense.json").read_text())
    assert set(facts["a"]) == set(facts["b"]) == {"held_out", "held_out_random"}
    # 36 real patches of each, a tenth of them synthetic.
    assert {len(patches) for patches in load_file(out / "patches.safetensors").values()} == {4}
    with safe_open(out / "patches.safetensors", framework="pt") as file:
        assert set(json.loads(file.metadata()["steps"])) == {"a", "b"}
    lines = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["photograph"] == "b"] == list(range(1, 61))


@pytest.mark.slow
def test_the_table_has_a_row_for_every_batch(tmp_path: Path) -> None:
    tiny = ["--network", "edsr-small", "-N", 4, "-n", 1, "--size", 16, "--steps", 1, "--device", "cpu"]
    gpu("table", "--out", tmp_path, "--batches", 1, 3, "--precisions", "fp32", *tiny)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert list(rows) == ["fp32, batch 1, eager", "fp32, batch 3, eager"]
    assert all(row["ms an image-iteration"] > 0 for row in rows.values())
