"""A revision of a dataset on the Hub: its listing, and files that are held to it.

The client does not compare what it downloads with the digests that the Hub lists; we do.
"""

import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from idc_hub.errors import HubError, RunError
from idc_hub.publishing.hub_errors import AGAIN
from idc_hub.publishing.tree import CARD, MANIFEST
from idc_hub.storage.manifest import Manifest


@dataclass(frozen=True)
class Revision:
    """What stands on the Hub at a commit.

    Attributes:
        sha: The commit; None while there is no repository, and then everything else is empty too.
        files: The listing of all files by path, whoever they belong to.
        card: README.md, if there is one.
        manifest: idc.json, if there is one.
    """

    sha: str | None = None
    files: dict[str, RepoFile] = field(default_factory=dict)
    card: str | None = None
    manifest: Manifest | None = None


def read_revision(api: HfApi, repo_id: str, sha: str) -> Revision:
    """Reads the listing, the card and idc.json of a commit.

    Raises:
        HubError: A file arrived damaged, or idc.json cannot be used.
    """
    files = list_files(api, repo_id, sha)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in {CARD, MANIFEST} & files.keys():
            api.hf_hub_download(repo_id, name, repo_type="dataset", revision=sha, local_dir=folder)
            if not matches(folder / name, files[name]):
                raise HubError(f"{name} of {repo_id} arrived damaged.", AGAIN)
        try:
            card = (folder / CARD).read_bytes().decode() if CARD in files else None
            manifest = Manifest.load(folder) if MANIFEST in files else None
        except UnicodeDecodeError as error:
            raise HubError(f"{CARD} of {repo_id} is not UTF-8 text.", "Save it as UTF-8 on the Hub.") from error
        except RunError as error:
            raise HubError(error.message.replace(scratch, repo_id), error.hint) from error
    return Revision(sha, files, card, manifest)


def list_files(api: HfApi, repo_id: str, sha: str) -> dict[str, RepoFile]:
    """The files of a commit by path.

    Raises:
        HubError: A name leads out of the folder that the repository would be written to.
    """
    entries = api.list_repo_tree(repo_id, repo_type="dataset", revision=sha, recursive=True)
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    for path in files:
        if path.startswith("/") or ".." in path.replace("\\", "/").split("/"):
            raise HubError(f"{repo_id} has a file whose name leads out of its folder: {path!r}.", "Keep away from it.")
    return files


def size_of(content: Path | bytes) -> int:
    """Bytes of a file, or of what will be one."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def matches(content: Path | bytes, entry: RepoFile | None) -> bool:
    """Whether a file has the size and the digest that the Hub lists: sha256 for LFS files, git's sha1 for others."""
    if entry is None or size_of(content) != entry.size:
        return False
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        if entry.lfs is not None:
            return sha_fileobj(file).hex() == entry.lfs.sha256
        return git_hash(file.read()) == entry.blob_id
