"""The `idc` command: its families of commands, and how it ends when something goes wrong."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from idc_cli import condensing, information, output, publishing, training
from idc_hub.errors import IDCError, Interrupted

EPILOG = """\
[bold]Exit codes[/bold]
    0  done
    1  failed
    2  wrong usage or an invalid recipe; nothing was started
    3  incomplete: photographs failed or are missing; run it again
    4  the Hub refused or did not answer; what is on this machine is intact
  130  Ctrl-C (143: SIGTERM); what was done is saved, run it again

[bold]Environment[/bold]
  IDC_RUNS       where Runs are kept, ./runs without it
  IDC_DEBUG=1    show tracebacks
  HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE: as everywhere with the Hub
"""

app = typer.Typer(
    name="idc",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
for family in (condensing, publishing, training, information):
    app.add_typer(family.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"idc-hub {version('idc-hub')}")
        raise typer.Exit


@app.callback()
def idc(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Condense a super-resolution training set and publish it on the Hugging Face Hub.

    Begin with `idc condense quickstart`.
    """


def main() -> None:
    """Run `idc` and end with the exit code that `idc --help` documents; errors become sentences on stderr."""
    try:
        app()
    except SystemExit as ended:
        # Typer turns every KeyboardInterrupt into a silent exit; what interrupted it is the cause of its cause.
        interrupted = getattr(ended.__context__, "__cause__", None)
        sys.exit(_report(interrupted) if isinstance(interrupted, Interrupted) else ended.code)
    except Exception as error:
        if os.environ.get("IDC_DEBUG") == "1":
            raise
        sys.exit(_report(error))


def _report(error: BaseException) -> int:
    """Print an error as a sentence; returns the exit code."""
    if isinstance(error, IDCError):
        output.error(str(error))
        return error.exit_code
    if isinstance(error, Interrupted):
        output.error(f"interrupted ({error}). What was done is saved; the same command continues.")
        return 128 + error.signal
    output.error(f"{type(error).__name__}: {error}\nThis should not happen. IDC_DEBUG=1 shows the traceback.")
    return 1


if __name__ == "__main__":
    main()
