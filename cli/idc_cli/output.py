"""The one sink for what commands print: data on stdout, for people or as JSON; everything else on stderr.

Without a terminal, lines are plain and separated by tabs, so that other programs can read them.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_NESTED_LINES = 20

stdout = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


@dataclass(frozen=True)
class Sink:
    """Where a command's result goes: to people, or as JSON; with or without the notes around it.

    Attributes:
        as_json: Print the whole result as JSON on stdout, and nothing else there.
        quiet: Leave out what is not part of the result.
    """

    as_json: bool = False
    quiet: bool = False

    def result(self, result: Any, *, leave_out: Collection[str] = ()) -> None:
        """Print a verb's result: as JSON, or for people as keys and values without those of `leave_out`.

        Args:
            result: A dataclass, a mapping or a list of them.
            leave_out: Keys that people see elsewhere, or not at all.
        """
        data = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
        if self.as_json:
            print(json.dumps(data, indent=2, ensure_ascii=False, default=str))
        elif isinstance(data, Mapping):
            _print_facts({key: value for key, value in data.items() if key not in leave_out})

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table for people, under a line of column names."""
        if self.as_json:
            return
        words = [[_word(value) for value in row] for row in rows]
        if not stdout.is_terminal:
            for row in [columns, *words]:
                print(*row, sep="\t")
            return
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in words:
            table.add_row(*(Text(word) for word in row))
        stdout.print(table)

    def text(self, text: str = "") -> None:
        """Print text for people that is part of the result."""
        if not self.as_json:
            print(text)

    def note(self, text: str) -> None:
        """Say something that is not part of the result, such as what to do next."""
        if not (self.as_json or self.quiet):
            stderr.print(text)

    def warn(self, message: str) -> None:
        """Say on stderr what is wrong with a result that is there."""
        stderr.print(Text.assemble(("warning: ", "bold yellow"), message))


def error(message: str) -> None:
    """Print an error message on stderr; its further lines are indented below the first."""
    stderr.print(Text.assemble(("error: ", "bold red"), message.replace("\n", "\n       ")))


def _print_facts(facts: Mapping[str, Any]) -> None:
    """Print keys and values, a line each; the first lines of nested values are indented below their key."""
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if not value or not isinstance(value, Mapping | list | tuple):
            _print_fact(key, _word(value), width)
            continue
        if isinstance(value, Mapping):
            lines = [f"{inner}: {_word(entry)}" for inner, entry in value.items()]
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
        return ", ".join(f"{key} {_word(found)}" for key, found in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_word(entry) for entry in value)
    return str(value)
