"""Injected faults, one request at a time.

| kind | what the client sees | options |
| --- | --- | --- |
| status | that status instead of an answer; nothing is done | `status`, `headers`, `body` |
| reset | the connection dies before the request was read; nothing is done | `after`: bytes read first |
| lost | the request is done, then the connection dies without an answer | |
| cut | an answer with the right Content-Length that ends halfway | |
| corrupt | an answer of the right length with one wrong byte | |
| delay | the answer comes `seconds` later | `seconds` |
| hook | `hook()` is called in between, then the request is answered as usual | `hook` |
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

KINDS = ("status", "reset", "lost", "cut", "corrupt", "delay", "hook")


@dataclass
class Fault:
    """A fault for matching requests: after `skip` of them have succeeded, it affects `times` of them."""

    kind: str
    method: str | None = None
    path: str = ""
    origin: str | None = None
    times: int = 1
    skip: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    body: bytes = b'{"error": "injected"}'
    after: int = 0
    seconds: float = 0.0
    hook: Callable[[], None] = lambda: None
    fired: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kind of fault; there are {', '.join(KINDS)}")

    def matches(self, method: str, path: str, origin: str) -> bool:
        """Whether a request matches: exact method and origin, `path` searched as a regular expression."""
        return (
            self.method in (None, method) and self.origin in (None, origin) and re.search(self.path, path) is not None
        )


class Faults:
    """The queued faults."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """Queues a fault; the returned object counts how often it has fired."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forgets all faults that have not fired."""
        with self._lock:
            self._faults.clear()

    def take(self, method: str, path: str, origin: str) -> Fault | None:
        """The fault for this request, if any; counts it."""
        with self._lock:
            for fault in self._faults:
                if fault.fired < fault.times and fault.matches(method, path, origin):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.fired += 1
                    return fault
        return None
