"""idc.json: the facts about a repository folder, in one small file.

Format version 1 holds the fields of `Manifest`, `HRVersion` and `TeacherRecord` as nested JSON objects.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from idc_hub.atomic import write_text_atomically
from idc_hub.errors import NetworkError, RunError

MANIFEST = "idc.json"
FORMAT = "idc"
FORMAT_VERSION = 1

_RESERVED_NAMES = ("data", "default")  # `datasets` gives both a meaning of its own


def is_version_name(name: str) -> bool:
    """Whether an HR version may be called `name`: a-z, 0-9 and "-", but not "data" or "default"."""
    return re.fullmatch("[a-z0-9][a-z0-9-]*", name) is not None and name not in _RESERVED_NAMES


def _version_name(name: str) -> str:
    if not is_version_name(name):
        raise ValueError("is not allowed as the name of an HR version")
    return name


Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
VersionName = Annotated[str, AfterValidator(_version_name)]
ShardName = Annotated[str, Field(pattern=r"^train-\d{5}-of-\d{5}\.parquet$")]


class TeacherRecord(BaseModel):
    """The teacher that made an HR version.

    Attributes:
        name: What the card calls it.
        kind: How it was loaded, such as "network", "bicubic", "diffusers" or, for real HR, "photographs".
        scale: How many times larger its HR is.
        weights_sha256: Digest of its weights; None if it has none.
        license: License of the weights; None if not stated.
        pipeline: Class of a diffusion pipeline. This and the following are missing for all other teachers.
        scheduler: Class of the pipeline's scheduler.
        steps: Denoising steps.
        seed: Seed of the noise.
        prompt: Text prompt.
        guidance: Guidance scale.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str
    kind: str
    scale: int
    weights_sha256: Sha256 | None
    license: str | None
    pipeline: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    seed: int | None = None
    prompt: str | None = None
    guidance: float | None = None

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Self:
        """The record of a teacher that describes itself as `facts`.

        Raises:
            NetworkError: A value has the wrong type, such as a license that is not a string.
        """
        try:
            return cls.model_validate(facts)
        except ValidationError as error:
            name = facts.get("name")
            raise NetworkError(f"The teacher {name} describes itself wrongly: {_first_problem(error)}.") from error

    def is_same(self, other: "TeacherRecord") -> bool:
        """Whether weights and settings are equal; a teacher without weights is identified by its name."""
        ignored = set() if self.weights_sha256 is None else {"name", "license"}
        return self.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)

    @field_validator("pipeline", "scheduler", "steps", "seed", "prompt", "guidance", mode="before")
    @classmethod
    def _refuse_null(cls, value: object) -> object:
        if value is None:
            raise ValueError("is null; leave the key out instead")
        return value

    @model_serializer(mode="wrap")
    def _leave_out_missing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if key in self.model_fields_set}


class FileRecord(BaseModel):
    """A file of an HR version.

    Attributes:
        bytes: Its size.
        sha256: Its digest.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    bytes: Count
    sha256: Sha256

    @classmethod
    def of(cls, path: Path) -> Self:
        """The record of a file."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(bytes=path.stat().st_size, sha256=digest)


class HRVersion(BaseModel):
    """An HR version.

    Attributes:
        teacher: What made it.
        lr_digest: Digest of the LR patches it was made from.
        date: ISO date on which it was made.
        patches: Number of HR patches.
        bytes: Size of its parquet files.
        files: Its parquet files by name; None in sets that were made before idc.json recorded them.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    teacher: TeacherRecord
    lr_digest: Sha256
    date: Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
    patches: Count
    bytes: Count
    files: dict[ShardName, FileRecord] | None = None

    @model_serializer(mode="wrap")
    def _leave_out_missing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if key != "files" or value is not None}


class Manifest(BaseModel):
    """The contents of idc.json.

    Attributes:
        name: Name of the recipe.
        scale: 2, 3 or 4.
        patch_size: Side of an LR patch in pixels.
        lr_recipe_hash: The recipe's hash of everything that determines the LR patches.
        lr_digest: Digest of the LR patches themselves (`shards.LRDigest`).
        instances: Number of instances that have patches.
        patches: Number of LR patches.
        default: The HR version that `load_dataset` gives without a config name; None if there is no HR version.
        hr_versions: The HR versions by name.
        packages: Versions of the packages that made the LR patches.
        condensation: Facts for the card, such as photographs, real_patches, steps, seconds, device.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]
    scale: Annotated[int, Field(ge=2, le=4)]
    patch_size: Annotated[int, Field(ge=1, le=65_535)]
    lr_recipe_hash: Annotated[str, Field(pattern="^[0-9a-f]+$")]
    lr_digest: Sha256
    instances: Count
    patches: Count
    default: str | None = None
    hr_versions: dict[VersionName, HRVersion] = {}
    packages: dict[str, Any] = {}
    condensation: dict[str, Any] = {}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read and check the idc.json of a repository folder.

        Raises:
            RunError: The file is missing, is not JSON, has another format or a newer format version, or holds an
                invalid value.
        """
        path = folder / MANIFEST
        try:
            facts = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise RunError(
                f"{folder} has no {MANIFEST}.", "Name a folder that `idc condense` or `idc pull` made."
            ) from None
        except (ValueError, RecursionError) as error:
            raise _unusable(path, f"it is not JSON ({error})") from error
        if not isinstance(facts, dict) or facts.pop("format", None) != FORMAT:
            raise _unusable(path, f'it does not say "format": "{FORMAT}"')
        version = facts.pop("format_version", None)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise _unusable(path, "format_version is not a number of 1 or more")
        if version > FORMAT_VERSION:
            raise RunError(
                f"{path} has format version {version}; this idc-hub reads up to {FORMAT_VERSION}.",
                "Install a newer idc-hub.",
            )
        # A file spells every key out; only code that makes a new manifest may leave some at their defaults.
        for key in cls.model_fields:
            if key not in facts:
                raise _unusable(path, f"the key {key} is missing")
        try:
            return cls.model_validate(facts)
        except ValidationError as error:
            raise _unusable(path, _first_problem(error)) from error

    def save(self, folder: Path) -> None:
        """Write idc.json into `folder`, atomically.

        Raises:
            RunError: A value that `load` would refuse.
        """
        path = folder / MANIFEST
        facts = self.model_dump(warnings=False)
        try:
            type(self).model_validate(facts)
        except ValidationError as error:
            raise RunError(f"{path} was not written: {_first_problem(error)}.") from error
        facts |= {"format": FORMAT, "format_version": FORMAT_VERSION}
        write_text_atomically(path, json.dumps(facts, sort_keys=True, indent=2, ensure_ascii=False) + "\n")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.patches < self.instances:
            raise ValueError(f"patches is {self.patches}, too few for {self.instances} instances")
        for name, version in self.hr_versions.items():
            key = f"hr_versions.{name}"
            if version.teacher.scale != self.scale:
                raise ValueError(f"{key}.teacher.scale is {version.teacher.scale}, not {self.scale}")
            if version.lr_digest != self.lr_digest:
                raise ValueError(f"{key}.lr_digest names other LR patches than lr_digest")
            if version.patches != self.patches:
                raise ValueError(f"{key}.patches is {version.patches}, not {self.patches}")
            if version.files is not None and sum(file.bytes for file in version.files.values()) != version.bytes:
                raise ValueError(f"{key}.bytes is {version.bytes}, not the sum of its files")
        allowed: list[str | None] = [*self.hr_versions] or [None]
        if self.default not in allowed:
            raise ValueError(f"default is {self.default!r}, which is not one of hr_versions")
        return self


def _first_problem(error: ValidationError) -> str:
    """The first value that pydantic refused: its key, and what is wrong with it."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    match problem["type"]:
        case "missing":
            return f"the key {key} is missing"
        case "extra_forbidden":
            return f"the key {key} is unknown"
        case "model_type" | "dict_type":
            return f"{key} should be an object"
        case "value_error":
            return f"{key} {problem['ctx']['error']}".strip()
    return f"{key} {re.sub('^(Input|String) ', '', problem['msg'])}"


def _unusable(path: Path, problem: str) -> RunError:
    return RunError(f"{path} cannot be used: {problem}.", "Pull or make the repository again.")
