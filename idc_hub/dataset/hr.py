"""Sources of HR patches: a teacher, or the photographs that real LR patches were cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from idc_hub.errors import RunError
from idc_hub.images.patches import Place, at_zoom, hr_box, places
from idc_hub.images.sources import load_hr, open_source
from idc_hub.machine import device
from idc_hub.networks.teachers import load_teacher
from idc_hub.runs.run import Run

if TYPE_CHECKING:
    from idc_hub.images.sources import Instance

REAL = "real"
"""The value of `--teacher` for the photographs' own HR, and the default name of that HR version."""


class HRSource(Protocol):
    """Makes the HR patches of a set: a `Teacher`, or `RealHR`.

    Attributes:
        name: Default name of the HR version.
        scale: How many times larger HR is.
    """

    name: str
    scale: int

    def make_hr(self, keys: Sequence[tuple[str, int]], lr: torch.Tensor) -> torch.Tensor:
        """Make HR patches for LR patches.

        Args:
            keys: Instance id and patch index of each patch.
            lr: uint8 `[B, 3, h, w]`.

        Returns:
            uint8 `[B, 3, scale*h, scale*w]`, on the CPU.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """The keys and values of a `manifest.TeacherRecord`."""
        ...


class RealHR:
    """Cuts the HR patches of real LR patches out of the photographs.

    Args:
        run: A Run that `idc select` has finished.
        every_window: Whether patch indices count all real patches of a photograph instead of the chosen ones.

    Raises:
        RunError: The LR patches are synthetic, or some are missing.
        ImageError: The photographs are not where the recipe says.
    """

    def __init__(self, run: Run, *, every_window: bool = False) -> None:
        recipe = run.recipe
        if recipe.method in ("idc", "leaves"):
            raise RunError(
                f"The LR patches of {run.path} are synthetic: no photograph shows their HR side.",
                "Name a teacher (`idc teachers ls`).",
            )
        self.run = run
        self.name = REAL
        self.scale: int = recipe.scale
        self._instances = {instance.id: instance for instance in run.instances}
        find = self._every_place if every_window else self._chosen_places
        self._places = {instance.id: find(instance) for instance in run.instances}
        self._source = open_source(**recipe.source.model_dump())
        # Keys are grouped by photograph and zoom, so one photograph in memory is enough.
        self._photograph = lru_cache(maxsize=1)(self._load)

    def make_hr(self, keys: Sequence[tuple[str, int]], lr: torch.Tensor) -> torch.Tensor:
        """See `HRSource`; uses only `keys`.

        Raises:
            ImageError: A photograph is missing or has changed since the selection.
        """
        crops = []
        for instance_id, index in keys:
            place = self._places[instance_id][index]
            top, left, bottom, right = hr_box(place[:2], self.run.recipe.patches.size, self.scale)
            crop = self._photograph(instance_id, place.zoom)[top:bottom, left:right]
            crops.append(torch.from_numpy(crop.transpose(2, 0, 1).copy()))
        return torch.stack(crops)

    def describe(self) -> dict[str, Any]:
        """See `HRSource`. The license would be that of the photographs, which is not known here."""
        return {"name": REAL, "kind": "photographs", "scale": self.scale, "weights_sha256": None, "license": None}

    def _chosen_places(self, instance: Instance) -> list[Place]:
        return [Place(*place) for place in self.run.read_facts(instance)["places"]]

    def _every_place(self, instance: Instance) -> list[Place]:
        return places(instance.height, instance.width, **self.run.recipe.grid)

    def _load(self, instance_id: str, zoom: float) -> np.ndarray:
        return at_zoom(load_hr(self._source, self._instances[instance_id], scale=self.scale), zoom, self.scale)


def load_hr_source(path: Path, teacher: str, *, scale: int, settings: Mapping[str, Any] | None = None) -> HRSource:
    """Load what `--teacher` names: a teacher, or the photographs of a selection's Run.

    Args:
        path: The Run or the repository folder to make HR for.
        teacher: Anything that `load_teacher` accepts, or `real`.
        scale: The scale of the set.
        settings: Settings of a diffusion teacher.

    Raises:
        NetworkError: The teacher cannot be loaded or has another scale.
        RunError: `teacher` is `real`, but `path` is not a Run that `idc select` made.
    """
    if teacher != REAL:
        return load_teacher(teacher, scale=scale, device=device(), **(settings or {}))
    if (path / "run.json").is_file():
        return RealHR(Run.open(path))
    raise RunError(
        f"{path} does not record where its patches were cut out; only the Run of `idc select` does.",
        "Name that Run, or a teacher (`idc teachers ls`).",
    )
