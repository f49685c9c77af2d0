"""Convert published checkpoints to network folders.

Our networks use the parameter names of the official checkpoints, so nothing needs renaming.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from idc_hub.errors import NetworkError
from idc_hub.networks.registry import CONFIG, WEIGHTS, create, refuse_non_finite, save

WRAPPERS = ("params_ema", "params")
"""Keys that BasicSR and its descendants wrap the weights in. They evaluate the averaged ones, so those come first."""


def import_weights(file: str | Path, name: str, folder: str | Path, *, scale: int = 4, **info: Any) -> None:
    """Write a network folder from a published state dict. Never runs code from the file.

    Args:
        file: A `.safetensors` file, or a `.pth` file that contains only tensors.
        name: Which network the weights are for, such as "swinir-light".
        folder: Where to write `config.json` and `model.safetensors`.
        scale: The scale that the weights were trained for.
        **info: Extra facts for `config.json`, such as `license`.

    Raises:
        NetworkError: The file is missing or damaged, contains code, doesn't fit the network, or has weights that are
            NaN or Inf; or the folder already contains a network.
    """
    file, folder = Path(file), Path(folder)
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        raise NetworkError(f"{folder} already contains a network.", hint="Choose another folder.")
    network = create(name, scale=scale)
    try:
        network.load_state_dict(_read(file))
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
        raise NetworkError(
            f"{file} doesn't fit {name} x{scale}: {first}", hint="Check the network's name and --scale."
        ) from error
    refuse_non_finite(network, file)
    save(network, folder, **info)


def _read(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise NetworkError(f"There is no file {file}.")
    try:
        content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise NetworkError(
            f"{file} can't be read as pure weights: {' '.join(str(error).split())[:200]}.",
            hint="It is damaged or contains code, which we never run. Get a safetensors file instead.",
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise NetworkError(
            f"{file} contains no state dict.",
            hint=f"It should map names to tensors, possibly under {' or '.join(WRAPPERS)}.",
        )
    return content
