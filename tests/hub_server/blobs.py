"""The blob store's origin: signed addresses, no tokens.

An upload is checked against the sha256 that it is stored under. ETags are MD5 sums, as in an S3 bucket:
whoever takes one for the file's sha256 finds out.
"""

import hashlib
import hmac
import re
import secrets
import time
import uuid
from urllib.parse import urlencode

from .state import Repository, State, write
from .wire import Refusal, Request, Response, ranged

_PATH = re.compile(r"/(?P<kind>model|dataset|space)s/(?P<repo>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})")


class BlobStore:
    """Answers the requests to the blob store's origin."""

    def __init__(self, state: State, multipart_above: int, part_size: int) -> None:
        self.state = state
        self.url = ""
        self.lifetime = 3600.0
        self.multipart_above, self.part_size = multipart_above, part_size
        self._key = secrets.token_bytes(16)

    def _signed(self, base: str, path: str, purpose: str, **query: str) -> str:
        query |= {"expires": str(int(time.time() + self.lifetime))}
        signature = self._signature(path, purpose, query)
        return f"{base}{path}?{urlencode(query | {'signature': signature})}"

    def _signature(self, path: str, purpose: str, query: dict[str, str]) -> str:
        message = f"{purpose} {path}?{urlencode(sorted(query.items()))}"
        return hmac.new(self._key, message.encode(), hashlib.sha256).hexdigest()

    def check_signature(self, request: Request, purpose: str) -> None:
        """403 unless the address was signed for this purpose and is young enough."""
        query = {k: v[0] for k, v in request.query.items()}
        signature = query.pop("signature", "")
        if not hmac.compare_digest(signature, self._signature(request.path, purpose, query)):
            raise Refusal(403, "SignatureDoesNotMatch")
        if float(query["expires"]) < time.time():
            raise Refusal(403, "Request has expired")

    def _path(self, repository: Repository, oid: str) -> str:
        return f"/{repository.kind}s/{repository.id}/{oid}"

    def download_url(self, repository: Repository, oid: str) -> str:
        """The address that an LFS file redirects to."""
        return self._signed(self.url, self._path(repository, oid), "GET")

    def upload_action(self, repository: Repository, oid: str, size: int, hub_url: str) -> dict[str, object]:
        """One PUT, or for large objects one PUT per part and an address to finish at."""
        path = self._path(repository, oid)
        if size <= self.multipart_above:
            return {"href": self._signed(self.url, path, "PUT")}
        upload = uuid.uuid4().hex
        header = {
            f"{n + 1:05d}": self._signed(self.url, path, "PUT", upload=upload, part=str(n + 1))
            for n in range(-(-size // self.part_size))
        }
        finish = f"/{repository.prefix}{repository.id}.git/info/lfs/complete"
        href = self._signed(hub_url, finish, "complete", upload=upload)
        return {"href": href, "header": {"chunk_size": str(self.part_size), **header}}

    def answer(self, request: Request) -> Response:
        """GET, HEAD and PUT of one object, or PUT of one part of it."""
        if "Authorization" in request.headers:
            raise Refusal(400, "A token was sent to the blob store.")
        match = _PATH.fullmatch(request.path)
        if match is None:
            raise Refusal(404, "NoSuchKey")
        self.check_signature(request, "PUT" if request.method == "PUT" else "GET")
        repository = self.state.find(match["kind"], match["repo"])
        if repository is None:
            raise Refusal(404, "NoSuchBucket")
        if request.method == "PUT":
            return self._put(request, repository, match["oid"])
        path = repository.lfs_path(match["oid"])
        if not path.exists():
            raise Refusal(404, "NoSuchKey")
        content = path.read_bytes()
        return ranged(request, content, {"ETag": _etag(content)})

    def _put(self, request: Request, repository: Repository, oid: str) -> Response:
        if upload := request.argument("upload"):
            write(repository.folder / "parts" / upload / f"{int(request.argument('part')):05d}", request.body)
        elif hashlib.sha256(request.body).hexdigest() == oid:
            write(repository.lfs_path(oid), request.body)
        else:
            raise Refusal(400, "The content does not have the sha256 that it was announced with.")
        return Response(200, b"", {"ETag": _etag(request.body)})


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'
