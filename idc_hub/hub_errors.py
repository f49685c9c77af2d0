"""What the Hub's client raises, as sentences. No sentence holds a token or an address with one."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
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

from idc_hub.errors import HubError, one_line

LOG_IN = "Set HF_TOKEN or run `hf auth login`."
AGAIN = "Run the same command again: nothing that has arrived is sent twice."


@contextmanager
def hub_sentences(repo_id: str, revision: str | None = None, *, kind: str = "dataset") -> Iterator[None]:
    """Turns the client's exceptions inside the block into HubErrors; all others pass."""
    try:
        yield
    except Exception as error:
        sentence = _sentence(error, repo_id, revision, kind)
        if sentence is None:
            raise
        raise sentence from error


def refused(repo_id: str, reason: object) -> HubError:
    """The Hub's own words about something that it does not accept."""
    return HubError(f"The Hub does not accept this for {repo_id}: {_without_tokens(reason)}")


def page_of(repo_id: str, kind: str) -> str:
    """The address of a repository's page."""
    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"


def _sentence(error: BaseException, repo_id: str, revision: str | None, kind: str) -> HubError | None:
    page = page_of(repo_id, kind)
    if isinstance(error, LocalTokenNotFoundError):
        return HubError("There is no Hugging Face token.", LOG_IN)
    if isinstance(error, OfflineModeIsEnabled):
        return HubError("The Hub was not asked: HF_HUB_OFFLINE is set.", "Unset it to push or pull.")
    if isinstance(error, HFValidationError):
        return HubError(f"{repo_id!r} is no name for a {kind}: {one_line(error)}", "Use OWNER/NAME.")
    if isinstance(error, GatedRepoError):
        return HubError(f"{repo_id} is gated.", f"Ask for access at {page}, with the account of your token.")
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"There is no {kind} {repo_id} on {constants.ENDPOINT}, or your token may not see it.",
            f"Check the name. A private {kind} needs a token that may read it. {LOG_IN}",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{repo_id} has no revision {revision}.", f"Its tags are listed at {page}/tree/main.")
    if isinstance(error, HfHubHTTPError):
        return _http_sentence(error, repo_id)
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _sentence(error.__cause__, repo_id, revision, kind)
    if isinstance(error, httpx.TransportError | LocalEntryNotFoundError):
        return HubError(f"The connection to {constants.ENDPOINT} failed ({type(error).__name__}).", AGAIN)
    if isinstance(error, ConnectionError) or type(error).__module__.startswith("hf_xet"):
        return HubError(f"The Hub's storage could not be used: {_without_tokens(error)}.", AGAIN)
    if isinstance(error, json.JSONDecodeError):
        return HubError(f"{constants.ENDPOINT} did not answer as a Hub does.", "Check HF_ENDPOINT, or wait a while.")
    if isinstance(error, ValueError) and str(error).startswith("LFS batch API returned errors"):
        return refused(repo_id, error)
    return None


def _http_sentence(error: HfHubHTTPError, repo_id: str) -> HubError:
    status = error.response.status_code
    words = _without_tokens(error.server_message or "it gave no reason")
    if status == 401:
        return HubError("The Hub does not know this token.", f"Make a new one. {LOG_IN}")
    if status == 403:
        return HubError(
            f"The Hub does not let this token do that to {repo_id}: {words}",
            "Use a token with the write role, push to a name of your own, or open a pull request with --create-pr.",
        )
    if status == 412:
        return HubError(f"{repo_id} changed on the Hub while it was being pushed, several times in a row.", AGAIN)
    if status == 429:
        headers = error.response.headers
        told = re.search(r"(?:\bt=|^)(\d+)$", headers.get("RateLimit") or headers.get("Retry-After") or "")
        wait = f"{told[1]} seconds" if told else "some minutes"
        return HubError(f"The Hub's rate limit is reached ({words}).", f"Wait {wait}. {AGAIN}")
    if status >= 500:
        return HubError(f"The Hub is in trouble: it answered {status} ({words}).", AGAIN)
    return refused(repo_id, words)


def _without_tokens(words: object) -> str:
    """Somebody else's words without access tokens and without the signatures in addresses."""
    return re.sub(r"hf_\w+", "hf_…", re.sub(r"(https?://[^\s?]+)\?\S*", r"\1", one_line(words)))
