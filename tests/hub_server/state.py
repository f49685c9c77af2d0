"""What the Hub remembers, on disk: accounts in memory, everything else as files that are renamed into place.

    repos/<type>s/<owner>/<name>/  meta.json  refs.json  commits/<sha1>.json  blobs/<git sha1>  lfs/<sha256>

A commit holds its whole tree: {path: entry}, where an entry has the shape that the tree API answers with.
No file is synced: the server has to survive kill -9, not a power cut.
"""

import hashlib
import json
import os
import threading
import uuid
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Tree = dict[str, dict[str, Any]]

LFS_ENDINGS = ("arrow", "bin", "gz", "jpg", "npy", "npz", "parquet", "png", "pt", "safetensors", "tar", "zip")
GITATTRIBUTES = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LFS_ENDINGS)


@dataclass(frozen=True)
class Account:
    """The owner and the permissions of a token."""

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()

    def may_write(self, repo_id: str) -> bool:
        """Whether repositories of this owner may be changed with the token."""
        return self.role == "write" and repo_id.split("/")[0] in (self.name, *self.organizations)

    def may_read(self, repo_id: str) -> bool:
        """Whether private repositories of this owner may be read."""
        return repo_id.split("/")[0] in (self.name, *self.organizations)


def git_sha1(content: bytes) -> str:
    """The object id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_entry(sha256: str, size: int) -> dict[str, Any]:
    """The tree entry of an LFS file: its git object is the pointer, not the content."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    lfs = {"oid": sha256, "size": size, "pointerSize": len(pointer)}
    return {"oid": git_sha1(pointer), "size": size, "lfs": lfs}


def write(path: Path, content: bytes) -> None:
    """Writes a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def now() -> str:
    """The time in the Hub's spelling."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Repository:
    """One repository on disk; `lock` guards every change of its refs."""

    def __init__(self, folder: Path, kind: str, repo_id: str, lock: threading.RLock) -> None:
        self.folder, self.kind, self.id, self.lock = folder, kind, repo_id, lock

    @property
    def prefix(self) -> str:
        """The prefix of the id in web addresses; empty for models."""
        return "" if self.kind == "model" else f"{self.kind}s/"

    @property
    def meta(self) -> dict[str, Any]:
        """private, gated, createdAt."""
        return json.loads((self.folder / "meta.json").read_text())

    def update_meta(self, **changes: Any) -> None:
        """Changes some of the settings."""
        write(self.folder / "meta.json", json.dumps(self.meta | changes).encode())

    @property
    def refs(self) -> dict[str, str]:
        """Full names (refs/heads/main, refs/tags/v1, refs/pr/1) and the commits that they point to."""
        return json.loads((self.folder / "refs.json").read_text())

    def set_ref(self, name: str, sha: str | None) -> None:
        """Makes, moves or (None) removes a ref."""
        with self.lock:
            refs = {ref: old for ref, old in self.refs.items() if ref != name}
            if sha is not None:
                refs[name] = sha
            write(self.folder / "refs.json", json.dumps(refs).encode())

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag, a full ref name or a commit id (or its beginning) stands for."""
        refs = self.refs
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in refs:
                return refs[name]
        if len(revision) >= 7 and all(c in "0123456789abcdef" for c in revision):
            found = sorted((self.folder / "commits").glob(f"{revision}*.json"))
            return found[0].stem if found else None
        return None

    def commit(self, sha: str) -> dict[str, Any]:
        """A commit: id, parent, title, message, date, author, tree."""
        return json.loads((self.folder / "commits" / f"{sha}.json").read_text())

    def tree(self, revision: str = "main") -> Tree:
        """All files of a revision and their entries, sorted by path."""
        sha = self.resolve(revision)
        assert sha is not None, f"{self.id} has no revision {revision}"
        return self.commit(sha)["tree"]

    def history(self, revision: str = "main") -> list[dict[str, Any]]:
        """The commits of a revision, newest first."""
        commits, sha = [], self.resolve(revision)
        while sha:
            commits.append(self.commit(sha))
            sha = commits[-1]["parent"]
        return commits

    def pull_requests(self) -> dict[str, dict[str, Any]]:
        """By ref: title, author and date of the commit that opened it, and its status."""
        main = {commit["id"] for commit in self.history()}
        found = {}
        for ref in (ref for ref in self.refs if ref.startswith("refs/pr/")):
            commits = self.history(ref)
            own = [commit for commit in commits if commit["id"] not in main]
            opened = (own or commits)[-1]
            found[ref] = {key: opened[key] for key in ("title", "author", "date")} | {
                "status": "open" if own else "merged"
            }
        return found

    def add_commit(self, ref: str, tree: Tree, title: str, author: str, parent: str | None, message: str = "") -> str:
        """Stores a commit and moves the ref to it; nothing is validated here.

        Returns:
            The commit id, 40 hexadecimal digits.
        """
        commit: dict[str, Any] = {"parent": parent, "title": title, "message": message, "author": author}
        commit |= {"date": now(), "tree": dict(sorted(tree.items())), "nonce": uuid.uuid4().hex}
        sha = hashlib.sha1(json.dumps(commit).encode()).hexdigest()
        with self.lock:
            write(self.folder / "commits" / f"{sha}.json", json.dumps({"id": sha} | commit).encode())
            self.set_ref(ref, sha)
        return sha

    def put_blob(self, content: bytes) -> dict[str, Any]:
        """Stores a regular file's content and returns its tree entry."""
        oid = git_sha1(content)
        write(self.folder / "blobs" / oid, content)
        return {"oid": oid, "size": len(content)}

    def lfs_path(self, sha256: str) -> Path:
        """The path of an LFS object."""
        return self.folder / "lfs" / sha256

    def read(self, path: str, revision: str = "main") -> bytes:
        """The content of a file."""
        entry = self.tree(revision)[path]
        if "lfs" in entry:
            return self.lfs_path(entry["lfs"]["oid"]).read_bytes()
        return (self.folder / "blobs" / entry["oid"]).read_bytes()


class State:
    """All repositories under one folder, and the accounts."""

    def __init__(self, root: Path, accounts: dict[str, Account]) -> None:
        self.root, self.accounts = root, accounts
        self.moved: dict[str, str] = {}
        self._locks: defaultdict[Path, threading.RLock] = defaultdict(threading.RLock)

    def _repository(self, kind: str, repo_id: str) -> Repository:
        folder = self.root / "repos" / f"{kind}s" / repo_id
        return Repository(folder, kind, repo_id, self._locks[folder])

    def find(self, kind: str, repo_id: str) -> Repository | None:
        """A repository, or None. `kind` is model, dataset or space; `repo_id` is owner/name."""
        repository = self._repository(kind, repo_id)
        return repository if (repository.folder / "refs.json").exists() else None

    def rename(self, kind: str, old: str, new: str) -> None:
        """Gives a repository another name; requests for the old one are redirected."""
        target = self._repository(kind, new).folder
        target.parent.mkdir(parents=True, exist_ok=True)
        self._repository(kind, old).folder.rename(target)
        self.moved[old] = new

    def create(self, kind: str, repo_id: str, author: str, private: bool) -> Repository:
        """Makes a repository with the one commit that the Hub makes: .gitattributes."""
        repository = self._repository(kind, repo_id)
        with repository.lock:
            meta = {"private": private, "gated": False, "createdAt": now()}
            write(repository.folder / "meta.json", json.dumps(meta).encode())
            write(repository.folder / "refs.json", b"{}")
            tree = {".gitattributes": repository.put_blob(GITATTRIBUTES.encode())}
            repository.add_commit("refs/heads/main", tree, "initial commit", author, None)
        return repository
