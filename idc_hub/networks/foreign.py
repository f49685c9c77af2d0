"""Third-party networks: spandrel checkpoints, Swin2SR from transformers, and functions from any package.

`kind_of` tells what a name refers to, and `load_foreign` loads the network, for use as a teacher or a feature
extractor. Code that comes with weights never runs: we only read safetensors or use `weights_only=True`, and ignore
custom code in repositories. `package.module:build` does run code, but only what is installed on this machine and
the user asked for by name.
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
from safetensors.torch import load_file
from torch import Tensor, nn

from idc_hub.errors import NetworkError
from idc_hub.networks.registry import CONFIG, HUB_ID, NETWORKS, PIPELINE, WEIGHTS, download, refuse_non_finite
from idc_hub.recipe_reader import MODULE

CHECKPOINTS = (".safetensors", ".pth", ".pt", ".ckpt")
SWIN2SR = "Swin2SRForImageSuperResolution"


@dataclass(frozen=True)
class Foreign:
    """A third-party network: frozen, in evaluation mode, float32.

    Attributes:
        name: Lowercase letters, digits, and "-".
        scale: Output size over input size.
        network: The module, whose inner modules serve as feature layers.
        enlarge: Float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`.
        weights_sha256: Digest of its file, or of its weights if there is no single file; None without weights.
        license: License stated by the model card next to the weights.
        multiple: `enlarge` needs h and w to be multiples of this.
    """

    name: str
    scale: int
    network: nn.Module
    enlarge: Callable[[Tensor], Tensor]
    weights_sha256: str | None
    license: str | None = None
    multiple: int = 1


def kind_of(spec: str | Path) -> tuple[str, Path]:
    """What `spec` refers to, and its local path. Downloads Hub models, but only part of a pipeline.

    Returns:
        "bicubic", "network" (ours), "spandrel" (an existing file), "transformers", "diffusers", or "module"; and the
        file or folder, which is meaningless for bicubic, modules, and names of our networks.

    Raises:
        NetworkError: There is no such file or model.
        HubError: The Hub can't be reached.
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
        if MODULE.fullmatch(name):
            return "module", path
        if not HUB_ID.fullmatch(name):
            return "network", path
        path = download(name)
    if (path / PIPELINE).is_file():
        return "diffusers", path
    return ("transformers" if read_json(path / CONFIG).get("architectures") == [SWIN2SR] else "network"), path


def load_foreign(kind: str, spec: str | Path, path: Path, *, scale: int, device: str | torch.device = "cpu") -> Foreign:
    """Load a network of kind "spandrel", "transformers", or "module".

    Args:
        kind: From `kind_of`.
        spec: What the user typed. A module is "package.module:build", where `build(scale=4)` returns a
            `torch.nn.Module` with its weights loaded, from RGB float `[B, 3, h, w]` in [0, 1] to
            `[B, 3, scale*h, scale*w]`, for any h and w.
        path: From `kind_of`.
        scale: Passed to `build`. The other kinds have the scale of their weights.
        device: Where to run it.

    Raises:
        NetworkError: It can't be loaded, is unsafe to load, has weights that are NaN or Inf, or needs a package that
            isn't installed.
    """
    if kind == "spandrel":
        foreign, origin = _load_checkpoint(path), path
    elif kind == "transformers":
        foreign, origin = _load_swin2sr(str(spec), path), path / WEIGHTS
    else:
        foreign, origin = _load_module(str(spec), scale), Path(spec)
    refuse_non_finite(foreign.network, origin)
    foreign.network.eval().requires_grad_(False).to(device)
    return foreign


def package(name: str, *, extra: str, purpose: str | Path) -> Any:
    """Import an optional package.

    Raises:
        NetworkError: It isn't installed or can't be imported.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: one of its dependencies is broken
        raise NetworkError(
            f"{purpose} needs {name}, which can't be imported ({error}).",
            hint=f"Install it with: pip install 'idc-hub[{extra}]'",
        ) from error


def infinite_as_nan(module: nn.Module) -> None:
    """Have a module give NaN where it would give Inf: who clamps its output to [0, 1] later makes white of Inf,
    which nobody could tell from a white that is meant, while NaN stays NaN. Finite numbers stay as they are.
    """

    def mark(module: nn.Module, inputs: Any, output: Any) -> Any:
        return output.where(output.isfinite(), torch.nan) if isinstance(output, Tensor) else output

    module.register_forward_hook(mark)


def told(error: Exception) -> str:
    """A library's error message, shortened to one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def weights_digest(network: nn.Module) -> str | None:
    """Hex SHA-256 of a network's weights, for networks that aren't a single file; None if it has no weights.

    Hashes each entry of the state dict in key order: key, dtype, and shape, each followed by a zero byte, then the
    values as stored in memory.
    """
    weights = network.state_dict()
    digest = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest() if weights else None


def name_of(spec: str | Path) -> str:
    """Name a teacher and its HR version: "4x-net" for "weights/4x_Net.pth", "net" for "org/Net"."""
    path = Path(spec).expanduser().resolve()
    text = path.stem if path.suffix.lower() in CHECKPOINTS else path.name
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "teacher"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; empty if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def card_license(folder: Path) -> str | None:
    """The license stated by a folder's model card (README.md)."""
    from huggingface_hub import metadata_load

    try:
        license = (metadata_load(folder / "README.md") or {}).get("license")
    except Exception:  # PyYAML raises nearly every class there is
        return None
    return license if isinstance(license, str) else None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file of tensors and plain values.

    Raises:
        NetworkError: It contains anything else, or is damaged.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise NetworkError(
            f"{path} was refused: it doesn't load with weights_only=True, so reading it could run code.",
            hint="Get the weights as .safetensors, or as a .pth that contains only tensors.",
        ) from error
    except Exception as error:  # on damaged legacy files torch raises nearly every class there is
        raise NetworkError(
            f"{path} can't be read ({told(error)}).", hint="Download it again, or get the weights as .safetensors."
        ) from error
    if not isinstance(content, dict):
        raise NetworkError(f"{path} contains a {type(content).__name__}, not a state dict.")
    return content


def _load_checkpoint(path: Path) -> Foreign:
    """Load a checkpoint whose architecture spandrel recognizes."""
    weights = read_checkpoint(path)
    spandrel = package("spandrel", extra="spandrel", purpose=path)
    try:
        # Not load_from_file, which runs TorchScript in .pt files.
        model = spandrel.ModelLoader().load_from_state_dict(spandrel.canonicalize_state_dict(weights))
    except spandrel.UnsupportedModelError as error:
        raise NetworkError(
            f"spandrel doesn't recognize the architecture of {path}.",
            hint="Write a function that builds the network, and pass it as package.module:build.",
        ) from error
    except Exception as error:  # a detector may trip over any value in the file
        raise NetworkError(f"spandrel can't load {path} ({told(error)}).") from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise NetworkError(f"{path} isn't an RGB-to-RGB network, but a {type(model).__name__}.")

    infinite_as_nan(model.model)

    def enlarge(lr: Tensor) -> Tensor:
        # One at a time, since spandrel guarantees no more. It pads for the network and crops the result.
        return torch.cat([model(image[None]) for image in lr])

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Foreign(name_of(path), model.scale, model.model, enlarge, digest)


def _load_swin2sr(spec: str, folder: Path) -> Foreign:
    transformers = package("transformers", extra="diffusion", purpose=spec)
    if not (folder / WEIGHTS).is_file():
        raise NetworkError(f"{spec} contains no {WEIGHTS}.", hint="Save it again with transformers' `save_pretrained`.")
    try:
        network = getattr(transformers, SWIN2SR).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # the library can raise anything on a damaged folder
        raise NetworkError(f"{spec} can't be loaded as a {SWIN2SR} ({told(error)}).") from error

    def enlarge(lr: Tensor) -> Tensor:
        hr: Tensor = network(lr).reconstruction
        return hr

    scale, window, digest = network.config.upscale, network.config.window_size, weights_digest(network)
    return Foreign(name_of(spec), scale, network, enlarge, digest, card_license(folder), window)


def _load_module(spec: str, scale: int) -> Foreign:
    """Call the function `spec`, which runs its code."""
    module, _, function = spec.partition(":")
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise NetworkError(
            f"{spec} can't be imported: {error}.",
            hint="Install its package, or add its folder to PYTHONPATH.",
        ) from error
    try:
        network = build(scale=scale)
    except Exception as error:  # third-party code can raise anything
        raise NetworkError(f"{spec} failed with scale={scale} ({told(error)}).") from error
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{spec} returned a {type(network).__name__}, not a torch.nn.Module.")
    return Foreign(name_of(spec), scale, network, network, weights_digest(network))
