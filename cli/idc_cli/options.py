"""Options and arguments that several commands share, and the examples of help pages."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from idc_cli import completion

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A bundled name (`idc recipes ls`), a YAML file, a Run, or a dataset repository on the Hub.",
        show_default=False,
        autocompletion=completion.recipes,
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="section.key=value ...",
        help="Values that override the recipe's, such as optimizer.steps=600.",
        show_default=False,
    ),
]
RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A Run directory.", show_default=False, autocompletion=completion.runs),
]
RunOrRepoArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_REPO", help="A Run, or a dataset repository on the Hub.", autocompletion=completion.runs
    ),
]
RunDirOption = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Directory of the Run.", show_default="the name, in $IDC_RUNS or ./runs"),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and report what would happen; change nothing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
ProgressOption = Annotated[
    Literal["text", "json"], typer.Option("--progress", help="Progress on stderr: text, or one JSON object a line.")
]
ScaleOption = Annotated[int, typer.Option("--scale", min=2, max=4, help="Super-resolution scale.")]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option("--include", help="Pattern of the photographs to use; may be repeated.", show_default="all"),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option("--exclude", help="Pattern of photographs to leave out; may be repeated.", show_default=False),
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", help="Config of a Hub dataset.", show_default="its default, or the only one")
]
SplitOption = Annotated[str | None, typer.Option("--split", help="Split of a Hub dataset.", show_default="train")]
ColumnOption = Annotated[
    str | None, typer.Option("--column", help="Image column of a Hub dataset.", show_default="the only one")
]
HRVersionOption = Annotated[
    str | None,
    typer.Option(
        "--hr-version",
        help="The HR version of a set.",
        show_default="the default version",
        autocompletion=completion.hr_versions,
    ),
]
TrustRecipeOption = Annotated[
    bool, typer.Option("--trust-recipe", help="Run the code that a recipe from the Hub names (package.module:build).")
]
TrackerOption = Annotated[
    list[str] | None,
    typer.Option("--tracker", help="Also log to tensorboard, trackio or wandb; repeatable.", show_default=False),
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", help="Access token of the Hub.", show_default="HF_TOKEN, or the login of `hf auth login`"),
]


def examples(*lines: str) -> str:
    """The epilog of a command's help page."""
    return "\n".join(["[bold]Examples[/bold]", *lines])
