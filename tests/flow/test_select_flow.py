"""A selection from the command line to the Hub and back, and into a training: it is a set like any other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from idc_cli.main import app
from idc_hub.images.files import write_png
from tests.flow.hub_tools import Client
from tests.hub_server import HubServer

SMALL = ("patches.size=16", "patches.stride=8", "transform.kernel_size=3", "transform.channels=8")
SMALL += ("loss.frequencies=8", "loss.bank_size=2", "assignment.groups=3")


def idc(*arguments: object, refused: str = "") -> Any:
    """`idc` in this process, which has torch already; gives what --json prints."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if refused:
        assert refused in str(result.exception)
        return None
    assert result.exit_code == 0, result.exception or result.output
    return json.loads(result.stdout) if "--json" in arguments else None


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("bridge", "cat"):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        write_png(tmp_path / "photos" / f"{name}.png", np.kron(coarse, np.ones((8, 8, 1), np.uint8)))
    return tmp_path / "photos"


def test_select_push_pull_regenerate_and_train(
    photographs: Path, hub: HubServer, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = photographs.parent
    monkeypatch.chdir(here)
    made = idc("select", "k-center", "photos", "--ratio", 0.2, "--run-dir", "far", "--json", "-q", *SMALL)
    assert made["patches"] == int(0.2 * made["real_patches"]) > 0
    repo_id = "alice/far-apart"
    assert alice("push", folder=here / "far" / "repo", repo_id=repo_id, license="mit", public=True)["tag"] == "v1.0.0"
    assert len(alice("load", repo_id=repo_id, name="real")["keys"]) == made["patches"]
    alice("pull", repo_id=repo_id, run_dir=here / "pulled")
    assert idc("verify", "pulled", "--json")["lr_digest"] == made["lr_digest"]

    idc("regenerate", "pulled", "--teacher", "real", "--name", "again", refused="where its patches were cut out")
    idc("condense", "pulled", "source.path=photos", refused="idc select k-center photos")
    idc("regenerate", "pulled", "--teacher", "bicubic", "--name", "bicubic", "-q")
    assert alice("push", folder=here / "pulled" / "repo", repo_id=repo_id)["tag"] == "v1.1.0"

    # What the card says makes the same patches again.
    card = (here / "pulled" / "repo" / "README.md").read_text()
    command = next(line for line in card.splitlines() if line.startswith("idc select"))
    words = [word.strip("'") for word in command.replace("/path/to/the/photographs", "photos").split()[1:]]
    again = idc(*words, "--run-dir", "again", "--json", "-q")
    assert again["lr_digest"] == made["lr_digest"]

    steps = ("steps=2", "crop=8", "batch_size=2")
    idc("train", "edsr-small", "--data", "far", "--out", "network", "--num-processes", 1, "-q", *steps)
    assert "psnr" in json.dumps(idc("evaluate", "network", "--testset", "photos", "--json"))
    assert "selection: photos-k-center" in (here / "network" / "training.yaml").read_text()
