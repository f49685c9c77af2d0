"""Networks by name: create, load, and save.

A trained network is a folder, on disk and on the Hub: `config.json` names the class and its arguments, and
`model.safetensors` contains the weights. `idc_hub/networks/weights/` contains the bundled networks.
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import nn

from idc_hub.atomic import write_bytes_atomically, write_text_atomically
from idc_hub.errors import HubError, NetworkError, first_few, one_line
from idc_hub.networks.edsr import EDSR
from idc_hub.networks.mambairv2 import MambaIRv2
from idc_hub.networks.swinir import SwinIR

Network = EDSR | SwinIR | MambaIRv2
ARCHITECTURES: dict[str, type[Network]] = {"EDSR": EDSR, "SwinIR": SwinIR, "MambaIRv2": MambaIRv2}

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "edsr-tiny": ("EDSR", {"channels": 32, "blocks": 8, "upsampler": "pixelshuffledirect"}),
    "edsr-small": ("EDSR", {"channels": 32, "blocks": 8}),
    "edsr-baseline": ("EDSR", {"channels": 64, "blocks": 16}),
    "edsr": ("EDSR", {"channels": 256, "blocks": 32, "residual_scale": 0.1}),
    "swinir-light": (
        "SwinIR",
        {"depths": [6, 6, 6, 6], "dim": 60, "heads": 6, "window": 8, "upsampler": "pixelshuffledirect"},
    ),
    "swinir-m": (
        "SwinIR",
        {"depths": [6, 6, 6, 6, 6, 6], "dim": 180, "heads": 6, "window": 8, "upsampler": "pixelshuffle"},
    ),
    "mambairv2-light": (
        "MambaIRv2",
        {"dim": 48, "depths": [5, 5, 5, 5], "heads": 4, "d_state": 8, "inner_rank": 32, "num_tokens": 64}
        | {"mlp_ratio": 1, "light": True},
    ),
    "mambairv2": (
        "MambaIRv2",
        {"dim": 174, "depths": [6, 6, 6, 6, 6, 6], "heads": 6, "d_state": 16, "inner_rank": 64, "num_tokens": 128}
        | {"mlp_ratio": 2, "light": False},
    ),
}
"""Name: (architecture, constructor arguments except the scale)."""

MAX_SIZE = {"blocks": 256, "depths": 256, "window": 64}
"""Largest size that a `config.json` may ask for, by argument; of a list the sum. All others: 4096."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PIPELINE = "model_index.json"  # replaces both in a diffusers pipeline
_BUNDLED = Path(__file__).parent / "weights"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def create(name: str, *, scale: int = 4, arguments: Mapping[str, Any] | None = None) -> Network:
    """Create a network with random weights (from torch's global generator).

    Args:
        name: A name in `NETWORKS`.
        scale: Super-resolution scale.
        arguments: Arguments of its constructor that replace those of the name, such as `{"channels": 16}`.

    Raises:
        NetworkError: The name is unknown, the network doesn't support this scale, or it can't be built from these
            arguments.
    """
    if name not in NETWORKS:
        raise _unknown(name)
    architecture, defaults = NETWORKS[name]
    config = {"architecture": architecture, "arguments": {**defaults, **(arguments or {})}, "scale": scale}
    _check_sizes(config, name)
    network = _build(config, name)
    network.name = name
    return network


def load(spec: str | Path, *, scale: int | None = 4) -> Network:
    """Load a trained network on the CPU, in evaluation mode.

    Args:
        spec: The name of a bundled network ("edsr-small"), a folder written by `save`, or the id of such a model on
            the Hub ("org/name"). A name takes precedence over a folder; for the folder, write "./name".
        scale: The scale you need. Networks with any other scale are refused, never resized. None accepts any
            scale; feature extractors use that.

    Raises:
        NetworkError: The network is unknown, damaged, incomplete or made for another scale, or a weight is NaN or Inf.
        HubError: The Hub can't be reached.
    """
    folder = locate(spec, scale=scale)
    config = read_config(folder)
    if scale not in (None, config["scale"]):
        raise NetworkError(
            f"{spec} is an x{config['scale']} network, but x{scale} was requested.",
            hint=f"Set the scale to {config['scale']}, or choose an x{scale} network.",
        )
    _check_sizes(config, folder / CONFIG)
    with torch.device("meta"):  # costs no memory
        _check_fit(_build(config, folder / CONFIG), folder / WEIGHTS)
    network = _build(config, folder / CONFIG)
    network.name = config["name"]
    network.load_state_dict(_read(folder / WEIGHTS, load_file))
    refuse_non_finite(network, folder / WEIGHTS)
    return network.eval()


def save(network: Network, folder: str | Path, **info: Any) -> None:
    """Write `config.json` and `model.safetensors`. Equal weights give identical bytes.

    Args:
        network: The network to save.
        folder: Created if it doesn't exist.
        **info: Extra facts for `config.json`, such as `license`.

    Raises:
        NetworkError: A weight is NaN or Inf; nothing is written.
    """
    folder = Path(folder)
    refuse_non_finite(network, f"The network for {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    config = info | {
        "architecture": type(network).__name__,
        "arguments": network.arguments,
        "name": network.name,
        "scale": network.scale,
    }
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    # At most one metadata key: the order of two, and so the bytes, would vary between runs.
    # We avoid safetensors' save_file because only the owner can read the files it writes.
    write_text_atomically(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_bytes_atomically(folder / WEIGHTS, serialize(weights, metadata={"format": "pt"}))


def weights_sha256(spec: str | Path, *, scale: int | None = 4) -> str:
    """Hex SHA-256 of the network's `model.safetensors`, as the Hub shows it."""
    with (locate(spec, scale=scale) / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_non_finite(network: nn.Module, origin: str | Path) -> None:
    """Refuse a network with weights that are no numbers: its output, or parts of it, would be none either.

    Parameters must be finite. Buffers must not be NaN, but may hold -Inf, as attention masks do.

    Args:
        network: The network, its weights loaded.
        origin: The file that they come from, or what else to call them; the sentence begins with it.

    Raises:
        NetworkError: Some are not; the first of these tensors are named.
    """
    bad = [name for name, weight in network.named_parameters() if not weight.isfinite().all()]
    bad += [name for name, buffer in network.named_buffers() if buffer.isnan().any()]
    if bad:
        raise NetworkError(
            f"{origin} has weights that are NaN or Inf, in {first_few(bad)}.",
            hint="Fetch the weights again, or take those of an earlier step of their training.",
        )


def locate(spec: str | Path, *, scale: int | None = 4) -> Path:
    """The folder with `config.json` and `model.safetensors`, downloaded from the Hub if necessary.

    Raises:
        NetworkError: There is no such network, or one of the files is missing.
        HubError: The Hub can't be reached.
    """
    name = str(spec)
    if name in NETWORKS:
        return _bundled(name, scale)
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        if not HUB_ID.fullmatch(name):
            raise _unknown(name)
        folder = download(name)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise NetworkError(f"{spec} contains no {file}.", hint=f"A network folder needs {CONFIG} and {WEIGHTS}.")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check a folder's `config.json`: architecture, arguments, name, and scale are valid."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NetworkError(f"{path} can't be read: {one_line(error)}.") from error
    kinds = {"architecture": str, "arguments": dict, "name": str, "scale": int}
    if not isinstance(config, dict):
        config = {}
    wrong = [key for key, kind in kinds.items() if not isinstance(config.get(key), kind)]
    if wrong:
        raise NetworkError(
            f"{path} isn't an idc-hub network config: {', '.join(wrong)} missing or malformed.",
            hint="Save the network with `idc_hub.networks.save`, or train it with `idc train`.",
        )
    if config["architecture"] not in ARCHITECTURES:
        raise NetworkError(
            f"{path} names the architecture {config['architecture']!r}, which this version doesn't support.",
            hint=f"It supports {', '.join(ARCHITECTURES)}; a newer idc-hub may support more.",
        )
    return config


def _bundled(name: str, scale: int | None) -> Path:
    for folder in sorted(_BUNDLED.glob(f"{name}-x{scale or '[234]'}")):
        return folder
    bundled = sorted(path.name for path in _BUNDLED.iterdir() if path.is_dir())
    raise NetworkError(
        f"idc-hub bundles no weights for {name}{f' x{scale}' if scale else ''}, only {', '.join(bundled)}.",
        hint=f"Train it with `idc train {name}`, or give a folder or a Hub model.",
    )


def _unknown(name: str) -> NetworkError:
    close = difflib.get_close_matches(name, NETWORKS, n=1)
    return NetworkError(
        f"There is no network {name!r}: idc-hub knows no such name, and there is no such folder.",
        hint=f"Did you mean {close[0]!r}?" if close else f"Known names are {', '.join(NETWORKS)}.",
    )


def download(repo_id: str) -> Path:
    """Download a model's config and weights from the Hub, plus its card and pipeline index if present.

    Raises:
        NetworkError: There is no such model.
        HubError: The Hub can't be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(repo_id, allow_patterns=[CONFIG, WEIGHTS, PIPELINE, "README.md"]))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise NetworkError(
            f"There is no folder {repo_id}, and no Hub model of that name that you can access.",
            hint="Check the spelling. If the model is private, run `hf auth login`.",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise HubError(
            f"Downloading the network {repo_id} from the Hub failed ({type(error).__name__}).",
            hint="Check your connection and try again. Models downloaded before work offline.",
        ) from error


def _check_sizes(config: dict[str, Any], origin: str | Path) -> None:
    """Refuse arguments that no network has, before anything is built from them: a stranger may have written them."""
    for key, value in config["arguments"].items():
        sizes = value if isinstance(value, list) else [value]
        if all(isinstance(size, int) for size in sizes):
            most = MAX_SIZE.get(key, 4096)
            sound = min(sizes, default=0) >= (0 if isinstance(value, bool) else 1) and sum(sizes) <= most
        else:
            sound = isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))
        if not sound:
            raise NetworkError(
                f"{origin}: {one_line(json.dumps(key))} is {one_line(json.dumps(value))}: no network has that."
            )


def _build(config: dict[str, Any], origin: str | Path) -> Network:
    try:
        return ARCHITECTURES[config["architecture"]](**config["arguments"], scale=config["scale"])
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise NetworkError(
            f"{origin}: {config['architecture']} can't be built from these arguments: {one_line(error)}."
        ) from error


def _read(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read(path)
    except (SafetensorError, OSError) as error:
        raise NetworkError(
            f"{path} is not a complete safetensors file: {error}.", hint="Copy or download it again."
        ) from error


def _shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a safetensors file, from its header."""
    with safe_open(path, "pt") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118


def _check_fit(network: Network, path: Path) -> None:
    """Compare the header of a weights file with a network, which may be on torch's meta device."""
    expected = {key: list(value.shape) for key, value in network.state_dict().items()}
    found = _read(path, _shapes)
    problems = [f"{key} is missing" for key in expected if key not in found]
    problems += [f"{key} is unexpected" for key in found if key not in expected]
    problems += [
        f"{key} has shape {found[key]} instead of {expected[key]}"
        for key in expected.keys() & found.keys()
        if found[key] != expected[key]
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise NetworkError(
            f"{path} doesn't fit {type(network).__name__} {network.arguments}: {problems[0]}{more}.",
            hint=f"{CONFIG} and {WEIGHTS} must come from the same network.",
        )
