"""The Hub's origin: accounts, repositories, revisions, listings and downloads.

What the client sends has its revisions and paths quoted with no safe characters (`refs%2Fpr%2F1`), so routes
are matched against the quoted path and their groups are unquoted afterwards.
"""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

from . import cards, uploads
from .blobs import BlobStore
from .jobs import Jobs
from .state import Account, Repository, State, Tree, git_sha1
from .wire import Refusal, Request, Response, as_json, ranged

TREE_PAGE, EXPANDED_PAGE = 1000, 50
_API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo>[^/]+/[^/]+)"
_GIT = r"/(?:(?P<kind>dataset|space)s/)?(?P<repo>[^/]+/[^/]+)"
_REFUSED_NAMES = re.compile(r"^[-.]|[-.]$|--|\.\.|\.git$|\.ipynb$|[^\w.-]", re.ASCII)


class Hub:
    """Answers the requests to the Hub's origin."""

    def __init__(self, state: State, blobs: BlobStore) -> None:
        self.state, self.blobs, self.jobs = state, blobs, Jobs()
        self.url = ""
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Response]]] = [
            (method, re.compile(pattern), answer)
            for method, pattern, answer in (
                ("GET", r"/api/whoami-v2", self.whoami),
                ("POST", r"/api/validate-yaml", cards.validate_yaml),
                ("POST", r"/api/jobs/(?P<owner>[^/]+)", self.submit_job),
                ("GET", r"/api/jobs/(?P<owner>[^/]+)", self.list_jobs),
                ("GET", r"/api/jobs/(?P<owner>[^/]+)/(?P<job>[^/]+)/logs", self.job_logs),
                ("POST", r"/api/repos/create", self.create_repo),
                ("DELETE", r"/api/repos/delete", self.delete_repo),
                ("GET", rf"{_API}(?:/revision/(?P<revision>[^/]+))?", self.repo_info),
                ("PUT", rf"{_API}/settings", self.settings),
                ("GET", rf"{_API}/auth-check(?P<write>/write)?", self.auth_check),
                ("GET", rf"{_API}/refs", self.refs),
                ("GET", rf"{_API}/commits/(?P<revision>[^/]+)", self.commits),
                ("GET", rf"{_API}/discussions", self.discussions),
                ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", self.tree),
                ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", self.paths_info),
                ("POST", rf"{_API}/(?P<what>branch|tag)/(?P<name>[^/]+)", self.create_ref),
                ("DELETE", rf"{_API}/(?P<what>branch|tag)/(?P<name>[^/]+)", self.delete_ref),
                ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", self.preupload),
                ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", self.commit),
                ("POST", rf"{_GIT}\.git/info/lfs/objects/batch", self.lfs_batch),
                ("POST", rf"{_GIT}\.git/info/lfs/verify", self.lfs_verify),
                ("POST", rf"{_GIT}\.git/info/lfs/complete", self.lfs_complete),
                ("GET", rf"{_GIT}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.resolve),
                (
                    "GET",
                    r"/api/resolve-cache/(?P<kind>model|dataset|space)s/(?P<repo>[^/]+/[^/]+)"
                    r"/(?P<revision>[^/]+)/(?P<path>.+)",
                    self.resolve_cache,
                ),
            )
        ]

    def answer(self, request: Request) -> Response:
        """Finds the route of a request and follows it, or redirects it to the new name of a repository."""
        for old, new in self.state.moved.items():
            if re.search(rf"/{old}(?=[/.]|$)", request.path):
                location = re.sub(rf"/{old}(?=[/.]|$)", f"/{new}", request.path, count=1)
                return Response(307, b"", {"Location": f"{location}?{urlencode(request.query, doseq=True)}"})
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, pattern, answer in self._routes:
            if method == wanted and (match := pattern.fullmatch(request.path)):
                groups = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                if "kind" in pattern.groupindex:
                    groups.setdefault("kind", "model")
                return answer(request, **groups)
        raise Refusal(404, f"Nothing answers {request.method} {request.path}")

    # Who may do what

    def account(self, request: Request) -> Account | None:
        """The account of the request's token; None without a token, 401 for an unknown one."""
        header = request.headers.get("Authorization")
        if header is None:
            return None
        account = self.state.accounts.get(header.removeprefix("Bearer "))
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def readable(self, request: Request, kind: str, repo: str) -> Repository:
        """A repository that the request may see; a hidden one looks like a missing one.

        Over http the client recognizes a missing repository by the error code only, so that the code is sent
        with the 401 too, which the live Hub does not do.
        """
        account = self.account(request)
        repository = self.state.find(kind, repo)
        hidden = repository is not None and repository.meta["private"]
        if repository is None or (hidden and (account is None or not account.may_read(repo))):
            if account is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repository

    def logged_in(self, request: Request) -> Account:
        """The account of the request's token; 401 without one."""
        account = self.account(request)
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        return account

    def proposable(self, request: Request, kind: str, repo: str) -> Repository:
        """A repository that the request may open a pull request on."""
        repository = self.readable(request, kind, repo)
        self.logged_in(request)
        return repository

    def writable(self, request: Request, kind: str, repo: str) -> Repository:
        """A repository that the request may change."""
        repository = self.readable(request, kind, repo)
        if not self.logged_in(request).may_write(repo):
            raise Refusal(403, f"Forbidden: you don't have the rights to write to {repo}")
        return repository

    def changeable(self, request: Request, kind: str, repo: str, revision: str) -> Repository:
        """A repository whose revision the request may change: anybody their own pull requests."""
        repository = self.proposable(request, kind, repo)
        if repository.pull_requests().get(revision, {}).get("author") == self.logged_in(request).name:
            return repository
        return self.writable(request, kind, repo)

    def discussions(self, request: Request, kind: str, repo: str) -> Response:
        """The pull requests, filtered; there are no other discussions. Two a page."""
        repository = self.readable(request, kind, repo)
        found = [
            {
                "num": int(ref.rsplit("/", 1)[1]),
                "title": opened["title"],
                "author": {"name": opened["author"]},
                "createdAt": opened["date"],
                "status": opened["status"],
                "repo": {"name": repo, "type": kind},
                "isPullRequest": True,
            }
            for ref, opened in repository.pull_requests().items()
        ]
        author, status = request.argument("author"), request.argument("status")
        found = [d for d in found if author in ("", d["author"]["name"]) and status in ("", d["status"])]
        start = 2 * int(request.argument("p", "0"))
        return as_json({"discussions": found[start : start + 2], "count": len(found), "start": start})

    def revision(self, repository: Repository, revision: str) -> str:
        """The commit id of a revision, or 404."""
        sha = repository.resolve(revision)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def whoami(self, request: Request) -> Response:
        """Name, organizations and the role of the token."""
        account = self.logged_in(request)
        orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in account.organizations]
        token = {"accessToken": {"displayName": "test", "role": account.role}, "type": "access_token"}
        return as_json({"type": "user", "name": account.name, "orgs": orgs, "auth": token})

    def auth_check(self, request: Request, kind: str, repo: str, write: str = "") -> Response:
        """200 when the repository may be read (or written)."""
        (self.writable if write else self.readable)(request, kind, repo)
        return as_json({})

    # Jobs

    def submit_job(self, request: Request, owner: str) -> Response:
        """Accepts a job; every repository that it mounts must be readable and have the folder."""
        body = request.json()
        for volume in body.get("volumes", ()):
            if not volume["mountPath"].startswith("/"):
                raise Refusal(400, "A mount path starts with /.")
            if volume["type"] != "bucket":
                repository = self.readable(request, volume["type"], volume["source"])
                tree = repository.tree(self.revision(repository, volume.get("revision", "main")))
                if volume.get("path", "") not in {"", *_with_folders(tree)}:
                    raise Refusal(400, f"{volume['source']} has no folder {volume['path']}")
        return as_json(self.jobs.submit(self.logged_in(request), owner, body).described())

    def list_jobs(self, request: Request, owner: str) -> Response:
        """The jobs of an owner, filtered by labels and stages."""
        if not self.logged_in(request).may_read(f"{owner}/job"):
            raise Refusal(403, f"You don't have the rights to see the jobs of {owner}.")
        found = self.jobs.find(owner, request.query.get("label", []), request.query.get("stage", []))
        return self._page(request, [job.described() for job in found], EXPANDED_PAGE)

    def job_logs(self, request: Request, owner: str, job: str) -> Response:
        """What a job has printed, as server-sent events."""
        if not self.logged_in(request).may_read(f"{owner}/job"):
            raise Refusal(403, f"You don't have the rights to see the jobs of {owner}.")
        [found] = [entry for entry in self.jobs.find(owner, [], []) if entry.id == job] or [None]
        if found is None:
            raise Refusal(404, "Job not found")
        lines = found.log.read_text().splitlines() if found.log else []
        lines = lines[-int(request.query["tail"][0]) :] if "tail" in request.query else lines
        events = [json.dumps({"data": line, "timestamp": found.created}) for line in lines]
        body = "".join(f"data: {event}\n\n" for event in events).encode()
        return Response(body=body, headers={"Content-Type": "text/event-stream"})

    # Repositories

    def _named(self, request: Request) -> tuple[Account, str, str]:
        """Account, kind and id for a body with name, organization and type."""
        account, body = self.logged_in(request), request.json()
        owner = body.get("organization") or account.name
        return account, body.get("type") or "model", f"{owner}/{body['name']}"

    def create_repo(self, request: Request) -> Response:
        """201, or 409 with the address of the one that exists."""
        account, kind, repo = self._named(request)
        owner, name = repo.split("/", 1)
        if _REFUSED_NAMES.search(name) or len(repo) > 96:
            raise Refusal(400, f"Invalid repo name: {name!r}")
        if not account.may_write(repo):
            raise Refusal(403, f'You don\'t have the rights to create a {kind} under "{owner}".')
        url = f"{self.url}/{'' if kind == 'model' else f'{kind}s/'}{repo}"
        if self.state.find(kind, repo):
            return as_json({"error": f"You already created this {kind} repo", "url": url}, 409)
        private = request.json().get("visibility") == "private"
        repository = self.state.create(kind, repo, account.name, private)
        return as_json({"url": url, "name": repository.id, "id": git_sha1(repo.encode())[:24]})

    def delete_repo(self, request: Request) -> Response:
        """Forgets the refs of a repository, which makes everything in it invisible."""
        _, kind, repo = self._named(request)
        repository = self.writable(request, kind, repo)
        (repository.folder / "refs.json").unlink()
        return as_json({})

    def settings(self, request: Request, kind: str, repo: str) -> Response:
        """Visibility and gating."""
        repository, body = self.writable(request, kind, repo), request.json()
        if "visibility" in body:
            repository.update_meta(private=body["visibility"] == "private")
        if "gated" in body:
            repository.update_meta(gated=body["gated"])
        return as_json(repository.meta)

    def repo_info(self, request: Request, kind: str, repo: str, revision: str = "main") -> Response:
        """What `HfApi.repo_info` reads; `blobs` adds sizes and ids, `expand` picks keys."""
        repository = self.readable(request, kind, repo)
        sha = self.revision(repository, revision)
        commit, meta = repository.commit(sha), repository.meta
        card = repository.read("README.md", sha) if "README.md" in commit["tree"] else b""
        info: dict[str, Any] = {
            "id": repo,
            "_id": git_sha1(repo.encode())[:24],
            "author": repo.split("/")[0],
            "sha": sha,
            "createdAt": meta["createdAt"],
            "lastModified": commit["date"],
            "private": meta["private"],
            "gated": meta["gated"],
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "cardData": cards.front_matter(card.decode())[0] or {},
            "siblings": [_sibling(p, e, request.flag("blobs")) for p, e in commit["tree"].items()],
        }
        if expand := request.query.get("expand"):
            info = {key: value for key, value in info.items() if key in ("id", "_id", *expand)}
        return as_json(info)

    # Revisions

    def refs(self, request: Request, kind: str, repo: str) -> Response:
        """Branches and tags, and pull requests when asked."""
        found: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": []}
        groups = {"refs/heads/": "branches", "refs/tags/": "tags"}
        if request.flag("include_prs"):
            groups["refs/pr/"] = "pullRequests"
            found["pullRequests"] = []
        for ref, sha in self.readable(request, kind, repo).refs.items():
            for prefix, group in groups.items():
                if ref.startswith(prefix):
                    found[group].append({"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha})
        return as_json(found)

    def commits(self, request: Request, kind: str, repo: str, revision: str) -> Response:
        """The history of a revision, newest first, in pages."""
        repository = self.readable(request, kind, repo)
        history = repository.history(self.revision(repository, revision))
        keys = ("id", "title", "message", "date")
        return self._page(
            request,
            [{k: c[k] for k in keys} | {"authors": [{"user": c["author"]}]} for c in history],
            EXPANDED_PAGE,
        )

    def create_ref(self, request: Request, kind: str, repo: str, what: str, name: str) -> Response:
        """A branch called `name`, or a tag (named in the body) on the revision `name`; 409 when it exists."""
        repository, body = self.writable(request, kind, repo), request.json()
        if what == "tag":
            ref, start = f"refs/tags/{body['tag']}", name
        else:
            ref, start = f"refs/heads/{name}", body.get("startingPoint") or "main"
        with repository.lock:
            if ref in repository.refs:
                raise Refusal(409, f"Reference {ref} exists already")
            repository.set_ref(ref, self.revision(repository, start))
        return as_json({})

    def delete_ref(self, request: Request, kind: str, repo: str, what: str, name: str) -> Response:
        """Removes a branch or a tag."""
        repository = self.writable(request, kind, repo)
        ref = f"refs/{'tags' if what == 'tag' else 'heads'}/{name}"
        if ref not in repository.refs:
            raise Refusal(404, f"No {what} {name}", "RevisionNotFound")
        repository.set_ref(ref, None)
        return as_json({})

    # Listings

    def tree(self, request: Request, kind: str, repo: str, revision: str, path: str = "") -> Response:
        """The files and folders below `path`, in pages."""
        repository = self.readable(request, kind, repo)
        sha = self.revision(repository, revision)
        tree = repository.tree(sha)
        folder = f"{path}/" if path else ""
        below = sorted(p for p in _with_folders(tree) if p.startswith(folder))
        if path and not below:
            raise Refusal(404, f"No folder {path} on {revision}", "EntryNotFound", {"X-Repo-Commit": sha})
        if not request.flag("recursive"):
            below = [p for p in below if "/" not in p.removeprefix(folder)]
        listed = [_described(p, tree) for p in below]
        expand = request.flag("expand")
        if expand:
            listed = [e | _expansion(repository, sha, e["path"]) for e in listed]
        return self._page(request, listed, EXPANDED_PAGE if expand else TREE_PAGE)

    def paths_info(self, request: Request, kind: str, repo: str, revision: str) -> Response:
        """The entries of the paths in the body, a form; unknown ones are dropped."""
        repository = self.readable(request, kind, repo)
        sha = self.revision(repository, revision)
        tree = repository.tree(sha)
        form = parse_qs(request.body.decode())
        everything = _with_folders(tree)
        listed = [_described(p, tree) for p in form.get("paths", []) if p in everything]
        if form.get("expand", ["false"])[0].lower() == "true":
            listed = [e | _expansion(repository, sha, e["path"]) for e in listed]
        return as_json(listed)

    def _page(self, request: Request, items: list[Any], size: int) -> Response:
        """The page that the cursor points to, with a Link to the next one."""
        start = int(request.argument("cursor", "0"))
        headers = {}
        if start + size < len(items):
            query = urlencode({**{k: v[0] for k, v in request.query.items()}, "cursor": start + size})
            headers["Link"] = f'<{self.url}{request.path}?{query}>; rel="next"'
        return as_json(items[start : start + size], headers=headers)

    # Downloads

    def _file(
        self, request: Request, kind: str, repo: str, revision: str, path: str
    ) -> tuple[Repository, str, dict[str, Any]]:
        repository = self.readable(request, kind, repo)
        sha = self.revision(repository, revision)
        account = self.account(request)
        if repository.meta["gated"] and (account is None or not account.may_read(repo)):
            raise Refusal(403 if account else 401, f"Access to {kind} {repo} is restricted.", "GatedRepo")
        entry = repository.tree(sha).get(path)
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": sha})
        return repository, sha, entry

    def resolve(self, request: Request, kind: str, repo: str, revision: str, path: str) -> Response:
        """302 to the blob store for LFS files, 307 to the cached content for regular ones."""
        repository, sha, entry = self._file(request, kind, repo, revision, path)
        headers = {"X-Repo-Commit": sha}
        if lfs := entry.get("lfs"):
            headers |= {"X-Linked-Size": str(lfs["size"]), "X-Linked-Etag": f'"{lfs["oid"]}"'}
            return Response(302, b"", headers | {"Location": self.blobs.download_url(repository, lfs["oid"])})
        location = f"/api/resolve-cache/{kind}s/{repo}/{sha}/{quote(path)}"
        return Response(307, b"", headers | {"Location": location})

    def resolve_cache(self, request: Request, kind: str, repo: str, revision: str, path: str) -> Response:
        """The content of a regular file."""
        repository, sha, entry = self._file(request, kind, repo, revision, path)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"'}
        return ranged(request, repository.read(path, sha), headers)

    # Uploads

    def preupload(self, request: Request, kind: str, repo: str, revision: str) -> Response:
        """Which files go to LFS, and the present entries of their paths."""
        if request.flag("create_pr"):
            repository = self.proposable(request, kind, repo)
        else:
            repository = self.changeable(request, kind, repo, revision)
        return uploads.preupload(repository, self.revision(repository, revision), request.json())

    def commit(self, request: Request, kind: str, repo: str, revision: str) -> Response:
        """One commit, on a branch or as a new pull request."""
        pull_request = request.flag("create_pr")
        if pull_request:
            repository = self.proposable(request, kind, repo)
        else:
            repository = self.changeable(request, kind, repo, revision)
        account = self.logged_in(request)
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        sha, number = uploads.commit(repository, revision, lines, account.name, pull_request)
        web = f"{self.url}/{repository.prefix}{repo}"
        return as_json(
            {
                "success": True,
                "commitOid": sha,
                "commitUrl": f"{web}/commit/{sha}",
                "pullRequestUrl": f"{web}/discussions/{number}" if number else None,
                "hookOutput": "",
            }
        )

    def lfs_batch(self, request: Request, kind: str, repo: str) -> Response:
        """Where to upload each object. Existing objects need no action.

        For a pull request the client names no ref, and whoever may read the repository may upload.
        """
        body = request.json()
        if "ref" in body:
            repository = self.changeable(request, kind, repo, body["ref"]["name"])
        else:
            repository = self.proposable(request, kind, repo)
        return uploads.lfs_batch(repository, body, self.blobs, self.url)

    def lfs_verify(self, request: Request, kind: str, repo: str) -> Response:
        """200 when an object has arrived."""
        return uploads.lfs_verify(self.proposable(request, kind, repo), request.json())

    def lfs_complete(self, request: Request, kind: str, repo: str) -> Response:
        """Joins the parts of a multipart upload. Comes without a token: its address is signed."""
        repository = self.state.find(kind, repo)
        if repository is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        self.blobs.check_signature(request, "complete")
        return uploads.lfs_complete(repository, request.argument("upload"), request.json())


def _sibling(path: str, entry: dict[str, Any], blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    sibling = {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
    if lfs := entry.get("lfs"):
        sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    return sibling


def _with_folders(tree: Tree) -> set[str]:
    """All file paths and their folders."""
    folders = {str(parent) for path in tree for parent in PurePosixPath(path).parents}
    return (set(tree) | folders) - {"."}


def _described(path: str, tree: Tree) -> dict[str, Any]:
    """The listing entry of a file or a folder."""
    if path in tree:
        return {"type": "file", "path": path} | tree[path]
    inside = json.dumps([(p, e["oid"]) for p, e in tree.items() if p.startswith(f"{path}/")])
    return {"type": "directory", "path": path, "oid": git_sha1(inside.encode()), "size": 0}


def _expansion(repository: Repository, sha: str, path: str) -> dict[str, Any]:
    """The last commit that touched a path, and a security status."""
    history = repository.history(sha)
    last = history[-1]
    for commit, older in itertools.pairwise(history):
        if _touched(path, commit["tree"]) != _touched(path, older["tree"]):
            last = commit
            break
    status = {"status": "safe", "avScan": {"virusFound": False, "virusNames": None}, "pickleImportScan": None}
    return {"lastCommit": {k: last[k] for k in ("id", "title", "date")}, "securityFileStatus": status}


def _touched(path: str, tree: Tree) -> list[tuple[str, str]]:
    return [(p, e["oid"]) for p, e in tree.items() if p == path or p.startswith(f"{path}/")]
