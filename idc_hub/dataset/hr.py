"""The photographs' own HR crops as an HR version of a selection."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from idc_hub.errors import RunError
from idc_hub.images.patches import hr_box
from idc_hub.images.sources import load_hr, open_source
from idc_hub.runs.run import Run

NAME = "real"
"""What `--teacher` calls it, and the name of the HR version."""


class RealHR:
    """Cuts the HR patch of every chosen LR patch out of its photograph; an `HRSource` of `regenerate`.

    Args:
        run: A Run whose LR patches were all chosen by `idc select`.

    Raises:
        RunError: Its LR patches are synthetic, or some are missing.
        ImageError: Its photographs are not where they were.
    """

    def __init__(self, run: Run) -> None:
        recipe = run.recipe
        if recipe.method == "idc":
            raise RunError(
                f"The LR patches of {run.path} are synthetic: no photograph has an HR version of them.",
                "Name a teacher (`idc teachers ls`).",
            )
        self.name = NAME
        self.scale: int = recipe.scale
        self._size = recipe.patches.size
        self._instances = {instance.id: instance for instance in run.instances}
        self._windows = {instance.id: run.read_facts(instance)["windows"] for instance in run.instances}
        self._source = open_source(**recipe.source.model_dump())
        # Keys come photograph by photograph, so one at a time is enough.
        self._photograph = lru_cache(maxsize=1)(self._load)

    def answer(self, keys: Sequence[tuple[str, int]], lr: torch.Tensor) -> torch.Tensor:
        """HR crops uint8 `[B, 3, scale*h, scale*w]` of (instance id, patch index); LR is not looked at.

        Raises:
            ImageError: A photograph is gone or has changed since the selection.
        """
        return torch.cat([self.crops(key, [self._windows[key][index]]) for key, index in keys])

    def crops(self, instance_id: str, windows: Sequence[Sequence[int]]) -> torch.Tensor:
        """HR crops uint8 `[n, 3, scale*h, scale*w]` at any windows, (top, left) in LR pixels, of a photograph.

        Raises:
            ImageError: The photograph is gone or has changed since the selection.
        """
        photograph = self._photograph(instance_id)
        crops = []
        for window in windows:
            top, left, bottom, right = hr_box((window[0], window[1]), self._size, self.scale)
            crops.append(torch.from_numpy(photograph[top:bottom, left:right].transpose(2, 0, 1).copy()))
        return torch.stack(crops)

    def describe(self) -> dict[str, Any]:
        """The facts for `idc.json`; the license is that of the photographs, which nobody has stated here."""
        return {"name": NAME, "kind": "photographs", "scale": self.scale, "weights_sha256": None, "license": None}

    def _load(self, instance_id: str) -> np.ndarray:
        return load_hr(self._source, self._instances[instance_id], scale=self.scale)
