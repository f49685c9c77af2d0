"""Fixtures: a small repository folder, and teachers for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from idc_hub.dataset.manifest import Manifest
from idc_hub.dataset.shards import write_shards
from idc_hub.networks.teachers import Teacher

RECIPE = """\
name: sample-x2
preset: default
scale: 2
source:
  path: photographs
patches:
  size: 8
  stride: 4
features:
  network: edsr-small
  weights_sha256: {digest}
optimizer:
  steps: 300
  initial: real
""".format(digest="f" * 64)


@pytest.fixture
def instances() -> dict[str, np.ndarray]:
    """LR patches of three photographs: uint8 [n, 3, 8, 8]."""
    random = np.random.default_rng(7)
    return {
        name: random.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
        for name, count in (("bridge", 2), ("cat", 3), ("tower", 1))
    }


@pytest.fixture
def repo(tmp_path: Path, instances: dict[str, np.ndarray]) -> Path:
    """A freshly packed repository folder: LR shards, idc.json and recipe.yaml, but no HR version."""
    folder = tmp_path / "repo"
    metadata = {"format": "idc", "format_version": 1, "scale": 2, "lr_recipe_hash": "a" * 64}
    digest = write_shards(folder / "lr", instances.items(), metadata=metadata)
    (folder / "recipe.yaml").write_text(RECIPE)
    Manifest(
        name="sample-x2",
        scale=2,
        patch_size=8,
        lr_recipe_hash="a" * 64,
        lr_digest=digest,
        instances=3,
        patches=6,
        packages={"idc-hub": "0.1.0", "torch": "2.13.0+cpu"},
        condensation={"photographs": 3, "real_patches": 120, "steps": 300, "worker_seconds": 75.2},
    ).save(folder)
    return folder


def repeat(lr: Tensor, *, times: int = 2) -> Tensor:
    """Nearest-neighbor upscaling: uint8 [B, 3, h, w] to [B, 3, times*h, times*w]."""
    return lr.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)


def darken(lr: Tensor) -> Tensor:
    """Another teacher's answer: half as bright as `repeat`."""
    return repeat(lr) // 2


@pytest.fixture
def make_teacher() -> Callable[..., Teacher]:
    """A function that makes teachers of scale 2: `make_teacher("repeat")` and `make_teacher("darken")`."""

    def make(answer: str, /, **changes: object) -> Teacher:
        facts: dict = {
            "name": answer,
            "kind": "network",
            "scale": 2,
            "weights_sha256": {"repeat": "1" * 64, "darken": "2" * 64}[answer],
            "license": "Apache-2.0",
            "upscale": {"repeat": repeat, "darken": darken}[answer],
        }
        return Teacher(**(facts | changes))

    return make
