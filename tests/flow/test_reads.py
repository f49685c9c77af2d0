"""How often each verb reads what it needs: photographs, instance files, idc.json and the HR versions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest
import safetensors
from safetensors import safe_open
from skimage import data

import idc_hub
from idc_hub.dataset.manifest import Manifest
from idc_hub.errors import HubError, RunError
from idc_hub.images import sources
from idc_hub.images.files import write_png
from idc_hub.recipe import Recipe
from idc_hub.verbs import push as verb
from tests.flow.hub_tools import files_below

SMALL = ["patches.size=16", "patches.stride=16", "patches.complexity=hardness", "transform.kernel_size=3"]
SMALL += ["transform.channels=8", "loss.frequencies=8", "loss.bank_size=2", "assignment.groups=2"]


@dataclass
class Reads:
    """What was read since the last `reset`.

    Attributes:
        photographs: How often each photograph was decoded, by file name.
        tensors: How often the tensors of each safetensors file below `instances/` were read, by file name.
        loads: How often idc.json was read.
        saves: How often idc.json was written.
        versions: How often `load_dataset` loaded each HR version.
    """

    photographs: Counter[str] = field(default_factory=Counter)
    tensors: Counter[str] = field(default_factory=Counter)
    loads: int = 0
    saves: int = 0
    versions: Counter[str] = field(default_factory=Counter)

    def reset(self) -> None:
        self.__init__()  # type: ignore[misc]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Counts every read of this process; the readers themselves do their real work."""
    found = Reads()
    read_image, load_dataset, load, save = sources.read_image, datasets.load_dataset, Manifest.load, Manifest.save

    def counted_image(source: bytes, name: str) -> Any:
        found.photographs[name] += 1
        return read_image(source, name)

    @contextmanager
    def counted_open(path: Path, *arguments: Any, **options: Any) -> Iterator[Any]:
        with safe_open(path, *arguments, **options) as file:
            yield CountedFile(file, Path(path))

    class CountedFile:
        def __init__(self, file: Any, path: Path) -> None:
            self.file, self.path = file, path

        def __getattr__(self, name: str) -> Any:
            if name in ("get_tensor", "get_slice", "get_tensors") and self.path.parent.name == "instances":
                found.tensors[self.path.name] += 1
            return getattr(self.file, name)

    def counted_load(folder: Path) -> Manifest:
        found.loads += 1
        return load(folder)

    def counted_save(manifest: Manifest, folder: Path) -> None:
        found.saves += 1
        save(manifest, folder)

    def counted_version(folder: str, name: str, **options: Any) -> Any:
        found.versions[name] += 1
        return load_dataset(folder, name, **options)

    monkeypatch.setattr(sources, "read_image", counted_image)
    monkeypatch.setattr(safetensors, "safe_open", counted_open)
    monkeypatch.setattr(Manifest, "load", counted_load)
    monkeypatch.setattr(Manifest, "save", counted_save)
    monkeypatch.setattr(datasets, "load_dataset", counted_version)
    return found


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two crops of photographs, each with 16 real patches of 16 x 16 LR pixels."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("coffee", "astronaut"):
        write_png(folder / f"{name}.png", getattr(data, name)()[60:316, 150:406])
    return folder


@pytest.fixture
def condense(photographs: Path, tmp_path: Path) -> Callable[[], Any]:
    """A function that condenses the photographs into `tmp_path / "run"` in this process."""
    schedule = ["optimizer.steps=5", "optimizer.milestones=[]", "assignment.events=2", "assignment.interval=0.2"]
    values = {"name": "reads", "source": {"path": str(photographs)}, "teacher": {"network": "bicubic"}}
    recipe = Recipe.from_dict(values, [*SMALL, *schedule, "patches.ratio=0.5"])
    return lambda: idc_hub.condense(recipe, run_dir=tmp_path / "run", num_processes=1, progress=False)


INSTANCE_FILES = ("astronaut.safetensors", "coffee.safetensors")
PHOTOGRAPHS = ("astronaut.png", "coffee.png")


def test_condense_reads_photographs_twice_and_what_it_made_once(condense: Callable[[], Any], reads: Reads) -> None:
    condense()
    # Once by the survey, which reports unusable photographs before any work starts, and once by the worker. The gate
    # uses the real patches that the worker kept.
    assert reads.photographs == dict.fromkeys(PHOTOGRAPHS, 2)
    assert reads.tensors == dict.fromkeys(INSTANCE_FILES, 1), "packing reads each instance file once"
    # Packing creates idc.json. Adding the HR version and recording its quality read it again under the lock.
    assert (reads.loads, reads.saves) == (3, 3)
    assert reads.versions == {"bicubic": 1}

    reads.reset()
    condense()
    assert reads.photographs == dict.fromkeys(PHOTOGRAPHS, 1), "only the survey"
    assert reads.tensors == dict.fromkeys(INSTANCE_FILES, 2), "to find damaged ones, and to pack"
    # Packing reads idc.json and finds its digest right; the HR version is looked up and set under the lock.
    assert (reads.loads, reads.saves) == (3, 1)
    assert not reads.versions, "this process has loaded these very files"


def test_the_other_verbs_read_only_what_they_need(
    condense: Callable[[], Any], reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    condense()
    run = tmp_path / "run"

    reads.reset()
    idc_hub.regenerate(run, teacher="edsr-small", name="sharper", progress=False)
    assert not reads.tensors, "LR patches come from the shards"
    assert reads.photographs == dict.fromkeys(PHOTOGRAPHS, 1), "to measure its quality"
    assert (reads.loads, reads.saves) == (4, 2), "to open the set, under the lock around making HR, and for the quality"
    assert reads.versions == {"sharper": 1}, "the other version is as this process checked it"
    assert Manifest.load(run / "repo").condensation["quality"].keys() == {"bicubic", "sharper"}
    assert "### Quality of `sharper`" in (run / "repo" / "README.md").read_text()

    reads.reset()
    idc_hub.quality(run, hr_version="bicubic", progress=False)
    assert reads.photographs == dict.fromkeys(PHOTOGRAPHS, 1), "their real patches are not kept after condensing"
    assert not reads.tensors
    assert (reads.loads, reads.saves) == (2, 1), "once to open the set, once under the lock"
    assert not reads.versions

    reads.reset()
    idc_hub.status(run)
    assert reads == Reads(tensors=dict.fromkeys(INSTANCE_FILES, 1)), "to find damaged ones"

    reads.reset()
    idc_hub.verify(run)
    assert not reads.photographs
    assert reads.tensors == dict.fromkeys(INSTANCE_FILES, 1), "held to the digests that they name"
    assert (reads.loads, reads.saves) == (1, 0)
    assert reads.versions == {"bicubic": 1, "sharper": 1}, "what is vouched for is always loaded"

    def refuse(token: str | None) -> None:
        raise HubError("There is no Hub here.")

    monkeypatch.setattr(verb, "client", refuse)
    reads.reset()
    with pytest.raises(HubError, match="no Hub here"):
        idc_hub.push(run, "somebody/reads", license="mit")
    assert (reads.loads, reads.saves) == (1, 0)
    assert reads.versions == {"bicubic": 1, "sharper": 1}, "what is published is always loaded"


def test_a_version_that_changed_is_loaded_again(condense: Callable[[], Any], reads: Reads, tmp_path: Path) -> None:
    condense()
    (file,) = (tmp_path / "run" / "repo" / "data" / "bicubic").iterdir()
    file.touch()
    reads.reset()
    condense()
    assert reads.versions == {"bicubic": 1}


def test_condense_never_deletes_an_hr_version(condense: Callable[[], Any], tmp_path: Path) -> None:
    condense()
    repo = tmp_path / "run" / "repo"
    [version] = (repo / "data/bicubic").iterdir()
    manifest, parquet, shards = (repo / "idc.json").read_bytes(), version.read_bytes(), files_below(repo / "lr")
    (repo / "idc.json").unlink()
    with pytest.raises(RunError, match=r"has the HR versions bicubic, but no idc\.json"):
        condense()
    assert version.read_bytes() == parquet

    of_others = json.loads(manifest) | {"lr_digest": "0" * 64}
    of_others["hr_versions"]["bicubic"]["lr_digest"] = "0" * 64
    (repo / "idc.json").write_text(json.dumps(of_others))
    with pytest.raises(RunError, match=r"are not those that the HR versions in .*data were made from"):
        condense()
    assert (version.read_bytes(), files_below(repo / "lr")) == (parquet, shards)

    (repo / "idc.json").write_bytes(manifest)
    condense()
    assert (version.read_bytes(), files_below(repo / "lr")) == (parquet, shards)


def test_select_reads_what_it_made_once(photographs: Path, reads: Reads, tmp_path: Path) -> None:
    recipe = idc_hub.selection_recipe("random", photographs, ratio=0.5, teacher="bicubic", overrides=SMALL)
    idc_hub.select(recipe, run_dir=tmp_path / "run", progress=False)
    assert reads.tensors == dict.fromkeys(INSTANCE_FILES, 1), "packing reads each instance file once"
    assert (reads.loads, reads.saves) == (3, 3), "as condense"
    assert reads.versions == {"bicubic": 1}


def test_real_patches_are_not_kept_when_one_photograph_is_condensed_again(
    condense: Callable[[], Any], tmp_path: Path
) -> None:
    condense()
    (tmp_path / "run" / "instances" / "coffee.safetensors").unlink()
    condense()
    assert not list((tmp_path / "run").glob("real/*"))
