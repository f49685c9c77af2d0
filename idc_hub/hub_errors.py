"""Turns the exceptions of the Hub's client into `HubError`s."""

import json
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from idc_hub.errors import HubError, one_line, redacted

LOG_IN = "Set HF_TOKEN or run `hf auth login`."
AGAIN = "Run the same command again: files that have arrived are not transferred twice."


@contextmanager
def hub_sentences(repo_id: str, revision: str | None = None, *, kind: str = "dataset") -> Iterator[None]:
    """Turns the client's exceptions inside the block into HubErrors; others pass through unchanged."""
    try:
        yield
    except Exception as error:
        sentence = _sentence(error, repo_id, revision, kind)
        if sentence is None:
            raise
        raise sentence from error


def refused(repo_id: str, reason: object) -> HubError:
    """The error for a request that the Hub rejected, with the Hub's reason."""
    return HubError(f"The Hub rejected the request for {repo_id}: {one_line(reason)}")


def page_of(repo_id: str, kind: str) -> str:
    """The address of a repository's page on the Hub, without the password that HF_ENDPOINT may have."""
    return redacted(f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo_id}")


def _sentence(error: BaseException, repo_id: str, revision: str | None, kind: str) -> HubError | None:
    page = page_of(repo_id, kind)
    if isinstance(error, LocalTokenNotFoundError):
        return HubError("There is no Hugging Face token.", LOG_IN)
    if isinstance(error, OfflineModeIsEnabled):
        return HubError("HF_HUB_OFFLINE is set, so the Hub was not contacted.", "Unset it to push or pull.")
    if isinstance(error, HFValidationError):
        return HubError(f"{repo_id!r} is not a valid name for a {kind}: {one_line(error)}", "Use OWNER/NAME.")
    if isinstance(error, GatedRepoError):
        return HubError(f"{repo_id} is gated.", f"Request access at {page} with the account of your token.")
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"There is no {kind} {repo_id} on {constants.ENDPOINT}, or your token cannot see it.",
            f"Check the name. A private {kind} needs a token with read access. {LOG_IN}",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{repo_id} has no revision {revision}.", f"Its tags are listed at {page}/tree/main.")
    if isinstance(error, HfHubHTTPError):
        return _http_sentence(error, repo_id)
    is_upload = isinstance(error, RuntimeError) and str(error).startswith("Error while uploading")
    if (is_upload or isinstance(error, LocalEntryNotFoundError)) and error.__cause__ is not None:
        cause = error.__cause__
        unknown = HubError(f"A file could not be transferred ({type(cause).__name__}: {one_line(cause)}).", AGAIN)
        return _sentence(cause, repo_id, revision, kind) or unknown
    if isinstance(error, FileMetadataError):
        return no_hub()
    if isinstance(error, httpx.TransportError | LocalEntryNotFoundError):
        return HubError(f"The connection to {constants.ENDPOINT} failed ({type(error).__name__}).", AGAIN)
    if isinstance(error, ConnectionError) or type(error).__module__.startswith("hf_xet"):
        return HubError(f"The Hub's storage could not be used: {one_line(error)}.", AGAIN)
    if isinstance(error, OSError) and str(error).startswith("Consistency check failed"):
        return HubError(f"A file of {repo_id} arrived incomplete.", AGAIN)
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return no_hub()
    if isinstance(error, ValueError) and str(error).startswith("LFS batch API returned errors"):
        return refused(repo_id, error)
    if isinstance(error, LookupError | TypeError | AttributeError | ValueError) and _is_of_client(error):
        return no_hub()
    return None


def no_hub() -> HubError:
    """The error for an answer that no Hub gives."""
    return HubError(f"{constants.ENDPOINT} did not answer like a Hub.", "Check HF_ENDPOINT, or try again later.")


def _is_of_client(error: BaseException) -> bool:
    """Whether the Hub's client raised an exception: it reads answers without checking their keys and types."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].startswith("huggingface_hub.")


def _http_sentence(error: HfHubHTTPError, repo_id: str) -> HubError:
    status = error.response.status_code
    reason = one_line(error.server_message or "no reason given")
    if status == 401:
        return HubError("The Hub does not accept this token.", f"Create a new one. {LOG_IN}")
    if status == 403 and re.search("storage|quota", reason, re.IGNORECASE):
        return HubError(
            f"The Hub refused to store more for the owner of {repo_id}: {reason}",
            "Free some space, or ask the owner to extend it.",
        )
    if status == 403:
        return HubError(
            f"This token has no permission to do that to {repo_id}: {reason}",
            "Use a token with write access, push to a repository of your own, or open a pull request with --create-pr.",
        )
    if status == 412:
        return HubError(f"{repo_id} changed on the Hub during the push, several times in a row.", AGAIN)
    if status == 429:
        headers = error.response.headers
        delay = re.search(r"(?:\bt=|^)(\d+)$", headers.get("RateLimit") or headers.get("Retry-After") or "")
        wait = f"{delay[1]} seconds" if delay else "a few minutes"
        return HubError(f"The Hub's rate limit is reached ({reason}).", f"Wait {wait}. {AGAIN}")
    if status >= 500:
        return HubError(f"The Hub has a problem: it answered with status {status} ({reason}).", AGAIN)
    return refused(repo_id, reason)
