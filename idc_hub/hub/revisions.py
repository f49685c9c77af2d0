"""A revision of a repository on the Hub: its listing, and the files in it.

The Hub's client does not compare downloaded files with the digests in the listing; this module does.
"""

from __future__ import annotations

import io
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_token
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from idc_hub.dataset.condensed_set import CARD
from idc_hub.errors import HubError, NetworkError, RunError
from idc_hub.hub_errors import AGAIN, LOG_IN

if TYPE_CHECKING:
    from idc_hub.hub.releases import Release


@dataclass(frozen=True)
class Revision:
    """A repository on the Hub at a commit.

    Attributes:
        sha: The commit; None if there is no repository, and then everything else is empty.
        files: The listing of all files, by path.
        card: README.md, if there is one.
        facts: The facts in the release's facts file, if there is one.
    """

    sha: str | None = None
    files: dict[str, RepoFile] = field(default_factory=dict)
    card: str | None = None
    facts: Any = None


def read_revision(api: HfApi, repo_id: str, sha: str, release: Release) -> Revision:
    """Read the listing, the card and the facts of a commit.

    Args:
        api: The client.
        repo_id: `owner/name`.
        sha: The commit.
        release: A release of the same kind; it reads the facts.

    Raises:
        HubError: A file arrived damaged, or the facts are unusable.
    """
    files = list_files(api, repo_id, sha, kind=release.kind)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in {CARD, release.facts_file} & files.keys():
            api.hf_hub_download(repo_id, name, repo_type=release.kind, revision=sha, local_dir=folder)
            if not matches(folder / name, files[name]):
                raise HubError(f"{name} of {repo_id} arrived damaged.", AGAIN)
        try:
            card = (folder / CARD).read_bytes().decode() if CARD in files else None
            facts = release.read_facts(folder, files) if release.facts_file in files else None
        except UnicodeDecodeError as error:
            raise HubError(f"{CARD} of {repo_id} is not UTF-8 text.", "Save it as UTF-8 on the Hub.") from error
        except (RunError, NetworkError) as error:
            raise HubError(error.message.replace(scratch, repo_id), error.hint) from error
    return Revision(sha, files, card, facts)


def client(token: str | None) -> HfApi:
    """The Hub's client for a token; None: HF_TOKEN, or the token that `hf auth login` stored.

    Raises:
        HubError: The token contains invalid characters.
    """
    token = token or get_token()
    if token and not re.fullmatch("[!-~]+", token):  # the client's own exception would show it
        raise HubError("The token contains characters that no token has.", LOG_IN)
    return HfApi(token=token, library_name="idc-hub")


def commit_of(info: Any) -> str:
    """The commit in the Hub's answer about a repository."""
    assert info.sha is not None, "only listings of several repositories leave it out"
    return str(info.sha)


def list_files(api: HfApi, repo_id: str, sha: str, *, kind: str = "dataset") -> dict[str, RepoFile]:
    """The files of a commit by path.

    Raises:
        HubError: A path leads out of the repository's folder.
    """
    entries = api.list_repo_tree(repo_id, repo_type=kind, revision=sha, recursive=True)
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    for path in files:
        if path.startswith("/") or ".." in path.replace("\\", "/").split("/"):
            raise HubError(f"{repo_id} has a file whose path leads out of its folder: {path!r}.", "Do not use it.")
    return files


def size_of(content: Path | bytes) -> int:
    """Size in bytes of a file, or of the content for one."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def matches(content: Path | bytes, entry: RepoFile | None) -> bool:
    """Whether a file has the size and the digest in the Hub's listing: SHA-256 for LFS files, git's SHA-1 else."""
    if entry is None or size_of(content) != entry.size:
        return False
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        if entry.lfs is not None:
            return sha_fileobj(file).hex() == entry.lfs.sha256
        return git_hash(file.read()) == entry.blob_id
