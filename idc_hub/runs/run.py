"""A Run: one execution of a recipe. Its directory holds all of its state.

```
recipe.yaml                 the recipe, every key written out
run.json                    the photographs with their digests and counts, versions, machine
locks/<id>.lock             locked by the process that condenses the photograph
locks/<id>.json             its heartbeat: host, process, time
partial/<id>.safetensors    a checkpoint: patches, Adam's moments, assignment, step
instances/<id>.safetensors  the patches of a finished photograph, with the recipe's lr_recipe_hash
real/<id>.safetensors       real LR patches of a sample of the photographs, until `idc condense` has measured quality
failed/<id>.json            why a photograph could not be condensed
metrics/<id>.jsonl          one line for each start, log, stop and end
repo/                       the dataset repository, byte for byte as `idc push` publishes it
```

All processes that can access the directory, on any machine, share this state. Every file is written atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idc_hub.atomic import append_line, remove_abandoned, write_bytes_atomically, write_text_atomically, writing
from idc_hub.errors import IDCError, IncompleteError, RecipeError, RunError, enumerated, first_few, one_line
from idc_hub.images.sources import Instance, is_instance_id
from idc_hub.recipe import Recipe
from idc_hub.runs.claims import claim, claimed_by_others, left_behind, living_holder, this_process

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "idc-run"
FORMAT_VERSION = 1
FOLDERS = ("locks", "partial", "instances", "failed", "metrics")
ATTEMPTS = 2
"""How often a photograph is tried from the same checkpoint before it counts as failed."""
SAMPLE = 64
"""Most photographs that the quality gate looks at."""


class DamagedError(RunError):
    """A file of a Run is cut short or has changed since it was written."""


class Run:
    """An existing Run directory; make one with `create`, open one with `open`.

    Attributes:
        path: The directory.
        recipe: The recipe, with the extractor's digest.
        instances: The photographs, ordered by id, with the number of patches of each.
    """

    def __init__(self, path: Path, recipe: Recipe, instances: list[Instance]) -> None:
        self.path = path
        self.recipe = recipe
        self.instances = instances

    @classmethod
    def create(cls, path: Path, recipe: Recipe, instances: list[Instance], facts: dict[str, Any]) -> Run:
        """Make a Run directory, or continue the Run that is there.

        Args:
            path: The directory; its parents are made.
            recipe: The recipe, with the extractor's digest.
            instances: The photographs, ordered by id, with the number of patches of each.
            facts: Further keys of `run.json`: versions, machine.

        If `run.json` or `recipe.yaml` is damaged, they are written again: every finished photograph names its recipe
        and its source.

        Raises:
            RecipeError: The directory holds a Run of another recipe or of other photographs, or other files.
            RunError: `run.json` is newer than this version of idc-hub.
            IncompleteError: The directory cannot be written.
        """
        for_new = cls(path, recipe, instances)
        whole = False
        if not (path / "run.json").is_file() and path.exists():
            for_new._check_interrupted_start()
        if (path / "run.json").is_file():
            try:
                run = cls.open(path)
            except DamagedError as damaged:
                for_new._check_recoverable(damaged)
            else:
                run.check_same(recipe, instances)
                whole = True
        with writing(path):
            for folder in FOLDERS:
                (path / folder).mkdir(parents=True, exist_ok=True)
                remove_abandoned(path / folder)
            remove_abandoned(path)
        write_text_atomically(path / "recipe.yaml", recipe.to_yaml())
        if not whole:
            state = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "lr_recipe_hash": recipe.lr_recipe_hash,
                "instances": [asdict(instance) for instance in instances],
                **facts,
            }
            write_text_atomically(path / "run.json", json.dumps(state, indent=2) + "\n")
        return for_new

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing Run.

        Raises:
            RunError: There is none, or it is damaged or newer than this version of idc-hub.
        """
        if not (path / "run.json").is_file():
            raise RunError(f"{path} is not a Run: it has no run.json.", "Give the directory that `idc condense` made.")
        hint = "Run the command that made this Run again: it keeps the finished photographs."
        try:
            state = json.loads((path / "run.json").read_text(encoding="utf-8"))
            version = state["format_version"]
            known = state["format"] == FORMAT and version <= FORMAT_VERSION
            instances = [_instance(**entry) for entry in state["instances"]] if known else []
            recipe_hash = state["lr_recipe_hash"] if known else ""
        except PermissionError:
            raise
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DamagedError(f"{path / 'run.json'} is damaged ({one_line(error)}).", hint) from error
        if not known:
            raise RunError(f"{path / 'run.json'} has format version {version}.", "Update idc-hub to read it.")
        try:
            recipe = Recipe.load(path / "recipe.yaml")
        except (IDCError, OSError, ValueError) as error:
            raise DamagedError(f"{path / 'recipe.yaml'} is damaged ({one_line(error)}).", hint) from error
        if recipe.lr_recipe_hash != recipe_hash:
            raise DamagedError(f"{path / 'recipe.yaml'} is damaged: run.json names another recipe.", hint)
        return cls(path, recipe, instances)

    def _check_interrupted_start(self) -> None:
        """Refuse a directory without `run.json` that holds more than an interrupted start leaves behind.

        Raises:
            RecipeError: It holds other files.
        """
        recipe = self.path / "recipe.yaml"
        foreign = [
            entry.name
            for entry in self.path.iterdir()
            if not (entry.name in FOLDERS and entry.is_dir() and not any(entry.iterdir()))
            and not (entry == recipe and entry.read_bytes() == self.recipe.to_yaml().encode())
            and not (entry.name.startswith((".recipe.yaml.", ".run.json.")) and entry.name.endswith(".partial"))
        ]
        if foreign and not (self.path / "run.json").is_file():  # another process may just have begun the same Run
            raise RecipeError(
                f"{self.path} is not empty and not a Run: it has no run.json, but {enumerated(foreign)}.",
                "Choose another --run-dir.",
            )

    def _check_recoverable(self, damaged: DamagedError) -> None:
        """Check that the finished photographs of a damaged Run are those of this recipe and these photographs.

        Raises:
            RecipeError: Some are not.
        """
        try:
            recipe_hash = self.state["lr_recipe_hash"]
        except (ValueError, KeyError, TypeError):
            recipe_hash = self.recipe.lr_recipe_hash  # run.json itself is damaged
        known = {instance.id: instance for instance in self.instances}
        foreign = [] if recipe_hash == self.recipe.lr_recipe_hash else ["run.json"]
        for path in (self.path / "instances").glob("*.safetensors"):
            try:
                if path.stem not in known or len(self.read_patches(known[path.stem])) != known[path.stem].count:
                    foreign.append(path.name)
            except DamagedError:
                continue  # it is made again
            except RunError:
                foreign.append(path.name)
        if foreign:
            raise RecipeError(
                f"{damaged.message[:-1]}, and these files were made with another recipe or from other photographs: "
                f"{enumerated(foreign)}.",
                "Repeat the command that made this Run, or choose another --run-dir.",
            )
        warnings.warn(f"{damaged.message} It is written again; finished photographs are kept.", stacklevel=1)

    def check_same(self, recipe: Recipe, instances: list[Instance]) -> None:
        """Refuse to continue this Run with another recipe or other photographs.

        Raises:
            RecipeError: The recipe or the photographs differ; the message names the keys or photographs.
        """
        restart = ", or --restart to discard this Run" if recipe.method == "idc" else ""
        hint = f"Choose another --run-dir{restart}."
        if recipe.lr_recipe_hash != self.recipe.lr_recipe_hash:
            differing = "; ".join(self.recipe.differing(recipe))
            raise RecipeError(f"{self.path} was made with another recipe: {differing}.", hint)
        mine, theirs = ({instance.id: instance.sha256 for instance in s} for s in (self.instances, instances))
        if mine != theirs:
            changed = sorted(key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key])
            missing, new = sorted(mine.keys() - theirs.keys()), sorted(theirs.keys() - mine.keys())
            differing = "; ".join(
                f"{label}: {first_few(ids, 5)}"
                for label, ids in {"missing now": missing, "new": new, "changed": changed}.items()
                if ids
            )
            raise RecipeError(f"{self.path} was made from other photographs ({differing}).", hint)

    @staticmethod
    def discard(path: Path) -> None:
        """Remove a Run directory; does nothing if there is no Run.

        Raises:
            RunError: Another process works on it.
        """
        if not (path / "run.json").is_file():
            return
        if claimed_by_others(path / "locks") or claimed_by_others(path):
            raise RunError(f"Another process is working on {path}.", "Stop it first, or choose another --run-dir.")
        with writing(path):
            for entry in path.iterdir():
                if entry.name == "run.json":
                    continue  # the last to go: without it a folder with files is not recognized as a Run
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            (path / "run.json").unlink()

    @property
    def state(self) -> dict[str, Any]:
        """The content of `run.json`, read anew."""
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))

    @property
    def repo(self) -> Path:
        """The folder of the dataset repository."""
        return self.path / "repo"

    def claim(self, instance_id: str) -> AbstractContextManager[bool]:
        """Claim a photograph for this process, if no other one has it: see `claims.claim`.

        If a process died while it had the photograph, that counts as a failure.
        """

        def record_death(holder: dict[str, Any]) -> None:
            instance = self._by_id[instance_id]
            if not self.instance_file(instance_id).is_file():
                who = f"The process that condensed it ({holder['pid']} on {holder['host']})"
                self.record_failure(instance, f"{who} was killed, perhaps for lack of memory.", holder)

        return claim(self.path / "locks", instance_id, on_death=record_death)

    @cached_property
    def _by_id(self) -> dict[str, Instance]:
        return {instance.id: instance for instance in self.instances}

    def is_claimed(self, instance: Instance) -> bool:
        """Whether a living process has claimed the photograph."""
        return living_holder(self.path / "locks", instance.id) is not None

    def was_tried(self, instance: Instance) -> bool:
        """Whether the photograph failed before, or a process died while it condensed it."""
        return self.read_failure(instance) is not None or left_behind(self.path / "locks", instance.id)

    @cached_property
    def sample(self) -> dict[str, Instance]:
        """The photographs that the quality gate looks at, by id: at most `SAMPLE`, drawn by the recipe's seed."""
        import torch

        from idc_hub.condensation.real_side import generator

        instances = [instance for instance in self.instances if instance.count]
        order = torch.randperm(len(instances), generator=generator(self.recipe.seed, "quality"))[:SAMPLE]
        return {instances[number].id: instances[number] for number in sorted(order.tolist())}

    def held_out(self) -> dict[str, float]:
        """Mean `held_out` and `held_out_random` over the finished photographs that have them; empty if none has.

        Raises:
            RunError: A finished file is missing, damaged, or belongs to another recipe or photograph.
        """
        every = [self.read_facts(instance) for instance in self.instances if instance.count]
        measured = [facts for facts in every if "held_out" in facts]  # a selection measures only a sample
        return {
            key: sum(facts[key] for facts in measured) / len(measured)
            for key in ("held_out", "held_out_random")
            if measured
        }

    def instance_file(self, instance_id: str) -> Path:
        """Path of the finished patches of a photograph."""
        return self.path / "instances" / f"{instance_id}.safetensors"

    def unsettled(self, instances: list[Instance]) -> list[Instance]:
        """Those of some photographs that are not settled, from a listing of the folders instead of a look at each."""
        finished, failed = stems(self.path / "instances", ".safetensors"), stems(self.path / "failed", ".json")
        left = [instance for instance in instances if instance.id not in finished]
        return [instance for instance in left if instance.id not in failed or not self.is_settled(instance)]

    def is_settled(self, instance: Instance) -> bool:
        """Whether the photograph has an instance file, or failed for good; does not read the instance file."""
        if self.instance_file(instance.id).is_file():
            return True
        failure = self.read_failure(instance)
        return failure is not None and failure["attempts"] >= ATTEMPTS

    def drop_damaged(self, instance: Instance) -> str | None:
        """Remove the photograph's instance file if it is damaged, so that it is condensed again.

        Returns:
            What is wrong with it; None if it is sound or missing.

        Raises:
            RunError: The file belongs to another recipe or photograph, or is a folder.
        """
        path = self.instance_file(instance.id)
        if not path.is_file():
            if path.is_dir() or path.is_symlink():
                raise RunError(f"{path} is not a file.", "Move it away, and run the same command again.")
            return None
        try:
            self.check_patches(instance)
        except DamagedError as damaged:
            path.unlink(missing_ok=True)
            self.append_metrics(instance.id, {"event": "damaged", "error": damaged.message, "time": time.time()})
            return damaged.message
        return None

    def read_facts(self, instance: Instance) -> dict[str, Any]:
        """The metadata of a finished photograph: `lr_recipe_hash`, `source_sha256`, steps, discrepancies, losses.

        Reads only the header of the file.

        Raises:
            RunError: The file is missing, damaged, or belongs to another recipe or photograph.
        """
        return self._read(self.instance_file(instance.id), instance, "np", with_tensors=False)[1]

    def read_patches(self, instance: Instance) -> Tensor:
        """Finished LR patches of a photograph, uint8 `[n, 3, h, w]`, checked against their digest in the header.

        Raises:
            RunError: The file is missing, damaged, or belongs to another recipe or photograph.
        """
        import torch

        return torch.from_numpy(self.check_patches(instance))

    def check_patches(self, instance: Instance) -> np.ndarray:
        """`read_patches` as a NumPy array: looking at a Run does not take the time to import torch."""
        path = self.instance_file(instance.id)
        arrays, facts = self._read(path, instance, "np")
        patches = arrays.get(instance.id)
        if patches is None or patches_sha256(patches) != facts.get("patches_sha256"):
            raise DamagedError(
                f"{path} is damaged: its pixels do not have the digest it names.",
                "Run the same command again: only this photograph is condensed again.",
            )
        return patches

    def write_patches(self, instance: Instance, patches: Tensor, facts: dict[str, Any]) -> None:
        """Write the instance file of a photograph, then remove its checkpoint and its failure.

        If another process has finished the photograph meanwhile, its file is kept.

        Args:
            instance: The photograph.
            patches: uint8 `[n, 3, h, w]`.
            facts: Further metadata; must be deterministic (no times, no machine) so that equal Runs write equal bytes.
        """
        metadata = {
            "format": "idc-instance",
            "format_version": FORMAT_VERSION,
            "lr_recipe_hash": self.recipe.lr_recipe_hash,
            "patches_sha256": patches_sha256(patches.cpu().numpy()),
            "scale": self.recipe.scale,
            "source_sha256": instance.sha256,
            **facts,
        }
        write_tensors(self.instance_file(instance.id), {instance.id: patches}, metadata, keep_existing=True)
        self._partial(instance.id).unlink(missing_ok=True)
        self._failure(instance.id).unlink(missing_ok=True)

    def read_partial(self, instance: Instance) -> dict[str, Tensor] | None:
        """The tensors of a photograph's checkpoint; None if there is none.

        Raises:
            RunError: The checkpoint is damaged, not finite, or belongs to another recipe or photograph.
        """
        path = self._partial(instance.id)
        if not path.is_file():
            return None
        tensors, facts = self._read(path, instance)
        if tensors_sha256(tensors) != facts.get("tensors_sha256"):
            raise DamagedError(f"{path} is damaged: its tensors do not have the digest it names.")
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise DamagedError(f"{path} holds NaN or Inf.")
        return tensors

    def write_partial(self, instance: Instance, tensors: dict[str, Tensor]) -> None:
        """Write a photograph's checkpoint."""
        metadata = {
            "lr_recipe_hash": self.recipe.lr_recipe_hash,
            "source_sha256": instance.sha256,
            "tensors_sha256": tensors_sha256(tensors),
        }
        write_tensors(self._partial(instance.id), tensors, metadata)

    def drop_partial(self, instance: Instance, reason: str) -> None:
        """Remove a photograph's checkpoint, and write the reason into its metrics."""
        self._partial(instance.id).unlink(missing_ok=True)
        self.append_metrics(instance.id, {"event": "dropped", "error": reason, "time": time.time()})

    def write_real(self, instance: Instance, patches: Tensor) -> None:
        """Keep all real LR patches of a photograph, uint8 `[N, 3, h, w]`, for the quality gate."""
        metadata = {"lr_recipe_hash": self.recipe.lr_recipe_hash, "source_sha256": instance.sha256}
        with writing(self._real(instance.id)):
            self._real(instance.id).parent.mkdir(exist_ok=True)
        write_tensors(self._real(instance.id), {"real": patches}, metadata)

    def read_real(self, instance: Instance) -> Tensor | None:
        """The real LR patches that `write_real` kept, uint8 `[N, 3, h, w]`; None if they are missing or damaged."""
        if not self._real(instance.id).is_file():
            return None
        try:
            return self._read(self._real(instance.id), instance)[0]["real"]
        except (RunError, KeyError):
            return None  # they can be cut out of the photograph again

    def forget_real(self) -> None:
        """Remove all patches that `write_real` kept."""
        shutil.rmtree(self.path / "real", ignore_errors=True)

    def forget_work(self) -> None:
        """Remove what a kill, or a worker that came too late, left beside finished files: checkpoints and failures."""
        for folder, suffix in (("partial", ".safetensors"), ("failed", ".json")):
            for name in stems(self.path / folder, suffix) & stems(self.path / "instances", ".safetensors"):
                (self.path / folder / f"{name}{suffix}").unlink(missing_ok=True)

    def require_finished(self) -> None:
        """Check that no photograph failed; one that another process finished meanwhile did not.

        Raises:
            IncompleteError: Some failed; the message names each of them and the reason.
        """
        recorded = stems(self.path / "failed", ".json") - stems(self.path / "instances", ".safetensors")
        failures = {instance.id: self.failure(instance) for instance in self.instances if instance.id in recorded}
        lines = [f"  {instance_id}: {error}" for instance_id, error in failures.items() if error]
        if lines:
            failed = "\n".join(lines)
            raise IncompleteError(
                f"{len(lines)} of {len(self.instances)} photographs failed:\n{failed}\n",
                "The others are finished and kept. Run the same command again to retry.",
            )

    def record_failure(self, instance: Instance, sentence: str, process: dict[str, Any] | None = None) -> None:
        """Write down why a photograph could not be condensed, and count the attempts from the same checkpoint.

        Args:
            instance: The photograph.
            sentence: The reason.
            process: `host` and `pid` of the process that tried; None: this one.
        """
        before, partial = self.read_failure(instance), self._partial(instance.id)
        checkpoint = partial.stat().st_mtime_ns if partial.is_file() else None
        attempts = 1 + (before["attempts"] if before and before["checkpoint"] == checkpoint else 0)
        process = process or this_process()
        facts = {
            "id": instance.id,
            "name": instance.name,
            "error": sentence,
            "attempts": attempts,
            "checkpoint": checkpoint,
            "host": process["host"],
            "pid": process["pid"],
        }
        write_text_atomically(self._failure(instance.id), json.dumps(facts, indent=2) + "\n")
        self.append_metrics(instance.id, {"event": "fail", "error": sentence, "time": time.time()})

    def read_failure(self, instance: Instance) -> dict[str, Any] | None:
        """Why the photograph failed last (`error`), the `attempts`, and whose the last was (`host`, `pid`); or None."""
        try:
            failure = json.loads(self._failure(instance.id).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            failure = {}
        unknown = {"error": "its record in failed/ is damaged", "attempts": ATTEMPTS, "checkpoint": None}
        return {**unknown, "host": "", "pid": 0, **failure}

    def clear_failures(self) -> None:
        """Remove all recorded failures, so that their photographs are tried again; not while others work."""
        if not claimed_by_others(self.path / "locks"):
            for path in (self.path / "failed").glob("*.json"):
                path.unlink(missing_ok=True)

    def abandoned(self) -> list[str]:
        """Ids of photographs whose process died while it condensed them, and that nobody has taken since."""
        claimed = stems(self.path / "locks", ".json")
        ids = [instance.id for instance in self.instances if instance.id in claimed]
        return [instance_id for instance_id in ids if left_behind(self.path / "locks", instance_id)]

    def failure(self, instance: Instance) -> str | None:
        """Why the photograph failed; None if it did not."""
        failure = self.read_failure(instance)
        return str(failure["error"]) if failure else None

    def append_metrics(self, instance_id: str, line: dict[str, Any]) -> None:
        """Append a line to the photograph's metrics."""
        append_line(self._metrics(instance_id), json.dumps(line))

    def read_metrics(self, instance_id: str) -> list[dict[str, Any]]:
        """All lines of the photograph's metrics, except one that a kill cut short."""
        path = self._metrics(instance_id)
        return list(whole_lines(path.read_bytes())) if path.is_file() else []

    def _partial(self, instance_id: str) -> Path:
        return self.path / "partial" / f"{instance_id}.safetensors"

    def _real(self, instance_id: str) -> Path:
        return self.path / "real" / f"{instance_id}.safetensors"

    def _failure(self, instance_id: str) -> Path:
        return self.path / "failed" / f"{instance_id}.json"

    def _metrics(self, instance_id: str) -> Path:
        return self.path / "metrics" / f"{instance_id}.jsonl"

    def _read(
        self, path: Path, instance: Instance, framework: str = "pt", *, with_tensors: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework=framework) as file:
                facts = json.loads(file.metadata()["idc"])
                digest = facts.pop("metadata_sha256", None)  # older files have none
                if digest is not None and digest != _metadata_sha256(facts):
                    raise ValueError("its metadata do not have the digest they name")
                keys = file.keys() if with_tensors else ()
                tensors = {key: file.get_tensor(key) for key in keys}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                f"{path} is damaged ({one_line(error)}).",
                "Run the same command again: only this photograph is condensed again.",
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
    """The default directory of a Run: its name in `$IDC_RUNS`, or in `runs`."""
    return Path(os.environ.get("IDC_RUNS", "runs")) / name


def stems(folder: Path, suffix: str) -> set[str]:
    """Names of the files of a folder that have a suffix, without it; hidden ones are unfinished writes."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(suffix)]
    except FileNotFoundError:
        return set()
    return {name[: -len(suffix)] for name in names if not name.startswith(".")}


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any], *, keep_existing: bool = False
) -> None:
    """Write a safetensors file atomically; with `keep_existing`, only if there is none yet.

    All metadata goes under one key: the order of several keys, and so the bytes of the file, would not be fixed.
    `metadata_sha256` is added to them.
    """
    from safetensors.torch import save

    metadata = metadata | {"metadata_sha256": _metadata_sha256(metadata)}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = save(contiguous, metadata={"idc": json.dumps(metadata, sort_keys=True)})
    write_bytes_atomically(path, content, keep_existing=keep_existing)


def _metadata_sha256(metadata: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def patches_sha256(patches: np.ndarray) -> str:
    """SHA-256 of the shape and the pixels of uint8 patches `[n, 3, h, w]`, in hexadecimal."""
    shape = ",".join(map(str, patches.shape))
    return hashlib.sha256(shape.encode() + b"\0" + patches.tobytes()).hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and values of tensors, in hexadecimal."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _instance(notes: list[str], **fields: Any) -> Instance:
    """An instance from its JSON form; raises a ValueError if its id could lead out of the Run."""
    if not is_instance_id(fields["id"]):
        raise ValueError(f"{fields['id']!r} is no id of a photograph")
    return Instance(notes=tuple(notes), **fields)


def whole_lines(text: bytes) -> Iterator[dict[str, Any]]:
    """The lines of a JSON Lines file, without those that a kill cut short."""
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found
