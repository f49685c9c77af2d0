"""A small Hub on loopback that the unmodified real client talks to.

It follows the protocol that huggingface_hub speaks (repositories, commits, LFS, tags, listings, downloads, jobs),
with two origins as on the live Hub: one for the Hub itself, one for the blob store, which must never see a
token. State lies on disk. Xet, git over HTTP, merges, and discussions except the list of pull requests are
left out: clients run with HF_HUB_DISABLE_XET=1.

    with HubServer(folder) as server:
        subprocess.run([...], env=os.environ | server.environment("hf_alice", home))
        server.inject("reset", method="PUT", origin="blobs")

`environment` has to be set before a client starts: huggingface_hub reads it when it is imported.
"""

from pathlib import Path
from types import TracebackType
from typing import Any

from .blobs import BlobStore
from .faults import Fault, Faults
from .hub import Hub
from .jobs import Job
from .state import Account, Repository, State
from .wire import Origin, Seen

__all__ = ["Account", "HubServer", "Job", "Repository", "Seen"]

ACCOUNTS = {
    "hf_alice": Account("alice", organizations=("lab",)),
    "hf_bob": Account("bob"),
    "hf_carol": Account("carol"),
    "hf_alice_reads": Account("alice", role="read", organizations=("lab",)),
}


class HubServer:
    """Both origins, answering in threads of this process between `with` and its end.

    Args:
        root: Folder for the state; a server that is started on it again knows everything.
        port: Port of the Hub's origin; 0 takes a free one. The blob store always takes a free one.
        multipart_above: LFS objects with more bytes than this are uploaded in parts.
        part_size: Bytes in a part.
    """

    def __init__(
        self, root: Path, *, port: int = 0, multipart_above: int = 16 * 2**20, part_size: int = 5 * 2**20
    ) -> None:
        self.log: list[Seen] = []
        self._faults = Faults()
        self.state = State(root, dict(ACCOUNTS))
        self._blobs = BlobStore(self.state, multipart_above, part_size)
        self._hub = Hub(self.state, self._blobs)
        self._origins = (
            Origin("hub", self._hub.answer, self._faults, self.log, port),
            Origin("blobs", self._blobs.answer, self._faults, self.log),
        )
        self._hub.url, self._blobs.url = (origin.url for origin in self._origins)
        self.url = self._hub.url

    def __enter__(self) -> "HubServer":
        for origin in self._origins:
            origin.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for origin in self._origins:
            origin.stop()

    def environment(self, token: str | None, home: Path) -> dict[str, str]:
        """The variables of a client that talks to this server and to nothing else.

        Args:
            token: One of the tokens in `ACCOUNTS`, another string for a wrong one, None for none.
            home: HF_HOME. A fresh one per consumer: a cache would hide what the server does wrong.
        """
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token or "",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            # Without this load_dataset asks a public S3 host.
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        }

    def inject(self, kind: str, **options: Any) -> Fault:
        """Makes something go wrong: see `faults` for the kinds and their options.

        Returns:
            The fault, whose `fired` says how often it has happened.
        """
        return self._faults.add(Fault(kind, **options))

    def forget(self) -> None:
        """Empties the request log and drops the faults that have not fired."""
        self._faults.clear()
        self.log.clear()

    def dataset(self, repo_id: str) -> Repository:
        """A dataset repository as it stands on disk: refs, history, trees, file contents."""
        repository = self.state.find("dataset", repo_id)
        assert repository is not None, f"there is no dataset {repo_id}"
        return repository

    @property
    def jobs(self) -> list[Job]:
        """The submitted jobs, the newest first; nobody runs them."""
        return self._hub.jobs.submitted

    def seen(self, method: str, path: str = "", origin: str | None = None) -> list[Seen]:
        """The logged requests with this method whose path contains `path`."""
        logged = [s for s in self.log if s.method == method and path in s.path]
        return [s for s in logged if origin in (None, s.origin)]

    def sent(self) -> dict[str, int]:
        """Bytes that were uploaded to the blob store, by sha256, whether they arrived completely or not."""
        sent: dict[str, int] = {}
        for put in self.seen("PUT", origin="blobs"):
            oid = put.path.rsplit("/", 1)[1]
            sent[oid] = sent.get(oid, 0) + put.received
        return sent
