"""The whole life of a set: condensed, published, loaded, extended by an HR version, and continued by another user."""

import hashlib
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from idc_hub.dataset.parquet import read_rows
from idc_hub.images.files import decode_png, write_png
from tests import forked
from tests.flow.hub_tools import Client
from tests.hub_server import HubServer

RECIPE = """
name: life
source: {path: photographs}
patches: {size: 32, stride: 16, ratio: 0.1, min_per_image: 2}
transform: {kernel_size: 3, channels: 16}
loss: {frequencies: 16, bank_size: 2}
assignment: {groups: 4, events: 2, interval: 0.2}
optimizer: {steps: 20}
"""


def pixels(version: Path) -> str:
    """SHA-256 of all pixels of an HR version in row order, read without `datasets`."""
    digest = hashlib.sha256()
    for row in read_rows(version):
        for png in (row.lr_png, row.hr_png):
            digest.update(decode_png(png).tobytes())
    return digest.hexdigest()


def test_a_life(hub: HubServer, make_client: Callable[..., Client], tmp_path: Path) -> None:
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    (tmp_path / "photographs").mkdir()
    for name in ("astronaut", "coffee"):
        image = np.asarray(Image.open(Path(spec.origin).parent / "data" / f"{name}.png").convert("RGB"))
        write_png(tmp_path / "photographs" / f"{name}.png", image[60:220, 120:320])
    (tmp_path / "life.yaml").write_text(RECIPE)

    def idc(token: str, *arguments: str) -> Any:
        environment = os.environ | hub.environment(token, tmp_path / f"home-{token}")
        result = forked.run([*arguments, "--json"], env=environment, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    # Alice condenses and publishes.
    made = idc("hf_alice", "condense", "life.yaml", "--num-processes", "1")
    repo = tmp_path / "runs/life/repo"
    first = idc("hf_alice", "push", "runs/life", "alice/life", "--license", "cc0-1.0", "--public")
    assert first["tag"] == "v1.0.0"
    assert idc("hf_alice", "push", "runs/life", "alice/life", "--license", "cc0-1.0")["commit"] is None

    # A consumer has only `datasets`, and no account.
    for streaming in (False, True):
        loaded = make_client(None)("load", repo_id="alice/life", streaming=streaming)
        facts = ["source_sha256", "nearest_real", "teacher_residual"]
        assert loaded["columns"] == ["instance_id", "patch_index", "lr", "hr", *facts]
        assert len(loaded["keys"]) == made["patches"]
        assert loaded["pixels"] == pixels(repo / "data/edsr-small")

    # A second HR version uploads its own parquet files, but no LR safetensors.
    lr_file = next((repo / "lr").glob("*.safetensors")).read_bytes()
    idc("hf_alice", "regenerate", "runs/life", "--teacher", "bicubic", "--name", "bicubic")
    hub.forget()
    second = idc("hf_alice", "push", "runs/life", "alice/life")
    assert second["tag"] == "v1.1.0"
    assert not [path for path in second["uploads"] if path.startswith(("lr/", "data/edsr-small/"))]
    assert hashlib.sha256(lr_file).hexdigest() not in hub.sent()
    consumer = make_client(None)
    assert consumer("configs", repo_id="alice/life") == ["bicubic", "edsr-small"]
    assert consumer("load", repo_id="alice/life", name="bicubic")["pixels"] == pixels(repo / "data/bicubic")
    assert consumer("load", repo_id="alice/life")["pixels"] == loaded["pixels"], "the default moved"
    old = make_client(None)
    assert old("configs", repo_id="alice/life", revision="v1.0.0") == ["edsr-small"]
    assert old("load", repo_id="alice/life", revision="v1.0.0")["pixels"] == loaded["pixels"]

    # Years later, Bob continues with an empty folder, another account and a repository of his own.
    idc("hf_bob", "pull", "alice/life", "--run-dir", "pulled")
    taken = tmp_path / "pulled/repo"
    assert {path.relative_to(taken): path.read_bytes() for path in taken.rglob("*") if path.is_file()} == {
        path.relative_to(repo): path.read_bytes() for path in repo.rglob("*") if path.is_file()
    }
    idc("hf_bob", "regenerate", "pulled", "--teacher", "bicubic", "--name", "bicubic-again")
    assert pixels(taken / "data/bicubic-again") == pixels(repo / "data/bicubic")
    idc("hf_bob", "push", "pulled", "bob/life", "--license", "cc0-1.0", "--public")
    reader = make_client(None)
    assert reader("configs", repo_id="bob/life") == ["bicubic", "bicubic-again", "edsr-small"]
    for name in ("bicubic", "bicubic-again", "edsr-small"):
        assert reader("load", repo_id="bob/life", name=name)["pixels"] == pixels(taken / "data" / name)
    with pytest.raises(AssertionError, match=r"no right|403|not allowed|permission|write"):
        idc("hf_bob", "push", "pulled", "alice/life", "--license", "cc0-1.0")
