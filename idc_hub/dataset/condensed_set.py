"""CondensedSet: a repository folder, which is byte for byte a dataset repository on the Hub.

```
README.md  idc.json  recipe.yaml
lr/lr-00001-of-00004.safetensors  lr/lr.safetensors.index.json
data/<hr-version>/train-00000-of-00006.parquet
report/patches.png
```
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idc_hub.dataset import parquet, shards
from idc_hub.dataset.manifest import MANIFEST, Manifest
from idc_hub.errors import ImageError, RecipeError, RunError, one_line
from idc_hub.images.files import check_png
from idc_hub.recipe_reader import read_yaml
from idc_hub.runs.claims import Lock

if TYPE_CHECKING:
    from torch import Tensor

RECIPE = "recipe.yaml"
CARD = "README.md"

_REMEDY = "Pull the repository again."

_checked: set[tuple[object, ...]] = set()
"""Files that this process has verified: folder, LR digest, and the name, size and time of each file."""


def repository_lock(folder: Path) -> Lock:
    """The lock of a repository folder: a second command says that it waits until the first has finished writing.

    Its files are beside the folder, so that they are never published. It is free again if its process dies.
    """
    return Lock(folder.parent, f".{folder.name}", folder)


def repository_folder(path: str | Path) -> Path:
    """The repository folder of a Run, or the path itself if it is one.

    Raises:
        RunError: There is none.
    """
    for folder in (Path(path) / "repo", Path(path)):
        if (folder / MANIFEST).is_file():
            return folder
    raise RunError(
        f"{path} holds no condensed set (no repo/{MANIFEST}).",
        "Finish `idc condense`, or fetch a set with `idc pull`.",
    )


@dataclass(frozen=True)
class LRPatch:
    """An LR patch of a set and what the index of the shards says about it.

    Attributes:
        instance_id: Id of its instance.
        patch_index: Its index within the instance, from 0.
        pixels: uint8 `[3, h, w]`.
        source_sha256: SHA-256 of the photograph's file; None if it is not known.
        nearest_real: RMS difference to the nearest real patch of the photograph, in gray levels; None if not measured.
    """

    instance_id: str
    patch_index: int
    pixels: Tensor
    source_sha256: str | None
    nearest_real: float | None

    @property
    def name(self) -> str:
        """What messages call it, as `parquet.Row.name`."""
        return f"patch_index {self.patch_index} of instance_id {self.instance_id}"


class CondensedSet:
    """A finished set of LR patches and its HR versions.

    Attributes:
        folder: The repository folder.
        manifest: The contents of idc.json, read once; `updating` reads them again.
    """

    def __init__(self, folder: Path, manifest: Manifest | None = None) -> None:
        self.folder = folder
        self.manifest = manifest or Manifest.load(folder)
        self._lock = repository_lock(folder)

    @classmethod
    def open(cls, path: str | Path) -> CondensedSet:
        """Open the set of a Run or of a repository folder.

        Raises:
            RunError: There is no set, or its idc.json is damaged.
        """
        return cls(repository_folder(path))

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The values in recipe.yaml, unvalidated since another idc-hub may have written them; empty without the file.

        Raises:
            RunError: The file is not a YAML mapping.
        """
        path = self.folder / RECIPE
        try:
            values = read_yaml(path.read_text(encoding="utf-8"), str(path))[1] if path.is_file() else {}
        except (RecipeError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({one_line(error)}).", _REMEDY) from error
        if not isinstance(values, dict):
            raise RunError(f"{path} is not a recipe.", _REMEDY)
        return values

    @property
    def is_selection(self) -> bool:
        """Whether the LR patches are real ones that `idc select` chose, rather than condensed ones."""
        return self.recipe.get("method", "idc") != "idc"

    @property
    def lr(self) -> Path:
        """The folder of the LR shards."""
        return self.folder / "lr"

    def data(self, hr_version: str) -> Path:
        """The folder of the parquet files of the version `hr_version`."""
        return self.folder / "data" / hr_version

    def hr_version(self, name: str | None = None) -> str:
        """`name` if the set has such an HR version, or the name of the default version if `name` is None.

        Raises:
            RunError: There is no such version.
        """
        wanted = name or self.manifest.default
        if wanted is None or wanted not in self.manifest.hr_versions:
            names = ", ".join(self.manifest.hr_versions) or "none yet"
            raise RunError(f"{self.folder} has no HR version {wanted!r}.", f"Its HR versions: {names}.")
        return wanted

    def patches(self) -> Iterator[tuple[str, Tensor]]:
        """Instance ids and their LR patches, uint8 `[n, 3, h, w]`, one instance in memory at a time.

        Raises:
            RunError: A file is missing, truncated or contradicts the index.
        """
        return shards.iterate_lr(self.lr)

    def lr_patches(self) -> Iterator[LRPatch]:
        """All LR patches, in the order of the rows of every HR version; see `patches`."""
        facts = shards.read_facts(self.lr)
        for instance_id, tensor in self.patches():
            source_sha256, nearest_real = facts[instance_id].source_sha256, facts[instance_id].nearest_real
            for index, pixels in enumerate(tensor):
                nearest = nearest_real[index] if nearest_real is not None else None
                yield LRPatch(instance_id, index, pixels, source_sha256, nearest)

    def rows(self, hr_version: str, instances: Collection[str] | None = None) -> Iterator[parquet.Row]:
        """The rows of an HR version; their images have the sizes that idc.json gives.

        Args:
            hr_version: Its name.
            instances: Ids of the instances to read; None: all.

        Raises:
            RunError: A file is missing or damaged, or a row is invalid.
        """
        side, scale = self.manifest.patch_size, self.manifest.scale
        for row in parquet.read_rows(self.data(hr_version), instances):
            try:
                check_png(row.lr_png, f"lr of {row.name}", width=side, height=side)
                check_png(row.hr_png, f"hr of {row.name}", width=side * scale, height=side * scale)
            except ImageError as error:
                raise RunError(f"{self.data(hr_version)}: {error}", parquet.REMEDY) from error
            yield row

    def check_lr(self, *, again: bool = False) -> None:
        """Compare the LR patches with the manifest: digest, counts and size.

        Args:
            again: Read them even if this process has already checked the same files.

        Raises:
            RunError: They differ, or a file is damaged.
        """
        key = self._files(self.lr, self.manifest.lr_digest)
        if again or key not in _checked:
            shards.verify_lr(self.lr, self.manifest)
            _checked.add(key)

    def is_checked(self, hr_version: str, how: str) -> bool:
        """Whether this process has checked the present files of `hr_version`; `how` names the check."""
        return self._version(hr_version, how) in _checked

    def note_checked(self, hr_version: str, how: str) -> None:
        """Remember that the present files of `hr_version` were checked; `how` names the check."""
        _checked.add(self._version(hr_version, how))

    def lock(self) -> Lock:
        """The repository folder's lock; reentrant within one CondensedSet."""
        return self._lock

    @contextmanager
    def updating(self) -> Iterator[Manifest]:
        """Change the manifest under the lock: yields a freshly read manifest and saves it after the block.

        Raises:
            RunError: The LR patches were replaced since this set was opened.
        """
        with self._lock:
            manifest = Manifest.load(self.folder)
            if manifest.lr_digest != self.manifest.lr_digest:
                raise RunError(
                    f"The LR patches in {self.folder} were replaced meanwhile.", "Run the same command again."
                )
            yield manifest
            manifest.save(self.folder)
            self.manifest = manifest

    def _version(self, name: str, how: str) -> tuple[object, ...]:
        facts = self.manifest.hr_versions[name].model_dump_json()
        return how, facts, *self._files(self.data(name), self.manifest.lr_digest)

    def _files(self, folder: Path, digest: str) -> tuple[object, ...]:
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]
        return folder.resolve(), digest, *stats
