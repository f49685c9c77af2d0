"""idc status, logs: see how far a Run is, once or until it is finished, and what its workers wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from idc_cli.options import JsonOption, RunArgument, TokenOption, examples
from idc_cli.output import Sink, drawn_table, stdout

if TYPE_CHECKING:
    from rich.console import RenderableType

    from idc_hub.verbs.status import StatusResult

app = typer.Typer()

_COLUMNS = ("photograph", "state", "patches", "steps", "worker", "steps/s", "left", "error")
_URGENT = ("failed", "damaged", "running", "interrupted")


@app.command(
    rich_help_panel="Make a set",
    epilog=examples(
        "idc status runs/quickstart", "idc status runs/div2k-x4 --watch", "idc status runs/quickstart --json"
    ),
)
def status(
    run: RunArgument,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again until nothing is left to do.")] = False,
    every: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Seconds between two looks of --watch.")
    ] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Show which photographs of a Run are finished, running, interrupted, failed, waiting or damaged.

    It works from any machine that sees the Run, whatever started the workers, and writes nothing.
    With --watch and --json, each look prints one line.
    """
    import idc_hub

    sink = Sink(as_json)
    if watch:
        with suppress(KeyboardInterrupt):  # it only looks
            _watch(idc_hub.watch(run, every=every), sink)
        return
    result = idc_hub.status(run)
    sink.result(result, leave_out=("instances",))
    sink.text()
    sink.table(_COLUMNS, [_row(entry) for entry in result.instances])
    if result.finished == result.photographs:
        sink.hint(f"\nQuality    idc quality {run}")
    elif not result.running:
        sink.hint("\nContinue   the `idc condense` or `idc select` command that began it")


@app.command(
    rich_help_panel="Make a set",
    epilog=examples("idc logs runs/div2k-x4", "idc logs runs/div2k-x4 --lines 200"),
)
def logs(
    run: RunArgument,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, metavar="N", help="Number of lines of each log, at most.")
    ] = 20,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the last lines that the workers of a Run wrote: here, in a SLURM array, or in Hugging Face Jobs."""
    import idc_hub

    sink = Sink(as_json)
    result = idc_hub.logs(run, lines=lines, token=token)
    if as_json:
        sink.result(result)
    for name, said in result.logs.items():
        sink.text(f"==> {name} <==")
        for line in said:
            sink.text(line)
        sink.text()
    if not result.logs:
        sink.note("This Run has no logs: workers in the process of `idc condense`, and in Ray, write to its terminal.")


def _watch(looks: Iterator[StatusResult], sink: Sink) -> None:
    """Show each look: as a picture that is redrawn on a terminal, as lines of what is new elsewhere."""
    if sink.as_json:
        for found in looks:
            sink.line(found)
    elif stdout.is_terminal:
        from rich.live import Live

        with Live(console=stdout, auto_refresh=False) as live:
            for found in looks:
                live.update(_picture(found), refresh=True)
    else:
        said = ""
        failed: set[str] = set()
        for found in looks:
            for entry in found.instances:
                if entry["state"] == "failed" and entry["id"] not in failed:
                    failed.add(entry["id"])
                    sink.text(f"{entry['id']} failed: {entry['error']}")
            if (line := _summary(found)) != said:
                sink.text(line)
                said = line


def _picture(found: StatusResult) -> RenderableType:
    """The summary, and a table of the photographs that somebody works on or should look at."""
    from rich.console import Group
    from rich.text import Text

    urgent = [entry for state in _URGENT for entry in found.instances if entry["state"] == state]
    room = max(3, stdout.height - 5)
    more = f"and {len(urgent) - room} more (all of them without --watch)" if len(urgent) > room else ""
    table = drawn_table(_COLUMNS, [_row(entry) for entry in urgent[:room]])
    return Group(Text(_summary(found), style="bold"), table, Text(more))


def _summary(found: StatusResult) -> str:
    counts = [("running", found.running), ("interrupted", found.interrupted), ("failed", found.failed)]
    counts += [("waiting", found.waiting), ("damaged", found.damaged)]
    said = [f"{found.finished}/{found.photographs} finished", *(f"{count} {state}" for state, count in counts if count)]
    if found.workers:
        said.append(f"{found.workers} worker{'s' if found.workers > 1 else ''}")
    if found.eta_seconds is not None:
        said.append(f"about {_duration(found.eta_seconds)} left")
    return ", ".join(said)


def _row(entry: dict[str, Any]) -> tuple[Any, ...]:
    state = entry["state"]
    if entry["silent_seconds"]:
        state += f", silent for {_duration(entry['silent_seconds'])}"
    return (
        entry["id"],
        state,
        entry["patches"],
        f"{entry['step']}/{entry['steps']}",
        f"{entry['host']}:{entry['pid']}" if entry["host"] and entry["state"] != "finished" else "",
        entry["steps_per_second"] or "",
        "" if entry["eta_seconds"] is None else _duration(entry["eta_seconds"]),
        entry["error"] or "",
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
