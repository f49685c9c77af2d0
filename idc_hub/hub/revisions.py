"""A revision of a repository on the Hub: its listing, and the files in it.

The Hub's client does not compare downloaded files with the digests in the listing; this module does.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_token
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from idc_hub.dataset.check import hr_version_of
from idc_hub.dataset.condensed_set import CARD
from idc_hub.dataset.manifest import MANIFEST, Manifest
from idc_hub.errors import HubError, NetworkError, RunError, enumerated, keep_secret, one_line
from idc_hub.hub_errors import AGAIN, LOG_IN, no_hub

if TYPE_CHECKING:
    from idc_hub.hub.releases import Release

Version = tuple[int, int, int]
"""The numbers of a release's tag."""

WITHDRAWN = "withdrawn_hr_versions"
"""The key of `Manifest.condensation` that names the HR versions which were removed from a set on the Hub."""

FOOTER_BYTES = 65_536
"""Bytes at the end of a parquet file that hold its footer, unless the footer is larger."""

_TAG = re.compile(r"v(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class Revision:
    """A repository on the Hub at a commit.

    Attributes:
        sha: The commit; None if there is no repository, and then everything else is empty.
        files: The listing of all files, by path.
        card: README.md, if there is one.
        facts: The facts in the release's facts file, if there is one.
        repair: What is wrong with that file, if `facts` are not the ones in it; otherwise empty.
    """

    sha: str | None = None
    files: dict[str, RepoFile] = field(default_factory=dict)
    card: str | None = None
    facts: Any = None
    repair: str = ""


def read_revision(api: HfApi, repo_id: str, sha: str, release: Release | type[Release]) -> Revision:
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
            repair = ""
            if release.kind == "dataset" and release.facts_file not in files:
                repair = restore_manifest(api, repo_id, files, folder)
            facts = release.read_facts(folder, files) if (folder / release.facts_file).exists() else None
            if isinstance(facts, Manifest):
                facts, missing = without_missing(facts, files)
                repair = " ".join(filter(None, (repair, missing)))
        except UnicodeDecodeError as error:
            raise HubError(f"{CARD} of {repo_id} is not UTF-8 text.", "Save it as UTF-8 on the Hub.") from error
        except (RunError, NetworkError) as error:
            raise HubError(error.message.replace(scratch, repo_id), error.hint) from error
    return Revision(sha, files, card, facts, repair)


def restore_manifest(api: HfApi, repo_id: str, files: dict[str, RepoFile], folder: Path) -> str:
    """If idc.json was deleted from a set on the Hub, fetch the one of the newest release into `folder`.

    Returns:
        A sentence that says so; empty if there is no release with the same LR patches.
    """
    tags = read_tags(api, repo_id, "dataset")
    for version, commit in sorted(tags.items(), reverse=True):
        released = list_files(api, repo_id, commit)
        if MANIFEST not in released:
            continue
        lr = {path: entry.blob_id for path, entry in released.items() if path.startswith("lr/")}
        if lr != {path: entry.blob_id for path, entry in files.items() if path.startswith("lr/")}:
            return ""
        api.hf_hub_download(repo_id, MANIFEST, repo_type="dataset", revision=commit, local_dir=folder)
        return f"{repo_id} has no {MANIFEST} any more; the one of {tag_name(version)} was used."
    return ""


def without_missing(manifest: Manifest, files: dict[str, RepoFile]) -> tuple[Manifest, str]:
    """A manifest without the HR versions that have no file in a listing, which are noted as withdrawn.

    Returns:
        The manifest, and a sentence that names those versions; empty if there are none.
    """
    gone = manifest.hr_versions.keys() - {hr_version_of(path) for path in files}
    if not gone:
        return manifest, ""
    default = manifest.default
    left = {name: version for name, version in manifest.hr_versions.items() if name not in gone}
    if default not in left:
        default = max(left, key=lambda name: left[name].date, default=None)
    return (
        withdrawn(manifest, gone, default),
        f"The files of the HR versions {enumerated(gone)} were deleted, so they were removed from {MANIFEST}; "
        f"the default is {default}.",
    )


def withdrawn(manifest: Manifest, names: set[str], default: str | None) -> Manifest:
    """A manifest without some HR versions, which it names as withdrawn."""
    facts = manifest.condensation | {WITHDRAWN: enumerated(withdrawn_versions(manifest) | names)}
    if isinstance(quality := facts.get("quality"), dict):
        facts["quality"] = {name: found for name, found in quality.items() if name not in names}
    left = {name: version for name, version in manifest.hr_versions.items() if name not in names}
    return manifest.model_copy(update={"hr_versions": left, "default": default, "condensation": facts})


def withdrawn_versions(manifest: Manifest | None) -> set[str]:
    """The HR versions that were removed from a set on the Hub."""
    names = manifest.condensation.get(WITHDRAWN) if manifest else None
    return set(names.split(", ")) if isinstance(names, str) else set()


def read_footer(api: HfApi, repo_id: str, revision: Revision, path: str) -> tuple[int, bytes]:
    """Size and footer of a parquet file of a dataset on the Hub, without the rest of the file."""
    files, size = HfFileSystem(token=api.token, endpoint=api.endpoint), revision.files[path].size
    place = f"datasets/{repo_id}@{revision.sha}/{path}"
    return size, footer(lambda count: files.cat_file(place, start=max(0, size - count), end=size))


def footer(read_last: Callable[[int], bytes]) -> bytes:
    """The end of a parquet file, which holds its footer.

    Args:
        read_last: Reads that many bytes from the end of the file, or all of them if it is shorter.
    """
    tail = read_last(FOOTER_BYTES)
    length = int.from_bytes(tail[-8:-4], "little") + 8  # the footer, its length and "PAR1" end the file
    return tail if length <= FOOTER_BYTES else read_last(length)


def read_tags(api: HfApi, repo_id: str, kind: str) -> dict[Version, str]:
    """The commits of all releases of a repository, by version."""
    refs = api.list_repo_refs(repo_id, repo_type=kind).tags
    found = ((_TAG.fullmatch(ref.name), ref.target_commit) for ref in refs)
    return {(int(m[1]), int(m[2]), int(m[3])): commit for m, commit in found if m}


def raised_version(version: Version, number: int) -> Version:
    """The next version: raises the major (0), minor (1) or patch (2) number."""
    major, minor, patch = version
    return [(major + 1, 0, 0), (major, minor + 1, 0), (major, minor, patch + 1)][number]


def tag_name(version: Version) -> str:
    """The tag of a version."""
    return "v{}.{}.{}".format(*version)


def client(token: str | None) -> HfApi:
    """The Hub's client for a token; None: HF_TOKEN, or the token that `hf auth login` stored.

    Raises:
        HubError: The token contains invalid characters.
    """
    token = token or get_token()
    if token and not re.fullmatch("[!-~]+", token):  # the client's own exception would show it
        raise HubError("The token contains characters that no token has.", LOG_IN)
    if token:
        keep_secret(token)
    return HfApi(token=token, library_name="idc-hub")


def account_of(api: HfApi) -> str:
    """The name of the account that the client's token belongs to.

    Raises:
        HubError: The answer has none.
    """
    answer = api.whoami()
    if not isinstance(answer, dict) or not isinstance(answer.get("name"), str):
        raise no_hub()
    return answer["name"]


def commit_of(info: Any) -> str:
    """The commit in the Hub's answer about a repository. It becomes part of paths.

    Raises:
        HubError: It is none.
    """
    if not isinstance(info.sha, str) or not re.fullmatch("[0-9a-f]{40}", info.sha):
        raise HubError(f"The Hub named {one_line(info.sha)!r} as a commit, which is none.", "Check HF_ENDPOINT.")
    return info.sha


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
