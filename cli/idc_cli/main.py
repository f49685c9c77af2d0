"""The `idc` command: its families of commands, and its exit codes."""

import logging
import os
import signal
import sys
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from idc_cli import condensing, information, launching, output, publishing, training, watching
from idc_hub.atomic import HINTS
from idc_hub.errors import IDCError, IncompleteError, Interrupted, LeftOutWarning, lacks_memory, one_line

EPILOG = """\
[bold]Exit codes[/bold]
    0  done
    1  failed
    2  wrong usage or an invalid recipe; nothing was started
    3  incomplete: some photographs or runs failed, or the disk is full; run the same command again
    4  the Hub refused or did not answer; what is on this machine is intact
  129, 130, 143  stopped by SIGHUP, Ctrl-C, or SIGTERM; run the same command again to continue

[bold]Environment[/bold]
  IDC_RUNS       folder of Runs (default: ./runs)
  IDC_DEBUG=1    show tracebacks
  HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE: see huggingface_hub
"""

app = typer.Typer(
    name="idc",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
for family in (condensing, watching, launching, publishing, training, information):
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

    Start with `idc condense quickstart`.
    """


def main() -> None:
    """Run `idc` and exit with a code that `idc --help` documents; errors are printed as sentences on stderr."""
    warnings.showwarning = _show_warning
    logging.setLogRecordFactory(_clean_record)
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    watched = signal.getsignal(signal.SIGINT) == signal.default_int_handler  # not where it is ignored
    if watched:
        signal.signal(signal.SIGINT, interrupt)
    try:
        app(prog_name="idc")
    except SystemExit as ended:
        # Typer turns every KeyboardInterrupt into a silent exit; the original exception is the cause of its context.
        interrupted = getattr(ended.__context__, "__cause__", None)
        sys.exit(_report(interrupted) if isinstance(interrupted, Interrupted) else ended.code)
    except Exception as error:
        if os.environ.get("IDC_DEBUG") == "1":
            sys.stderr.write(output.clean(traceback.format_exc()))
        # Some packages, such as numpy, swallow an interrupt while they are imported, and fail for it.
        swallowed = interrupts and not isinstance(error, IDCError | OSError)
        sys.exit(_report(Interrupted(signal.SIGINT) if swallowed else error))
    finally:
        if watched:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
) -> None:
    """Print idc-hub's own warnings as sentences, and all others as Python formats them."""
    if issubclass(category, LeftOutWarning) or "idc_hub" in Path(filename).parts:
        output.Sink().warn(str(message))
    else:
        sys.stderr.write(output.clean(warnings.formatwarning(message, category, filename, lineno)))


_make_record = logging.getLogRecordFactory()


def _clean_record(*arguments: Any, **more: Any) -> logging.LogRecord:
    """A log record of any package, cleaned: the Hub's client logs addresses as they are."""
    record = _make_record(*arguments, **more)
    record.msg, record.args = output.clean(record.getMessage()), None
    return record


def _report(error: BaseException) -> int:
    """Print an error as a sentence; returns the exit code."""
    if isinstance(error, IDCError):
        output.error(str(error))
        return error.exit_code
    if isinstance(error, Interrupted):
        output.error(f"interrupted ({error}). Run the same command again: it continues from what is saved.")
        return 128 + error.signal
    if lacks_memory(error):
        output.error(
            f"There is not enough memory ({one_line(error) or type(error).__name__}). Free some, or use fewer "
            "processes, and run the same command again: it continues from what is saved."
        )
        return IncompleteError.exit_code
    if isinstance(error, OSError) and error.strerror:
        hint = HINTS.get(error.errno or 0, "")
        output.error(f"{error.filename or 'The system says'}: {error.strerror}. {hint}".rstrip())
        return IncompleteError.exit_code if hint else 1
    output.error(f"{type(error).__name__}: {error}\nThis is a bug. Set IDC_DEBUG=1 to see the traceback.")
    return 1


if __name__ == "__main__":
    main()
