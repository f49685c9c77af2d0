"""Plain HTTP to the server in tests/hub_server, without the client: requests, commits and uploads by hand."""

import base64
import hashlib
import http.client
import json
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.hub_server import HubServer

SET = "/api/datasets/alice/set"
CARD = b"---\nlicense: mit\n---\n"


class Answer(NamedTuple):
    """Status, headers and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def call(
    url: str, method: str = "GET", body: Any = None, *, token: str | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """One request without redirects; a body that is not bytes is sent as JSON."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    authorization = {"Authorization": f"Bearer {token}"} if token else {}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    with closing(connection):
        connection.request(method, target, data, authorization | (headers or {}))
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


class Hub:
    """A server with Alice's dataset `alice/set`, and short ways to talk to it."""

    def __init__(self, server: HubServer) -> None:
        self.server = server
        assert self("/api/repos/create", {"name": "set", "type": "dataset"}).status == 200

    def __call__(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        token: str | None = "hf_alice",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """A request to the Hub's origin; POST where there is a body."""
        verb = method or ("GET" if body is None else "POST")
        return call(self.server.url + path, verb, body, token=token, headers=headers)

    def upload(self, content: bytes) -> str:
        """Uploads an LFS object the way the client does; returns its sha256."""
        oid = hashlib.sha256(content).hexdigest()
        batch = {"operation": "upload", "objects": [{"oid": oid, "size": len(content)}], "ref": {"name": "main"}}
        (answer,) = self("/datasets/alice/set.git/info/lfs/objects/batch", batch).json()["objects"]
        assert call(answer["actions"]["upload"]["href"], "PUT", content).status == 200
        assert (
            self(urlsplit(answer["actions"]["verify"]["href"]).path, {"oid": oid, "size": len(content)}).status == 200
        )
        return oid

    def commit(self, *lines: tuple[str, dict[str, Any]], path: str = f"{SET}/commit/main", **header: Any) -> Answer:
        """A commit of ndjson lines."""
        everything = [("header", {"summary": "test", "description": ""} | header), *lines]
        body = b"".join(json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in everything)
        return self(path, body, headers={"Content-Type": "application/x-ndjson"})

    def head(self) -> str:
        """The commit of main."""
        return self.server.dataset("alice/set").refs["refs/heads/main"]


def regular(path: str, content: bytes) -> tuple[str, dict[str, Any]]:
    """A line that adds a regular file."""
    return "file", {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}


def lfs(path: str, oid: str, size: int) -> tuple[str, dict[str, Any]]:
    """A line that adds an LFS file."""
    return "lfsFile", {"path": path, "algo": "sha256", "oid": oid, "size": size}


def git_sha1(content: bytes) -> str:
    """As `git hash-object` computes it."""
    return hashlib.sha1(b"blob " + str(len(content)).encode() + b"\0" + content).hexdigest()
