"""A network as what is pushed: which files, which card, and what is new since the last time."""

from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.hf_api import RepoFile

from idc_hub.dataset.check import CARD
from idc_hub.errors import RunError
from idc_hub.hub.model_card import render_model_card
from idc_hub.networks import load, weights_sha256
from idc_hub.networks.registry import CONFIG, WEIGHTS, read_config
from idc_hub.training.evaluation import RESULTS
from idc_hub.training.loop import FACTS

FILES = (CARD, CONFIG, WEIGHTS, FACTS, RESULTS)
"""What a network's repository can have; on the Hub, all other files are somebody else's."""


class NetworkFacts(NamedTuple):
    """What a release of a network is: its `config.json`, and the SHA-256 of its weights."""

    config: dict[str, Any]
    weights_sha256: str | None


class NetworkRelease:
    """The network in a folder, loaded once to see that it is whole; see `hub_revision.Release`.

    Raises:
        NetworkError: It cannot be loaded.
    """

    kind = "model"
    facts_file = CONFIG

    def __init__(self, folder: Path) -> None:
        load(folder, scale=None)
        self.folder = folder
        self.facts = NetworkFacts(read_config(folder), weights_sha256(folder, scale=None))

    def files(self) -> dict[str, Path]:
        """See `Release`.

        Raises:
            RunError: One of them is a link.
        """
        found = {name: self.folder / name for name in FILES if (self.folder / name).exists()}
        for path in found.values():
            if path.is_symlink() or not path.is_file():
                raise RunError(f"{path} is not a plain file.", "Put the file itself there.")
        return found

    def read_facts(self, folder: Path, files: dict[str, RepoFile]) -> NetworkFacts:
        """See `Release`.

        Raises:
            NetworkError: The `config.json` there is of another kind of model.
        """
        weights = files.get(WEIGHTS)
        return NetworkFacts(read_config(folder), weights.lfs.sha256 if weights and weights.lfs else None)

    def check_nothing_is_lost(self, repo_id: str, there: NetworkFacts | None) -> None:
        """Nothing can be: earlier weights stay under their tag."""

    def render_card(self, repo_id: str, license: str) -> str:
        """See `Release`."""
        return render_model_card(self.folder, repo_id=repo_id, license=license)

    def is_retired(self, path: str, there: NetworkFacts | None) -> bool:
        """See `Release`."""
        return path in FILES

    def message(self, there: NetworkFacts | None) -> str:
        """See `Release`."""
        name = f"{self.facts.config['name']} x{self.facts.config['scale']}"
        if there is None:
            return f"Add {name}"
        return f"Replace the weights of {name}" if there != self.facts else "Update the card"

    def change(self, released: NetworkFacts | None) -> int:
        """MAJOR for another network or other weights, PATCH for anything else."""
        return 2 if released == self.facts else 0


def is_network(folder: Path) -> bool:
    """Whether a folder is a network's: it holds the two files that `idc train` writes."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()
