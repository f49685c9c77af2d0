"""Fixtures of the Hub's tests: the server and its clients."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.flow.hub_tools import Client, make_repository
from tests.hub_server import HubServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole commands in processes of their own are slow, all of them."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def running_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """The server that all tests share; they keep apart by the names of their repositories."""
    # Small files already go up in several parts, so that both ways of uploading are taken.
    with HubServer(tmp_path_factory.mktemp("hub"), multipart_above=6000, part_size=2500) as server:
        yield server


@pytest.fixture
def hub(running_hub: HubServer) -> HubServer:
    """The server, without faults and with an empty log."""
    running_hub.forget()
    return running_hub


@pytest.fixture(scope="session")
def make_client(running_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Client]]:
    """A function that starts clients: `make_client("hf_alice")`, `make_client(None, HF_HUB_OFFLINE="1")`."""
    clients = []

    def make(token: str | None = None, **environment: str) -> Client:
        home = tmp_path_factory.mktemp("client") / "home"
        clients.append(Client(running_hub.environment(token, home) | environment, home))
        return clients[-1]

    yield make
    for client in clients:
        client.kill()


@pytest.fixture(scope="session")
def alice(make_client: Callable[..., Client]) -> Client:
    """A client with Alice's token, for whatever does not depend on a fresh cache."""
    return make_client("hf_alice")


@pytest.fixture(scope="session")
def bob(make_client: Callable[..., Client]) -> Client:
    """A client with Bob's token."""
    return make_client("hf_bob")


@pytest.fixture
def published(hub: HubServer, alice: Client, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A public set of Alice's, under a name that no other test has, and the folder that it came from."""
    folder = make_repository(tmp_path / "alice", {"edsr": 0, "bicubic": 1})
    repo_id = f"alice/{request.node.originalname.replace('_', '-')}"
    alice("push", folder=folder, repo_id=repo_id, license="mit", public=True)
    hub.forget()
    return repo_id, folder
