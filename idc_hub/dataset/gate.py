"""The quality gate of a Run: measures its patches and random real ones of the same photographs, with the same teacher.

`judgment` holds the limits; this module does the measuring and keeps the results.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from idc_hub.atomic import write_text_atomically
from idc_hub.condensation.real_side import generator
from idc_hub.dataset.card import write_card
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.hr import HRSource, RealHR
from idc_hub.dataset.judgment import judge
from idc_hub.errors import RunError
from idc_hub.images.figures import Quality
from idc_hub.images.files import decode_png
from idc_hub.images.sources import Instance, open_source
from idc_hub.runs.progress import Reporting, counting
from idc_hub.runs.run import Run
from idc_hub.runs.worker import real_patches

FILE_NAME = "quality.json"
FORMAT = "idc-quality"
FORMAT_VERSION = 2
"""Version 1 had other figures and limits; its measurements are ignored and made again."""
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
    """Measure an HR version of a finished Run and judge it against random real patches.

    Measures a reproducible sample: at most 256 patches, spread evenly over at most 64 photographs. Each draw of random
    real patches takes as many from each photograph; there are up to four draws with at most 256 patches in all. The
    held-out discrepancy is the mean over all photographs, recorded when the LR patches were made.

    Args:
        run: A Run whose photographs are where its recipe says.
        condensed: Its set.
        name: An HR version of the set.
        source: What made that version; it also makes HR for the random real patches.
        on_progress: Called with the number of photographs done and their total.

    Returns:
        The result of `judge`; `lr_digest`; `photographs`, `patches` and `draws` (sizes of the sample); `spectra`
        (`cycles_per_patch`, `set`, `real`); and `gradient_norms` of the weighted loss terms (median over the second
        half of the steps, mean over the photographs).

    Raises:
        ImageError: A photograph is gone or has changed.
        RunError: The HR version is damaged.
        NetworkError: The teacher gave NaN or Inf for a real patch.
    """
    recipe = run.recipe
    photographs = open_source(**recipe.source.model_dump())
    chosen = _choose(run)
    rows = _read_pairs(condensed, name, chosen)
    real_source = RealHR(run, every_window=True) if isinstance(source, RealHR) else source
    total = sum(len(numbers) for _, numbers in chosen)
    of_set, of_real = Quality(), [Quality() for _ in range(max(1, min(MAX_DRAWS, MAX_PATCHES // total)))]
    for done, (instance, numbers) in enumerate(chosen, start=1):
        real = run.read_real(instance)
        if real is None:
            real = real_patches(instance, photographs, recipe).lr
        pairs = [rows[instance.id, number] for number in numbers]
        lr, hr = (np.stack(images).transpose(0, 3, 1, 2) for images in zip(*pairs, strict=True))
        of_set.add(lr, hr, real.numpy())
        for number, quality in enumerate(of_real):
            windows = _random_patches(len(lr), len(real), generator(recipe.seed, instance.id, "quality", number))
            hr = _make_hr(real_source, instance, windows, real[windows])
            quality.add(real[windows].numpy(), hr, real.numpy(), windows)
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
    """The measurements in `quality.json` that were made with the present LR patches, by HR version.

    Raises:
        RunError: The file is damaged, or was written by a newer idc-hub.
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
        raise RunError(f"{path} is damaged ({error}).", "Delete it and run `idc quality` again.") from error
    raise RunError(f"{path} has another format.", "Delete it, or update idc-hub.")


def measured_version(
    run: Run, condensed: CondensedSet, name: str, source: HRSource, progress: Reporting = True
) -> dict[str, Any]:
    """The recorded measurement of an HR version, or a new one (see `measure_version`)."""
    found = recorded(run, condensed).get(name)
    if found is None:
        return measure_version(run, condensed, name, source, progress)
    if name not in condensed.manifest.condensation.get("quality", {}):  # a kill came between the two files
        record(run, condensed, name, found)
    return found


def measure_version(
    run: Run, condensed: CondensedSet, name: str, source: HRSource, progress: Reporting = True
) -> dict[str, Any]:
    """Measure an HR version (see `measure`), record the result, and update the card."""
    with counting("quality: photographs", progress) as count:
        measured = measure(run, condensed, name, source, on_progress=count)
    record(run, condensed, name, measured)
    return measured


def record(run: Run, condensed: CondensedSet, name: str, measured: dict[str, Any]) -> None:
    """Write a measurement to `quality.json` in the Run, and its figures to the card and, last, to `idc.json`.

    In `idc.json` the figures belong to `condensation`, not to the HR version: a new measurement does not change the
    pairs, so it must not become a new release of them.
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
        write_card(CondensedSet(condensed.folder, manifest))
    run.forget_real()


def _choose(run: Run) -> list[tuple[Instance, list[int]]]:
    """The sample: photographs, each with the indices of the patches to measure."""
    instances = list(run.sample.values())
    most = MAX_PATCHES // len(instances)
    sample = []
    for instance in instances:
        numbers = torch.randperm(instance.count, generator=generator(run.recipe.seed, instance.id, "looked at"))
        sample.append((instance, sorted(numbers[:most].tolist())))
    return sample


def _read_pairs(
    condensed: CondensedSet, name: str, chosen: list[tuple[Instance, list[int]]]
) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """LR and HR of the chosen patches, uint8 `[h, w, 3]`, read from the parquet files."""
    wanted = {(instance.id, number) for instance, numbers in chosen for number in numbers}
    rows = condensed.rows(name, {instance_id for instance_id, _ in wanted})
    found = {
        (row.instance_id, row.patch_index): (decode_png(row.lr_png), decode_png(row.hr_png))
        for row in rows
        if (row.instance_id, row.patch_index) in wanted
    }
    if found.keys() != wanted:
        raise RunError(f"{condensed.data(name)} lacks patches.", "Run `idc regenerate` for this HR version again.")
    return found


def _random_patches(count: int, total: int, rng: torch.Generator) -> np.ndarray:
    """Indices of `count` of `total` patches, all different unless there are too few."""
    rounds = [torch.randperm(total, generator=rng) for _ in range(-(-count // total))]
    return torch.cat(rounds)[:count].numpy()


def _make_hr(source: HRSource, instance: Instance, windows: np.ndarray, lr: torch.Tensor) -> np.ndarray:
    """HR of the real LR patches `lr`, the given windows of a photograph; uint8 `[n, 3, s*h, s*w]`."""
    keys = [(instance.id, int(window)) for window in windows]
    starts = range(0, len(keys), _BATCH)
    made = [source.make_hr(keys[start : start + _BATCH], lr[start : start + _BATCH]) for start in starts]
    return torch.cat(made).numpy()


def _gradient_norms(run: Run) -> dict[str, float]:
    """Gradient norms by loss term; see `measure`."""
    medians: dict[str, list[float]] = {term: [] for term in _GRADIENTS}
    for instance in run.instances:
        # By step: after an interruption, the steps since the checkpoint are logged again.
        late = {line["step"]: line for line in run.read_metrics(instance.id) if line["event"] == "log"}
        late = {step: line for step, line in late.items() if step > run.recipe.optimizer.steps / 2}
        for term, found in medians.items():
            norms = [line[term] for line in late.values() if term in line]
            found += [float(np.median(norms))] if norms else []
    return {term: float(np.mean(found)) for term, found in medians.items() if found}
