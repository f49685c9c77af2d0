"""The errors of idc-hub. Each is a sentence that says what happened, where, and what to do.

Every error that idc-hub raises deliberately is an `IDCError`. The command line prints its message and hint without a
traceback and exits with the class's `exit_code`.
"""

import errno
import json
import os
import re
import signal
import unicodedata
from collections.abc import Iterable

_SECRETS = (
    (re.compile(r"\bhf_\w+"), "hf_…"),
    (re.compile(r"(?i)(\bbearer\s+)[^\s\"',;]+"), r"\1…"),
    (re.compile(r"(?i)(https?://)[^\s/?#@]*@"), r"\1"),  # user name and password
    (re.compile(r"(?i)(https?://[^\s?\"'<>]+)\?[^\s\"'<>]*"), r"\1"),  # the query of an address can be signed
)
_NOT_PLAIN = re.compile(r"[^\n\t -~]")  # long texts are nearly all plain
_tokens: set[str] = set()


def keep_secret(token: str) -> None:
    """Have `redacted` remove this token too; that of HF_TOKEN needs no call."""
    _tokens.add(token)


def redacted(text: str) -> str:
    """A text without access tokens, passwords in addresses, and queries of addresses."""
    for token in _tokens | {os.environ.get("HF_TOKEN", "").strip()}:
        if len(token) >= 8:  # a shorter one is none, and may be part of any word
            text = text.replace(token, "…")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def printable(text: str) -> str:
    r"""A text for a terminal: control characters and invisible ones become escapes like `\u001b`.

    Line breaks and tabs stay. JSON stays JSON.
    """
    return _NOT_PLAIN.sub(lambda found: json.dumps(found[0])[1:-1] if _is_control(found[0]) else found[0], text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


class IDCError(Exception):
    """A failure that the user can act on. Its text is `printable` and `redacted`.

    Args:
        message: One sentence that says what happened and names the file, key or repository.
        hint: What to do about it; printed after the message.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = printable(redacted(message))
        self.hint = printable(redacted(hint)) if hint else hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class RecipeError(IDCError):
    """An invalid recipe or argument, or an impossible combination of them; nothing was started."""

    exit_code = 2


class ImageError(IDCError):
    """A photograph, or a source of photographs, is unusable."""


class NetworkError(IDCError):
    """A network or a teacher cannot be built, loaded or applied."""


class DivergedError(IDCError):
    """An optimization or a training produced NaN or Inf; earlier saved work is intact."""


class RunError(IDCError):
    """A Run directory or a repository folder is damaged, of another kind, or not what the command needs."""


class IncompleteError(IDCError):
    """Some instances are missing or failed; the same command, run again, continues."""

    exit_code = 3


class HubError(IDCError):
    """The Hub refused or could not be reached; local files are intact."""

    exit_code = 4


class ClusterError(IDCError):
    """Workers cannot be started elsewhere: SLURM or Ray is missing or refused, or the package is not installed."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the work, after unfinished work was saved.

    Args:
        number: The signal.

    Attributes:
        signal: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class LeftOutWarning(UserWarning):
    """Some files of a source are not images by their suffix, and are left out."""


def one_line(foreign: object) -> str:
    """A foreign text, such as an error message, on one line of at most 300 characters.

    It has no control characters and no secrets (see `redacted`).
    """
    text = "".join(c for c in redacted(" ".join(str(foreign).split())) if c.isprintable())
    return text if len(text) <= 300 else f"{text[:300]}…"


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of Python, the system, or torch means that memory or address space is exhausted."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    said = ("allocate memory", "start new thread", "create a primitive", "out of memory", "failed to map segment")
    return any(words in str(error) for words in said)


def enumerated(names: Iterable[str]) -> str:
    """Names for a sentence: sorted and separated by commas."""
    return ", ".join(sorted(names)) or "(none)"


def first_few(names: Iterable[str], count: int = 3) -> str:
    """The first names for a sentence, in their order, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
