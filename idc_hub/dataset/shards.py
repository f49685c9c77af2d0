"""The LR patches of a repository folder: safetensors shards, their index, and a digest of all patches.

Each instance is one uint8 tensor `[n, 3, h, w]` under its id. Ids are sorted as strings; instances without patches are
left out. Equal patches and metadata give equal bytes.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from idc_hub.atomic import replace_folder
from idc_hub.dataset.manifest import Manifest, Sha256
from idc_hub.errors import RunError, one_line
from idc_hub.images.sources import is_instance_id

INDEX_NAME = "lr.safetensors.index.json"

_SHARD_NAME = re.compile(r"lr-\d{5}-of-\d{5}\.safetensors")
_REMEDY = "Pull the repository again, or run `idc condense` on its Run again."


class Facts(BaseModel):
    """What the index says about an instance under the key `instances`.

    Attributes:
        source_sha256: SHA-256 of the photograph's file; None if it is not known.
        nearest_real: RMS difference of each patch to the nearest real LR patch of the photograph, in gray levels
            (0..255); None if it was not measured.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    source_sha256: Sha256 | None = None
    nearest_real: list[Annotated[float, Field(ge=0, le=255)]] | None = None


class LRDigest:
    """SHA-256 of the instances in id order, independent of how they are divided into shards."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def update(self, instance_id: str, patches: np.ndarray | torch.Tensor) -> None:
        """Add one instance: id, NUL, shape as "n,c,h,w", NUL, raw bytes.

        Args:
            instance_id: Its id.
            patches: uint8 `[n, c, h, w]`.
        """
        array = np.ascontiguousarray(patches)
        shape = ",".join(str(length) for length in array.shape)
        self._sha256.update(f"{instance_id}\0{shape}\0".encode())
        self._sha256.update(array.data)

    def hexdigest(self) -> str:
        """The digest so far: 64 hexadecimal digits."""
        return self._sha256.hexdigest()


def write_shards(
    folder: Path,
    patches: Iterable[tuple[str, np.ndarray | torch.Tensor]],
    *,
    metadata: dict[str, Any],
    facts: Mapping[str, Facts] | None = None,
    max_bytes: int = 100_000_000,
    expected: str | None = None,
) -> str:
    """Write LR patches as shards into `folder`, holding one shard in memory at a time.

    Replaces the whole folder at the end. After an exception, even one raised by `patches`, the folder is unchanged.

    Args:
        folder: `lr` in a repository folder.
        patches: (instance id, uint8 `[n, 3, h, w]`) in id order; instances with n = 0 are left out.
        metadata: format, format_version, scale and lr_recipe_hash, written to every shard as JSON under the single
            metadata key "idc": safetensors does not write several keys in a fixed order.
        facts: Facts of all instances for the index, by id; None: there are none.
        max_bytes: Maximum size of a shard; a larger instance gets a shard of its own.
        expected: The digest that the patches must have, because HR versions were made from them; None: any.

    Returns:
        The digest of the patches.

    Raises:
        RunError: An id is invalid or out of order, patches have another shape or dtype, or they are not the expected
            ones.
    """
    digest = LRDigest()
    header = {"idc": json.dumps(metadata, sort_keys=True)}
    shards: list[list[str]] = []
    total = 0
    with replace_folder(folder) as temporary:
        for shard in _fill_shards(_checked_instances(patches), max_bytes):
            for instance_id, array in shard.items():
                digest.update(instance_id, array)
                total += array.nbytes
            # Not save_file: it makes files that only their owner can read.
            (temporary / f"{len(shards)}.safetensors").write_bytes(save(shard, metadata=header))
            shards.append(list(shard))
        if expected not in (None, digest.hexdigest()):
            raise RunError(
                f"The LR patches are not those that the HR versions in {folder.with_name('data')} were made from.",
                "Use another --run-dir; or, to make the HR versions again, delete that folder.",
            )
        weight_map = {}
        for number, instance_ids in enumerate(shards):
            name = f"lr-{number + 1:05}-of-{len(shards):05}.safetensors"
            (temporary / f"{number}.safetensors").rename(temporary / name)
            weight_map.update(dict.fromkeys(instance_ids, name))
        index: dict[str, Any] = {
            "metadata": {"total_size": total, "lr_digest": digest.hexdigest()},
            "weight_map": weight_map,
        }
        if facts:
            index["instances"] = {name: facts[name].model_dump(exclude_none=True) for name in weight_map}
        text = json.dumps(index, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        (temporary / INDEX_NAME).write_bytes(text.encode())
    return digest.hexdigest()


def read_index(folder: Path) -> dict[str, Any]:
    """The index of `folder`: `{"metadata": {"total_size", "lr_digest"}, "weight_map": {id: file name}}`.

    It can also have `instances`, which `read_facts` reads.

    Raises:
        RunError: There is no index, it is damaged, or it holds an invalid id or file name.
    """
    path = folder / INDEX_NAME
    try:
        index = json.loads(path.read_bytes())
        metadata, weight_map = index["metadata"], index["weight_map"]
        metadata["total_size"], metadata["lr_digest"]
        entries = weight_map.items()
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", _REMEDY) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is damaged: it is not a shard index.", _REMEDY) from error
    for instance_id, name in entries:
        if not is_instance_id(instance_id):
            raise RunError(f"{path} has an invalid instance id: {instance_id!r}.", _REMEDY)
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise RunError(f"{path} has an invalid file name: {name!r}.", _REMEDY)
    return index


def read_facts(folder: Path) -> dict[str, Facts]:
    """The facts in the index of `folder` by instance id; empty facts where there are none.

    Raises:
        RunError: See `read_index`; or a fact is invalid.
    """
    index = read_index(folder)
    try:
        facts = TypeAdapter(dict[str, Facts]).validate_python(index.get("instances", {}))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, ("instances", *problem["loc"])))
        raise RunError(f"{folder / INDEX_NAME} is damaged: {one_line(key)}: {problem['msg']}.", _REMEDY) from error
    return {instance_id: facts.get(instance_id, Facts()) for instance_id in index["weight_map"]}


def iterate_lr(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The instances of `folder` in id order, one in memory at a time.

    Args:
        folder: `lr` in a repository folder.

    Yields:
        Instance id and its patches, uint8 `[n, 3, h, w]`.

    Raises:
        RunError: A file is missing, truncated or contradicts the index.
    """
    files: dict[str, list[str]] = {}
    facts = read_facts(folder)
    for instance_id, name in sorted(read_index(folder)["weight_map"].items()):
        files.setdefault(name, []).append(instance_id)
    for name, instance_ids in files.items():
        path = folder / name
        try:
            with safe_open(path, "pt") as shard:
                if sorted(shard.keys()) != instance_ids:
                    raise RunError(f"{path} holds other instances than {INDEX_NAME} says.", _REMEDY)
                for instance_id in instance_ids:
                    tensor = shard.get_tensor(instance_id)
                    _check_patches(str(path), instance_id, tensor.numpy())
                    nearest_real = facts[instance_id].nearest_real
                    if nearest_real is not None and len(nearest_real) != len(tensor):
                        raise RunError(
                            f"{folder / INDEX_NAME} has {len(nearest_real)} values of nearest_real for the "
                            f"{len(tensor)} patches of {instance_id!r}.",
                            _REMEDY,
                        )
                    yield instance_id, tensor
        except FileNotFoundError:
            raise RunError(f"{path} is missing.", _REMEDY) from None
        except (SafetensorError, OSError) as error:
            raise RunError(f"{path} is truncated or damaged ({error}).", _REMEDY) from error


def verify_lr(folder: Path, manifest: Manifest) -> None:
    """Read all LR patches and compare digest, counts and patch size with the manifest.

    Raises:
        RunError: They differ, or a file is damaged.
    """
    digest = LRDigest()
    instances = patches = 0
    for instance_id, tensor in iterate_lr(folder):
        digest.update(instance_id, tensor)
        instances += 1
        patches += len(tensor)
        if tensor.shape[2:] != (manifest.patch_size, manifest.patch_size):
            raise RunError(f"{folder}: {instance_id!r} has patches of another size than idc.json says.", _REMEDY)
    if digest.hexdigest() != manifest.lr_digest:
        raise RunError(f"{folder} holds other patches than idc.json says: their digest differs.", _REMEDY)
    if (instances, patches) != (manifest.instances, manifest.patches):
        raise RunError(
            f"{folder} holds {patches} patches of {instances} instances; idc.json says {manifest.patches} "
            f"of {manifest.instances}.",
            _REMEDY,
        )


def _checked_instances(patches: Iterable[tuple[str, np.ndarray | torch.Tensor]]) -> Iterator[tuple[str, np.ndarray]]:
    """Instances that have patches, as contiguous arrays; raises a RunError for a wrong id, order, shape or dtype."""
    previous = ""
    for instance_id, given in patches:
        if not is_instance_id(instance_id):
            raise RunError(f"An instance may not be called {instance_id!r}.", "Rename the photograph.")
        if instance_id <= previous:
            raise RunError(f"Instance {instance_id!r} comes after {previous!r}: the order must be by id.")
        previous = instance_id
        array = np.ascontiguousarray(given)
        if len(array):
            _check_patches("The packing", instance_id, array)
            yield instance_id, array


def _fill_shards(instances: Iterable[tuple[str, np.ndarray]], max_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for instance_id, array in instances:
        if shard and size + array.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[instance_id] = array
        size += array.nbytes
    if shard:
        yield shard


def _check_patches(where: str, instance_id: str, array: np.ndarray) -> None:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] != 3 or 0 in array.shape:
        raise RunError(
            f"{where}: {instance_id!r} is {array.dtype} {list(array.shape)}, not uint8 [n, 3, h, w].", _REMEDY
        )
