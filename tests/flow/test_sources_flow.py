"""The main job from every kind of source, at every scale."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from idc_hub.dataset.parquet import read_rows
from idc_hub.images.files import decode_png, encode_png
from idc_hub.images.resize import imresize
from tests import forked
from tests.flow.hub_tools import Client
from tests.hub_server import HubServer

RECIPE = """
name: sources
patches: {size: 24, stride: 12, ratio: 0.05, min_per_image: 1}
transform: {kernel_size: 3, channels: 16}
loss: {frequencies: 16, bank_size: 2}
assignment: {groups: 4, events: 2, interval: 0.2}
optimizer: {steps: 10}
teacher: {network: bicubic}
"""


@pytest.fixture(scope="module")
def photographs() -> dict[str, bytes]:
    """Two small photographs as PNG files."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    found = {}
    for name in ("astronaut", "chelsea"):
        pixels = np.asarray(Image.open(Path(spec.origin).parent / "data" / f"{name}.png").convert("RGB"))
        found[f"{name}.png"] = encode_png(pixels[40:180, 100:250])
    return found


def condense(folder: Path, *overrides: str, **environment: str) -> dict[str, Any]:
    path = folder / "sources.yaml"
    path.write_text(RECIPE)
    command = ["condense", path, *overrides, "--run-dir", folder / "run", "--num-processes", 1, "--json", "--quiet"]
    result = forked.run([*map(str, command)], env=os.environ | environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("scale", [2, 3])
def test_a_zip_at_other_scales(scale: int, photographs: dict[str, bytes], tmp_path: Path) -> None:
    archive = tmp_path / "photographs.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in photographs.items():
            file.writestr(f"some/folder/{name}", data)
    made = condense(tmp_path, f"source.path={archive}", f"scale={scale}")
    assert made["photographs"] == 2
    rows = list(read_rows(tmp_path / "run/repo/data/bicubic"))
    assert [row.instance_id for row in rows] == sorted(row.instance_id for row in rows)
    for row in rows:
        lr, hr = decode_png(row.lr_png), decode_png(row.hr_png)
        assert lr.shape == (24, 24, 3)
        np.testing.assert_array_equal(hr, imresize(lr, scale))


def test_a_zip_in_a_dataset_on_the_hub(
    hub: HubServer, make_client: Callable[..., Client], photographs: dict[str, bytes], tmp_path: Path
) -> None:
    alice = make_client("hf_alice")
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in photographs.items():
            file.writestr(f"HR/{name}", data)
    alice("api", method="create_repo", repo_id="alice/zipped", repo_type="dataset")
    alice(
        "api",
        method="upload_file",
        path_or_fileobj=str(archive),
        path_in_repo="images.zip",
        repo_id="alice/zipped",
        repo_type="dataset",
    )
    environment = hub.environment("hf_alice", tmp_path / "home")
    made = condense(tmp_path, "source.path=alice/zipped", "source.exclude=*chelsea*", **environment)
    assert made["photographs"] == 1
    (tmp_path / "astronaut").mkdir()
    (tmp_path / "astronaut" / "astronaut.png").write_bytes(photographs["astronaut.png"])
    local = tmp_path / "local"
    local.mkdir()
    assert condense(local, f"source.path={tmp_path / 'astronaut'}")["lr_digest"] == made["lr_digest"]


def test_a_folder_that_does_not_exist_is_said_without_retries(hub: HubServer, tmp_path: Path) -> None:
    environment = hub.environment("hf_alice", tmp_path / "home")
    result = forked.run(["evaluate", "bicubic", "--testset", "photos/validation"], env=os.environ | environment)
    assert result.returncode == 1
    assert result.stderr.startswith("error: There is no folder or zip photos/validation here, and on the Hub no such")
    assert len([line for line in hub.log if "photos/validation" in str(line)]) == 1


def test_a_dataset_on_the_hub(
    hub: HubServer, make_client: Callable[..., Client], photographs: dict[str, bytes], tmp_path: Path
) -> None:
    alice = make_client("hf_alice")
    images = pa.array([{"bytes": data, "path": name} for name, data in photographs.items()])
    schema = pa.schema(
        [pa.field("picture", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))],
        metadata={"huggingface": json.dumps({"info": {"features": {"picture": {"_type": "Image"}}}})},
    )
    buffer = io.BytesIO()
    pq.write_table(pa.table({"picture": images}, schema=schema), buffer)
    path = tmp_path / "train-00000-of-00001.parquet"
    path.write_bytes(buffer.getvalue())
    alice("api", method="create_repo", repo_id="alice/photographs", repo_type="dataset")
    alice(
        "api",
        method="upload_file",
        path_or_fileobj=str(path),
        path_in_repo=f"data/{path.name}",
        repo_id="alice/photographs",
        repo_type="dataset",
    )
    made = condense(tmp_path, "source.path=alice/photographs", **hub.environment("hf_alice", tmp_path / "home"))
    assert made["photographs"] == 2
    from_folder = tmp_path / "again"
    (from_folder / "photographs").mkdir(parents=True)
    for name, data in photographs.items():
        (from_folder / "photographs" / name).write_bytes(data)
    assert condense(from_folder, f"source.path={from_folder / 'photographs'}")["lr_digest"] == made["lr_digest"]
