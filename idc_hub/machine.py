"""Where and with what a result is made: package versions, kind of machine, device."""

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
"""Packages that influence results."""


def device() -> str:
    """The device to run networks on: "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def packages() -> dict[str, str]:
    """Versions of the installed packages that influence results."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Device, Python version and operating system, without the name of the machine."""
    import torch

    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {"device": name, "python": platform.python_version(), "system": platform.system()}
