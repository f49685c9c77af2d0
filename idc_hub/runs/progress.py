"""Progress of long work: bars on a terminal, lines elsewhere, or events for a callback.

The progress of a Run is read from its directory, so it covers all workers, on this machine or others.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from idc_hub.images.sources import Instance
from idc_hub.runs.run import Run, whole_lines


@dataclass(frozen=True)
class Progress:
    """One progress event.

    Attributes:
        stage: The current stage, such as "condensing" or "HR version bicubic".
        done: Units done.
        total: Units in all.
        figures: Values to show, such as the training loss.
    """

    stage: str
    done: int
    total: int
    figures: Mapping[str, float] = field(default_factory=dict)


Reporting = bool | Callable[[Progress], None]
"""The `progress` argument of the verbs: True shows bars on stderr, False nothing; a function gets every event."""

REFRESH_SECONDS = 0.5
PLAIN_SECONDS = 10.0


class _Reader:
    """Follows the metrics files of unfinished photographs."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.steps = run.recipe.optimizer.steps
        self.done: set[str] = set()
        self.offsets: dict[str, int] = {}
        self.last: dict[str, dict[str, Any]] = {}

    def refresh(self) -> None:
        for instance in self.run.instances:
            if instance.id not in self.done:
                self._follow(instance)
                if self.run.instance_file(instance.id).is_file():
                    self.done.add(instance.id)

    def _follow(self, instance: Instance) -> None:
        path = self.run.path / "metrics" / f"{instance.id}.jsonl"
        if not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(self.offsets.get(instance.id, 0))
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.offsets[instance.id] = self.offsets.get(instance.id, 0) + len(whole)
        for line in whole_lines(whole):
            self.last[instance.id] = {**self.last.get(instance.id, {}), **line}

    def patch_steps(self) -> int:
        """Steps done times synthetic patches, summed over photographs: a measure of the work done."""
        return sum(instance.count * self._step(instance) for instance in self.run.instances)

    def _step(self, instance: Instance) -> int:
        return self.steps if instance.id in self.done else int(self.last.get(instance.id, {}).get("step", 0))

    def active(self) -> list[tuple[str, dict[str, Any]]]:
        """Ids of photographs under way, with their last logged values."""
        return [
            (name, last)
            for name, last in self.last.items()
            if name not in self.done and last["event"] in ("start", "log")
        ]


@contextmanager
def show_progress(run: Run, progress: Reporting = True) -> Iterator[None]:
    """Report the progress of a Run while the block runs.

    Args:
        run: The Run.
        progress: True shows bars on a terminal and a line every ten seconds elsewhere, False nothing; a function gets
            events whose unit is one step of one synthetic patch.
    """
    if progress is False:
        yield
        return
    over = threading.Event()
    if progress is True:
        console = Console(stderr=True)
        arguments: tuple[Any, ...] = (_bars if _takes_bars(console) else _lines), (run, console, over)
    else:
        arguments = _events, (run, progress, over)
    thread = threading.Thread(target=arguments[0], args=arguments[1], daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def counting(label: str, progress: Reporting = True) -> Iterator[Callable[[int, int], None] | None]:
    """Report the progress of a counted loop; yields a callback `(done, total)`, or None if nothing is shown.

    Args:
        label: The stage, such as "reading photographs".
        progress: True shows a bar on a terminal and one line at the end elsewhere, False nothing; a function gets every
            event.
    """
    if progress is False:
        yield None
        return
    if progress is not True:
        report = progress
        yield lambda done, total: report(Progress(label, done, total))
        return
    console = Console(stderr=True)
    if not _takes_bars(console):
        begun = time.monotonic()
        count = [0]
        yield lambda done, total: count.__setitem__(0, done)
        if count[0]:
            print(f"{label}: {count[0]} in {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
        return
    with Bars(console=console) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _takes_bars(console: Console) -> bool:
    """Whether bars are drawn: on a terminal, but not in the log of continuous integration, which may look like one."""
    return console.is_terminal and not os.environ.get("CI")


def _events(run: Run, report: Callable[[Progress], None], over: threading.Event) -> None:
    reader = _Reader(run)
    total, reported = sum(instance.count for instance in run.instances) * reader.steps, -1
    ending = False
    while not ending:
        ending = over.wait(REFRESH_SECONDS)
        reader.refresh()
        done = reader.patch_steps()
        if done != reported:
            report(Progress("condensing", done, total))
            reported = done


def _bars(run: Run, console: Console, over: threading.Event) -> None:
    reader = _Reader(run)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    total = sum(instance.count for instance in run.instances) * reader.steps
    with Bars(*columns, console=console) as bars:
        whole = bars.add_task("condensing", total=max(total, 1), speed="")
        photographs: dict[str, Any] = {}
        begun, first = time.monotonic(), None
        while True:
            ending = over.wait(REFRESH_SECONDS)
            reader.refresh()
            done = reader.patch_steps()
            first = done if first is None else first
            rate = (done - first) / max(time.monotonic() - begun, 1e-9)
            label = f"condensing {len(reader.done)}/{len(run.instances)} photographs"
            bars.update(whole, completed=done, description=label, speed=f"{rate:.0f} patch-steps/s")
            active = dict(reader.active())
            for name in list(photographs):
                if name not in active:
                    bars.remove_task(photographs.pop(name))
            for name, last in active.items():
                if name not in photographs:
                    photographs[name] = bars.add_task(f"  {name}", total=reader.steps, speed="")
                bars.update(photographs[name], completed=last.get("step", 0), speed=_terms(last))
            if ending:
                return


def _lines(run: Run, console: Console, over: threading.Event) -> None:
    reader = _Reader(run)
    begun, first, announced = time.monotonic(), None, -1
    total = max(sum(instance.count for instance in run.instances) * reader.steps, 1)
    printed = time.monotonic()
    while True:
        ending = over.wait(REFRESH_SECONDS)
        reader.refresh()
        done = reader.patch_steps()
        first = done if first is None else first
        due = time.monotonic() - printed > PLAIN_SECONDS
        if len(reader.done) != announced or due or ending:
            announced, printed = len(reader.done), time.monotonic()
            seconds = time.monotonic() - begun
            rate = (done - first) / max(seconds, 1e-9)
            eta = f", about {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
            terms = "; ".join(f"{name} step {last.get('step', 0)} {_terms(last)}" for name, last in reader.active())
            print(
                f"{announced}/{len(run.instances)} photographs, {100 * done / total:.0f} %, {seconds:.0f} s{eta}"
                + (f" | {terms}" if terms else ""),
                file=sys.stderr,
                flush=True,
            )
        if ending:
            return


def _terms(last: dict[str, Any]) -> str:
    return " ".join(f"{term} {last[term]:.3g}" for term in ("instance", "group", "pair") if term in last)
