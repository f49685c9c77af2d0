"""Networks that somebody else wrote: spandrel's checkpoints, Swin2SR of transformers, and functions of any package.

`kind_of` says what a name means, `load_foreign` makes the network: a teacher or a feature extractor. Nothing here
runs code that came with weights: safetensors and `weights_only=True`, no custom code from a repository. Only
`package.module:build` runs code, code that is installed on this machine, and whoever names it asks for that.
"""

import hashlib
import importlib
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from idc_hub.errors import NetworkError
from idc_hub.networks.registry import CONFIG, HUB_ID, NETWORKS, PIPELINE, WEIGHTS, download

CHECKPOINTS = (".safetensors", ".pth", ".pt", ".ckpt")
SWIN2SR = "Swin2SRForImageSuperResolution"
_BUILDER = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class Foreign:
    """A network from elsewhere, in evaluation mode, frozen, float32.

    Attributes:
        name: Lower-case letters, digits and "-".
        scale: How much larger its output is.
        network: The module: its inner modules are the layers that features are taken from.
        enlarge: Float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`.
        weights_sha256: Digest of its file, or of its weights where it has none; None for a module without weights.
        license: What the card beside the weights says.
        multiple: h and w of what it enlarges must be multiples of this.
    """

    name: str
    scale: int
    network: nn.Module
    enlarge: Callable[[Tensor], Tensor]
    weights_sha256: str | None
    license: str | None = None
    multiple: int = 1


def kind_of(spec: str | Path) -> tuple[str, Path]:
    """What `spec` names, and where that lies on this machine; a model on the Hub is fetched, a pipeline in part.

    Returns:
        "bicubic", "network" (ours), "spandrel" (an existing file), "transformers", "diffusers" or "module"; and the
        file or folder (without meaning for bicubic, a module, and a name of ours).

    Raises:
        NetworkError: There is no such file, or no such model.
        HubError: The Hub did not answer.
    """
    name, path = str(spec), Path(spec).expanduser()
    if name == "bicubic":
        return "bicubic", path
    if name in NETWORKS:
        return "network", path
    if path.is_file():
        return "spandrel", path
    if not path.is_dir():
        if path.suffix.lower() in CHECKPOINTS:
            raise NetworkError(f"There is no file {path}.")
        if _BUILDER.fullmatch(name):
            return "module", path
        if not HUB_ID.fullmatch(name):
            return "network", path
        path = download(name)
    if (path / PIPELINE).is_file():
        return "diffusers", path
    return ("transformers" if SWIN2SR in read_json(path / CONFIG).get("architectures", ()) else "network"), path


def load_foreign(kind: str, spec: str | Path, path: Path, *, scale: int, device: str | torch.device = "cpu") -> Foreign:
    """A network of the kind "spandrel", "transformers" or "module".

    Args:
        kind: As `kind_of` says.
        spec: What the user named. For a module "package.module:build", where `build(scale=4)` gives a
            `torch.nn.Module` from RGB float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`, its weights
            loaded, for any h and w.
        path: As `kind_of` says.
        scale: What `build` is asked for. Weights have a scale of their own, whatever this says.
        device: Where it shall run.

    Raises:
        NetworkError: It cannot be loaded, is unsafe to load, or needs a package that is not installed.
    """
    if kind == "spandrel":
        foreign = _load_checkpoint(path)
    elif kind == "transformers":
        foreign = _load_swin2sr(str(spec), path)
    else:
        foreign = _load_module(str(spec), scale)
    foreign.network.eval().requires_grad_(False).to(device)
    return foreign


def package(name: str, *, extra: str, purpose: str | Path) -> Any:
    """An optional package, imported when it is needed.

    Raises:
        NetworkError: It is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: one of its own packages is broken
        raise NetworkError(
            f"{purpose} needs {name}, which cannot be imported ({error}).",
            hint=f"Install it with: pip install 'idc-hub[{extra}]'",
        ) from error


def told(error: Exception) -> str:
    """What a library said, on one line that is not too long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def weights_digest(network: nn.Module) -> str | None:
    """SHA-256 (hex) of a network's weights, for those that are not one file; None where there are none.

    For each entry of the state dict, in the order of the keys: key, dtype and shape, each ended by a zero byte,
    then the values as they lie in memory.
    """
    weights = network.state_dict()
    digest = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest() if weights else None


def name_of(spec: str | Path) -> str:
    """What to call a teacher and its HR version: "4x-net" of "weights/4x_Net.pth", "net" of "org/Net"."""
    path = Path(spec).expanduser().resolve()
    text = path.stem if path.suffix.lower() in CHECKPOINTS else path.name
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "teacher"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def card_license(folder: Path) -> str | None:
    """The license that the model card (README.md) in a folder states."""
    from huggingface_hub import metadata_load

    try:
        license = (metadata_load(folder / "README.md") or {}).get("license")
    except (OSError, ValueError):
        return None
    return license if isinstance(license, str) else None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file, tensors and plain values only.

    Raises:
        NetworkError: It holds anything else, or is damaged.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise NetworkError(
            f"{path} is refused: it does not load with weights_only=True, so reading it could run code.",
            hint="Get its weights as .safetensors, or as a .pth that holds tensors and nothing else.",
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise NetworkError(
            f"{path} cannot be read ({told(error)}).", hint="Fetch it again, or get its weights as .safetensors."
        ) from error
    if not isinstance(content, dict):
        raise NetworkError(f"{path} holds a {type(content).__name__}, not a state dict.")
    return content


def _load_checkpoint(path: Path) -> Foreign:
    """A checkpoint file whose architecture spandrel recognizes."""
    weights = read_checkpoint(path)
    spandrel = package("spandrel", extra="spandrel", purpose=path)
    try:
        # Not load_from_file: it runs the TorchScript that a .pt file may hold.
        model = spandrel.ModelLoader().load_from_state_dict(spandrel.canonicalize_state_dict(weights))
    except spandrel.UnsupportedModelError as error:
        raise NetworkError(
            f"{path} is of no architecture that spandrel knows.",
            hint="Write a function that makes the network and name it as package.module:build.",
        ) from error
    except (RuntimeError, ValueError, KeyError, ArithmeticError) as error:
        raise NetworkError(f"{path} cannot be loaded by spandrel ({told(error)}).") from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise NetworkError(f"{path} holds no network from RGB to RGB, but a {type(model).__name__}.")

    def enlarge(lr: Tensor) -> Tensor:
        # One at a time: spandrel promises nothing for more. It pads to what the network needs, and cuts.
        return torch.cat([model(image[None]) for image in lr])

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Foreign(name_of(path), model.scale, model.model, enlarge, digest)


def _load_swin2sr(spec: str, folder: Path) -> Foreign:
    transformers = package("transformers", extra="diffusion", purpose=spec)
    if not (folder / WEIGHTS).is_file():
        raise NetworkError(f"{spec} holds no {WEIGHTS}.", hint="Save it again with transformers' save_pretrained.")
    try:
        network = getattr(transformers, SWIN2SR).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # whatever the library raises at a damaged folder
        raise NetworkError(f"{spec} cannot be loaded as a {SWIN2SR} ({told(error)}).") from error

    def enlarge(lr: Tensor) -> Tensor:
        hr: Tensor = network(lr).reconstruction
        return hr

    scale, window, digest = network.config.upscale, network.config.window_size, weights_digest(network)
    return Foreign(name_of(spec), scale, network, enlarge, digest, card_license(folder), window)


def _load_module(spec: str, scale: int) -> Foreign:
    """What the function `spec` makes; this runs its code."""
    module, _, function = spec.partition(":")
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise NetworkError(
            f"{spec} cannot be imported: {error}.",
            hint="Install the package that holds it, or put its folder on PYTHONPATH.",
        ) from error
    try:
        network = build(scale=scale)
    except Exception as error:  # somebody else's code
        raise NetworkError(f"{spec} failed with scale={scale} ({told(error)}).") from error
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{spec} gave a {type(network).__name__}, not a torch.nn.Module.")
    return Foreign(name_of(spec), scale, network, network, weights_digest(network))
