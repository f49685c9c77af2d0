"""What can go wrong, as sentences: what happened, where, what to do.

Every error that idc-hub raises on purpose is an `IDCError`. The command line prints its message and hint
without a traceback and ends with the class's `exit_code`; library users catch the class.
"""

import signal
from collections.abc import Iterable


class IDCError(Exception):
    """Something failed that the user can act on.

    Args:
        message: One sentence that says what happened and names the file, key or repository.
        hint: What to do about it; printed after the message.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class RecipeError(IDCError):
    """A recipe, an argument or a combination of them that cannot be run; nothing was started."""

    exit_code = 2


class ImageError(IDCError):
    """A photograph, or a source of photographs, that cannot be used as it is."""


class NetworkError(IDCError):
    """A network or a teacher that cannot be made, loaded or applied."""


class DivergedError(IDCError):
    """An optimization or a training whose numbers became NaN or Inf; what was saved before that stays."""


class RunError(IDCError):
    """A Run directory or a repository tree that is damaged, foreign or not what the command needs."""


class IncompleteError(IDCError):
    """Some instances are missing or failed; the same command continues where this one ended."""

    exit_code = 3


class HubError(IDCError):
    """The Hub refused (authentication, permission, race, offline); local state is intact."""

    exit_code = 4


class Interrupted(KeyboardInterrupt):
    """A signal asked for an end, and what was under way has been saved.

    Args:
        number: The signal.

    Attributes:
        signal: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


def one_line(words: object) -> str:
    """Somebody else's words, such as an error's, without line breaks and control characters, and at most 300 long."""
    text = "".join(c for c in " ".join(str(words).split()) if c.isprintable())
    return text if len(text) <= 300 else f"{text[:300]}…"


def enumerated(names: Iterable[str]) -> str:
    """Names in order, for a sentence."""
    return ", ".join(sorted(names)) or "(none)"
