"""Weights as their authors publish them, turned into a network's folder.

Our networks carry the parameter names of the official checkpoints, so that nothing has to be renamed.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from idc_hub.errors import NetworkError
from idc_hub.networks.registry import CONFIG, WEIGHTS, create, save

WRAPPERS = ("params_ema", "params")
"""Keys under which BasicSR and those who build on it put the weights; the averaged ones are what they evaluate."""


def import_weights(file: str | Path, name: str, folder: str | Path, *, scale: int = 4, **info: Any) -> None:
    """Make a network's folder from a state dict.

    Args:
        file: `.safetensors`, or a `.pth` that holds tensors only: nothing in it is run.
        name: What the weights are for, such as "swinir-light".
        folder: Gets `config.json` and `model.safetensors`.
        scale: The scale that the weights were trained for.
        **info: Facts for `config.json`, such as `license`.

    Raises:
        NetworkError: The file is missing, damaged or holds code, does not fit the network, or the folder holds one.
    """
    file, folder = Path(file), Path(folder)
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        raise NetworkError(f"{folder} already holds a network.", hint="Choose another folder.")
    network = create(name, scale=scale)
    try:
        network.load_state_dict(_read(file))
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
        raise NetworkError(
            f"{file} does not fit {name} for x{scale}: {first}", hint="Check the name of the network and --scale."
        ) from error
    save(network, folder, **info)


def _read(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise NetworkError(f"There is no file {file}.")
    try:
        content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise NetworkError(
            f"{file} cannot be read as weights alone: {' '.join(str(error).split())[:200]}.",
            hint="It is damaged, or holds code, which is never run. Ask for a safetensors file.",
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise NetworkError(
            f"{file} holds no state dict.", hint=f"Expected are tensors by name, or {' or '.join(WRAPPERS)}."
        )
    return content
