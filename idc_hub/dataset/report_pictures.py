"""The pictures of report.html: sliders for the most unusual photographs, thumbnails for the others, within a budget."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from idc_hub.dataset import parquet
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.errors import IDCError, ImageError
from idc_hub.images.files import decode_png, encode_png
from idc_hub.images.patches import Place, at_zoom, hr_box, lr_patches, places
from idc_hub.images.sources import Source, load_hr, open_source
from idc_hub.runs.run import Run

MAX_OUTLIERS = 100
"""Photographs with sliders; the others have thumbnails."""
MAX_VERSIONS = 4
OUTLIER_BYTES = 8_500_000
THUMBNAIL_BYTES = 5_000_000
"""Budgets of pictures in the page; with the table and the curves, 12,000 patches stay below 15 MB."""

THREADS = 4


@dataclass
class Photograph:
    """What the page shows of one photograph.

    Attributes:
        id: Instance id.
        state: Its state in the Run; "published" without a Run.
        error: Why it failed.
        figures: Values by the keys of the columns; unknown ones are missing.
        outlier: How many robust standard deviations its most unusual figure is from the median.
        why: That figure in words.
        curve: Instance loss at up to 40 steps.
        pictures: What the script shows, see `report.js`.
    """

    id: str
    state: str = "published"
    error: str | None = None
    figures: dict[str, float] = field(default_factory=dict)
    outlier: float = 0.0
    why: str = ""
    curve: list[float] = field(default_factory=list)
    pictures: dict[str, Any] = field(default_factory=dict)


class Pictures:
    """Adds pictures to the photographs, the outliers first, until the budgets are used up."""

    def __init__(self, run: Run | None, condensed: CondensedSet | None, photographs: list[Photograph]) -> None:
        self.run, self.condensed, self.photographs = run, condensed, photographs
        self.instances = {instance.id: instance for instance in run.instances} if run else {}
        self.versions = _versions(condensed)
        self.with_sliders = self.with_thumbnails = 0
        self.notes: list[str] = []
        self._unreadable: dict[str, str] = {}
        self.source: Source | None = None
        if run is None:
            self.notes.append("The set was pulled: its photographs and its losses are not here.")
        else:
            try:
                self.source = open_source(**run.recipe.source.model_dump())
            except IDCError as error:
                self.notes.append(f"No photograph is shown: {error.message}")
        if condensed and len(condensed.manifest.hr_versions) > len(self.versions):
            others = condensed.manifest.hr_versions.keys() - set(self.versions)
            self.notes.append(f"HR versions that are not shown: {', '.join(sorted(others))}.")

    def add(self, on_progress: Callable[[int, int], None] | None) -> None:
        """Make all pictures, in threads."""
        drawn, total = itertools.count(1), len(self.photographs)

        def fill(photographs: list[Photograph], draw: Callable[[Photograph], dict[str, Any]], budget: int) -> None:
            with ThreadPoolExecutor(THREADS) as pool:
                for photograph, made in zip(photographs, pool.map(draw, photographs), strict=True):
                    budget -= _size_of(made)
                    if budget >= 0:
                        photograph.pictures = made
                        if on_progress:
                            on_progress(min(next(drawn), total), total)  # without pictures, it is tried twice

        outliers = self.photographs[:MAX_OUTLIERS]
        rows = self._rows(outliers, max(1, min(4, MAX_OUTLIERS // max(1, len(outliers)))))
        fill(outliers, lambda photograph: self._details(photograph, rows.get(photograph.id, {})), OUTLIER_BYTES)
        others = [photograph for photograph in self.photographs if not photograph.pictures]
        strips = self._strips(others)
        fill(others, lambda photograph: self._thumbnail(photograph, strips), THUMBNAIL_BYTES)
        self.with_sliders = sum("patches" in photograph.pictures for photograph in self.photographs)
        self.with_thumbnails = sum(bool(photograph.pictures) for photograph in self.photographs) - self.with_sliders
        if self._unreadable:
            first = next(iter(self._unreadable.values()))
            self.notes.append(f"Photographs that cannot be shown: {len(self._unreadable)}. The first: {first}")
        without = sum(not photograph.pictures for photograph in self.photographs)
        if without:
            self.notes.append(f"Photographs without a picture on this page: {without}.")

    def _rows(self, photographs: list[Photograph], most: int) -> dict[str, dict[int, list[bytes]]]:
        """PNG bytes of LR and of every shown HR version, for up to `most` patches of each photograph, by index."""
        found: dict[str, dict[int, list[bytes]]] = {photograph.id: {} for photograph in photographs}
        wanted = {p.id: set(spread(int(p.figures.get("patches", 0)), most)) for p in photographs}
        for number, version in enumerate(self.versions):
            assert self.condensed is not None
            for row in parquet.read_rows(self.condensed.data(version), found.keys()):
                if row.patch_index in wanted[row.instance_id]:
                    pngs = found[row.instance_id].setdefault(row.patch_index, [row.lr_png])
                    if len(pngs) == number + 1:
                        pngs.append(row.hr_png)
        if not self.versions and self.run:
            for photograph in photographs:
                if photograph.state == "finished" and wanted[photograph.id]:
                    lr = self.run.read_patches(self.instances[photograph.id]).permute(0, 2, 3, 1).numpy()
                    found[photograph.id] = {index: [encode_png(lr[index])] for index in sorted(wanted[photograph.id])}
        return found

    def _details(self, photograph: Photograph, rows: dict[int, list[bytes]]) -> dict[str, Any]:
        """Slider pictures of one photograph: `patches`, and `photo` with `boxes` where its crops are."""
        patches: list[dict[str, Any]] = []
        for index, (lr, *hr) in sorted(rows.items()):
            pictures = [_webp(decode_png(png), quality=80) for png in hr]
            patches.append({"index": index, "lr": f"image/png;base64,{_base64(lr)}", "hr": pictures})
        made: dict[str, Any] = {"patches": patches} if patches else {}
        instance = self.instances.get(photograph.id)
        if self.source is None or instance is None:
            return made
        assert self.run is not None
        try:
            photo = load_hr(self.source, instance, scale=self.run.recipe.scale)
        except ImageError as error:
            self._unreadable[photograph.id] = error.message
            return made
        made["photo"] = _webp(photo, side=320)
        if patches:
            small = np.stack([decode_png(png) for _, (png, *_) in sorted(rows.items())])
            known = self.run.read_facts(instance).get("places") if photograph.state == "finished" else None
            given = [Place(*known[patch["index"]]) for patch in patches] if known else None
            found, distances = self._places(photo, small, given)
            scale, size = self.run.recipe.scale, self.run.recipe.patches.size
            for patch, place, distance in zip(patches, found, distances, strict=True):
                top, left, bottom, right = hr_box(place[:2], size, scale)
                shown = at_zoom(photo, place.zoom, scale)
                height, width = shown.shape[:2]
                patch["real"] = _webp(shown[top:bottom, left:right], quality=80)
                patch["distance"] = distance
                patch["box"] = [left / width, top / height, (right - left) / width, (bottom - top) / height]
        return made

    def _places(self, photo: np.ndarray, lr: np.ndarray, given: list[Place] | None) -> tuple[list[Place], list[float]]:
        """Where LR patches were cut out, or the nearest real patch is, and the RMS distance to it in gray levels."""
        assert self.run is not None
        grid = self.run.recipe.grid
        every, real = places(*photo.shape[:2], **grid), lr_patches(photo, **grid)
        found, distances = [], []
        for number, patch in enumerate(lr.transpose(0, 3, 1, 2).astype(np.float32)):
            squares = [float(np.square(other - patch).mean()) for other in real]
            nearest = int(np.argmin(squares)) if given is None else every.index(given[number])
            found.append(every[nearest])
            distances.append(math.sqrt(squares[nearest]))
        return found, distances

    def _strips(self, photographs: list[Photograph]) -> dict[str, list[np.ndarray]]:
        """The first three LR patches of each photograph, uint8 `[h, w, 3]`."""
        wanted = {photograph.id for photograph in photographs if photograph.state in ("finished", "published")}
        found: dict[str, list[np.ndarray]] = {}
        if self.condensed is not None:
            for instance_id, lr in self.condensed.patches():
                if instance_id in wanted:
                    found[instance_id] = list(lr[:3].permute(0, 2, 3, 1).numpy())
        elif self.run:
            for instance_id in wanted:
                lr = self.run.read_patches(self.instances[instance_id])
                found[instance_id] = list(lr[:3].permute(0, 2, 3, 1).numpy())
        return found

    def _thumbnail(self, photograph: Photograph, strips: dict[str, list[np.ndarray]]) -> dict[str, Any]:
        """Small pictures of one photograph: `strip`, a few patches side by side, and `photo`."""
        made = {}
        if patches := strips.get(photograph.id):
            made["strip"] = _webp(np.concatenate(patches, axis=1), quality=60)
        instance = self.instances.get(photograph.id)
        if self.source is not None and instance is not None:
            assert self.run is not None
            try:
                made["photo"] = _webp(load_hr(self.source, instance, scale=self.run.recipe.scale), side=96, quality=60)
            except ImageError as error:
                self._unreadable[photograph.id] = error.message
        return made


def spread(total: int, most: int) -> list[int]:
    """At most `most` of `total` indices, evenly spaced, with the first and the last."""
    return sorted({round(number) for number in np.linspace(0, total - 1, min(total, most))}) if total else []


def _versions(condensed: CondensedSet | None) -> list[str]:
    """The HR versions that are shown: the default first, then the newest."""
    if condensed is None:
        return []
    known = condensed.manifest.hr_versions
    newest = sorted(known, key=lambda name: known[name].date, reverse=True)
    return sorted(newest, key=lambda name: name != condensed.manifest.default)[:MAX_VERSIONS]


def _webp(image: np.ndarray, *, side: int | None = None, quality: int = 70) -> str:
    """A uint8 RGB image `[h, w, 3]` for an address `data:...`, shrunk to `side` pixels if it is larger."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    if side is not None:
        picture.thumbnail((side, side), reducing_gap=2.0)
    buffer = BytesIO()
    picture.save(buffer, "WEBP", quality=quality)
    return f"image/webp;base64,{_base64(buffer.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _size_of(pictures: Any) -> int:
    """Characters of all texts in nested lists and mappings."""
    if isinstance(pictures, str):
        return len(pictures)
    if isinstance(pictures, Mapping):
        return sum(map(_size_of, pictures.values()))
    return sum(map(_size_of, pictures)) if isinstance(pictures, list) else 8
