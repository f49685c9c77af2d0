"""All output of the commands: results on stdout, as text or JSON; everything else on stderr.

No control character and no secret of a file, a recipe or an answer reaches the terminal (`clean`). Without a terminal,
text is plain and tab-separated for other programs.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from idc_hub.errors import printable, redacted

if TYPE_CHECKING:
    from idc_hub.runs.progress import Progress, Reporting

_NESTED_LINES = 20

stdout = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def clean(text: str) -> str:
    """A text as it may be printed: without secrets, and with control characters as escapes."""
    return printable(redacted(text))


@dataclass(frozen=True)
class Sink:
    """Prints the output of one command.

    Attributes:
        as_json: Print the whole result as JSON on stdout, and nothing else.
        quiet: Print no notes and no progress.
        progress: How to print progress on stderr: "text", or "json" for programs, and then no notes.
    """

    as_json: bool = False
    quiet: bool = False
    progress: str = "text"

    @property
    def reporting(self) -> Reporting:
        """The `progress` argument of a verb."""
        return _print_event if self.progress == "json" and not self.quiet else not self.quiet

    def result(self, result: Any, *, leave_out: Collection[str] = ()) -> None:
        """Print a verb's result: all of it as JSON, or keys and values as text. A list is printed only as JSON.

        Args:
            result: A dataclass, a mapping or a list.
            leave_out: Keys that the text leaves out.
        """
        data = [_plain(entry) for entry in result] if isinstance(result, list) else _plain(result)
        if self.as_json:
            print(clean(json.dumps(data, indent=2, ensure_ascii=False, default=str)))
        elif isinstance(data, Mapping):
            _print_facts({key: value for key, value in data.items() if key not in leave_out})

    def line(self, result: Any) -> None:
        """Print one of several results as a line of JSON."""
        print(clean(json.dumps(_plain(result), ensure_ascii=False, default=str)), flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table with column names; not with --json."""
        if self.as_json:
            return
        if stdout.is_terminal:
            stdout.print(drawn_table(columns, rows))
            return
        for row in [columns, *([_word(value) for value in row] for row in rows)]:
            print(*row, sep="\t")

    def text(self, text: str = "") -> None:
        """Print text that is part of the result; not with --json."""
        if not self.as_json:
            print(clean(text))

    def note(self, text: str) -> None:
        """Print a note on stderr; not with --json, --quiet or --progress json."""
        if not (self.as_json or self.quiet or self.progress == "json"):
            stderr.print(clean(text))

    def hint(self, text: str) -> None:
        """Print a note about the next command; not in continuous integration, where nobody types one."""
        if not os.environ.get("CI"):
            self.note(text)

    def warn(self, message: str) -> None:
        """Print a warning about the result on stderr."""
        stderr.print(Text.assemble(("warning: ", "bold yellow"), clean(message)))


def drawn_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table with column names, for a terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_word(value)) for value in row))
    return table


def error(message: str) -> None:
    """Print an error message on stderr; its further lines are indented below the first."""
    stderr.print(Text.assemble(("error: ", "bold red"), clean(message).replace("\n", "\n       ")))


def _print_event(event: Progress) -> None:
    """Print a progress event as one line of JSON on stderr."""
    figures = {name: value if math.isfinite(value) else None for name, value in event.figures.items()}
    facts = {"stage": event.stage, "done": event.done, "total": event.total, "figures": figures}
    print(clean(json.dumps(facts, ensure_ascii=False)), file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _print_facts(facts: Mapping[str, Any]) -> None:
    """Print a line for each key; the first entries of a nested value are indented below its key."""
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if not value or not isinstance(value, Mapping | list | tuple):
            _print_fact(key, _word(value), width)
            continue
        if isinstance(value, Mapping):
            lines = [f"{clean(str(inner))}: {_word(entry)}" for inner, entry in value.items()]
        else:
            lines = [_word(entry) for entry in value]
        _print_fact(key, "", width)
        for line in lines[:_NESTED_LINES]:
            print(f"  {line}")
        if len(lines) > _NESTED_LINES:
            print(f"  and {len(lines) - _NESTED_LINES} more (all of them with --json)")


def _print_fact(key: str, word: str, width: int) -> None:
    if stdout.is_terminal:
        stdout.print(Text.assemble((key.ljust(width + 2), "bold"), word), soft_wrap=True)
    else:
        print(key, word, sep="\t")


def _word(value: Any) -> str:
    if value is None or value in ([], (), {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}" if stdout.is_terminal else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(str(key))} {_word(found)}" for key, found in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_word(entry) for entry in value)
    return clean(str(value))
