"""Options that several commands share, each declared once, and how a help page shows examples."""

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A bundled name (`idc recipes ls`), a YAML file, a Run, or a dataset repository on the Hub.",
        show_default=False,
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="section.key=value ...",
        help="Values that win over the recipe's, such as optimizer.steps=600.",
        show_default=False,
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A Run directory.", show_default=False)]
RunDirOption = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Directory of the Run.", show_default="$IDC_RUNS or ./runs, and the name"),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and say what would happen; change nothing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
ScaleOption = Annotated[int, typer.Option("--scale", min=2, max=4, help="How many times larger HR is than LR.")]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", help="Access token of the Hub.", show_default="HF_TOKEN, or the login of `hf`"),
]


def examples(*lines: str) -> str:
    """The epilog of a command's help page."""
    return "\n".join(["[bold]Examples[/bold]", *lines])
