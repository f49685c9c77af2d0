"""Push a network with the real client in its own process, then load, evaluate and update it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from idc_hub import networks
from idc_hub.images.metrics import Protocol
from idc_hub.networks.edsr import EDSR
from idc_hub.training.evaluation import evaluate, save_result
from tests.flow.hub_tools import REPOSITORY, Client, Refused, files_below
from tests.hub_server import HubServer, Repository

TRAINING = """\
network: edsr
scale: 2
data: {hub: org/condensed-x2, hr_version: swinir-m, pairs: 12, sha256: abc}
recipe: {steps: 300, batch_size: 4}
seconds: 12.5
device: 1 x CPU
packages: {torch: 2.13.0}
"""


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A small x2 network, with the files that `idc train` writes."""
    torch.manual_seed(3)
    folder = tmp_path / "networks" / "mine"
    networks.save(EDSR(channels=8, blocks=1, scale=2), folder)
    (folder / "training.yaml").write_text(TRAINING)
    (folder / "metrics.jsonl").write_text("not for the Hub")
    return folder


@pytest.fixture
def testset(tmp_path: Path) -> Path:
    folder = tmp_path / "Set2"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 44, 3), dtype=np.uint8)
    for name, image in zip(("a", "b"), pixels, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def in_a_fresh_process(hub: HubServer, home: Path, *arguments: object) -> str:
    """Run Python with Alice's token and an empty cache; returns its output."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    paths = {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'cli'}", "OMP_NUM_THREADS": "1"}
    environment = inherited | paths | hub.environment("hf_alice", home)
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def model(hub: HubServer, repo_id: str) -> Repository:
    repository = hub.state.find("model", repo_id)
    assert repository is not None
    return repository


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_measured_network_reads_back_with_its_card(
    hub: HubServer, network: Path, testset: Path, tmp_path: Path
) -> None:
    protocols = [Protocol(channel, border, 2) for border in (2, 4) for channel in ("rgb", "y")]
    measured = evaluate(networks.load(network, scale=2), testset, protocols)
    save_result(network, measured)
    line = ["-m", "idc_cli.main", "push", network, "alice/tiny-x2", "--license", "apache-2.0", "--json"]
    done = json.loads(in_a_fresh_process(hub, tmp_path / "publisher", *line))
    assert (done["tag"], done["private"], done["url"]) == ("v1.0.0", True, f"{hub.url}/alice/tiny-x2")
    assert set(done["files"]) == {"README.md", "config.json", "model.safetensors", "training.yaml", "results.json"}
    repository = model(hub, "alice/tiny-x2")
    for name in done["files"]:
        assert repository.read(name) == (network / name).read_bytes()
    assert hub.state.find("dataset", "alice/tiny-x2") is None

    # A user loads it from the Hub and gets the same outputs.
    code = """
import sys, torch
from idc_hub.networks import load
network = load("alice/tiny-x2", scale=2)
torch.save(network(torch.linspace(0, 1, 3 * 8 * 9).view(1, 3, 8, 9)), sys.argv[1])
"""
    in_a_fresh_process(hub, tmp_path / "reader", "-c", code, tmp_path / "answer.pt")
    expected = networks.load(network, scale=2)(torch.linspace(0, 1, 3 * 8 * 9).view(1, 3, 8, 9))
    answer = torch.load(tmp_path / "answer.pt", weights_only=True)
    torch.testing.assert_close(answer, expected, rtol=0, atol=5e-7)  # that process has another number of threads

    card = repository.read("README.md").decode()
    front = front_matter(card)
    assert (front["license"], front["library_name"]) == ("apache-2.0", "idc-hub")
    assert (front["pipeline_tag"], front["datasets"]) == ("image-to-image", ["org/condensed-x2"])
    assert {"super-resolution", "edsr", "x2"} <= set(front["tags"])
    (entry,) = front["model-index"]
    (on_set,) = entry["results"]
    assert (entry["name"], on_set["dataset"]["name"]) == ("edsr", "Set2")
    figures = {metric["name"]: metric["value"] for metric in on_set["metrics"]}
    assert figures == {
        f"{metric} ({protocol})": table[metric.lower()]
        for protocol, table in measured["protocols"].items()
        for metric in ("PSNR", "SSIM")
    }
    y4 = measured["protocols"]["x2, Y, border 4, 8-bit"]
    assert f"{y4['psnr']:.2f} / {y4['ssim']:.4f} |" in card
    for words in ("EDSR (blocks 1, channels 8, residual_scale 1.0) with", "hr version swinir-m", "steps: 300", "12.5"):
        assert words in card
    assert 'load("alice/tiny-x2", scale=2)' in card
    assert str(tmp_path) not in card


def test_pushing_again_sends_what_is_new_and_keeps_the_prose(
    hub: HubServer, alice: Client, network: Path, testset: Path
) -> None:
    alice("push", folder=network, repo_id="alice/grows", license="mit")
    before = files_below(network)
    again = alice("push", folder=network, repo_id="alice/grows")
    assert (again["commit"], again["tag"], again["uploads"]) == (None, "v1.0.0", [])
    assert files_below(network) == before

    card = network / "README.md"
    card.write_text(card.read_text() + "\nMy own words.\n")
    assert alice("push", folder=network, repo_id="alice/grows")["tag"] == "v1.0.1"

    save_result(network, evaluate(networks.load(network, scale=2), testset, [Protocol("y", 2, 2)]))
    done = alice("push", folder=network, repo_id="alice/grows")
    assert (done["tag"], set(done["uploads"])) == ("v1.0.2", {"README.md", "results.json"})
    assert "model-index" in front_matter(card.read_text())

    # The results of the old weights must not stay on the card of the new ones.
    torch.manual_seed(4)
    networks.save(EDSR(channels=8, blocks=1, scale=2), network)
    with pytest.raises(Refused, match=r"results\.json holds results of other weights") as caught:
        alice("push", folder=network, repo_id="alice/grows")
    assert (caught.value.kind, caught.value.exit_code) == ("NetworkError", 1)
    (network / "results.json").unlink()
    done = alice("push", folder=network, repo_id="alice/grows")
    assert (done["tag"], done["deletions"]) == ("v2.0.0", ["results.json"])
    assert set(done["uploads"]) == {"README.md", "model.safetensors"}
    assert "model-index" not in front_matter(card.read_text())
    assert card.read_text().endswith("\nMy own words.\n")
    assert model(hub, "alice/grows").commit(done["commit"])["title"] == "Replace the weights of edsr x2"


@pytest.mark.parametrize(
    ("repo_id", "options", "exit_code", "words"),
    [
        ("alice/tiny", {}, 2, "A model needs a license to be pushed"),
        ("alice/a--b", {"license": "mit"}, 4, "is not a valid name for a model"),
        ("alice/llm", {"license": "mit"}, 4, r"alice/llm/config\.json isn't an idc-hub network config"),
        ("alice/notes", {"license": "mit"}, 4, r"not a model of idc-hub: it has files, but no config\.json"),
        ("bob/tiny", {"license": "mit"}, 4, "no permission to do that to bob/tiny"),
        ("alice/tiny", {"license": "mit", "create_pr": True}, 4, "no model alice/tiny to open a pull request on"),
    ],
)
def test_refusals(
    hub: HubServer, alice: Client, network: Path, repo_id: str, options: dict[str, Any], exit_code: int, words: str
) -> None:
    """Each is one sentence with its exit code, and nothing is sent."""
    for name, path, text in (("llm", "config.json", '{"model_type": "bert"}'), ("notes", "notes.txt", "mine")):
        if hub.state.find("model", f"alice/{name}") is None:
            alice("api", method="create_repo", repo_id=f"alice/{name}")
            alice("api", method="upload_file", repo_id=f"alice/{name}", path_in_repo=path, text=text)
    hub.forget()
    with pytest.raises(Refused, match=words) as caught:
        alice("push", folder=network, repo_id=repo_id, **options)
    assert caught.value.exit_code == exit_code
    assert not hub.seen("PUT")
    assert not hub.seen("POST", "/commit/")


def test_a_network_that_does_not_load_is_not_sent(hub: HubServer, alice: Client, network: Path) -> None:
    (network / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(Refused, match="not a complete safetensors file") as caught:
        alice("push", folder=network, repo_id="alice/broken", license="mit")
    assert (caught.value.kind, caught.value.exit_code) == ("NetworkError", 1)
    assert not hub.log
