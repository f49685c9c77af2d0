"""The plots of a benchmark; needs matplotlib (`pip install 'idc-hub[report]'`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from idc_hub.benchmarking.statistics import Result, by_seed, spread
from idc_hub.benchmarking.tables import METRICS, Findings, Row, protocol

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

METRIC = "psnr_rgb"
Curves = Mapping[float, Mapping[str, Sequence[tuple[int, float]]]]
"""Training curves of a student, as (step, loss): by learning rate, then set."""

# The palette of Okabe and Ito, which is safe for color-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX"  # one more than colors, so that (color, marker) pairs repeat late
_RANDOM, _WHOLE = "#000000", "#777777"
_FAR = 1.0
"""The axis ends this many dB below the worst random set; sets below are listed as text."""


def draw(findings: Findings, curves: Mapping[str, Curves], folder: Path) -> list[Path]:
    """Draw all plots as PNG files.

    Args:
        findings: The results.
        curves: Training curves by student.
        folder: Folder for `<student>-patches.png`, `<student>-seconds.png` and `<student>-curves.png`.

    Returns:
        The files; plots without data are left out.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    figures = {}
    for student in findings.plan.students:
        if rows := findings.rows(student):
            figures[f"{student}-patches"] = _quality_figure(findings, rows, by_seconds=False)
            figures[f"{student}-seconds"] = _quality_figure(findings, rows, by_seconds=True)
        if curves.get(student):
            figures[f"{student}-curves"] = _curves_figure(findings, curves[student])
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
    return [folder / f"{name}.png" for name in figures]


def _quality_figure(findings: Findings, rows: Mapping[Row, list[Result]], *, by_seconds: bool) -> Figure:
    """PSNR against the number of patches or the seconds to make the set, a panel for each HR version."""
    versions = [name for name in findings.plan.hr if any(row.hr == name for row in rows)]
    figure, panels = _panels(len(versions))
    for axes, version in zip(panels, versions, strict=True):
        mine = {row: by_seed(found, METRIC, findings.testsets) for row, found in rows.items() if row.hr == version}
        measured = {row: values for row, values in mine.items() if values}
        for name in findings.plan.sets:
            line = [row for row in measured if row.set == name]
            if line and findings.plan.sets[name].method == "whole":
                level = spread(list(measured[line[0]].values())).mean
                axes.axhline(level, color=_WHOLE, linestyle="--", linewidth=1.5, label=name, zorder=1)
            elif line:
                _draw_set(axes, findings, {row: measured[row] for row in line}, by_seconds=by_seconds)
        axes.set_title(f"HR: {version}", fontsize=11)
        _logarithmic(axes, "seconds of work to make the set" if by_seconds else "patches")
    _cut_off(panels, findings, rows)
    panels[0].set_ylabel(f"{METRICS[METRIC]}, mean of {', '.join(findings.testsets)}")
    figure.supxlabel(
        f"{protocol(METRIC, findings.plan.scale)}; bars and band: ± 1 standard deviation over seeds", fontsize=8
    )
    _shared_legend(figure, panels)
    return figure


def _cut_off(panels: Sequence[Axes], findings: Findings, rows: Mapping[Row, list[Result]]) -> None:
    """End the axis `_FAR` below the worst random set and list the sets below it as text."""
    versions = [name for name in findings.plan.hr if any(row.hr == name for row in rows)]
    means = {}
    for row, found in rows.items():
        if values := by_seed(found, METRIC, findings.testsets):
            means[row] = fmean(values.values())
    random = [mean for row, mean in means.items() if row.set == findings.random]
    if not random or min(means.values()) >= min(random) - _FAR:
        return
    bottom = min(random) - _FAR
    panels[0].set_ylim(bottom=bottom)
    for axes, version in zip(panels, versions, strict=True):
        below = [
            f"{row.set}, {findings.patches(row):,} patches: {mean:.2f} dB"
            for row, mean in means.items()
            if row.hr == version and mean < bottom
        ]
        if below:
            axes.text(0.98, 0.02, "\n".join(["below:", *below]), transform=axes.transAxes, ha="right", fontsize=8)


def _draw_set(axes: Axes, findings: Findings, line: Mapping[Row, Mapping[int, float]], *, by_seconds: bool) -> None:
    """Draw one set at its ratios: random patches as a line with a band, other sets as points with error bars."""
    points = []
    for row, values in line.items():
        quality = spread(list(values.values()))
        seconds = findings.seconds(row)
        if by_seconds and not seconds:
            continue
        # A logarithmic axis has no 0.
        cost = max(fmean(seconds), 0.1) if by_seconds else findings.patches(row)
        points.append((cost, quality.mean, quality.deviation or 0.0))
    if not points:
        return
    name = next(iter(line)).set
    costs, means, deviations = zip(*points, strict=True)
    if name == findings.random and not by_seconds:
        low, high = ([m + sign * d for m, d in zip(means, deviations, strict=True)] for sign in (-1, 1))
        axes.fill_between(costs, low, high, color=_RANDOM, alpha=0.15, linewidth=0)
        axes.plot(costs, means, color=_RANDOM, marker=".", label=name, zorder=2)
        return
    color, marker = _style(findings, name)
    axes.errorbar(
        costs, means, deviations, color=color, marker=marker, markersize=6, capsize=3, linewidth=0.8,
        linestyle=":", label=name, zorder=3,
    )  # fmt: skip


def _style(findings: Findings, name: str) -> tuple[str, str]:
    """Color and marker of a set, the same in all plots."""
    if name == findings.random:
        return _RANDOM, "."
    sets = findings.plan.sets
    if sets[name].method == "whole":
        return _WHOLE, ""
    number = [other for other in sets if other != findings.random and sets[other].method != "whole"].index(name)
    return _COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)]


def _curves_figure(findings: Findings, curves: Curves) -> Figure:
    """Training loss against steps, a panel for each learning rate."""
    figure, panels = _panels(len(curves))
    for axes, (rate, lines) in zip(panels, sorted(curves.items()), strict=True):
        for name, points in lines.items():
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, color=_style(findings, name)[0], linewidth=1.2, label=name)
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis)
        axes.set_title(f"learning rate {rate:g}", fontsize=11)
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("training loss (L1)")
    _shared_legend(figure, panels)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side that share both axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * count + 1, 4), layout="constrained")
    return figure, list(figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0])


def _logarithmic(axes: Axes, label: str) -> None:
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis)
    axes.set_xlabel(label)
    axes.grid(alpha=0.25)


def _plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis 1, 2, 5, 10 ..., or by the powers of ten where it spans more than three of them."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _shared_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, on the right of them."""
    found: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found.keys(), loc="outside right upper", frameon=False)
