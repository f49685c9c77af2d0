"""The tables of a benchmark: `ladder.csv` lists single runs, `ladder.md` their means, differences and worth."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from idc_hub.benchmarking.plan import Plan
from idc_hub.benchmarking.statistics import (
    Result,
    Spread,
    beyond_spread,
    by_seed,
    paired_differences,
    rank_correlation,
    regret,
    spread,
    worth_in_random,
)
from idc_hub.images.metrics import Protocol
from idc_hub.training.pairing import set_name

METRICS = {"psnr_rgb": "PSNR (dB)", "psnr_y": "PSNR (dB)", "ssim_rgb": "SSIM"}
_NOTHING = "–"


class Row(NamedTuple):
    """A row of the table: all seeds of one set with one HR version at one ratio."""

    set: str
    hr: str
    ratio: float


@dataclass
class Findings:
    """The results of a benchmark so far.

    Attributes:
        plan: The plan.
        results: Results of the finished single runs.
        sets: By name of the Run: its `set`, `ratio`, `patches`, `seconds` to make it (None if unknown) and `device`.
        teachers: Description of the teacher of each HR version.
        failures: The error of each failed single run, a sentence.
    """

    plan: Plan
    results: list[Result] = field(default_factory=list)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    teachers: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def testsets(self) -> list[str]:
        """Names of the test sets, in the plan's order."""
        return [set_name(testset) for testset in self.plan.testsets]

    def rows(self, student: str) -> dict[Row, list[Result]]:
        """The results of a student by row; sets and HR versions in the plan's order, ratios ascending."""
        rows: dict[Row, list[Result]] = {}
        for result in self.results:
            if result.student == student:
                rows.setdefault(Row(result.set, result.hr, result.ratio), []).append(result)
        sets, hrs = list(self.plan.sets), list(self.plan.hr)
        order = sorted(rows, key=lambda row: (sets.index(row.set), hrs.index(row.hr), row.ratio))
        return {row: rows[row] for row in order}

    def patches(self, row: Row) -> int:
        """Number of patches of a row's sets."""
        return self._sets_of(row)[0]["patches"]

    def seconds(self, row: Row) -> list[float]:
        """Seconds that it took to make each of a row's sets; unknown ones are left out."""
        return [made["seconds"] for made in self._sets_of(row) if made["seconds"] is not None]

    def _sets_of(self, row: Row) -> list[dict[str, Any]]:
        return [made for made in self.sets.values() if (made["set"], made["ratio"]) == (row.set, row.ratio)]

    @property
    def whole(self) -> str | None:
        """Name of the set of all patches, if the plan has one."""
        return next((name for name, entry in self.plan.sets.items() if entry.method == "whole"), None)

    @property
    def random(self) -> str | None:
        """Name of the reference set: the first whose method is random."""
        return next((name for name, entry in self.plan.sets.items() if entry.method == "random"), None)


def protocol(metric: str, scale: int) -> Protocol:
    """The protocol of a metric: a border of `scale` pixels is cropped."""
    return Protocol("y" if metric == "psnr_y" else "rgb", scale, scale)


def to_csv(results: Sequence[Result]) -> str:
    """The results as CSV, sorted."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Result._fields)
    for result in sorted(results):
        figures = (f"{value:.4f}" for value in result[6:])
        writer.writerow((*result[:4], f"{result.ratio:g}", result.testset, *figures))
    return file.getvalue()


def to_markdown(findings: Findings) -> str:
    """The report as Markdown."""
    return "\n".join(_lines(findings)) + "\n"


def _lines(findings: Findings) -> Iterator[str]:
    plan = findings.plan
    yield f"# {plan.name}"
    yield ""
    yield (
        "Means ± sample standard deviations over the seeds of the students and of the sets. Differences are to random "
        "patches at the same ratio, paired by seed and HR version. **Bold**: 0 is outside the 95 % confidence interval "
        "of the difference (Student's t); without any real difference, about one figure in twenty is bold by chance. "
        "*Worth*: how many times as many random patches train as well, by the mean over the test sets; the curve of "
        "random sets is interpolated linearly in the logarithm of the number of patches."
    )
    training = ", ".join(f"{key} {value}" for key, value in plan.training.model_dump(exclude_unset=True).items())
    yield ""
    yield f"Training: {training or 'the default values'}."
    for student in plan.students:
        rows = findings.rows(student)
        for metric, label in METRICS.items():
            if rows:
                yield from ("", f"## {student}: {label}, {protocol(metric, plan.scale)}", "")
                yield from _quality_table(findings, rows, metric)
                if findings.random:
                    yield from ("", f"Difference to {findings.random}:", "")
                    yield from _difference_table(findings, rows, metric)
    if findings.whole and len(plan.students) > 2:
        yield from _ranking_table(findings, findings.whole)
    yield from _cost_table(findings)
    if findings.failures:
        yield from ("", "## Not finished", "")
        yield from (f"- {cell}: {' '.join(sentence.split())}" for cell, sentence in findings.failures.items())


def _quality_table(findings: Findings, rows: Mapping[Row, list[Result]], metric: str) -> Iterator[str]:
    names = findings.testsets
    random = {row: by_seed(found, metric, names) for row, found in rows.items() if row.set == findings.random}
    yield from _header(["set", "HR", "ratio", "patches", "seeds", *names, "worth"])
    for row, results in rows.items():
        values, patches = by_seed(results, metric, names), findings.patches(row)
        curve = {findings.patches(other): qualities for other, qualities in random.items() if other.hr == row.hr}
        measured = [list(by_seed(results, metric, [name]).values()) for name in names]
        cells = [_figure(spread(found), metric) if found else _NOTHING for found in measured]
        seeds = str(len({result.seed for result in results}))
        worth = _NOTHING
        is_compared = row.set != findings.random and findings.plan.sets[row.set].method != "whole"
        if is_compared and (found := worth_in_random(values, patches, curve)):
            worth = f"{found.bound} {found.factor:.2f} x".strip()
        yield _line([row.set, row.hr, f"{row.ratio:g}", f"{patches:,}", seeds, *cells, worth])


def _difference_table(findings: Findings, rows: Mapping[Row, list[Result]], metric: str) -> Iterator[str]:
    names = findings.testsets
    yield from _header(["set", "HR", "ratio", "patches", *names, "mean"])
    for row, results in rows.items():
        reference = rows.get(Row(findings.random or "", row.hr, row.ratio))
        if row.set == findings.random or reference is None:
            continue
        mine, theirs = findings.patches(row), findings.patches(Row(findings.random or "", row.hr, row.ratio))
        patches = f"{mine:,}" if mine == theirs else f"{mine:,} to {theirs:,}"
        cells = []
        for group in (*([name] for name in names), names):
            both = (by_seed(found, metric, group) for found in (results, reference))
            cells.append(_difference(paired_differences(*both), metric))
        yield _line([row.set, row.hr, f"{row.ratio:g}", patches, *cells])


def _ranking_table(findings: Findings, whole: str) -> Iterator[str]:
    """How well each row ranks the students."""
    names, metric = findings.testsets, "psnr_y"
    rows: dict[Row, dict[int, dict[str, float]]] = {}  # quality by row, seed, and student
    for student in findings.plan.students:
        for row, results in findings.rows(student).items():
            for seed, quality in by_seed(results, metric, names).items():
                rows.setdefault(row, {}).setdefault(seed, {})[student] = quality
    yield from ("", f"## Ranking of the students: {METRICS[metric]}, {protocol(metric, findings.plan.scale)}", "")
    yield (
        "*Tau*: Kendall's tau between the order of the students trained on a set and their order when trained on "
        f"{whole} with the same HR version, by the mean of its seeds (by its other seeds for {whole} itself): 1 is the "
        "same order, 0 an unrelated one. *Regret*: how many dB worse than the best student the one that the set ranks "
        f"first is, both trained on {whole}."
    )
    yield ""
    yield from _header(["set", "HR", "ratio", "students", "seeds", "tau", "regret"])
    for row, seeds in rows.items():
        taus, regrets = [], []
        for seed, measured in seeds.items():
            seeds_of_whole = rows.get(Row(whole, row.hr, 1.0), {})
            reference = _means([found for key, found in seeds_of_whole.items() if row.set != whole or key != seed])
            tau = rank_correlation(measured, reference)
            if tau is not None:
                taus.append(tau)
                regrets.append(regret(measured, reference))
        students = len(_means(list(seeds.values())))
        figures = (_figure(spread(found), metric) if found else _NOTHING for found in (taus, regrets))
        yield _line([row.set, row.hr, f"{row.ratio:g}", str(students), str(len(taus)), *figures])


def _means(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean quality of each student over the seeds that it has."""
    return {
        name: fmean(found[name] for found in seeds if name in found)
        for name in {key for found in seeds for key in found}
    }


def _cost_table(findings: Findings) -> Iterator[str]:
    yield from ("", "## Sets and HR versions", "")
    yield from _header(["set", "patches", "seconds to make", "device"])
    for name, made in sorted(findings.sets.items()):
        seconds = _NOTHING if made["seconds"] is None else f"{made['seconds']:,.1f}"
        yield _line([name, f"{made['patches']:,}", seconds, made["device"]])
    yield ""
    yield from _header(["HR", "teacher"])
    yield from (_line([name, teacher]) for name, teacher in sorted(findings.teachers.items()))


def _figure(found: Spread, metric: str, sign: str = "") -> str:
    digits = 4 if metric == "ssim_rgb" else 3
    deviation = "" if found.deviation is None else f" ± {found.deviation:.{digits}f}"
    return f"{found.mean:{sign}.{digits}f}{deviation}"


def _difference(differences: Sequence[float], metric: str) -> str:
    if not differences:
        return _NOTHING
    figure = _figure(spread(differences), metric, "+")
    return f"**{figure}**" if beyond_spread(differences) else figure


def _header(columns: Sequence[str]) -> list[str]:
    return [_line(columns), _line(["---"] * len(columns))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
