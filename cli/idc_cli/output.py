"""What commands print: data on stdout, as JSON or for people; everything else on stderr.

Without a terminal, lines are plain and separated by tabs, so that other programs can read them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_NESTED_LINES = 20

stdout = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def print_json(data: Any) -> None:
    """Print data as JSON on stdout; what JSON does not know is printed as text."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def print_facts(facts: Mapping[str, Any]) -> None:
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


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table under a line of column names."""
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


def note(text: str) -> None:
    """Say something that is not part of the result, such as what to do next."""
    stderr.print(text)


def warn(message: str) -> None:
    """Say on stderr what is wrong with a result that is there."""
    stderr.print(Text.assemble(("warning: ", "bold yellow"), message))


def error(message: str) -> None:
    """Print an error message; its further lines are indented below the first."""
    stderr.print(Text.assemble(("error: ", "bold red"), message.replace("\n", "\n       ")))


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
