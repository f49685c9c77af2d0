"""One fault at one request of a push or a pull: nothing is mixed, lost or done twice, and the next call ends it.

By default a sample of all (request, fault) pairs; with `IDC_LONG` set, all of them (`make test-long`).
"""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flow.hub_tools import Client, Refused, files_below, make_repository
from tests.hub_server import HubServer, Repository

HTML = {"headers": {"Content-Type": "text/html"}, "body": b"<html>Proxy login</html>", "status": 200}
FAULTS: dict[str, dict[str, Any]] = {
    "status 404": {"kind": "status", "status": 404},
    "status 429": {"kind": "status", "status": 429},
    "status 500": {"kind": "status", "status": 500},
    "status 503, six times": {"kind": "status", "status": 503, "times": 6},
    "reset": {"kind": "reset"},
    "lost answer": {"kind": "lost"},
    "answer cut": {"kind": "cut"},
    "wrong byte": {"kind": "corrupt"},
    "a web page": {"kind": "status"} | HTML,
    "not UTF-8": {"kind": "status", "status": 200, "body": b'{"name": "\xff\xfe"}'},
    "empty": {"kind": "status", "status": 200, "body": b""},
    "another shape": {"kind": "status", "status": 200, "body": b'[{"surprise": null}, 7]'},
}
LONG = bool(int(os.environ.get("IDC_LONG", "0")))
PUSH_REQUESTS, PULL_REQUESTS = 30, 16


def cases(requests: int, sample: int) -> list[tuple[int, str]]:
    """Pairs of a request's number and a fault's name."""
    every = [(number, name) for number in range(requests) for name in FAULTS]
    return every if LONG else sorted(random.Random(0).sample(every, sample))


def attempted(client: Client, verb: str, **arguments: Any) -> Any:
    """The result of a verb; None if it ended with one of idc-hub's own errors, which must name the Hub's fault."""
    try:
        return client(verb, **arguments)
    except Refused as error:
        if error.kind == "HubError" and error.exit_code == 4:
            return None
        raise


def commits_since(repository: Repository, sha: str) -> list[str]:
    """The commits on the main branch after another one, which must still be there."""
    commits = [commit["id"] for commit in repository.history()]
    return commits[: commits.index(sha)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A set, and the same set with one more HR version."""
    folder = tmp_path_factory.mktemp("sets")
    return make_repository(folder / "one", {"edsr": 0}), make_repository(folder / "two", {"edsr": 0, "bicubic": 1})


@pytest.fixture(scope="module")
def repositories() -> Iterator[int]:
    """Numbers for repositories."""
    return iter(range(1_000_000))


@pytest.mark.parametrize(("number", "fault"), cases(PUSH_REQUESTS, 14))
def test_push(
    hub: HubServer,
    alice: Client,
    sets: tuple[Path, Path],
    repositories: Iterator[int],
    tmp_path: Path,
    number: int,
    fault: str,
) -> None:
    repo_id = f"alice/faults-{next(repositories)}"
    alice("push", folder=sets[0], repo_id=repo_id, license="mit")
    repository = hub.dataset(repo_id)
    first = repository.refs["refs/heads/main"]
    folder = shutil.copytree(sets[1], tmp_path / "repo")
    injected = hub.inject(skip=number, **FAULTS[fault])
    done = attempted(alice, "push", folder=folder, repo_id=repo_id)
    hub.forget()
    commits = commits_since(repository, first)
    assert len(commits) <= 1
    paths = repository.tree().keys()
    assert len([path for path in paths if path.startswith("data/bicubic/")]) == 2 * len(commits)
    tags = {name: sha for name, sha in repository.refs.items() if name.startswith("refs/tags/")}
    assert tags.pop("refs/tags/v1.0.0") == first
    assert tags in ({}, {"refs/tags/v1.1.0": commits[0]} if commits else {})
    if done is not None:
        assert (done["tag"], len(commits), len(tags)) == ("v1.1.0", 1, 1)
    again = alice("push", folder=folder, repo_id=repo_id)
    assert again["tag"] == "v1.1.0"
    assert len(commits_since(repository, first)) == 1
    assert repository.refs["refs/tags/v1.1.0"] == repository.refs["refs/heads/main"]
    assert injected.fired or number > 8, "a push makes more requests than that"


@pytest.fixture(scope="module")
def pullable(running_hub: HubServer, alice: Client, sets: tuple[Path, Path], tmp_path_factory: Any) -> dict[str, bytes]:
    """The files of a published set."""
    folder = shutil.copytree(sets[1], tmp_path_factory.mktemp("pullable") / "repo")
    alice("push", folder=folder, repo_id="alice/pullable", license="mit", public=True)
    return files_below(folder)


@pytest.mark.parametrize(("number", "fault"), cases(PULL_REQUESTS, 10))
def test_pull(
    hub: HubServer, alice: Client, pullable: dict[str, bytes], tmp_path: Path, number: int, fault: str
) -> None:
    hub.inject(skip=number, **FAULTS[fault])
    run = tmp_path / "run"
    if attempted(alice, "pull", repo_id="alice/pullable", run_dir=run) is None:
        assert not (run / "repo").exists()
    else:
        assert files_below(run / "repo") == pullable
    hub.forget()
    alice("pull", repo_id="alice/pullable", run_dir=run)
    assert files_below(run) == {f"repo/{name}": content for name, content in pullable.items()}
