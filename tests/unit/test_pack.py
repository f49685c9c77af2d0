"""Packing: what the instance files say about the patches reaches the index and every HR version."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from skimage import data

import idc_hub
from idc_hub.dataset.pack import pack
from idc_hub.dataset.parquet import read_rows
from idc_hub.dataset.regenerate import regenerate
from idc_hub.dataset.shards import Facts, read_facts
from idc_hub.errors import RunError
from idc_hub.images.files import decode_png, write_png
from idc_hub.images.resize import imresize
from idc_hub.networks.teachers import load_teacher
from idc_hub.recipe import Recipe
from idc_hub.runs.run import Run

SMALL = ["patches.size=16", "patches.stride=8", "patches.ratio=0.1", "transform.kernel_size=3", "transform.channels=8"]
SMALL += ["loss.frequencies=8", "loss.bank_size=2", "assignment.groups=2", "assignment.events=2"]
SMALL += ["assignment.interval=0.2", "optimizer.steps=5", "optimizer.milestones=[]", "optimizer.initial=real"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two crops of photographs, each 64 x 64 LR pixels."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("coffee", "astronaut"):
        write_png(folder / f"{name}.png", getattr(data, name)()[60:188, 150:278])
    return folder


@pytest.fixture
def run(photographs: Path, tmp_path: Path) -> Run:
    """A condensed Run with the HR version `bicubic`."""
    values = {"name": "facts", "scale": 2, "source": {"path": str(photographs)}, "teacher": {"network": "bicubic"}}
    idc_hub.condense(Recipe.from_dict(values, SMALL), run_dir=tmp_path / "run", num_processes=1, progress=False)
    return Run.open(tmp_path / "run")


def test_condensed_patches_have_their_distance_to_the_nearest_real_one(run: Run, photographs: Path) -> None:
    rows = list(read_rows(run.repo / "data" / "bicubic"))
    assert {row.instance_id for row in rows} == {"astronaut", "coffee"}
    for row in rows:
        photograph = photographs / f"{row.instance_id}.png"
        assert row.source_sha256 == hashlib.sha256(photograph.read_bytes()).hexdigest()
        lr = imresize(decode_png(photograph.read_bytes()), 1 / 2)
        real = [lr[top : top + 16, left : left + 16] for top in range(0, 49, 8) for left in range(0, 49, 8)]
        differences = [decode_png(row.lr_png).astype(float) - patch for patch in real]
        expected = min(np.sqrt(np.mean(difference**2)) for difference in differences)
        assert row.nearest_real == pytest.approx(expected, abs=5.1e-4)  # the index has three decimals
    assert any(row.nearest_real for row in rows), "no patch was optimized"
    assert idc_hub.verify(run.path).patches == len(rows)
    described = (run.repo / "idc.json").rename(run.path / "idc.json")
    with pytest.raises(RunError, match=r"has HR versions, but no idc\.json"):
        idc_hub.verify(run.path)
    described.rename(run.repo / "idc.json")


def test_a_run_of_an_older_idc_hub_packs_without_the_distance(run: Run) -> None:
    digest = json.loads((run.repo / "idc.json").read_bytes())["lr_digest"]
    path = run.instance_file("coffee")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["idc"])
    assert len(metadata.pop("nearest_real")) == len(tensors["coffee"])
    del metadata["metadata_sha256"]
    save_file(tensors, path, metadata={"idc": json.dumps(metadata)})
    condensed = pack(run, workers=1)
    assert condensed.manifest.lr_digest == digest
    facts = read_facts(run.repo / "lr")
    assert facts["coffee"] == Facts(source_sha256=metadata["source_sha256"])
    assert facts["astronaut"].nearest_real is not None
    idc_hub.verify(run.path)
    regenerate(condensed, load_teacher("bicubic", scale=2), "again")
    for row in read_rows(run.repo / "data" / "again"):
        assert (row.nearest_real is None) == (row.instance_id == "coffee")
