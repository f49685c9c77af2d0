"""Convert published checkpoints to network folders.

Our networks use the parameter names of the official checkpoints, so only wrappers and prefixes need removing.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from idc_hub.errors import NetworkError, one_line
from idc_hub.networks.registry import CONFIG, WEIGHTS, Network, create, refuse_non_finite, save

WRAPPERS = ("params_ema", "params", "state_dict", "model", "net_g")
"""Keys under which checkpoints keep the weights, in order of preference.

BasicSR and its descendants have `params_ema` and `params`, and evaluate the averaged ones; Lightning has `state_dict`.
"""

_LISTED = 5
_FILES = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`, or download it in full",
    b"<!doctype html": "a web page, not a checkpoint: use the address of the file itself",
    b"<html": "a web page, not a checkpoint: use the address of the file itself",
    b"\x89png": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"gguf": "a GGUF file",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"rar!": "a RAR archive: unpack it first",
    b"\x89hdf": "an HDF5 file",
}
"""First bytes of files that are no checkpoints, in lower case."""


def import_weights(file: str | Path, name: str, folder: str | Path, *, scale: int = 4, **info: Any) -> list[str]:
    """Write a network folder from a published state dict. Never runs code from the file.

    The weights may be under one of `WRAPPERS`, and their names may share a prefix, such as `module.` or Lightning's
    `model.`.

    Args:
        file: A safetensors file, or a `.pth` file that contains only tensors and plain values.
        name: Which network the weights are for, such as "swinir-light".
        folder: Where to write `config.json` and `model.safetensors`.
        scale: The scale that the weights were trained for.
        **info: Extra facts for `config.json`, such as `license`.

    Returns:
        What else is in the file and was left out, such as "optimizer" or "loss.*".

    Raises:
        NetworkError: The file is missing or damaged, contains code, doesn't fit the network, or has weights that are
            NaN or Inf; or the folder already contains a network or can't be written. Nothing is left in the folder.
    """
    file, folder = Path(file).expanduser(), Path(folder)
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        raise NetworkError(f"{folder} already contains a network.", hint="Choose another folder.")
    network = create(name, scale=scale)
    weights, left_out = _unwrap(_read(file), network.state_dict().keys(), file)
    _check_fit(weights, network, file, f"{name} x{scale}")
    network.load_state_dict(weights)
    refuse_non_finite(network, file)
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        save(network, folder, **info)
    except BaseException as error:
        for written in (folder / CONFIG, folder / WEIGHTS):
            if written.is_file():
                written.unlink()
        for parent in missing:
            if parent.is_dir():
                parent.rmdir()
        if isinstance(error, OSError):
            raise NetworkError(
                f"{folder} can't be written: {error.strerror}.", hint="Free space there, or choose another folder."
            ) from error
        raise
    return left_out


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise NetworkError(f"There is no file {file}.")
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise NetworkError(f"{file} can't be read: {error.strerror}.") from error
    if kind := _kind(head):
        raise NetworkError(f"{file} is {kind}.", hint="Give a .safetensors file, or a .pth of tensors.")
    try:
        if head[8:9] == b"{" or file.suffix.lower() == ".safetensors":
            return load_file(file)
        content = torch.load(file, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's own message recommends switching the protection off.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"more than tensors ({found[1]})" if found else "something else than a PyTorch checkpoint of tensors"
        raise NetworkError(
            f"{file} contains {what}. Loading it could run code, which we never do.",
            hint="Get a .safetensors file, or a .pth that contains only tensors.",
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = "" if isinstance(error, RuntimeError | EOFError) else f" ({one_line(error)})"
        raise NetworkError(
            f"{file} is damaged, cut off or not a PyTorch or safetensors checkpoint{reason}.",
            hint="Download it again, and compare its size with the original.",
        ) from error
    if not isinstance(content, Mapping):
        raise NetworkError(f"{file} contains a {type(content).__name__}, not a state dict.")
    return content


def _kind(head: bytes) -> str | None:
    """What a file is that begins like this, if that is no checkpoint."""
    if not head:
        return "empty (0 bytes)"
    start = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    return next((kind for magic, kind in _FILES.items() if start.startswith(magic)), None)


def _unwrap(content: Mapping[str, Any], expected: Any, file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in a checkpoint, under the network's own names, and what is left out."""
    left_out: list[str] = []
    while wrapper := next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None):
        left_out += [str(key) for key in content if key != wrapper]
        content = content[wrapper]
    prefix = _prefix(content, expected)
    weights = {key.removeprefix(prefix): value for key, value in content.items() if str(key).startswith(prefix)}
    others = [str(key).partition(".")[0] for key in content if not str(key).startswith(prefix)]
    left_out += [f"{other}.*" for other in dict.fromkeys(others)]
    wrong = [key for key, value in weights.items() if not isinstance(value, Tensor)]
    if wrong or not weights:
        found = f"Its keys: {_listed(map(str, content))}." if content else "It is empty."
        raise NetworkError(
            f"{file} contains no state dict. {found}",
            hint=f"It should map names to tensors, possibly under {', '.join(WRAPPERS)}.",
        )
    return weights, left_out


def _prefix(content: Mapping[str, Any], expected: Any) -> str:
    """What precedes the network's own names, such as `module.`; averaged weights are preferred."""
    if not content.keys().isdisjoint(expected):
        return ""
    first = next(iter(expected))
    found = {str(key).removesuffix(first) for key in content if str(key).endswith(f".{first}")}
    fitting = {prefix: sum(f"{prefix}{key}" in content for key in expected) for prefix in found}
    return max(sorted(fitting), key=lambda prefix: (fitting[prefix], "ema" in prefix), default="")


def _check_fit(weights: Mapping[str, Tensor], network: Network, file: Path, name: str) -> None:
    own = network.state_dict()
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    shapes = [
        f"{key} ({list(weights[key].shape)} instead of {list(own[key].shape)})"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {_listed(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise NetworkError(
            f"{file} doesn't fit {name}. Tensors {'; '.join(problems)}.", hint="Check the network's name and --scale."
        )


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
