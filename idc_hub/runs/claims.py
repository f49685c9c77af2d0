"""Claims: at most one process works on a photograph, and what a dead process held is free again.

A claim is a lock and a heartbeat. The system frees the lock when the process dies. Some network file systems have no
locks, or keep those of a dead node; there the heartbeat decides. It is a file with the host, the process, and the time,
refreshed every `HEARTBEAT_SECONDS`. A claim whose heartbeat is older than `STALE_SECONDS` is free. So is one whose
process is gone from this machine.

Two processes can still claim the same photograph, for example if one was suspended. That costs time only: the first
instance file that is written is kept.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from idc_hub.atomic import write_text_atomically
from idc_hub.background import in_background
from idc_hub.errors import IncompleteError

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0
"""Age of a heartbeat after which its claim is free. The clocks of the machines must agree better than this."""

POLL_SECONDS = 0.5


@contextmanager
def claim(
    folder: Path, name: str, *, on_death: Callable[[dict[str, Any]], None] = lambda holder: None
) -> Iterator[bool]:
    """Claim a photograph while the block runs; never waits.

    Args:
        folder: The folder of locks and heartbeats.
        name: The photograph's id.
        on_death: Called with `host` and `pid` of a process that died while it had the claim that this process gets.
            One of another machine may only have been away for long.

    Yields:
        Whether this process has the claim; False if another one has it.

    Raises:
        IncompleteError: The heartbeat could not be written.
    """
    heartbeat = _heartbeat(folder, name)
    with ExitStack() as stack:
        locked = True
        try:
            stack.enter_context(FileLock(folder / f"{name}.lock", timeout=0))
        except Timeout:
            locked = False
        except (OSError, NotImplementedError):
            pass  # a file system without locks: the heartbeat alone decides
        holder = _read(heartbeat)
        if holder is None:
            free = locked
        else:
            free = not _alive(holder) if locked else _stale(holder)
        if free:
            stack.enter_context(_beating(heartbeat))
            # On a file system without locks, two processes can both find the claim free; the last to write has it.
            free = _is_mine(heartbeat)
        if free and holder is not None and not (holder["host"] == platform.node() and process_exists(holder["pid"])):
            on_death(holder)
        yield free


class Lock:
    """A claim that waits until it is free; the process that has it may enter it again.

    Args:
        folder: The folder of its lock and heartbeat.
        name: Their name.
        what: What it protects, for the message while it waits.
    """

    def __init__(self, folder: Path, name: str, what: object) -> None:
        self.folder, self.name, self.what = folder, name, what
        self._depth = 0
        self._held = ExitStack()

    def __enter__(self) -> None:
        waiting = False
        while not self._depth and not self._held.enter_context(claim(self.folder, self.name)):
            self._held.close()
            if not waiting:
                holder = _read(_heartbeat(self.folder, self.name)) or {"pid": "?", "host": "?"}
                who = f"process {holder['pid']} on {holder['host']}"
                warnings.warn(f"Waiting for {who}, which is writing {self.what}.", stacklevel=1)
            waiting = True
            time.sleep(POLL_SECONDS)
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._held.close()


def left_behind(folder: Path, name: str) -> bool:
    """Whether a process died, or was suspended for long, while it had the claim, and nobody has taken it since."""
    holder = _read(_heartbeat(folder, name))
    return holder is not None and not _is_self(holder) and not _alive(holder)


def living_holder(folder: Path, name: str) -> dict[str, Any] | None:
    """`host`, `pid` and `time` of the living process that has the claim, this one included; None if none has it.

    Writes nothing.
    """
    holder = _read(_heartbeat(folder, name))
    return holder if holder is not None and (_is_self(holder) or _alive(holder)) else None


def claimed_by_others(folder: Path) -> bool:
    """Whether another living process has any claim."""
    holders = (_read(path) for path in folder.glob("*.json"))
    return any(holder is not None and _alive(holder) for holder in holders)


def this_process() -> dict[str, Any]:
    """The host and the process id of this process."""
    return {"host": platform.node(), "pid": os.getpid()}


def _heartbeat(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


@contextmanager
def _beating(heartbeat: Path) -> Iterator[None]:
    """Keep a heartbeat fresh while the block runs, then remove it."""

    def beat() -> None:
        write_text_atomically(heartbeat, json.dumps({**this_process(), "time": time.time()}) + "\n")

    def refresh(over: threading.Event) -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            with suppress(OSError, IncompleteError):  # a full disk, or a server that is away for a moment
                if heartbeat.is_file() and not _is_mine(heartbeat):
                    return  # this process was suspended for so long that another one took the photograph
                beat()

    beat()
    try:
        with in_background(refresh):
            yield
    finally:
        if _is_mine(heartbeat):
            heartbeat.unlink(missing_ok=True)


def _read(heartbeat: Path) -> dict[str, Any] | None:
    """Host, process and time of a heartbeat; None if there is none or it is damaged."""
    try:
        holder = json.loads(heartbeat.read_text(encoding="utf-8"))
        return {"host": str(holder["host"]), "pid": int(holder["pid"]), "time": float(holder["time"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_self(holder: dict[str, Any]) -> bool:
    return {key: holder[key] for key in ("host", "pid")} == this_process()


def _is_mine(heartbeat: Path) -> bool:
    holder = _read(heartbeat)
    return holder is not None and _is_self(holder)


def _stale(holder: dict[str, Any]) -> bool:
    return abs(time.time() - holder["time"]) > STALE_SECONDS


def _alive(holder: dict[str, Any]) -> bool:
    """Whether the holder is another process and may still be working."""
    if _stale(holder) or _is_self(holder):
        return False
    return holder["host"] != platform.node() or process_exists(holder["pid"])


def process_exists(pid: int) -> bool:
    """Whether a process of this machine runs; one that ended and was not waited for does not."""
    if os.name == "nt":
        return True  # os.kill would end it; the age of the heartbeat decides
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it belongs to another user
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return True
