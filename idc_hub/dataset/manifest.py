"""idc.json: what a repository tree holds, in one small file.

Format version 1 has the LR digest and counts, the HR versions with the teacher and the LR digest of each,
package versions, and the facts of the condensation that the card tells. Its keys are `Manifest`'s fields.
"""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from idc_hub.atomic import write_text_atomically
from idc_hub.errors import RunError

MANIFEST = "idc.json"
FORMAT = "idc"
FORMAT_VERSION = 1

_VERSION_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_RESERVED_NAMES = ("data", "default")  # `datasets` gives both a meaning of its own
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEACHER_KEYS = {"name", "kind", "scale", "weights_sha256", "license"}
_SETTINGS = {"pipeline": str, "scheduler": str, "steps": int, "seed": int, "prompt": str, "guidance": int | float}
_HR_VERSION_KEYS = {"teacher", "lr_digest", "date", "patches", "bytes"}


def is_version_name(name: str) -> bool:
    """Whether an HR version may be called `name`: a-z, 0-9 and "-", but not "data" or "default"."""
    return _VERSION_NAME.fullmatch(name) is not None and name not in _RESERVED_NAMES


@dataclass
class Manifest:
    """The contents of idc.json.

    Attributes:
        name: Name of the recipe.
        scale: 2, 3 or 4.
        patch_size: Side of an LR patch in pixels.
        lr_recipe_hash: The recipe's hash of everything that determines the LR patches.
        lr_digest: Digest of the LR patches themselves (`shards.lr_digest`).
        instances: Number of instances that have patches.
        patches: Number of LR patches.
        default: The HR version that `load_dataset` gives without a config name; None while there is none.
        hr_versions: Per name `{"teacher": {"name", "kind", "scale", "weights_sha256", "license"},
            "lr_digest", "date", "patches", "bytes"}`; `bytes` is the size of its parquet files. Of a diffusion
            pipeline the teacher also has "pipeline", "scheduler", "steps", "seed", perhaps "prompt", "guidance".
        packages: Versions of the packages that made it.
        condensation: Facts for the card, such as photographs, windows, steps, seconds, device.
    """

    name: str
    scale: int
    patch_size: int
    lr_recipe_hash: str
    lr_digest: str
    instances: int
    patches: int
    default: str | None = None
    hr_versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    condensation: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read and check the idc.json of a repository tree.

        Raises:
            RunError: No such file, not JSON, another format, a newer format version, or an impossible value.
        """
        path = folder / MANIFEST
        try:
            facts = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise RunError(
                f"{folder} has no {MANIFEST}.", "Name a folder that `idc condense` or `idc pull` made."
            ) from None
        except ValueError as error:
            raise _damaged(path, f"it is not JSON ({error})") from error
        if not isinstance(facts, dict) or facts.pop("format", None) != FORMAT:
            raise _damaged(path, f'it does not say "format": "{FORMAT}"')
        version = facts.pop("format_version", None)
        if not _is_count(version) or version < 1:
            raise _damaged(path, "format_version is not a number of 1 or more")
        if version > FORMAT_VERSION:
            raise RunError(
                f"{path} has format version {version}; this idc-hub reads up to {FORMAT_VERSION}.",
                "Install a newer idc-hub.",
            )
        known = {entry.name for entry in fields(cls)}
        if facts.keys() != known:
            raise _damaged(path, f"missing or unknown keys: {', '.join(sorted(facts.keys() ^ known))}")
        manifest = cls(**facts)
        problem = manifest._problem()
        if problem:
            raise _damaged(path, problem)
        return manifest

    def save(self, folder: Path) -> None:
        """Write idc.json into `folder`, atomically.

        Raises:
            RunError: A value that `load` would refuse.
        """
        path = folder / MANIFEST
        problem = self._problem()
        if problem:
            raise RunError(f"{path} was not written: {problem}.")
        facts = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        write_text_atomically(path, json.dumps(facts, sort_keys=True, indent=2, ensure_ascii=False) + "\n")

    def _problem(self) -> str | None:
        """The first thing that is wrong, in words."""
        for key in ("name", "lr_recipe_hash", "lr_digest"):
            if not isinstance(getattr(self, key), str):
                return f"{key} is not a string"
        for key in ("hr_versions", "packages", "condensation"):
            if not isinstance(getattr(self, key), dict):
                return f"{key} is not an object"
        for key in ("scale", "patch_size", "instances", "patches"):
            if not _is_count(getattr(self, key)):
                return f"{key} is not a whole number of 0 or more"
        if not _VERSION_NAME.fullmatch(self.name):
            return f"name {self.name!r} has other characters than a-z, 0-9 and -"
        if not re.fullmatch("[0-9a-f]+", self.lr_recipe_hash):
            return "lr_recipe_hash is not a hexadecimal digest"
        if not _SHA256.fullmatch(self.lr_digest):
            return "lr_digest is not a SHA-256 digest"
        if not 2 <= self.scale <= 4 or self.patch_size == 0:
            return f"scale {self.scale} or patch_size {self.patch_size} is out of range"
        if self.patches < self.instances:
            return f"{self.patches} patches are too few for {self.instances} instances"
        for name, version in self.hr_versions.items():
            problem = self._version_problem(name, version)
            if problem:
                return f"HR version {name!r}: {problem}"
        allowed: list[str | None] = [*self.hr_versions] or [None]
        if self.default not in allowed:
            return f"default {self.default!r} is not one of its HR versions"
        return None

    def _version_problem(self, name: str, version: Any) -> str | None:
        if not is_version_name(name):
            return "the name is not allowed"
        if not isinstance(version, dict) or version.keys() != _HR_VERSION_KEYS:
            return f"it needs exactly the keys {', '.join(sorted(_HR_VERSION_KEYS))}"
        teacher = version["teacher"]
        if not isinstance(teacher, dict) or teacher.keys() - _SETTINGS.keys() != _TEACHER_KEYS:
            return f"teacher needs exactly the keys {', '.join(sorted(_TEACHER_KEYS))} (and settings of a pipeline)"
        for key in teacher.keys() & _SETTINGS.keys():
            if not isinstance(teacher[key], _SETTINGS[key]) or isinstance(teacher[key], bool):
                return f"teacher.{key} is not a {'string' if _SETTINGS[key] is str else 'number'}"
        if not (isinstance(teacher["name"], str) and isinstance(teacher["kind"], str)):
            return "teacher.name or teacher.kind is not a string"
        if not isinstance(teacher["license"], str | None):
            return "teacher.license is not a string"
        digest = teacher["weights_sha256"]
        if digest is not None and not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
            return "teacher.weights_sha256 is not a SHA-256 digest"
        if teacher["scale"] != self.scale:
            return f"its teacher has scale {teacher['scale']}, not {self.scale}"
        if version["lr_digest"] != self.lr_digest:
            return "it was made from other LR patches (its lr_digest differs)"
        if version["patches"] != self.patches or not _is_count(version["bytes"]):
            return f"its counts do not fit {self.patches} patches"
        if not (isinstance(version["date"], str) and re.fullmatch(r"\d{4}-\d\d-\d\d", version["date"])):
            return "date is not an ISO date"
        return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _damaged(path: Path, problem: str) -> RunError:
    return RunError(f"{path} cannot be used: {problem}.", "Pull or make the repository again.")
