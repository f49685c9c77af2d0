"""The quality gate of a Run: its patches beside random real ones of the same photographs, through the same teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from idc_hub.atomic import write_text_atomically
from idc_hub.condensation.real_side import generator
from idc_hub.dataset import parquet
from idc_hub.dataset.card import write_card
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.hr import HRSource, RealHR
from idc_hub.errors import RunError
from idc_hub.images.figures import Quality, judge
from idc_hub.images.files import decode_png
from idc_hub.images.sources import Instance, open_source
from idc_hub.runs.progress import Reporting, counting
from idc_hub.runs.run import Run
from idc_hub.runs.worker import real_patches

FILE_NAME = "quality.json"
FORMAT = "idc-quality"
FORMAT_VERSION = 2
"""1 had other limits and figures: what was measured then is measured again."""
MAX_PATCHES = 256
MAX_DRAWS = 4

_BATCH = 16
_GRADIENTS = ("gradient_instance", "gradient_group", "gradient_pair")


def measure(
    run: Run,
    condensed: CondensedSet,
    name: str,
    source: HRSource,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Take the figures of an HR version of a finished Run and hold them to those of random real patches.

    A sample is looked at, the same each time: of at most 64 photographs at most 256 patches in all, evenly; and as many
    random real ones of each of them, in four draws as long as these have no more than 256 patches in all. The held-out
    discrepancy, which condensation has measured already, is the mean over all photographs.

    Args:
        run: A Run whose photographs are where its recipe says.
        condensed: Its set.
        name: An HR version of the set.
        source: What made it; it makes the HR side of the random real patches too.
        on_progress: Called with the photographs done and all that will be looked at.

    Returns:
        What `judge` returns, `lr_digest`, `photographs`, `patches` and `draws` (how many were looked at), `spectra`
        (`cycles_per_patch`, `set`, `real`) and `gradient_norms` (of the weighted terms of the loss; medians over the
        second half of the steps, mean over the photographs).

    Raises:
        ImageError: A photograph is gone or has changed.
        RunError: The HR version is damaged.
        NetworkError: The teacher gave NaN or Inf for a real patch.
    """
    recipe = run.recipe
    photographs = open_source(**recipe.source.model_dump())
    chosen = _choose(run)
    rows = _read(condensed, name, chosen)
    real_source = RealHR(run, every_window=True) if isinstance(source, RealHR) else source
    total = sum(len(numbers) for _, numbers in chosen)
    of_set, of_real = Quality(), [Quality() for _ in range(max(1, min(MAX_DRAWS, MAX_PATCHES // total)))]
    for done, (instance, numbers) in enumerate(chosen, start=1):
        real_lr = run.read_real(instance)
        if real_lr is None:
            real_lr, _ = real_patches(instance, photographs, recipe)
        real = real_lr.numpy()
        pairs = [rows[instance.id, number] for number in numbers]
        lr, hr = (np.stack(images).transpose(0, 3, 1, 2) for images in zip(*pairs, strict=True))
        of_set.add(lr, hr, real)
        for number, quality in enumerate(of_real):
            own = _random_patches(len(lr), len(real), generator(recipe.seed, instance.id, "quality", number))
            hr_of_real = [
                real_source.make_hr([(instance.id, int(window)) for window in some], real_lr[some])
                for some in torch.from_numpy(own).split(_BATCH)
            ]
            quality.add(real[own], torch.cat(hr_of_real).numpy(), real, own)
        if on_progress:
            on_progress(done, len(chosen))
    held_out = run.held_out()
    verdict = judge(
        of_set.figures() | ({"held_out": held_out["held_out"]} if held_out else {}),
        [quality.figures() | ({"held_out": held_out["held_out_random"]} if held_out else {}) for quality in of_real],
    )
    spectra = [quality.spectrum() for quality in (of_set, *of_real)]
    return {
        **verdict,
        "lr_digest": condensed.manifest.lr_digest,
        "photographs": len(chosen),
        "patches": total,
        "draws": len(of_real),
        "spectra": {
            "cycles_per_patch": list(range(1, len(spectra[0]) + 1)),
            "set": spectra[0],
            "real": np.mean(spectra[1:], axis=0).tolist(),
        },
        "gradient_norms": _gradient_norms(run),
    }


def recorded(run: Run, condensed: CondensedSet) -> dict[str, dict[str, Any]]:
    """The measurements in `quality.json` that belong to the LR patches as they are now, by HR version.

    Raises:
        RunError: The file is damaged, or newer than this version of idc-hub.
    """
    path = run.path / FILE_NAME
    if not path.is_file():
        return {}
    try:
        state = json.loads(path.read_bytes())
        if (state["format"], state["format_version"]) == (FORMAT, 1):
            return {}
        if (state["format"], state["format_version"]) == (FORMAT, FORMAT_VERSION):
            digest = condensed.manifest.lr_digest
            return {name: found for name, found in state["hr_versions"].items() if found["lr_digest"] == digest}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Delete it: `idc quality` makes it again.") from error
    raise RunError(f"{path} has another format.", "Delete it, or update idc-hub.")


def measure_version(
    run: Run, condensed: CondensedSet, name: str, source: HRSource, progress: Reporting = True
) -> dict[str, Any]:
    """Take the figures of an HR version, keep them with the Run, and show them on the card; see `measure`."""
    with counting("quality: photographs", progress) as count:
        measured = measure(run, condensed, name, source, on_progress=count)
    record(run, condensed, name, measured)
    write_card(condensed)
    return measured


def record(run: Run, condensed: CondensedSet, name: str, measured: dict[str, Any]) -> None:
    """Keep a measurement in `quality.json`, beside those of the other HR versions, and its figures in `idc.json`.

    The figures go under `condensation`, not under the HR version: measuring again is no new release of the pairs.
    """
    with condensed.updating() as manifest:
        state = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "hr_versions": recorded(run, condensed) | {name: measured},
        }
        write_text_atomically(run.path / FILE_NAME, json.dumps(state, indent=2) + "\n")
        figures = {key: {"set": figure["set"], "real": figure["real"]} for key, figure in measured["figures"].items()}
        manifest.condensation["quality"] = manifest.condensation.get("quality", {}) | {name: figures}
    run.forget_real()


def _choose(run: Run) -> list[tuple[Instance, list[int]]]:
    """Photographs, and the numbers of their patches, that are looked at."""
    instances = list(run.sample.values())
    most = MAX_PATCHES // len(instances)
    found = []
    for instance in instances:
        numbers = torch.randperm(instance.count, generator=generator(run.recipe.seed, instance.id, "looked at"))
        found.append((instance, sorted(numbers[:most].tolist())))
    return found


def _read(
    condensed: CondensedSet, name: str, chosen: list[tuple[Instance, list[int]]]
) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """LR and HR, uint8 `[h, w, 3]`, of the chosen patches as a consumer reads them."""
    wanted = {(instance.id, number) for instance, numbers in chosen for number in numbers}
    rows = parquet.read_rows(condensed.data(name), {instance_id for instance_id, _ in wanted})
    found = {
        (row.instance_id, row.patch_index): (decode_png(row.lr_png), decode_png(row.hr_png))
        for row in rows
        if (row.instance_id, row.patch_index) in wanted
    }
    if found.keys() != wanted:
        raise RunError(f"{condensed.data(name)} lacks patches.", "Run `idc regenerate` for this HR version again.")
    return found


def _random_patches(count: int, of: int, rng: torch.Generator) -> np.ndarray:
    """Numbers of `count` different patches; with repetition only where there are too few."""
    rounds = [torch.randperm(of, generator=rng) for _ in range(-(-count // of))]
    return torch.cat(rounds)[:count].numpy()


def _gradient_norms(run: Run) -> dict[str, float]:
    medians: dict[str, list[float]] = {term: [] for term in _GRADIENTS}
    for instance in run.instances:
        late = [line for line in run.read_metrics(instance.id) if line.get("step", 0) > run.recipe.optimizer.steps / 2]
        for term, found in medians.items():
            norms = [line[term] for line in late if term in line]
            found += [float(np.median(norms))] if norms else []
    return {term: float(np.mean(found)) for term, found in medians.items() if found}
