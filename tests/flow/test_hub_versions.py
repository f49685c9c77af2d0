"""Deleting HR versions, with the real client in its own process against the server in tests/hub_server."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flow.hub_tools import Client, Refused, lr_patches, make_repository, pixels
from tests.hub_server import HubServer


def test_a_version_is_withdrawn_in_one_commit_and_stays_away(
    hub: HubServer, alice: Client, make_client: Callable[..., Client], tmp_path: Path, published: tuple[str, Path]
) -> None:
    repo_id, folder = published
    with pytest.raises(Refused, match=r"edsr is the default.*--default: bicubic") as caught:
        alice("delete_version", run_or_repo=repo_id, name="edsr")
    assert caught.value.exit_code == 2
    with pytest.raises(Refused, match=r"no HR version 'swinir'.*bicubic, edsr"):
        alice("delete_version", run_or_repo=repo_id, name="swinir")
    done = alice("delete_version", run_or_repo=repo_id, name="edsr", default="bicubic")
    repository = hub.dataset(repo_id)
    assert (done["tag"], done["default"]) == ("v2.0.0", "bicubic")
    assert repository.refs["refs/tags/v2.0.0"] == repository.refs["refs/heads/main"] == done["commit"]
    assert repository.history()[0]["title"] == "Withdraw HR version edsr"
    assert len(repository.history()) == 3
    assert not [path for path in repository.tree() if path.startswith("data/edsr/")]
    card = repository.read("README.md").decode()
    assert "license: mit" in card
    assert "Withdrawn hr versions" in card
    consumer = make_client("hf_alice")
    assert consumer("configs", repo_id=repo_id) == ["bicubic"]
    assert consumer("load", repo_id=repo_id)["pixels"] == pixels(lr_patches(0), 1)
    assert consumer("load", repo_id=repo_id, name="edsr", revision="v1.0.0")["pixels"] == pixels(lr_patches(0), 0)

    with pytest.raises(Refused, match=r"edsr were withdrawn from.*--replace edsr"):
        alice("push", folder=folder, repo_id=repo_id)
    alice("pull", repo_id=repo_id, run_dir=tmp_path / "run")
    assert alice("push", folder=tmp_path / "run" / "repo", repo_id=repo_id)["commit"] is None
    back = alice("push", folder=folder, repo_id=repo_id, replace=["edsr"])
    assert back["tag"] == "v2.1.0"
    assert "withdrawn" not in repository.read("idc.json").decode()


def test_a_withdrawal_whose_tag_was_lost_is_finished_by_the_next_call(
    hub: HubServer, alice: Client, published: tuple[str, Path]
) -> None:
    repo_id, _ = published
    hub.inject("status", method="POST", path=f"/{repo_id}/tag/", status=403)
    with pytest.raises(Refused, match="could not be tagged"):
        alice("delete_version", run_or_repo=repo_id, name="bicubic")
    head = hub.dataset(repo_id).refs["refs/heads/main"]
    done = alice("delete_version", run_or_repo=repo_id, name="bicubic")
    assert (done["commit"], done["tag"]) == (head, "v2.0.0")


def test_a_version_is_deleted_from_a_folder(alice: Client, tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "repo", {"edsr": 0, "bicubic": 1})
    done = alice("delete_version", run_or_repo=folder, name="edsr", default="bicubic")
    assert (done["default"], done["commit"]) == ("bicubic", None)
    assert [path.name for path in (folder / "data").iterdir()] == ["bicubic"]
    facts = json.loads((folder / "idc.json").read_text())
    assert (list(facts["hr_versions"]), facts["default"]) == (["bicubic"], "bicubic")
    with pytest.raises(Refused, match="only HR version"):
        alice("delete_version", run_or_repo=folder, name="bicubic")
    assert alice("push", folder=folder, repo_id="alice/smaller", license="mit")["tag"] == "v1.0.0"


def test_a_config_that_datasets_deleted(
    hub: HubServer, alice: Client, make_client: Callable[..., Client], tmp_path: Path, published: tuple[str, Path]
) -> None:
    repo_id, folder = published
    make_client("hf_alice")("delete_config", repo_id=repo_id, name="edsr")  # opens a pull request
    repository = hub.dataset(repo_id)
    repository.set_ref("refs/heads/main", repository.refs["refs/pr/1"])
    pulled = alice("pull", repo_id=repo_id, run_dir=tmp_path / "run")
    assert pulled["hr_versions"] == ["bicubic"]
    assert "edsr were deleted" in pulled["repair"]
    with pytest.raises(Refused, match="edsr were withdrawn"):
        alice("push", folder=folder, repo_id=repo_id)
    done = alice("push", folder=tmp_path / "run" / "repo", repo_id=repo_id)
    assert done["tag"] == "v2.0.0"
    consumer = make_client("hf_alice")
    assert consumer("configs", repo_id=repo_id) == ["bicubic"]
    assert consumer("load", repo_id=repo_id)["pixels"] == pixels(lr_patches(0), 1)


def test_a_deleted_manifest(hub: HubServer, alice: Client, tmp_path: Path, published: tuple[str, Path]) -> None:
    repo_id, folder = published
    before = hub.dataset(repo_id).read("idc.json")
    alice("api", method="delete_file", path_in_repo="idc.json", repo_id=repo_id, repo_type="dataset")
    pulled = alice("pull", repo_id=repo_id, run_dir=tmp_path / "run")
    assert "no idc.json any more; the one of v1.0.0 was used" in pulled["repair"]
    assert json.loads((tmp_path / "run/repo/idc.json").read_bytes()) == json.loads(before)
    done = alice("push", folder=folder, repo_id=repo_id)
    assert done["uploads"] == ["idc.json"]
    assert hub.dataset(repo_id).read("idc.json") == before
