"""What a result is made with and on: versions of packages, the kind of machine, the device."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "idc-hub",
    "torch",
    "datasets",
    "huggingface-hub",
    "accelerate",
    "safetensors",
    "pyarrow",
    "numpy",
    "pillow",
)
"""Packages that shape a result."""


def device() -> str:
    """Where networks compute: "cuda" where there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def packages() -> dict[str, str]:
    """Versions of the packages that shape a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """The kind of machine, without its name."""
    import torch

    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {"device": name, "python": platform.python_version(), "system": platform.system()}
