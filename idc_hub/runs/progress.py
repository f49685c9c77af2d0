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

from idc_hub.background import in_background
from idc_hub.runs.follow import Follower, Track
from idc_hub.runs.run import Run


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
    console = Console(stderr=True)

    def show(over: threading.Event) -> None:
        if progress is not True:
            _events(run, progress, over)
        elif _takes_bars(console):
            _bars(run, console, over)
        else:
            _lines(run, over)

    with in_background(show):
        yield


def _looks(run: Run, over: threading.Event) -> Iterator[tuple[Follower, int, float, bool]]:
    """Look at a Run now and then until it is over. Looking takes at most a twentieth of the time.

    Yields:
        What is known, the work done, its rate per second (0 while unknown), and whether this was the last look. The
        rate counts from the first work seen to be done: preparing a photograph may take as long as hundreds of steps.
    """
    follower, wait, ending = Follower(run, with_finished=False), REFRESH_SECONDS, False
    before: int | None = None
    start: tuple[float, int] | None = None
    while not ending:
        ending = over.wait(wait)
        begun = time.monotonic()
        follower.refresh()
        wait = max(REFRESH_SECONDS, 20 * (time.monotonic() - begun))
        done = follower.done()
        if start is None and before is not None and done > before:
            start = begun, done
        before = done
        rate = (done - start[1]) / (begun - start[0]) if start and begun > start[0] else 0.0
        yield follower, done, rate, ending


def _total(run: Run) -> int:
    """Steps times patches, summed over photographs."""
    return sum(instance.count for instance in run.instances) * run.recipe.optimizer.steps


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
    total, reported = _total(run), -1
    for _, done, _, _ in _looks(run, over):
        if done != reported:
            report(Progress("condensing", done, total))
            reported = done


def _bars(run: Run, console: Console, over: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    with Bars(*columns, console=console) as bars:
        whole = bars.add_task("condensing", total=max(_total(run), 1), speed="")
        photographs: dict[str, Any] = {}
        for follower, done, rate, _ in _looks(run, over):
            label = f"condensing {len(follower.finished)}/{len(run.instances)} photographs"
            bars.update(whole, completed=done, description=label, speed=f"{rate:.0f} patch-steps/s" if rate else "")
            active = dict(follower.active())
            for name in list(photographs):
                if name not in active:
                    bars.remove_task(photographs.pop(name))
            for name, track in active.items():
                if name not in photographs:
                    photographs[name] = bars.add_task(f"  {name}", total=run.recipe.optimizer.steps, speed="")
                bars.update(photographs[name], completed=track.step, speed=_terms(track))


def _lines(run: Run, over: threading.Event) -> None:
    begun = printed = time.monotonic()
    total, announced = max(_total(run), 1), -1
    for follower, done, rate, ending in _looks(run, over):
        due = time.monotonic() - printed > PLAIN_SECONDS
        if len(follower.finished) != announced or due or ending:
            announced, printed = len(follower.finished), time.monotonic()
            seconds = time.monotonic() - begun
            eta = f", about {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
            terms = "; ".join(f"{name} step {track.step} {_terms(track)}".rstrip() for name, track in follower.active())
            print(
                f"{announced}/{len(run.instances)} photographs, {100 * done / total:.0f} %, {seconds:.0f} s{eta}"
                + (f" | {terms}" if terms else ""),
                file=sys.stderr,
                flush=True,
            )


def _terms(track: Track) -> str:
    return " ".join(f"{term} {track.last[term]:.3g}" for term in ("instance", "group", "pair") if term in track.last)
