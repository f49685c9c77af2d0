"""`report.html` of a Run: one page to look at before trusting a set. It needs no network and no other file.

It shows real photographs, so it is written beside `repo/`, never into it. Names and recipe values can come from
anybody: the template escapes them, the script writes them as text, and the page's policy allows no other script.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from idc_hub.atomic import write_text_atomically
from idc_hub.condensation.condense import TERMS
from idc_hub.dataset import parquet
from idc_hub.dataset.condensed_set import RECIPE, CondensedSet
from idc_hub.dataset.gate import recorded
from idc_hub.dataset.judgment import table
from idc_hub.dataset.manifest import MANIFEST
from idc_hub.dataset.report_pictures import THREADS, Photograph, Pictures, spread
from idc_hub.errors import RunError
from idc_hub.images.figures import high_frequency, saturated, teacher_residual
from idc_hub.images.files import decode_png
from idc_hub.runs.follow import Follower
from idc_hub.runs.run import Run

PAGE = "report.html"
_POINTS = 200  # of a curve over all photographs
_SPARKS = 40  # of the curve of one
_COLUMNS = {
    "patches": "patches",
    "real_patches": "real patches",
    "held_out": "held-out discrepancy",
    "against_random": "held out ÷ random",
    "instance": "last instance loss",
    "luma_hf": "luma HF",
    "chroma_over_luma": "chroma HF ÷ luma HF",
    "saturated": "saturated values",
    "residual": "residual of the teacher",
}
"""Columns of the table: the keys of `Photograph.figures`."""
_JUDGED = {
    "against_random": 0.02,
    "instance": 0.001,
    "luma_hf": 0.002,
    "chroma_over_luma": 0.02,
    "saturated": 0.1,  # white skies are no fault
    "residual": 0.01,
}
"""Figures that can make a photograph unusual, and the smallest spread that each is judged by."""


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: The page.
        photographs: Photographs in its table, the outliers first.
        with_sliders: How many of them have sliders.
        with_thumbnails: How many others have thumbnails.
        bytes: Size of the page.
        notes: What is missing from the page, and why.
    """

    path: Path
    photographs: list[Photograph]
    with_sliders: int
    with_thumbnails: int
    bytes: int
    notes: list[str]


def write_report(path: Path, *, on_progress: Callable[[int, int], None] | None = None) -> Report:
    """Write `report.html` into a Run, finished or not, or pulled.

    Args:
        path: The Run directory.
        on_progress: Called with the number of photographs done and their total.

    Returns:
        What the page shows.

    Raises:
        RunError: `path` is no Run but a repository folder or something else, or its files are damaged.
    """
    if (path / MANIFEST).is_file():
        raise RunError(
            f"{path} is a repository folder: the report shows photographs and must not be published with it.",
            "Name the Run directory that it is in.",
        )
    run = Run.open(path) if (path / "run.json").is_file() else None
    has_set = (path / "repo" / MANIFEST).is_file()
    condensed = CondensedSet.open(path) if has_set or run is None else None
    photographs, curves = _from_run(run) if run else ([Photograph(i) for i, _ in condensed.patches()], [])  # type: ignore[union-attr]
    _measure_patches(photographs, run, condensed)
    _judge(photographs)
    done = ("finished", "published")
    photographs.sort(key=lambda p: (0 if p.error else 1 if p.state in done else 2, -p.outlier))
    pictures = Pictures(run, condensed, photographs)
    pictures.add(on_progress)
    measured = recorded(run, condensed) if run and condensed else {}
    html = _render(path, run, condensed, photographs, curves, measured, pictures)
    write_text_atomically(path / PAGE, html)
    return Report(
        path / PAGE, photographs, pictures.with_sliders, pictures.with_thumbnails, len(html.encode()), pictures.notes
    )


def _from_run(run: Run) -> tuple[list[Photograph], list[dict[str, Any]]]:
    """The photographs of a Run with state and losses, and the curves over all of them."""
    photographs = []
    logged: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for instance, status in zip(run.instances, Follower(run).status()["instances"], strict=True):
        photograph = Photograph(instance.id, status["state"], status["error"])
        photograph.figures = {"patches": instance.count, "real_patches": instance.patches}
        if photograph.state == "finished":
            facts = run.read_facts(instance)
            if facts.get("held_out") is not None:
                photograph.figures["held_out"] = facts["held_out"]
                if facts.get("held_out_random"):
                    photograph.figures["against_random"] = facts["held_out"] / facts["held_out_random"]
        lines = {line["step"]: line for line in run.read_metrics(instance.id) if line.get("event") == "log"}
        for step in sorted(lines):
            for key, value in lines[step].items():
                if key not in ("event", "step", "seconds") and isinstance(value, int | float) and math.isfinite(value):
                    logged[key][step].append(value)
        losses = [
            lines[step]["instance"] for step in sorted(lines) if math.isfinite(lines[step].get("instance", math.nan))
        ]
        if losses:
            photograph.figures["instance"] = losses[-1]
            photograph.curve = [losses[number] for number in spread(len(losses), _SPARKS)]
        photographs.append(photograph)
    return photographs, _curves(logged)


def _curves(logged: Mapping[str, Mapping[int, Sequence[float]]]) -> list[dict[str, Any]]:
    """Charts of loss terms, gradient norms, and the shares of grouped and paired tiles, over all photographs."""
    charts = []
    for keys, title, logarithmic in (
        *(((term,), f"Loss: {term}", True) for term in TERMS),
        (tuple(f"gradient_{term}" for term in TERMS), "Gradient norms", True),
        (("grouped", "paired"), "Share of tiles grouped and paired", False),
    ):
        series = []
        for key in keys:
            steps = sorted(logged.get(key, ()))
            steps = [steps[number] for number in spread(len(steps), _POINTS)]
            if steps:
                low, middle, high = np.transpose([np.quantile(logged[key][step], (0.1, 0.5, 0.9)) for step in steps])
                band = {"low": low.tolist(), "high": high.tolist()} if len(keys) == 1 else {}
                series.append({"name": key.removeprefix("gradient_"), "x": steps, "y": middle.tolist(), **band})
        if series:
            charts.append({"title": title, "log": logarithmic, "across": "step", "series": series})
    return charts


def _measure_patches(photographs: list[Photograph], run: Run | None, condensed: CondensedSet | None) -> None:
    """Add the figures of each photograph's patches; those of HR are of the default version."""
    known = {photograph.id: photograph for photograph in photographs}

    def measure(photograph: Photograph, lr: np.ndarray, hr: np.ndarray | None = None) -> None:
        luma, chroma = high_frequency(lr)
        photograph.figures |= {"patches": len(lr), "luma_hf": luma, "saturated": saturated(lr)}
        if luma:
            photograph.figures["chroma_over_luma"] = chroma / luma
        if hr is not None:
            photograph.figures["residual"] = teacher_residual(lr, hr)

    if condensed is None or condensed.manifest.default is None:
        for instance in run.instances if run else []:
            if instance.count and known[instance.id].state == "finished":
                measure(known[instance.id], run.read_patches(instance).numpy())  # type: ignore[union-attr]
        return
    folder, size = condensed.data(condensed.manifest.default), condensed.manifest.patch_size
    large = (size * condensed.manifest.scale, size * condensed.manifest.scale, 3)
    with ThreadPoolExecutor(THREADS) as pool:
        for instance_id, rows in itertools.groupby(parquet.read_rows(folder), key=lambda row: row.instance_id):
            if instance_id in known:
                sides = pool.map(lambda row: (decode_png(row.lr_png), decode_png(row.hr_png)), list(rows))
                lr, hr = zip(*sides, strict=True)
                if {image.shape for image in lr} != {(size, size, 3)} or {image.shape for image in hr} != {large}:
                    raise RunError(f"{folder} has patches of {instance_id} of a wrong size.", "Run `idc verify`.")
                measure(known[instance_id], *(np.stack(images).transpose(0, 3, 1, 2) for images in (lr, hr)))


def _judge(photographs: Iterable[Photograph]) -> None:
    """Find out how unusual each photograph is: its figure that is farthest from the median of all."""
    for key, least in _JUDGED.items():
        having = [photograph for photograph in photographs if key in photograph.figures]
        values = np.array([photograph.figures[key] for photograph in having])
        if len(values) < 3:
            continue
        median = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - median))) + 0.1 * abs(median) + least
        for photograph, value in zip(having, values.tolist(), strict=True):
            distance = abs(value - median) / spread
            if distance > photograph.outlier:
                photograph.outlier = distance
                photograph.why = f"{_COLUMNS[key]} {value:.3g}, median {median:.3g}"


def _render(
    path: Path,
    run: Run | None,
    condensed: CondensedSet | None,
    photographs: list[Photograph],
    curves: list[dict[str, Any]],
    measured: Mapping[str, dict[str, Any]],
    pictures: Pictures,
) -> str:
    script = files("idc_hub.dataset").joinpath("report.js").read_text(encoding="utf-8")
    columns = {key: label for key, label in _COLUMNS.items() if any(key in p.figures for p in photographs)}
    gates = []
    for name, found in measured.items():
        spectra = found["spectra"]
        series = [
            {"name": label, "x": spectra["cycles_per_patch"], "y": spectra[key]}
            for key, label in (("set", "this set"), ("real", "random real patches"))
        ]
        chart = {"title": "Power spectrum of LR", "log": True, "across": "cycles per patch", "series": series}
        gates.append(
            {"name": name, "passed": found["passed"], "warnings": found["warnings"], "rows": table(found["figures"])}
            | {"chart": chart}
        )
    data = {
        "versions": pictures.versions,
        "columns": list(columns),
        "curves": curves,
        "spectra": [gate["chart"] for gate in gates],
        "photographs": [
            {"id": p.id, "state": p.state, "error": p.error, "why": p.why, "curve": p.curve, **p.pictures}
            | {"cells": [p.figures.get(key) for key in columns]}
            for p in photographs
        ],
    }
    environment = Environment(
        loader=PackageLoader("idc_hub.dataset", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    recipe_file = (run.path if run else path / "repo") / RECIPE
    states = [photograph.state for photograph in photographs]
    return environment.get_template("report_template.html").render(
        name=condensed.manifest.name if condensed else run.recipe.name if run else path.name,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        facts=_facts(run, condensed, photographs),
        states={state: states.count(state) for state in dict.fromkeys(states)},
        notes=pictures.notes,
        columns=columns,
        versions=pictures.versions,
        gates=gates,
        with_sliders=pictures.with_sliders,
        recipe=recipe_file.read_text(encoding="utf-8", errors="replace") if recipe_file.is_file() else "",
        commands=_commands(path, run, condensed),
        data=data,
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _facts(run: Run | None, condensed: CondensedSet | None, photographs: list[Photograph]) -> dict[str, str]:
    """The line of numbers at the top."""
    facts = {"photographs": f"{len(photographs):,}"}
    patches = int(sum(photograph.figures.get("patches", 0) for photograph in photographs))
    facts["LR patches"] = f"{patches:,}"
    if run:
        facts["real patches"] = f"{sum(instance.patches for instance in run.instances):,}"
        facts["method"] = run.recipe.method
    if condensed:
        facts["LR side"] = f"{condensed.manifest.patch_size} px, x{condensed.manifest.scale}"
        facts["HR versions"] = str(len(condensed.manifest.hr_versions))
    return facts


def _commands(path: Path, run: Run | None, condensed: CondensedSet | None) -> list[str]:
    """What to type next, and how the set was made."""
    where = shlex.quote(str(path))
    commands = []
    if run:
        verb = "condense" if run.recipe.method == "idc" else "status"
        recipe = shlex.quote(str(run.path / RECIPE))
        commands.append(f"idc condense {recipe} --run-dir {where}" if verb == "condense" else f"idc status {where}")
    if condensed:
        commands += [
            f"idc verify {where}",
            f"idc regenerate {where} --teacher TEACHER --name HR_VERSION",
            f"idc export {where} --out FOLDER --format basicsr",
            f"idc push {where} YOUR_NAME/{condensed.manifest.name} --license LICENSE",
        ]
    return [*commands, f"idc report {where}"]
