"""Workers that condense several photographs together: real Runs, real signals, failures of one photograph."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import idc_hub
from idc_hub.errors import IncompleteError
from idc_hub.networks.edsr import EDSR
from idc_hub.recipe import Recipe
from idc_hub.runs.run import Run
from tests.flow.test_condense_flow import idc, metrics, photographs, recipe, start, undisturbed, wait_for

__all__ = ["photographs", "undisturbed"]


def near(run: Path, other: Path) -> bool:
    """Whether the patches of two Runs agree as well as after 250 steps that begin with a rounding of 3e-8.

    Such a rounding moves 6 % of the pixels by more than a gray level: tiles get other partners.
    """
    found, expected = (
        {path.name: load_file(path)[path.stem].int() for path in (each / "instances").iterdir()}
        for each in (run, other)
    )
    assert found.keys() == expected.keys()
    differences = torch.cat([(found[name] - patches).abs().flatten() for name, patches in expected.items()])
    return float((differences <= 1).float().mean()) > 0.9 and float(differences.float().mean()) < 1


def test_photographs_in_a_batch_are_saved_by_a_signal_and_finish_as_if_alone(
    photographs: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ("condense", recipe(tmp_path, photographs, steps=250), "workers.batch=3", "--run-dir", run)
    process = start(*command, "--num-processes", 1)
    wait_for(lambda: sum(line["event"] == "log" for line in metrics(run)) > 5 if (run / "metrics").is_dir() else False)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    steps = {path.stem: int(load_file(path)["step"]) for path in (run / "partial").iterdir()}
    assert set(steps) == {"astronaut", "chelsea", "coffee"}
    assert len(set(steps.values())) == 1
    assert [line["event"] for line in metrics(run)].count("stop") == 3

    # One of them was saved at another step: it continues on its own.
    (run / "partial" / "coffee.safetensors").unlink()
    idc(*command, "--num-processes", 1, "--quiet")
    saved = steps["astronaut"]
    starts = sorted((line["step"], line["batch"]) for line in metrics(run) if line["event"] == "start")
    assert starts == [(0, 1), *[(0, 3)] * 3, *[(saved, 2)] * 2]
    assert near(run, undisturbed)
    assert json.loads((run / "run.json").read_text())["workers"] == {"batch": 3, "tf32": False, "fused": False}


def test_two_workers_share_the_photographs_of_a_batch(photographs: Path, undisturbed: Path, tmp_path: Path) -> None:
    spec = recipe(tmp_path, photographs, steps=250)
    idc("condense", spec, "workers.batch=8", "--run-dir", tmp_path / "run", "--num-processes", 2, "--quiet")
    starts = [line for line in metrics(tmp_path / "run") if line["event"] == "start"]
    assert len({line["pid"] for line in starts}) == 2
    assert sorted(line["batch"] for line in starts) == [1, 2, 2]
    assert near(tmp_path / "run", undisturbed)


def test_lack_of_memory_halves_the_batch_and_fails_one_photograph_alone(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Recipe.load(recipe(tmp_path, photographs), ["workers.batch=3", "patches.ratio=0.15"])
    features = EDSR.features

    def limited(self: EDSR, lr: Tensor, layer: int | str) -> Tensor:
        if lr.requires_grad and torch.is_grad_enabled() and len(lr) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return features(self, lr, layer)

    monkeypatch.setattr(EDSR, "features", limited)
    with (
        pytest.warns(UserWarning, match="failed together"),
        pytest.raises(IncompleteError, match=r"1 of 3 photographs failed:\n  coffee: OutOfMemoryError"),
    ):
        idc_hub.condense(spec, run_dir=tmp_path / "run", num_processes=1, progress=False)
    assert {path.stem for path in (tmp_path / "run" / "instances").iterdir()} == {"astronaut", "chelsea"}
    batches = {line["batch"] for line in metrics(tmp_path / "run") if line["event"] == "end"}
    assert batches == {1}
    fails = [line for line in Run.open(tmp_path / "run").read_metrics("coffee") if line["event"] == "fail"]
    assert len(fails) == 2

    monkeypatch.undo()
    done = idc_hub.condense(spec, run_dir=tmp_path / "run", num_processes=1, progress=False)
    assert done.patches == 4
