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
from idc_hub.dataset.hr import RealHR
from idc_hub.dataset.manifest import Manifest
from idc_hub.errors import RunError
from idc_hub.images.figures import Quality, judge
from idc_hub.images.files import decode_png
from idc_hub.images.sources import Instance, open_source
from idc_hub.networks.teachers import Teacher
from idc_hub.runs.run import Run
from idc_hub.runs.worker import real_patches

FILE_NAME = "quality.json"
FORMAT = "idc-quality"
FORMAT_VERSION = 1
MAX_PHOTOGRAPHS = 64
MAX_PATCHES = 256
MAX_DRAWS = 4

_BATCH = 16
_GRADIENTS = ("gradient_instance", "gradient_group", "gradient_pair")


def measure(
    run: Run, name: str, maker: Teacher | RealHR, *, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Take the figures of an HR version of a finished Run and hold them to those of random real patches.

    A sample is looked at, the same each time: of at most 64 photographs at most 256 patches in all, evenly; and as many
    random real ones of each of them, in four draws as long as these have no more than 256 patches in all. The held-out
    discrepancy, which condensation has measured already, is the mean over all photographs.

    Args:
        run: A Run whose photographs are where its recipe says.
        name: An HR version of its repository tree.
        maker: What made it; it makes the HR side of the random real patches too.
        on_progress: Called with the photographs done and all that will be looked at.

    Returns:
        What `judge` returns, `lr_digest`, `photographs`, `patches` and `draws` (how many were looked at), `spectra`
        (`cycles_per_patch`, `set`, `real`) and `gradient_norms` (of the weighted terms of the loss; medians over the
        second half of the steps, mean over the photographs).

    Raises:
        ImageError: A photograph is gone or has changed.
        RunError: The HR version is damaged.
    """
    recipe = run.recipe
    source = open_source(**recipe.source.model_dump())
    chosen = _choose(run)
    rows = _read(run, name, chosen)
    total = sum(len(numbers) for _, numbers in chosen)
    of_set, of_real = Quality(), [Quality() for _ in range(max(1, min(MAX_DRAWS, MAX_PATCHES // total)))]
    for done, (instance, numbers) in enumerate(chosen, start=1):
        tensor, places = real_patches(instance, source, recipe)
        real = tensor.numpy()
        pairs = [rows[instance.id, number] for number in numbers]
        lr, hr = (np.stack(images).transpose(0, 3, 1, 2) for images in zip(*pairs, strict=True))
        of_set.add(lr, hr, real)
        for number, quality in enumerate(of_real):
            own = _random_patches(len(lr), len(real), generator(recipe.seed, instance.id, "quality", number))
            if isinstance(maker, RealHR):
                enlarged = maker.crops(instance.id, places[own].tolist()).numpy()
            else:
                enlarged = _enlarge(real[own], maker)
            quality.add(real[own], enlarged, real, own)
        if on_progress:
            on_progress(done, len(chosen))
    verdict = judge(
        of_set.figures() | _held_out(run, "held_out"),
        [quality.figures() | _held_out(run, "held_out_random") for quality in of_real],
    )
    spectra = [quality.spectrum() for quality in (of_set, *of_real)]
    return {
        **verdict,
        "lr_digest": Manifest.load(run.repo).lr_digest,
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


def recorded(run: Run) -> dict[str, dict[str, Any]]:
    """The measurements in `quality.json` that belong to the LR patches as they are now, by HR version.

    Raises:
        RunError: The file is damaged, or newer than this version of idc-hub.
    """
    path = run.path / FILE_NAME
    if not path.is_file():
        return {}
    try:
        state = json.loads(path.read_bytes())
        if (state["format"], state["format_version"]) == (FORMAT, FORMAT_VERSION):
            digest = Manifest.load(run.repo).lr_digest
            return {name: found for name, found in state["hr_versions"].items() if found["lr_digest"] == digest}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Delete it: `idc quality` makes it again.") from error
    raise RunError(f"{path} has another format.", "Delete it, or update idc-hub.")


def record(run: Run, name: str, measured: dict[str, Any]) -> None:
    """Keep a measurement in `quality.json`, beside those of the other HR versions, and its figures in `idc.json`.

    The figures go under `condensation`, not under the HR version: measuring again is no new release of the pairs.
    """
    with run.repository_lock():
        state = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "hr_versions": recorded(run) | {name: measured},
        }
        write_text_atomically(run.path / FILE_NAME, json.dumps(state, indent=2) + "\n")
        manifest = Manifest.load(run.repo)
        figures = {key: {"set": figure["set"], "real": figure["real"]} for key, figure in measured["figures"].items()}
        manifest.condensation["quality"] = manifest.condensation.get("quality", {}) | {name: figures}
        manifest.save(run.repo)


def _choose(run: Run) -> list[tuple[Instance, list[int]]]:
    """Photographs, and the numbers of their patches, that are looked at."""
    rng = generator(run.recipe.seed, "quality")
    instances = [instance for instance in run.instances if instance.count]
    order = torch.randperm(len(instances), generator=rng)[:MAX_PHOTOGRAPHS]
    most = MAX_PATCHES // len(order)
    found = []
    for index in sorted(order.tolist()):
        numbers = torch.randperm(instances[index].count, generator=rng)[:most]
        found.append((instances[index], sorted(numbers.tolist())))
    return found


def _read(
    run: Run, name: str, chosen: list[tuple[Instance, list[int]]]
) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """LR and HR, uint8 `[h, w, 3]`, of the chosen patches as a consumer reads them."""
    wanted = {(instance.id, number) for instance, numbers in chosen for number in numbers}
    rows = parquet.read_rows(run.repo / "data" / name, {instance_id for instance_id, _ in wanted})
    found = {
        (row.instance_id, row.patch_index): (decode_png(row.lr_png), decode_png(row.hr_png))
        for row in rows
        if (row.instance_id, row.patch_index) in wanted
    }
    if found.keys() != wanted:
        raise RunError(f"{run.repo / 'data' / name} lacks patches.", "Run `idc regenerate` for this HR version again.")
    return found


def _random_patches(count: int, of: int, rng: torch.Generator) -> np.ndarray:
    """Numbers of `count` different patches; with repetition only where there are too few."""
    rounds = [torch.randperm(of, generator=rng) for _ in range(-(-count // of))]
    return torch.cat(rounds)[:count].numpy()


def _enlarge(lr: np.ndarray, teacher: Teacher) -> np.ndarray:
    return torch.cat([teacher(batch) for batch in torch.from_numpy(lr).split(_BATCH)]).numpy()


def _held_out(run: Run, key: str) -> dict[str, float]:
    """The mean of what was measured at the end of each optimization; empty where nothing was optimized."""
    facts = [run.read_facts(instance) for instance in run.instances if instance.count]
    found = [fact[key] for fact in facts if key in fact]
    return {"held_out": float(np.mean(found))} if found else {}


def _gradient_norms(run: Run) -> dict[str, float]:
    medians: dict[str, list[float]] = {term: [] for term in _GRADIENTS}
    for instance in run.instances:
        late = [line for line in run.read_metrics(instance.id) if line.get("step", 0) > run.recipe.optimizer.steps / 2]
        for term, found in medians.items():
            norms = [line[term] for line in late if term in line]
            found += [float(np.median(norms))] if norms else []
    return {term: float(np.mean(found)) for term, found in medians.items() if found}
