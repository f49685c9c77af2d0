"""Uploads: which file goes where, LFS objects, and commits that are checked as a whole before a ref moves."""

import base64
import fnmatch
import hashlib
from pathlib import PurePosixPath
from typing import Any

from . import cards
from .blobs import BlobStore
from .state import Repository, Tree, lfs_entry, write
from .wire import Refusal, Response, as_json

REGULAR_LIMIT = 10 * 2**20


def preupload(repository: Repository, sha: str, body: dict[str, Any]) -> Response:
    """For every file: lfs or regular, and the id of the present file at its path.

    The id is the sha256 for LFS files: with the pointer's git id every push would look like a change.
    """
    tree = repository.tree(sha)
    patterns = _lfs_patterns(repository, sha)
    ignored = _ignore_patterns(repository, sha, body)
    answers = []
    for file in body["files"]:
        name = PurePosixPath(file["path"]).name
        tracked = any(fnmatch.fnmatch(file["path"] if "/" in p else name, p) for p in patterns)
        binary = b"\0" in base64.b64decode(file.get("sample", ""))
        mode = "lfs" if tracked or binary or file["size"] > REGULAR_LIMIT else "regular"
        answer = {
            "path": file["path"],
            "uploadMode": mode,
            "shouldIgnore": any(_is_ignored(file["path"], p) for p in ignored),
        }
        if entry := tree.get(file["path"]):
            answer["oid"] = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        answers.append(answer)
    return as_json({"files": answers})


def _ignore_patterns(repository: Repository, sha: str, body: dict[str, Any]) -> list[str]:
    """The patterns of the .gitignore that the client sends, else of the one in the root of the repository."""
    if "gitIgnore" in body:
        text = body["gitIgnore"]
    elif ".gitignore" in repository.tree(sha):
        text = repository.read(".gitignore", sha).decode()
    else:
        return []
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("#", "!"))]


def _is_ignored(path: str, pattern: str) -> bool:
    """Whether a pattern without negation ignores a path: with a slash inside it starts at the root."""
    *folders, name = path.split("/")
    names = folders if pattern.endswith("/") else [*folders, name]
    wanted = pattern.strip("/")
    if pattern.startswith("/") or "/" in wanted:
        return any(fnmatch.fnmatch("/".join(names[: n + 1]), wanted) for n in range(len(names)))
    return any(fnmatch.fnmatch(part, wanted) for part in names)


def _lfs_patterns(repository: Repository, sha: str) -> list[str]:
    if ".gitattributes" not in repository.tree(sha):
        return []
    lines = repository.read(".gitattributes", sha).decode().splitlines()
    return [line.split()[0] for line in lines if "filter=lfs" in line.split()[1:]]


def lfs_batch(repository: Repository, body: dict[str, Any], blobs: BlobStore, hub_url: str) -> Response:
    """Upload actions for the objects that are not there yet."""
    objects = []
    for wanted in body["objects"]:
        answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
        if not repository.lfs_path(wanted["oid"]).exists():
            verify = f"{hub_url}/{repository.prefix}{repository.id}.git/info/lfs/verify"
            upload = blobs.upload_action(repository, wanted["oid"], wanted["size"], hub_url)
            answer["actions"] = {"upload": upload, "verify": {"href": verify}}
        objects.append(answer)
    in_parts = any("header" in answer["actions"]["upload"] for answer in objects if "actions" in answer)
    return as_json({"transfer": "multipart" if in_parts else "basic", "objects": objects})


def lfs_verify(repository: Repository, body: dict[str, Any]) -> Response:
    """404 for an object that never arrived, 400 for another size."""
    path = repository.lfs_path(body["oid"])
    if not path.exists():
        raise Refusal(404, "Object does not exist")
    if path.stat().st_size != body["size"]:
        raise Refusal(400, "Object has another size")
    return as_json({})


def lfs_complete(repository: Repository, upload: str, body: dict[str, Any]) -> Response:
    """Joins the parts of a multipart upload, if they are all there and make the announced object."""
    folder = repository.folder / "parts" / upload
    parts = [folder / f"{part['partNumber']:05d}" for part in body["parts"]]
    if not all(part.exists() for part in parts):
        raise Refusal(400, "A part is missing")
    content = b"".join(part.read_bytes() for part in parts)
    if hashlib.sha256(content).hexdigest() != body["oid"]:
        raise Refusal(400, "The parts do not make the announced object")
    for part, told in zip(parts, body["parts"], strict=True):
        if told["etag"].strip('"') != hashlib.md5(part.read_bytes()).hexdigest():
            raise Refusal(400, "The ETag of a part is wrong")
    write(repository.lfs_path(body["oid"]), content)
    return as_json({})


def commit(
    repository: Repository, revision: str, lines: list[dict[str, Any]], author: str, pull_request: bool
) -> tuple[str, int | None]:
    """Checks a whole commit, then moves the branch, or opens a pull request.

    Returns:
        The commit id and the number of the pull request, if one was opened.
    """
    if not lines or lines[0].get("key") != "header":
        raise Refusal(400, "The first line must be the header.")
    header = lines[0]["value"]
    ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
    with repository.lock:
        head = repository.refs.get(ref)
        if head is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if header.get("parentCommit") not in (None, head):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(repository.tree(head))
        for line in lines[1:]:
            _apply(repository, tree, line["key"], line["value"])
        _check_tree(tree)
        number = None
        if pull_request:
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
            ref = f"refs/pr/{number}"
        message = header.get("description", "")
        return repository.add_commit(ref, tree, header["summary"], author, head, message), number


def _apply(repository: Repository, tree: Tree, key: str, value: dict[str, Any]) -> None:
    """Applies one line of a commit to the tree."""
    path = value["path"].removesuffix("/") if key == "deletedFolder" else value["path"]
    if not path or path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise Refusal(400, f"Invalid path: {path!r}")
    if key == "file":
        content = value["content"].encode()
        if value.get("encoding") == "base64":
            content = base64.b64decode(content)
        if len(content) > REGULAR_LIMIT:
            raise Refusal(400, f"{path} is too large for a regular file; use LFS.")
        if path == "README.md" and (errors := cards.problems(content.decode())[0]):
            raise Refusal(400, f"Invalid metadata in README.md: {errors}")
        tree[path] = repository.put_blob(content)
    elif key == "lfsFile":
        stored = repository.lfs_path(value["oid"])
        if not stored.exists():
            raise Refusal(400, f"LFS pointer of {path} points to an object that was not uploaded.")
        size = stored.stat().st_size
        if value.get("size", size) != size:
            raise Refusal(400, f"{path} was announced with {value['size']} bytes and has {size}.")
        tree[path] = lfs_entry(value["oid"], size)
    elif key in ("deletedFile", "deletedFolder"):
        gone = [p for p in tree if (p == path if key == "deletedFile" else p.startswith(f"{path}/"))]
        if not gone:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in gone:
            del tree[name]
    else:
        raise Refusal(400, f"Unknown operation: {key}")


def _check_tree(tree: Tree) -> None:
    for path in tree:
        clash = next((str(parent) for parent in PurePosixPath(path).parents if str(parent) in tree), None)
        if clash:
            raise Refusal(400, f"{clash} cannot be both a file and a folder.")
