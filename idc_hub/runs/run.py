"""A Run: one execution of a recipe, one directory, and the only place where its state lives.

```
recipe.yaml            the recipe, every key written out
run.json               the photographs with their digests and counts, versions, machine
locks/<id>.lock        held by the process that condenses the photograph; dies with it
partial/<id>.safetensors    an optimization under way: patches, Adam's moments, assignment, step
instances/<id>.safetensors  a finished photograph; finished means: it is there and has the recipe's lr_recipe_hash
real/<id>.safetensors  real LR patches of a sample of the photographs, until `idc condense` has measured its result
failed/<id>.json       why a photograph could not be condensed
metrics/<id>.jsonl     one line each for start, log and end
repo/                  the repository tree, byte for byte what will stand on the Hub
```

Any process on any machine that sees the directory sees the same state, and every file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock

from idc_hub.atomic import write_bytes_atomically, write_text_atomically
from idc_hub.condensation.real_side import generator
from idc_hub.errors import IncompleteError, RecipeError, RunError
from idc_hub.images.sources import Instance
from idc_hub.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "idc-run"
FORMAT_VERSION = 1
SAMPLE = 64
"""Photographs that stand for all in what is measured after a condensation."""


class Run:
    """An existing Run directory; make one with `create`, come back to one with `open`.

    Attributes:
        path: The directory.
        recipe: The recipe, with the extractor's digest.
        instances: The photographs, ordered by id, with the patches that stand for each.
    """

    def __init__(self, path: Path, recipe: Recipe, instances: list[Instance]) -> None:
        self.path = path
        self.recipe = recipe
        self.instances = instances

    @classmethod
    def create(cls, path: Path, recipe: Recipe, instances: list[Instance], facts: dict[str, Any]) -> Run:
        """Make a Run directory, or continue the one that stands there.

        Args:
            path: The directory; its parents are made.
            recipe: The recipe, with the extractor's digest.
            instances: The photographs, ordered by id, with the patches that stand for each.
            facts: What `run.json` further says: versions, machine.

        Raises:
            RecipeError: If the directory holds a Run of another recipe or of other photographs, or other files.
        """
        if (path / "run.json").is_file():
            run = cls.open(path)
            run.check_same(recipe, instances)
        elif path.exists() and any(path.iterdir()):
            raise RecipeError(
                f"{path} holds files, but no run.json: it is not a Run of `idc condense`.",
                "Choose another --run-dir.",
            )
        for folder in ("locks", "partial", "instances", "failed", "metrics"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        write_text_atomically(path / "recipe.yaml", recipe.to_yaml())
        if not (path / "run.json").is_file():
            state = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "lr_recipe_hash": recipe.lr_recipe_hash,
                "instances": [asdict(instance) for instance in instances],
                **facts,
            }
            write_text_atomically(path / "run.json", json.dumps(state, indent=2) + "\n")
        return cls(path, recipe, instances)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing Run.

        Raises:
            RunError: If there is none, or it is damaged or newer than this version of idc-hub.
        """
        if not (path / "run.json").is_file():
            raise RunError(f"{path} is no Run: it has no run.json.", "Name the directory that `idc condense` made.")
        try:
            state = json.loads((path / "run.json").read_text(encoding="utf-8"))
            version = state["format_version"]
            if state["format"] == FORMAT and version <= FORMAT_VERSION:
                instances = [_instance(**entry) for entry in state["instances"]]
                recipe = Recipe.load(path / "recipe.yaml")
                return cls(path, recipe, instances)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RunError(
                f"{path / 'run.json'} is damaged ({error}).",
                "Condense into another --run-dir; the files under instances/ are untouched.",
            ) from error
        raise RunError(f"{path / 'run.json'} has format version {version}.", "Update idc-hub to read it.")

    def check_same(self, recipe: Recipe, instances: list[Instance]) -> None:
        """Refuse to continue this Run with another recipe or other photographs.

        Raises:
            RecipeError: With the differing keys or photographs.
        """
        restart = ", or --restart to discard what this one holds" if recipe.method == "idc" else ""
        hint = f"Choose another --run-dir{restart}."
        if recipe.lr_recipe_hash != self.recipe.lr_recipe_hash:
            differing = "; ".join(self.recipe.differing(recipe))
            raise RecipeError(f"{self.path} was made with another recipe: {differing}.", hint)
        mine, theirs = ({instance.id: instance.sha256 for instance in s} for s in (self.instances, instances))
        if mine != theirs:
            changed = sorted(key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key])
            parts = {"missing now": sorted(mine.keys() - theirs.keys()), "new": sorted(theirs.keys() - mine.keys())}
            listed = [f"{what}: {', '.join(ids[:5])}" for what, ids in {**parts, "changed": changed}.items() if ids]
            raise RecipeError(f"{self.path} was made from other photographs ({'; '.join(listed)}).", hint)

    @property
    def state(self) -> dict[str, Any]:
        """What `run.json` says."""
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))

    @property
    def repo(self) -> Path:
        """The repository tree."""
        return self.path / "repo"

    def lock(self, instance_id: str) -> FileLock:
        """The lock of a photograph, not waited for; the system frees it when its process dies."""
        return FileLock(self.path / "locks" / f"{instance_id}.lock", timeout=0)

    @cached_property
    def sample(self) -> dict[str, Instance]:
        """At most `SAMPLE` of the photographs that have patches, by id, always the same: the gate looks at these."""
        instances = [instance for instance in self.instances if instance.count]
        order = torch.randperm(len(instances), generator=generator(self.recipe.seed, "quality"))[:SAMPLE]
        return {instances[number].id: instances[number] for number in sorted(order.tolist())}

    def held_out(self) -> dict[str, float]:
        """Mean `held_out` and `held_out_random` of the finished photographs that have them; empty where none has."""
        facts = [self.read_facts(instance) for instance in self.instances if instance.count]
        measured = [found for found in facts if "held_out" in found]  # of a selection, only a sample
        return {
            key: sum(found[key] for found in measured) / len(measured)
            for key in ("held_out", "held_out_random")
            if measured
        }

    def instance_file(self, instance_id: str) -> Path:
        """Where the finished patches of a photograph stand."""
        return self.path / "instances" / f"{instance_id}.safetensors"

    def is_finished(self, instance: Instance) -> bool:
        """Whether the photograph's finished file is there; its header must belong to this recipe.

        Raises:
            RunError: If the file is damaged or belongs to another recipe or photograph.
        """
        return self.instance_file(instance.id).is_file() and bool(self.read_facts(instance))

    def is_settled(self, instance: Instance) -> bool:
        """Whether nothing is left to do for the photograph in this round: it is finished, or it has failed."""
        return self.is_finished(instance) or self._failure(instance.id).is_file()

    def read_facts(self, instance: Instance) -> dict[str, Any]:
        """The metadata of a finished photograph: `lr_recipe_hash`, `source_sha256`, steps, discrepancies, losses.

        Only the header of the file is read.

        Raises:
            RunError: If the file is missing, damaged, or belongs to another recipe or photograph.
        """
        return self._read(self.instance_file(instance.id), instance, with_tensors=False)[1]

    def read_patches(self, instance: Instance) -> Tensor:
        """Finished LR patches of a photograph, uint8 `[n, 3, h, w]`, checked against their own digest.

        Raises:
            RunError: If the file is missing, damaged, or belongs to another recipe or photograph.
        """
        path = self.instance_file(instance.id)
        tensors, facts = self._read(path, instance)
        patches = tensors.get(instance.id)
        if patches is None or patches_sha256(patches) != facts.get("patches_sha256"):
            raise RunError(
                f"{path} is damaged: its pixels do not have the digest it names.",
                "Delete it and run the same command again: only this photograph is condensed again.",
            )
        return patches

    def write_patches(self, instance: Instance, patches: Tensor, facts: dict[str, Any]) -> None:
        """Finish a photograph: one atomic file, byte-reproducible; then its partial state and failure go.

        Args:
            instance: The photograph.
            patches: uint8 `[n, 3, h, w]`.
            facts: Deterministic facts only (no times, no machine), so that equal runs write equal bytes.
        """
        metadata = {
            "format": "idc-instance",
            "format_version": FORMAT_VERSION,
            "lr_recipe_hash": self.recipe.lr_recipe_hash,
            "patches_sha256": patches_sha256(patches),
            "scale": self.recipe.scale,
            "source_sha256": instance.sha256,
            **facts,
        }
        write_tensors(self.instance_file(instance.id), {instance.id: patches}, metadata)
        self._partial(instance.id).unlink(missing_ok=True)
        self._failure(instance.id).unlink(missing_ok=True)

    def read_partial(self, instance: Instance) -> dict[str, Tensor] | None:
        """The tensors of an optimization under way; None where there is none that this recipe can continue."""
        path = self._partial(instance.id)
        if not path.is_file():
            return None
        try:
            tensors = self._read(path, instance)[0]
        except RunError:
            tensors = {}
        if tensors and all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            return tensors
        # Damaged, not finite, or left by another recipe: the photograph begins anew, nothing finished is lost.
        path.unlink()
        return None

    def write_partial(self, instance: Instance, tensors: dict[str, Tensor]) -> None:
        """Keep the state of an optimization under way, atomically."""
        metadata = {"lr_recipe_hash": self.recipe.lr_recipe_hash, "source_sha256": instance.sha256}
        write_tensors(self._partial(instance.id), tensors, metadata)

    def write_real(self, instance: Instance, patches: Tensor) -> None:
        """Keep real LR patches, uint8 `[N, 3, h, w]`, of a photograph of the sample until the gate has seen them."""
        metadata = {"lr_recipe_hash": self.recipe.lr_recipe_hash, "source_sha256": instance.sha256}
        self._real(instance.id).parent.mkdir(exist_ok=True)
        write_tensors(self._real(instance.id), {"real": patches}, metadata)

    def read_real(self, instance: Instance) -> Tensor | None:
        """What `write_real` kept; None where there is nothing of use."""
        if not self._real(instance.id).is_file():
            return None
        try:
            return self._read(self._real(instance.id), instance)[0]["real"]
        except (RunError, KeyError):
            return None  # the photograph has them still

    def forget_real(self) -> None:
        """Remove what `write_real` kept."""
        shutil.rmtree(self.path / "real", ignore_errors=True)

    def require_finished(self) -> None:
        """Raise IncompleteError, with every photograph that failed and why, if any did."""
        failures = {instance.id: self.failure(instance) for instance in self.instances}
        failed = {key: error for key, error in failures.items() if error}
        if failed:
            listed = "\n".join(f"  {key}: {error}" for key, error in failed.items())
            raise IncompleteError(
                f"{len(failed)} of {len(self.instances)} photographs failed:\n{listed}\n",
                "The others are finished and kept. Run the same command again to retry.",
            )

    def record_failure(self, instance: Instance, sentence: str) -> None:
        """Note why a photograph could not be condensed; the next run tries it again."""
        text = json.dumps({"id": instance.id, "name": instance.name, "error": sentence}, indent=2)
        write_text_atomically(self._failure(instance.id), text + "\n")

    def clear_failures(self) -> None:
        """Forget earlier failures, so that their photographs are tried again."""
        for path in (self.path / "failed").glob("*.json"):
            path.unlink(missing_ok=True)

    def failure(self, instance: Instance) -> str | None:
        """Why the photograph failed, if it did."""
        path = self._failure(instance.id)
        return str(json.loads(path.read_text(encoding="utf-8"))["error"]) if path.is_file() else None

    def append_metrics(self, instance_id: str, line: dict[str, Any]) -> None:
        """Add a line to the photograph's metrics."""
        with self._metrics(instance_id).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read_metrics(self, instance_id: str) -> list[dict[str, Any]]:
        """All lines of the photograph's metrics; a line cut short by a kill is left out."""
        path = self._metrics(instance_id)
        return list(_whole_lines(path.read_text(encoding="utf-8"))) if path.is_file() else []

    def status(self) -> dict[str, Any]:
        """What is finished, running, failed or waiting, as plain data.

        Returns:
            `run`, `recipe`, `lr_recipe_hash`, counts by state, and `instances`: for each `id`, `state`, `patches`,
            `step`, `steps`, `resumed_from` (the step of its latest start; None before the first), `error`, and the last
            logged terms.
        """
        instances = [self._instance_status(instance) for instance in self.instances]
        states = [instance["state"] for instance in instances]
        return {
            "run": str(self.path),
            "recipe": self.recipe.name,
            "lr_recipe_hash": self.recipe.lr_recipe_hash,
            "photographs": len(states),
            "patches": sum(instance.count for instance in self.instances),
            **{state: states.count(state) for state in ("finished", "running", "interrupted", "failed", "waiting")},
            "instances": instances,
        }

    def _instance_status(self, instance: Instance) -> dict[str, Any]:
        lines = self.read_metrics(instance.id)
        starts = [line for line in lines if line["event"] == "start"]
        logged = [line for line in lines if line["event"] == "log"]
        steps = self.recipe.optimizer.steps if self.recipe.method == "idc" else 0
        step = logged[-1]["step"] if logged else 0
        error = self.failure(instance)
        if self.instance_file(instance.id).is_file():
            state, step = "finished", steps
        elif self._is_locked(instance.id):
            state = "running"
        elif error:
            state = "failed"
        else:
            state = "interrupted" if self._partial(instance.id).is_file() else "waiting"
        return {
            "id": instance.id,
            "state": state,
            "patches": instance.count,
            "step": step,
            "steps": steps,
            "resumed_from": starts[-1]["step"] if starts else None,
            "error": error,
            "last": {k: v for k, v in logged[-1].items() if k not in ("event", "step")} if logged else {},
        }

    def _is_locked(self, name: str) -> bool:
        lock = self.lock(name)
        if not Path(lock.lock_file).exists():
            return False
        try:
            with lock:
                return False
        except TimeoutError:
            return True

    def _partial(self, instance_id: str) -> Path:
        return self.path / "partial" / f"{instance_id}.safetensors"

    def _real(self, instance_id: str) -> Path:
        return self.path / "real" / f"{instance_id}.safetensors"

    def _failure(self, instance_id: str) -> Path:
        return self.path / "failed" / f"{instance_id}.json"

    def _metrics(self, instance_id: str) -> Path:
        return self.path / "metrics" / f"{instance_id}.jsonl"

    def _read(
        self, path: Path, instance: Instance, *, with_tensors: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["idc"])
                keys = file.keys() if with_tensors else ()
                tensors = {key: file.get_tensor(key) for key in keys}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is damaged ({error}).",
                "Delete it and run the same command again: only this photograph is condensed again.",
            ) from error
        expected = {"lr_recipe_hash": self.recipe.lr_recipe_hash, "source_sha256": instance.sha256}
        differing = [key for key, value in expected.items() if facts.get(key) != value]
        if differing:
            raise RunError(
                f"{path} belongs to another {'recipe' if 'lr_recipe_hash' in differing else 'photograph'}.",
                "Move it away, or use another --run-dir.",
            )
        return tensors, facts


def default_run_dir(name: str) -> Path:
    """Where a Run goes unless somebody says otherwise: `$IDC_RUNS` or `runs`, and its name."""
    return Path(os.environ.get("IDC_RUNS", "runs")) / name


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a safetensors file atomically; all metadata under one key, since two would not be reproducible."""
    from safetensors.torch import save

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_bytes_atomically(path, save(contiguous, metadata={"idc": json.dumps(metadata, sort_keys=True)}))


def patches_sha256(patches: Tensor) -> str:
    """Digest of uint8 patches `[n, 3, h, w]`: shape and pixels."""
    shape = ",".join(map(str, patches.shape))
    return hashlib.sha256(shape.encode() + b"\0" + patches.cpu().contiguous().numpy().tobytes()).hexdigest()


def _instance(notes: list[str], **found: Any) -> Instance:
    return Instance(notes=tuple(notes), **found)


def _whole_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
