"""The LR patches of a repository: safetensors shards, an index beside them, and the digest over all.

Every instance is one uint8 tensor `[n, 3, h, w]` under its id; ids stand in plain string order, and instances
without patches are left out. Equal patches and metadata give equal bytes.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from idc_hub.atomic import replace_folder
from idc_hub.dataset.manifest import Manifest
from idc_hub.errors import RunError
from idc_hub.images.sources import is_instance_id

INDEX_NAME = "lr.safetensors.index.json"

_SHARD_NAME = re.compile(r"lr-\d{5}-of-\d{5}\.safetensors")
_REMEDY = "Pull the repository again, or pack it again from its Run."


class LRDigest:
    """SHA-256 over instances as they come, in id order; how they are spread over shards does not matter."""

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
        """The digest so far, 64 hexadecimal digits."""
        return self._sha256.hexdigest()


def lr_digest(instances: Iterable[tuple[str, np.ndarray | torch.Tensor]]) -> str:
    """Digest of (id, uint8 `[n, 3, h, w]`) pairs in id order; see `LRDigest.update`."""
    digest = LRDigest()
    for instance_id, patches in instances:
        digest.update(instance_id, patches)
    return digest.hexdigest()


def write_shards(
    folder: Path,
    patches: Iterable[tuple[str, np.ndarray | torch.Tensor]],
    *,
    metadata: dict[str, Any],
    max_bytes: int = 500_000_000,
) -> str:
    """Pack LR patches into `folder`, holding one shard in memory at a time.

    The folder is replaced as a whole at the end; after an exception, one out of `patches` included, it is as
    before.

    Args:
        folder: `repo/lr`.
        patches: (instance id, uint8 `[n, 3, h, w]`) in id order; instances with n = 0 are left out.
        metadata: What the one metadata key "idc" of every shard holds: format, format_version, scale,
            lr_recipe_hash. One key with sorted JSON, because safetensors writes several in an order that changes.
        max_bytes: Size at which a shard is full; a larger instance gets a shard of its own.

    Returns:
        The digest of the patches.

    Raises:
        RunError: An id that is not allowed or out of order, or patches of another shape or dtype.
    """
    digest = LRDigest()
    header = {"idc": json.dumps(metadata, sort_keys=True)}
    shards: list[list[str]] = []
    total = 0
    with replace_folder(folder) as temporary:
        for shard in _fill_shards(_checked(patches), max_bytes):
            for instance_id, array in shard.items():
                digest.update(instance_id, array)
                total += array.nbytes
            # Not save_file, which makes files that nobody but their owner may read.
            (temporary / f"{len(shards)}.safetensors").write_bytes(save(shard, metadata=header))
            shards.append(list(shard))
        weight_map = {}
        for number, instance_ids in enumerate(shards):
            name = f"lr-{number + 1:05}-of-{len(shards):05}.safetensors"
            (temporary / f"{number}.safetensors").rename(temporary / name)
            weight_map.update(dict.fromkeys(instance_ids, name))
        index = {"metadata": {"total_size": total, "lr_digest": digest.hexdigest()}, "weight_map": weight_map}
        text = json.dumps(index, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        (temporary / INDEX_NAME).write_bytes(text.encode())
    return digest.hexdigest()


def read_index(folder: Path) -> dict[str, Any]:
    """The index of `folder`: `{"metadata": {"total_size", "lr_digest"}, "weight_map": {id: file name}}`.

    Raises:
        RunError: No index, or an id or a file name in it that this format does not allow.
    """
    path = folder / INDEX_NAME
    try:
        index = json.loads(path.read_bytes())
        metadata, weight_map = index["metadata"], index["weight_map"]
        metadata["total_size"], metadata["lr_digest"]
        entries = weight_map.items()
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", _REMEDY) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path} is damaged: it is not a shard index.", _REMEDY) from error
    for instance_id, name in entries:
        if not is_instance_id(instance_id):
            raise RunError(f"{path} has an instance id that is not allowed: {instance_id!r}.", _REMEDY)
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise RunError(f"{path} has a file name that is not allowed: {name!r}.", _REMEDY)
    return index


def iterate_lr(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The instances of `folder` in id order, one in memory at a time.

    Args:
        folder: `repo/lr`.

    Yields:
        Instance id and its patches, uint8 `[n, 3, h, w]`.

    Raises:
        RunError: A file that is missing, truncated or not what the index says.
    """
    files: dict[str, list[str]] = {}
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
                    yield instance_id, tensor
        except FileNotFoundError:
            raise RunError(f"{path} is missing.", _REMEDY) from None
        except (SafetensorError, OSError) as error:
            raise RunError(f"{path} is truncated or damaged ({error}).", _REMEDY) from error


def verify_lr(folder: Path, manifest: Manifest) -> None:
    """Read all LR patches once and hold them to the manifest: digest, counts and patch size.

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


def _checked(patches: Iterable[tuple[str, np.ndarray | torch.Tensor]]) -> Iterator[tuple[str, np.ndarray]]:
    """The instances that have patches, contiguous, once id, order, shape and dtype are known to be right."""
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
