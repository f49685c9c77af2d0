"""HTTP plumbing that both origins share: bodies, ranges, keep-alive, the request log and the faults."""

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from .faults import Fault, Faults


@dataclass
class Request:
    """One request as it came in; `path` is still quoted, without the query."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes

    def json(self) -> Any:
        """The body as JSON; 400 when it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise Refusal(400, "The body is not JSON.") from error

    def argument(self, name: str, default: str = "") -> str:
        """The first value of a query argument."""
        return self.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        """Whether a query argument is switched on."""
        return self.argument(name).lower() in ("1", "true")


@dataclass
class Response:
    """An answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An answer with an error status, raised as an exception."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message, **(headers or {})}
        if code:
            headers["X-Error-Code"] = code
        self.response = as_json({"error": message}, status, headers)


@dataclass(frozen=True)
class Seen:
    """One line of the request log."""

    origin: str
    method: str
    path: str
    query: str
    with_token: bool
    received: int
    status: int | None


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return Response(status, json.dumps(content).encode(), kind | (headers or {}))


def ranged(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    """File content, or the requested range of it: 206, or 416 if it is outside the file."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    size = len(content)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if match is None or match[0] == "bytes=-":
        return Response(200, content, headers)
    if match[1]:
        start, stop = int(match[1]), min(int(match[2] or size - 1), size - 1) + 1
    else:
        start, stop = max(size - int(match[2]), 0), size
    if start >= stop:
        return Response(416, b"", headers | {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Response(206, content[start:stop], headers)


class Origin(ThreadingHTTPServer):
    """One origin (scheme, host, port): answers each connection in a thread of its own."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, name: str, answer: Callable[[Request], Response], faults: Faults, log: list[Seen], port: int = 0
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.name, self.answer, self.faults, self.log = name, answer, faults, log
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stops answering and closes the port."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests: no traceback."""


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, applies faults, and sends the origin's answer."""

    protocol_version = "HTTP/1.1"
    server_version = "hub-server"
    # Without these two every request on loopback waits some 40 ms for the delayed acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def _serve(self) -> None:
        origin = cast(Origin, self.server)
        parts = urlsplit(self.path)
        fault = origin.faults.take(self.command, self.path, origin.name)
        if fault is not None and fault.kind == "reset":
            received = len(self.rfile.read(fault.after)) if fault.after else 0
            self._note(origin, parts.path, parts.query, received, None)
            return self._die()
        body = self._body()
        if fault is not None and fault.kind == "delay":
            time.sleep(fault.seconds)
        if fault is not None and fault.kind == "hook":
            fault.hook()
        if fault is not None and fault.kind == "status":
            response = Response(fault.status, fault.body, fault.headers)
        else:
            query = parse_qs(parts.query, keep_blank_values=True)
            try:
                response = origin.answer(Request(self.command, parts.path, query, self.headers, body))
            except Refusal as refusal:
                response = refusal.response
        self._note(origin, parts.path, parts.query, len(body), response.status)
        if fault is not None and fault.kind == "lost":
            return self._die()
        self._send(response, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> bytes:
        """The whole body, sent with a length or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            body = self.rfile.read(length := int(self.headers.get("Content-Length", 0)))
            if len(body) < length:
                raise ConnectionError("The client went away in the middle of a request.")
            return body
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _send(self, response: Response, fault: Fault | None) -> None:
        body = response.body
        if fault is not None and fault.kind == "corrupt" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self.send_response(response.status)
        for name, value in ({"Content-Length": str(len(body))} | response.headers).items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.kind == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            return self._die()
        self.wfile.write(body)

    def _die(self) -> None:
        """Resets the connection instead of closing it."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _note(self, origin: Origin, path: str, query: str, received: int, status: int | None) -> None:
        with_token = "Authorization" in self.headers
        origin.log.append(Seen(origin.name, self.command, path, query, with_token, received, status))

    def log_message(self, format: str, *args: Any) -> None:
        """The request log is a list that tests read, not lines on stderr."""
