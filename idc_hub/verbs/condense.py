"""condense: make a condensed set from photographs, ready to push."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from idc_hub.dataset.gate import measured_version
from idc_hub.dataset.pack import pack
from idc_hub.dataset.regenerate import add_version
from idc_hub.errors import RecipeError, first_few
from idc_hub.images.sources import Instance, count_conversions
from idc_hub.machine import device, machine, packages
from idc_hub.networks.extractors import load_extractor
from idc_hub.networks.teachers import Teacher, load_teacher
from idc_hub.recipe import Recipe
from idc_hub.runs.forecast import predict
from idc_hub.runs.launch import default_num_processes, launch
from idc_hub.runs.progress import Reporting, show_progress
from idc_hub.runs.run import Run, default_run_dir
from idc_hub.runs.tracking import check_trackers, track
from idc_hub.runs.worker import find_photographs


@dataclass(frozen=True)
class CondensePlan:
    """Result of `condense(dry_run=True)`.

    Attributes:
        run: The Run directory that would be used.
        photographs: Number of photographs.
        real_patches: Number of their real LR patches.
        patches: Number of synthetic LR patches that would be made.
        lr_recipe_hash: Hash of the recipe keys that determine the LR patches.
        predicted_seconds: Predicted seconds of the workers, from a calibration of about ten seconds on this device.
        worker_hours: The same in hours, times the number of workers: GPU-hours, if each has a GPU.
        price: Money for these hours at `price_per_hour`; None if none was given.
        batch: Photographs that a worker condenses together (`workers.batch`).
        peak_memory_gb: Predicted peak memory of a worker's tensors, in GB.
        counts: Synthetic patches of each photograph, by instance id.
        conversions: Number of photographs that take each conversion, such as "gray converted to RGB".
        left_out: Names of the files of the source that are no photographs.
    """

    run: str
    photographs: int
    real_patches: int
    patches: int
    lr_recipe_hash: str
    predicted_seconds: float
    worker_hours: float
    price: float | None
    batch: int
    peak_memory_gb: float
    counts: dict[str, int]
    conversions: dict[str, int]
    left_out: list[str]


@dataclass(frozen=True)
class CondenseResult:
    """Result of `condense`.

    Attributes:
        run: The Run directory.
        photographs: Number of photographs.
        real_patches: Number of their real LR patches.
        patches: Number of synthetic LR patches.
        lr_digest: SHA-256 of the LR patches.
        hr_version: Name of the HR version made by the recipe's teacher.
        held_out: Mean discrepancy (paper Eq. 6, unweighted) of the synthetic patches on draws that no step used.
        held_out_random: The same for equally many random real patches.
        quality: Figures of the quality gate, as `QualityResult.figures`.
        warnings: A sentence for each figure that fails.
        seconds: Wall-clock seconds of this call.
        conversions: Number of photographs that took each conversion, such as "gray converted to RGB".
        left_out: Names of the files of the source that are no photographs.
    """

    run: str
    photographs: int
    real_patches: int
    patches: int
    lr_digest: str
    hr_version: str
    held_out: float
    held_out_random: float
    quality: dict[str, Any]
    warnings: list[str]
    seconds: float
    conversions: dict[str, int]
    left_out: list[str]


@dataclass(frozen=True)
class Prepared:
    """What a Run is made of: a checked recipe with its photographs and networks.

    Attributes:
        path: The Run directory.
        recipe: The recipe, with the extractor's digest.
        instances: The photographs, ordered by id, with the number of patches of each.
        left_out: Names of the files of the source that are no photographs.
        network: The extractor.
        teacher: The recipe's teacher.
    """

    path: Path
    recipe: Recipe
    instances: list[Instance]
    left_out: list[str]
    network: torch.nn.Module
    teacher: Teacher

    @property
    def real_patches(self) -> int:
        """Number of real LR patches of all photographs."""
        return sum(instance.patches for instance in self.instances)

    def plan(self, processes: int, price_per_hour: float | None = None) -> CondensePlan:
        """What `make_run` and `processes` workers would do; calibrates for about ten seconds on this device."""
        forecast = predict(self.recipe, self.instances, self.network, processes, torch.device(device()))
        hours = processes * forecast.seconds / 3600
        return CondensePlan(
            run=str(self.path),
            photographs=len(self.instances),
            real_patches=self.real_patches,
            patches=sum(instance.count for instance in self.instances),
            lr_recipe_hash=self.recipe.lr_recipe_hash,
            predicted_seconds=round(forecast.seconds, 1),
            worker_hours=round(hours, 3),
            price=None if price_per_hour is None else round(hours * price_per_hour, 2),
            batch=forecast.batch,
            peak_memory_gb=round(forecast.peak_bytes / 1e9, 3),
            counts={instance.id: instance.count for instance in self.instances},
            conversions=count_conversions(self.instances),
            left_out=self.left_out,
        )

    def make_run(self, *, restart: bool = False) -> Run:
        """Make the Run directory, or continue the Run that is there: failed and damaged photographs are made again.

        Args:
            restart: Delete the Run directory first.

        Raises:
            RecipeError: The directory belongs to another recipe or to other photographs.
            RunError: A file of the Run belongs to another recipe or photograph, or `restart` is given while another
                process works on the Run.
        """
        if restart:
            Run.discard(self.path)
        workers = {key: getattr(self.recipe.workers, key) for key in ("batch", "tf32", "fused")}
        facts = {"packages": packages(), "machine": machine(), "workers": workers}
        run = Run.create(self.path, self.recipe, self.instances, facts)
        run.clear_failures()
        if abandoned := run.abandoned():
            warnings.warn(
                f"The process that condensed {first_few(abandoned, 5)} was killed, perhaps for lack of memory. "
                "What is not finished of them is tried last.",
                stacklevel=1,
            )
        for instance in self.instances:
            if damaged := run.drop_damaged(instance):
                warnings.warn(f"{damaged} It is made again.", stacklevel=1)
        return run


def prepare(
    recipe: Recipe | str | Path,
    *,
    run_dir: str | Path | None = None,
    trust_recipe: bool = False,
    progress: Reporting = True,
) -> Prepared:
    """Check a recipe, its photographs and its networks; arguments and errors as in `condense`. Writes nothing."""
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, trust_recipe=trust_recipe)
    if recipe.method != "idc":
        raise RecipeError(
            f"The recipe {recipe.name} chooses real patches (method: {recipe.method}); nothing is condensed.",
            f"Use `idc select {recipe.method} {recipe.source.path}`, or set method=idc.",
        )
    features = recipe.features
    extractor = load_extractor(features.network, features.layer, scale=recipe.scale, size=recipe.patches.size)
    recipe = recipe.with_extractor(extractor.weights_sha256)
    teacher = load_teacher(recipe.teacher.network, scale=recipe.scale, device=device())
    instances, left_out = find_photographs(recipe, progress)
    prepared = Prepared(
        path=Path(run_dir) if run_dir else default_run_dir(recipe.name),
        recipe=recipe,
        instances=instances,
        left_out=left_out,
        network=extractor.network,
        teacher=teacher,
    )
    if not any(instance.count for instance in instances):
        raise RecipeError(
            f"A ratio of {recipe.patches.ratio} of {prepared.real_patches} real patches is less than one patch.",
            "Raise patches.ratio, or set patches.min_per_image=1.",
        )
    return prepared


def condense(
    recipe: Recipe | str | Path,
    *,
    run_dir: str | Path | None = None,
    num_processes: int | None = None,
    restart: bool = False,
    dry_run: bool = False,
    price_per_hour: float | None = None,
    trust_recipe: bool = False,
    trackers: Sequence[str] = (),
    progress: Reporting = True,
) -> CondenseResult | CondensePlan:
    """Condense photographs: optimize LR patches, make their HR with the recipe's teacher, and prepare the repository.

    If interrupted, call it again: it continues from the last checkpoints. On a CPU the LR patches are then
    byte-identical to those of an uninterrupted Run. A finished Run is checked and not made again, except for damaged
    files.

    Args:
        recipe: A `Recipe`, or the name, YAML file, Run or Hub repository to load one from.
        run_dir: The Run directory; None: the recipe's name in `$IDC_RUNS`, or in `runs`.
        num_processes: Number of workers; None: one per visible GPU, or as many as the CPU cores allow at the recipe's
            `workers.threads`.
        restart: Delete the Run directory first.
        dry_run: Check the recipe, the photographs and the networks, and predict time and memory; write nothing.
        price_per_hour: What a worker costs, in any currency: `dry_run` then predicts the price.
        trust_recipe: Run the code that a recipe from a dataset repository names as `package.module:build`.
        trackers: tensorboard, trackio or wandb: they get the held-out distances and the losses of each photograph.
        progress: True shows progress on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        Counts, digest, quality figures and warnings; with `dry_run`, counts and the predicted time.

    Raises:
        RecipeError: The recipe is invalid, the Run directory belongs to another recipe or to other photographs, or a
            tracker is not installed.
        ImageError: Photographs cannot be used; the message names all of them.
        NetworkError: The extractor or the teacher cannot be loaded, has another scale, or gives NaN or Inf.
        RunError: A file of the Run belongs to another recipe or photograph, or was damaged during this call; or
            `restart` is given while another process works on the Run.
        HubError: The recipe, photographs or weights are on the Hub and cannot be loaded.
        IncompleteError: Photographs failed twice, all workers died, or the disk is full; the same call retries.
        Interrupted: A signal stopped the work; the same call continues.
    """
    begun = time.monotonic()
    check_trackers(trackers)
    prepared = prepare(recipe, run_dir=run_dir, trust_recipe=trust_recipe, progress=progress)
    processes = num_processes or default_num_processes(prepared.recipe, len(prepared.instances))
    if dry_run:
        return prepared.plan(processes, price_per_hour)
    run = prepared.make_run(restart=restart)
    with track(run, trackers), show_progress(run, progress):
        launch(run, processes)
    return finish(prepared, run, processes, begun, progress)


def finish(prepared: Prepared, run: Run, processes: int, begun: float, progress: Reporting) -> CondenseResult:
    """Pack a Run whose photographs are settled, make its HR, and measure its quality.

    Args:
        prepared: What the Run was made of.
        run: The Run.
        processes: Number of threads that read the finished photographs.
        begun: `time.monotonic()` when the work began.
        progress: As in `condense`.

    Raises:
        IncompleteError: Photographs failed.
    """
    run.require_finished()
    run.forget_work()
    condensed = pack(run, workers=processes)
    teacher = prepared.teacher
    name = prepared.recipe.teacher.hr_version or teacher.name
    add_version(condensed, teacher, name, set_default=False, progress=progress)
    measured = measured_version(run, condensed, name, teacher, progress)
    run.forget_real()  # if the quality was recorded already, nothing else removes them
    return CondenseResult(
        run=str(run.path),
        photographs=len(run.instances),
        real_patches=prepared.real_patches,
        patches=condensed.manifest.patches,
        lr_digest=condensed.manifest.lr_digest,
        hr_version=name,
        **run.held_out(),
        quality=measured["figures"],
        warnings=measured["warnings"],
        seconds=round(time.monotonic() - begun, 1),
        conversions=count_conversions(run.instances),
        left_out=prepared.left_out,
    )
