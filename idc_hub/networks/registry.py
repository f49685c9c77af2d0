"""The networks by name: make a fresh one, load a trained one, save one.

A trained network is a folder, here and on the Hub: `config.json` says which class with which arguments,
`model.safetensors` holds the weights. `idc_hub/networks/weights/` holds those that come with the package.
"""

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from idc_hub.errors import HubError, NetworkError
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
"""Name: (architecture, constructor arguments without the scale)."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PIPELINE = "model_index.json"  # instead of the two, in the folder of a diffusers pipeline
_BUNDLED = Path(__file__).parent / "weights"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def create(name: str, *, scale: int = 4) -> Network:
    """A fresh network with random weights (torch's global generator).

    Raises:
        NetworkError: The name is unknown, or the network does not exist at this scale.
    """
    if name not in NETWORKS:
        raise _unknown(name)
    architecture, arguments = NETWORKS[name]
    network = ARCHITECTURES[architecture](**arguments, scale=scale)
    network.name = name
    return network


def load(spec: str | Path, *, scale: int | None = 4) -> Network:
    """A trained network, in evaluation mode on the CPU.

    Args:
        spec: A name whose weights come with the package ("edsr-small"), a folder written by `save`, or the
            id of such a model on the Hub ("org/name"). A name wins over a folder; "./name" is the folder.
        scale: The scale that is wanted: a network made for another one is refused, never resized. None takes
            whatever scale the network has, which is all that a feature extractor needs.

    Raises:
        NetworkError: The network is unknown, damaged, incomplete or made for another scale.
        HubError: The Hub did not answer.
    """
    folder = locate(spec, scale=scale)
    config = read_config(folder)
    if scale not in (None, config["scale"]):
        raise NetworkError(
            f"{spec} is a network for x{config['scale']}, and x{scale} was asked for.",
            hint=f"Set the scale to {config['scale']}, or choose a network made for x{scale}.",
        )
    try:
        network = ARCHITECTURES[config["architecture"]](**config["arguments"], scale=config["scale"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise NetworkError(
            f"{folder / CONFIG}: {config['architecture']} cannot be made from these arguments: {error}."
        ) from error
    network.name = config["name"]
    _load_weights(network, folder / WEIGHTS)
    return network.eval()


def save(network: Network, folder: str | Path, **info: Any) -> None:
    """Write `config.json` and `model.safetensors`; equal weights give equal bytes.

    Args:
        network: What to save.
        folder: Made where it does not exist.
        **info: Facts for `config.json` beside architecture, arguments, name and scale, such as `license`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = info | {
        "architecture": type(network).__name__,
        "arguments": network.arguments,
        "name": network.name,
        "scale": network.scale,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    # One metadata key at most: with two their order, and so the bytes, would differ from run to run.
    # Not safetensors' save_file, which makes files that nobody else may read.
    temporary = folder / (WEIGHTS + ".tmp")
    temporary.write_bytes(serialize(weights, metadata={"format": "pt"}))
    temporary.replace(folder / WEIGHTS)


def weights_sha256(spec: str | Path, *, scale: int | None = 4) -> str:
    """SHA-256 of the network's `model.safetensors`, in hex: the digest that the Hub shows for the file."""
    with (locate(spec, scale=scale) / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(spec: str | Path, *, scale: int | None = 4) -> Path:
    """The folder that holds `config.json` and `model.safetensors`, downloaded from the Hub if need be.

    Raises:
        NetworkError: There is no such network, or one of the two files is missing.
        HubError: The Hub did not answer.
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
            raise NetworkError(f"{spec} holds no {file}.", hint=f"A network is a folder with {CONFIG} and {WEIGHTS}.")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`, checked: architecture, arguments, name and scale are there and known."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NetworkError(f"{path} cannot be read: {error}.") from error
    kinds = {"architecture": str, "arguments": dict, "name": str, "scale": int}
    if not isinstance(config, dict):
        config = {}
    wrong = [key for key, kind in kinds.items() if not isinstance(config.get(key), kind)]
    if wrong:
        raise NetworkError(
            f"{path} does not configure a network of idc-hub: {', '.join(wrong)} missing or malformed.",
            hint="Save the network with idc_hub.networks.save, or train it with `idc train`.",
        )
    if config["architecture"] not in ARCHITECTURES:
        raise NetworkError(
            f"{path} names the architecture {config['architecture']!r}, which this version does not have.",
            hint=f"It has {', '.join(ARCHITECTURES)}; a newer idc-hub may have more.",
        )
    return config


def _bundled(name: str, scale: int | None) -> Path:
    for folder in sorted(_BUNDLED.glob(f"{name}-x{scale or '[234]'}")):
        return folder
    bundled = sorted(path.name for path in _BUNDLED.iterdir() if path.is_dir())
    raise NetworkError(
        f"No weights of {name}{f' for x{scale}' if scale else ''} come with idc-hub, only {', '.join(bundled)}.",
        hint=f"Train it with `idc train {name}`, or name a folder or a model on the Hub.",
    )


def _unknown(name: str) -> NetworkError:
    close = difflib.get_close_matches(name, NETWORKS, n=1)
    return NetworkError(
        f"There is no network {name!r}: it is neither a name that idc-hub knows nor an existing folder.",
        hint=f"Did you mean {close[0]!r}?" if close else f"The names are {', '.join(NETWORKS)}.",
    )


def download(repo_id: str) -> Path:
    """The folder with a model's two files from the Hub, and with its card and pipeline index if it has them.

    Raises:
        NetworkError: There is no such model.
        HubError: The Hub did not answer.
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
            f"There is no folder {repo_id}, and no such model on the Hub that you may read.",
            hint="Check the spelling; a private model needs `hf auth login`.",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise HubError(
            f"The network {repo_id} could not be fetched from the Hub ({type(error).__name__}).",
            hint="Check the connection and try again; what was fetched once is used offline.",
        ) from error


def _load_weights(network: Network, path: Path) -> None:
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise NetworkError(
            f"{path} is not a complete safetensors file: {error}.", hint="Copy or fetch it again."
        ) from error
    expected = network.state_dict()
    problems = [f"{key} is missing" for key in expected if key not in weights]
    problems += [f"{key} is not part of it" for key in weights if key not in expected]
    problems += [
        f"{key} has shape {list(weights[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected.keys() & weights.keys()
        if weights[key].shape != expected[key].shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise NetworkError(
            f"{path} does not fit {type(network).__name__} {network.arguments}: {problems[0]}{more}.",
            hint=f"{CONFIG} and {WEIGHTS} must come from the same network.",
        )
    network.load_state_dict(weights)
