"""The verbs of idc-hub: what the command line calls and what `idc_hub.condense` and its like are.

Each is a short composition of the rooms below it, takes and returns plain data, and raises `IDCError` sentences.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idc_hub.dataset.hr_version import add_version, hr_source, measure_version, repository
from idc_hub.errors import IncompleteError, RecipeError, RunError
from idc_hub.machine import device, machine, packages
from idc_hub.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from idc_hub.images.sources import Instance
    from idc_hub.runs.run import Run, Share


def condense(
    recipe: Recipe | str | Path,
    *,
    run_dir: str | Path | None = None,
    num_processes: int | None = None,
    restart: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Condense photographs: LR patches, HR by the recipe's teacher, and a repository tree ready to push.

    The same call continues a Run that was interrupted, and does nothing where nothing is left to do.

    Args:
        recipe: A recipe, or the name, file or Hub repository of one.
        run_dir: The Run directory; `$IDC_RUNS` or `runs`, and the recipe's name, by default.
        num_processes: Workers; None: the visible GPUs, or on a CPU what its cores can feed.
        restart: Discard what the Run directory holds.
        dry_run: Check everything and say what would be done; write nothing.
        progress: Show progress on stderr.

    Returns:
        A summary: `run`, `photographs`, `windows`, `patches`; with `dry_run` also `predicted_seconds` of the workers
        (by a calibration of about ten seconds on this device), `lr_recipe_hash` and `shares`; else `lr_digest`, `hr_version`,
        `held_out` and `held_out_random` (mean discrepancy of the condensed patches, and of random real ones, on draws
        that no step used), `quality` and `warnings` (figures of the patches and what is wrong with them; see `quality`)
        and `seconds`.

    Raises:
        RecipeError: If the recipe cannot be run, or the Run directory belongs to another one.
        ImageError: If photographs cannot be used; all of them are named.
        NetworkError: If the extractor or the teacher cannot be loaded or has another scale.
        IncompleteError: If photographs failed or workers died; the same call continues.
    """
    from idc_hub.dataset.gate import recorded
    from idc_hub.dataset.pack import pack
    from idc_hub.networks.extractors import load_extractor
    from idc_hub.networks.teachers import load_teacher
    from idc_hub.runs.launch import default_num_processes, launch
    from idc_hub.runs.progress import show_progress
    from idc_hub.runs.run import Run

    begun = time.monotonic()
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if recipe.method != "idc":
        raise RecipeError(
            f"The recipe {recipe.name} chooses real patches (method: {recipe.method}); nothing is condensed.",
            f"Say `idc select {recipe.method} {recipe.source.path}`, or condense with method=idc.",
        )
    spec = recipe.features
    extractor = load_extractor(spec.network, spec.layer, scale=recipe.scale, size=recipe.patches.size)
    recipe = recipe.with_extractor(extractor.weights_sha256)
    teacher = load_teacher(recipe.teacher.network, scale=recipe.scale, device=device())
    shares = _shares(recipe, _survey(recipe, progress))
    path = _run_dir(run_dir, recipe.name)
    summary = {
        "run": str(path),
        "photographs": len(shares),
        "windows": sum(share.instance.patches for share in shares),
        "patches": sum(share.count for share in shares),
    }
    if not summary["patches"]:
        raise RecipeError(
            f"{summary['windows']} real patches at a ratio of {recipe.patches.ratio} leave no synthetic patch.",
            "Raise patches.ratio, or set patches.min_per_image=1.",
        )
    if dry_run:
        return {
            **summary,
            "lr_recipe_hash": recipe.lr_recipe_hash,
            "predicted_seconds": _predicted_seconds(recipe, shares, extractor.network, num_processes),
            "shares": {share.id: share.count for share in shares},
        }
    if restart:
        _discard(path)
    run = Run.create(path, recipe, shares, {"packages": packages(), "machine": machine()})
    run.clear_failures()
    processes = num_processes or default_num_processes(recipe, len(shares))
    with show_progress(run, enabled=progress):
        launch(run, processes)
    _require_finished(run)
    facts = _facts(run, processes)
    name = recipe.teacher.hr_version or teacher.name
    with run.repository_lock():
        manifest = pack(run, facts, packages())
        add_version(run.repo, teacher, name, set_default=name not in manifest.hr_versions, progress=progress)
    measured = recorded(run).get(name) or measure_version(run, name, teacher, progress)
    return {
        **summary,
        "lr_digest": manifest.lr_digest,
        "hr_version": name,
        "held_out": facts["held_out"],
        "held_out_random": facts["held_out_random"],
        "quality": measured["figures"],
        "warnings": measured["warnings"],
        "seconds": round(time.monotonic() - begun, 1),
    }


def select(
    method: str,
    source: str | Path,
    *,
    ratio: float = 0.1,
    scale: int = 4,
    seed: int = 0,
    overrides: Iterable[str] = (),
    teacher: str = "real",
    name: str | None = None,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Choose real patches by a baseline (paper appendix C.2), in a Run like any other: evaluate, push, regenerate it.

    The same call continues what was interrupted, and does nothing where nothing is left to do. `held_out` is measured
    on a sample of the photographs, except for cf-greedy, which looks at all of them as closely anyway.

    Args:
        method: whole, random, herding, herding-deepcore, k-center, dcsr or cf-greedy (`selection.methods`).
        source: A folder or zip of photographs, or a Hub dataset.
        ratio: Which part of the patches to choose; `whole` takes all.
        scale: How many times larger HR is than LR.
        seed: Seed of every random draw.
        overrides: Further recipe keys as `section.key=value`: patches and features shape what is chosen.
        teacher: `real` for the photographs' own HR, or what `regenerate` takes.
        name: Name of the set; of source and method by default.
        run_dir: The Run directory; `$IDC_RUNS` or `runs`, and the name, by default.
        progress: Show progress on stderr.

    Returns:
        `run`, `photographs`, `windows`, `patches`, `lr_digest`, `hr_version`, `held_out`, `held_out_random`,
        `quality` and `seconds`, as of `condense`; without its warnings, as a baseline is what it is.

    Raises:
        RecipeError: There is no such method, a key is wrong, or the Run directory belongs to something else.
        ImageError: If photographs cannot be used.
        NetworkError: If the extractor or the teacher cannot be loaded or has another scale.
    """
    from idc_hub.dataset.gate import recorded
    from idc_hub.dataset.hr import NAME, RealHR
    from idc_hub.dataset.pack import pack
    from idc_hub.networks.extractors import load_extractor
    from idc_hub.networks.teachers import load_teacher
    from idc_hub.runs.progress import counting
    from idc_hub.selection.pool import begin, finish, selection_recipe

    begun = time.monotonic()
    given = {"method": method, "scale": scale, "seed": seed, "teacher": {"network": teacher}}
    recipe = selection_recipe(str(source), ratio, name, given, overrides)
    spec, hr = recipe.features, recipe.teacher
    extractor = load_extractor(spec.network, spec.layer, scale=recipe.scale, size=recipe.patches.size, device=device())
    recipe = recipe.with_extractor(extractor.weights_sha256)
    upscaler = None if hr.network == NAME else load_teacher(hr.network, scale=recipe.scale, device=device())
    instances = _survey(recipe, progress)
    with counting("describing photographs", enabled=progress) as count:
        facts = {"packages": packages(), "machine": machine()}
        run = begin(_run_dir(run_dir, recipe.name), recipe, instances, extractor.network, facts, count)
    with counting("photographs finished", enabled=progress) as count:
        finish(run, extractor.network, count)
    facts = _facts(run, processes=1)
    with run.repository_lock():
        manifest = pack(run, facts, packages())
        maker = upscaler or RealHR(run)
        version_name = hr.hr_version or maker.name
        first = version_name not in manifest.hr_versions
        add_version(run.repo, maker, version_name, set_default=first, progress=progress)
    measured = recorded(run).get(version_name) or measure_version(run, version_name, maker, progress)
    return {
        "run": str(run.path),
        "photographs": len(instances),
        "windows": facts["windows"],
        "patches": manifest.patches,
        "lr_digest": manifest.lr_digest,
        "hr_version": version_name,
        "held_out": facts["held_out"],
        "held_out_random": facts["held_out_random"],
        "quality": measured["figures"],
        "seconds": round(time.monotonic() - begun, 1),
    }


def status(run_dir: str | Path) -> dict[str, Any]:
    """What is finished, running, failed or waiting in a Run; see `Run.status`.

    Raises:
        RunError: If there is no Run.
    """
    from idc_hub.runs.run import Run

    return Run.open(Path(run_dir)).status()


def quality(
    run_dir: str | Path, *, hr_version: str | None = None, teacher: str | None = None, progress: bool = True
) -> dict[str, Any]:
    """Measure an HR version of a finished Run beside random real patches of its photographs; keep it with the Run.

    The figures are those of `images.figures`, of a sample that `dataset.gate.measure` describes. They go to
    `quality.json` in the Run, to `idc.json` and to the card.

    Args:
        run_dir: A Run whose photographs are where its recipe says.
        hr_version: Which one; the default version where it is None.
        teacher: What made it; the recipe's teacher where it is None.
        progress: Show progress on stderr.

    Returns:
        `run`, `hr_version`, `passed`, `warnings` (a sentence for each figure that fails), `figures`, `lr_digest`,
        `photographs`, `patches`, `draws`, `spectra` and `gradient_norms`.

    Raises:
        RunError: If there is no finished Run, or no such HR version, or another teacher made it.
        ImageError: If photographs are missing or have changed.
        NetworkError: If the teacher cannot be loaded.
    """
    from idc_hub.dataset.manifest import Manifest
    from idc_hub.dataset.regenerate import same_teacher
    from idc_hub.runs.run import Run

    path = Path(run_dir)
    manifest = Manifest.load(repository(path))
    if not (path / "run.json").is_file():
        raise RunError(
            f"{path} holds a condensed set without its photographs, and random patches of them are what it is held to.",
            "What was measured where it was made stands on its card.",
        )
    run = Run.open(path)
    name = hr_version or manifest.default
    if name not in manifest.hr_versions:
        raise RunError(
            f"{run.repo} has no HR version {name!r}.", f"It has: {', '.join(manifest.hr_versions) or 'none'}."
        )
    made_by = manifest.hr_versions[name]["teacher"]
    settings = {key: made_by[key] for key in ("steps", "guidance", "prompt", "seed") if key in made_by}
    maker = hr_source(path, teacher or run.recipe.teacher.network, manifest.scale, settings)
    if not same_teacher(made_by, maker):
        raise RunError(
            f"The HR version {name!r} was made by {made_by['name']}, not by {maker.name} with these weights.",
            "Name its teacher with --teacher.",
        )
    return {"run": str(path), "hr_version": name, **measure_version(run, name, maker, progress)}


def verify(path: str | Path) -> dict[str, Any]:
    """Check a Run or a repository tree: digests, counts, pairing, and that every config loads.

    Raises:
        RunError: At the first thing that is wrong, with the file that is.
    """
    from idc_hub.dataset.check import check_repository
    from idc_hub.runs.run import Run

    path = Path(path)
    checked: dict[str, Any] = {}
    if (path / "run.json").is_file():
        run = Run.open(path)
        finished = [share for share in run.shares if run.instance_file(share.id).is_file()]
        for share in finished:
            if share.count:
                run.read_patches(share)
        checked = {"photographs": len(run.shares), "finished": len(finished)}
        if not (run.repo / "idc.json").is_file():
            return checked
    return {**checked, **check_repository(repository(path))}


def regenerate(
    run_or_repo: str | Path,
    *,
    teacher: str,
    name: str,
    run_dir: str | Path | None = None,
    set_default: bool = True,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Add an HR version to a condensed set, one's own or one from the Hub; LR is not touched.

    Args:
        run_or_repo: A Run, a repository tree, or the id of a dataset repository on the Hub.
        teacher: What makes HR: a bundled name, `bicubic`, a folder, a weights file, a Hub id or `package.module:build`;
            or `real` for the photographs' own, of a Run that `select` made.
        name: Name of the HR version, the config that consumers load.
        run_dir: Where to pull a Hub repository to; `$IDC_RUNS` or `runs`, and its name, by default.
        set_default: Make it the version that `load_dataset` gives without a config name.
        progress: Show progress on stderr.
        **settings: `steps`, `guidance`, `prompt` and `seed` of a diffusion teacher.

    Returns:
        `repo`, `hr_version`, `patches`, `bytes`.

    Raises:
        RunError: If there is no condensed set, or it is damaged.
        NetworkError: If the teacher cannot be loaded or has another scale.
        RecipeError: If the name is not allowed or taken by other patches.
        HubError: If the repository cannot be pulled.
    """
    from idc_hub.dataset.manifest import Manifest

    path = Path(run_or_repo)
    if not path.exists():
        target = _run_dir(run_dir, path.name)
        pull(str(run_or_repo), run_dir=target)
        path = target
    repo = repository(path)
    maker = hr_source(path, teacher, Manifest.load(repo).scale, settings)
    added = add_version(repo, maker, name, set_default=set_default, progress=progress)
    return {"repo": str(repo), "hr_version": name, **added}


def benchmark(plan: str | Path, *, out: str | Path, dry_run: bool = False, progress: bool = True) -> dict[str, Any]:
    """Compare sets: make them, train students on them, measure, and write tables and pictures.

    The same call continues a benchmark that was interrupted; what is finished is left alone.

    Args:
        plan: A YAML file; see `benchmarking.plan.Plan`.
        out: Folder for the sets, the students, `ladder.csv`, `ladder.md` and `plots/`.
        dry_run: Only say what is there and what is to be done.
        progress: Show progress on stderr.

    Returns:
        `runs` and `finished` (single runs), and `report`, `csv` and `plots` (files; a sentence where matplotlib is not
        installed). With `dry_run`, instead of the files, `states`: for each single run what is done.

    Raises:
        RecipeError: With every problem of the plan.
        RunError: If another benchmark works in the folder.
        IncompleteError: If single runs failed; the others are finished, and the same call tries again.
    """
    from idc_hub.benchmarking.ladder import DONE, Ladder, draw_plots
    from idc_hub.benchmarking.plan import REAL, Cell, Plan

    checked = Plan.load(Path(plan))

    def make_set(cell: Cell, run_dir: Path) -> None:
        entry = checked.sets[cell.set]
        if entry.method is None:
            condense(checked.recipe_of(cell), run_dir=run_dir, progress=progress)
            return
        version = [] if cell.hr == REAL else [f"teacher.hr_version={cell.hr}"]
        select(
            entry.method,
            checked.source,
            ratio=cell.ratio,
            scale=checked.scale,
            seed=cell.set_seed,
            overrides=(*checked.set, *entry.set, *version),
            teacher=checked.hr[cell.hr],
            run_dir=run_dir,
            progress=progress,
        )

    def add_version(cell: Cell, run_dir: Path) -> None:
        if cell.hr == REAL:  # only the call that chose the patches knows where in the photographs they lie
            make_set(cell, run_dir)
        else:
            regenerate(run_dir, teacher=checked.hr[cell.hr], name=cell.hr, set_default=False, progress=progress)

    def say(line: str) -> None:
        if progress:
            print(line, file=sys.stderr, flush=True)

    ladder = Ladder(checked, Path(out), make_set, add_version, say)
    if dry_run:
        states = ladder.states()
        done = sum(set(state.values()) == {DONE} for state in states.values())
        return {"runs": len(states), "finished": done, "states": {str(cell): state for cell, state in states.items()}}
    findings, runs = ladder.run(), len(checked.cells())
    files = {"report": str(ladder.report), "csv": str(ladder.csv), "plots": draw_plots(ladder, findings)}
    if findings.failures:
        listed = "\n".join(f"  {cell}: {sentence}" for cell, sentence in findings.failures.items())
        raise IncompleteError(
            f"{len(findings.failures)} of {runs} single runs failed:\n{listed}\n",
            f"The others are finished: {ladder.report}. Run the same command again to retry.",
        )
    return {"runs": runs, "finished": runs, **files}


def push(
    path: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    public: bool = False,
    create_pr: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> dict[str, Any]:
    """Publish the repository tree of a Run, or a network, in one commit and tag it; see `hub.push.push`."""
    from idc_hub.hub import push as hub
    from idc_hub.hub.network_release import is_network

    folder = Path(path)
    return hub.push(
        folder if is_network(folder) else repository(folder),
        repo_id,
        license=license,
        public=public,
        create_pr=create_pr,
        dry_run=dry_run,
        token=token,
        commit_message=commit_message,
    )


def pull(repo_id: str, *, run_dir: str | Path, revision: str | None = None, token: str | None = None) -> dict[str, Any]:
    """Fetch a condensed set from the Hub into a Run directory; see `hub.push.pull`."""
    from idc_hub.hub import push as hub

    return hub.pull(repo_id, Path(run_dir), revision=revision, token=token)


def _run_dir(given: str | Path | None, name: str) -> Path:
    return Path(given) if given else Path(os.environ.get("IDC_RUNS", "runs")) / name


def _survey(recipe: Recipe, progress: bool) -> list[Instance]:
    """Look at every photograph once."""
    from idc_hub.images.sources import open_source, survey
    from idc_hub.runs.progress import counting

    source = open_source(**recipe.source.model_dump())
    spec = recipe.patches
    with counting("reading photographs", enabled=progress) as count:
        return survey(source, scale=recipe.scale, size=spec.size, stride=spec.stride, tail=spec.tail, progress=count)


def _shares(recipe: Recipe, instances: list[Instance]) -> list[Share]:
    """Share the synthetic patches out."""
    from idc_hub.images.patches import synthetic_counts
    from idc_hub.runs.run import Share

    spec = recipe.patches
    counts = synthetic_counts([i.patches for i in instances], spec.ratio, spec.rounding, spec.min_per_image)
    return [Share(instance, count) for instance, count in zip(instances, counts, strict=True)]


def _predicted_seconds(
    recipe: Recipe, shares: list[Share], network: torch.nn.Module, num_processes: int | None
) -> float:
    """What the workers will need, without reading the photographs and without the teacher."""
    import torch

    from idc_hub.runs.forecast import predict_seconds
    from idc_hub.runs.launch import default_num_processes

    processes = num_processes or default_num_processes(recipe, len(shares))
    return round(predict_seconds(recipe, shares, network, processes, torch.device(device())), 1)


def _discard(path: Path) -> None:
    """Remove a Run directory, and nothing that is not one."""
    if (path / "run.json").is_file():
        shutil.rmtree(path)


def _require_finished(run: Run) -> None:
    failures = {share.id: run.failure(share) for share in run.shares}
    failed = {key: error for key, error in failures.items() if error}
    if failed:
        listed = "\n".join(f"  {key}: {error}" for key, error in failed.items())
        raise IncompleteError(
            f"{len(failed)} of {len(run.shares)} photographs failed:\n{listed}\n",
            "The others are finished and kept. Run the same command again to retry.",
        )


def _facts(run: Run, processes: int) -> dict[str, Any]:
    """What the card tells of a condensation or a selection."""
    recipe = run.recipe
    found = [run.read_facts(share) for share in run.shares if share.count]
    measured = [facts for facts in found if "held_out" in facts]  # of a selection, only a sample
    ends = [line for share in run.shares for line in run.read_metrics(share.id) if line["event"] == "end"]
    return {
        "photographs": len(run.shares),
        "windows": sum(share.instance.patches for share in run.shares),
        **({"steps": recipe.optimizer.steps} if recipe.method == "idc" else {}),
        "held_out": sum(facts["held_out"] for facts in measured) / len(measured),
        "held_out_random": sum(facts["held_out_random"] for facts in measured) / len(measured),
        "worker_seconds": round(sum(line["seconds"] for line in ends), 1),
        "workers": processes,
        **machine(),
    }
