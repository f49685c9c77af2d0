"""`pull` with the real client in its own process, over HTTP, against the server in tests/hub_server."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.hf_api import RepoFile

from idc_hub.errors import RunError
from idc_hub.hub.pull import _check_space
from tests.flow.hub_tools import Client, Refused, files_below, lr_patches, make_repository, pixels, sha256
from tests.hub_server import HubServer


def test_pull_gives_the_same_bytes_and_can_be_pushed_elsewhere(
    hub: HubServer, bob: Client, tmp_path: Path, published: tuple[str, Path]
) -> None:
    repo_id, folder = published
    run = tmp_path / "run"
    done = bob("pull", repo_id=repo_id, run_dir=run)
    assert files_below(run / "repo") == files_below(folder)
    assert {path.name for path in run.iterdir()} == {"repo", ".repo.lock"}
    assert (done["hr_versions"], done["files"]) == (["bicubic", "edsr"], 9)
    assert done["commit"] == hub.dataset(repo_id).refs["refs/heads/main"]
    hub.forget()
    assert bob("pull", repo_id=repo_id, run_dir=run, revision="v1.0.0") == done
    assert not hub.seen("GET", "/resolve/")
    assert not hub.seen("GET", origin="blobs")
    copied = bob("push", folder=run / "repo", repo_id="bob/copy", public=True)
    assert copied["tag"] == "v1.0.0"
    assert bob("load", repo_id="bob/copy", name="bicubic")["pixels"] == pixels(lr_patches(0), 1)


def test_a_part_of_a_set_is_pulled_completed_and_pushed_without_losing_the_rest(
    hub: HubServer, alice: Client, tmp_path: Path, published: tuple[str, Path]
) -> None:
    repo_id, folder = published
    before = hub.dataset(repo_id).tree()
    hub.forget()
    lr = alice("pull", repo_id=repo_id, run_dir=tmp_path / "lr", only="lr")
    assert (lr["hr_versions"], lr["files"]) == ([], len(files_below(tmp_path / "lr" / "repo")))
    assert not hub.seen("GET", "/data/")
    assert not (tmp_path / "lr" / "repo" / "data").exists()
    assert files_below(tmp_path / "lr" / "repo" / "lr") == files_below(folder / "lr")
    one = alice("pull", repo_id=repo_id, run_dir=tmp_path / "one", only="bicubic")
    assert one["hr_versions"] == ["bicubic"]
    assert files_below(tmp_path / "one" / "repo" / "data") == {
        name: digest for name, digest in files_below(folder / "data").items() if "bicubic" in str(name)
    }
    hub.forget()
    assert alice("pull", repo_id=repo_id, run_dir=tmp_path / "one", only="bicubic") == one
    assert not hub.seen("GET", "/resolve/")
    assert alice("push", folder=tmp_path / "one", repo_id=repo_id)["commit"] is None
    assert hub.dataset(repo_id).tree() == before
    with pytest.raises(Refused, match=r"has no HR version 'dat'.*bicubic, edsr, and lr"):
        alice("pull", repo_id=repo_id, run_dir=tmp_path / "none", only="dat")


def test_diff_compares_revisions_and_leaves_nothing(
    hub: HubServer, alice: Client, tmp_path: Path, published: tuple[str, Path]
) -> None:
    repo_id, folder = published
    temporary = set(Path(tempfile.gettempdir()).glob("idc-diff-*"))
    (found,) = alice("diff", a=f"{repo_id}@v1.0.0:edsr", b=f"{folder}:bicubic")["hr"]
    assert (found["a"], found["b"], found["equal"]) == ("edsr", "bicubic", 0)
    assert not hub.seen("GET", "/data/bicubic/")  # only what is compared is downloaded
    shutil.rmtree(folder)
    alice("push", folder=make_repository(folder, {"edsr": 2}, seed=3), repo_id=repo_id, replace_set=True)
    done = alice("diff", a=f"{repo_id}@v1.0.0", b=repo_id)
    assert done["a"]["lr_digest"] != done["b"]["lr_digest"]
    assert (list(done["a"]["hr_versions"]), list(done["b"]["hr_versions"])) == (["bicubic", "edsr"], ["edsr"])
    assert done["hr"] == []
    with pytest.raises(Refused, match=r"has no revision v7.0.0"):
        alice("diff", a=f"{repo_id}@v7.0.0", b=repo_id)
    assert set(Path(tempfile.gettempdir()).glob("idc-diff-*")) == temporary


def test_pull_takes_a_tag_and_leaves_foreign_files(
    hub: HubServer, alice: Client, bob: Client, tmp_path: Path, published: tuple[str, Path]
) -> None:
    repo_id, folder = published
    first = files_below(folder)
    alice("api", method="upload_file", repo_id=repo_id, repo_type="dataset", path_in_repo="data/own/x.csv", text="1")
    shutil.rmtree(folder)
    alice("push", folder=make_repository(folder, {"edsr": 2}, seed=3), repo_id=repo_id, replace_set=True)
    bob("pull", repo_id=repo_id, run_dir=tmp_path / "old", revision="v1.0.0")
    bob("pull", repo_id=repo_id, run_dir=tmp_path / "new")
    assert files_below(tmp_path / "old" / "repo") == first
    assert files_below(tmp_path / "new" / "repo") == files_below(folder)
    with pytest.raises(Refused, match=r"has no revision v7.0.0"):
        bob("pull", repo_id=repo_id, run_dir=tmp_path / "none", revision="v7.0.0")


def test_pull_never_writes_over_another_run(bob: Client, tmp_path: Path, published: tuple[str, Path]) -> None:
    run = tmp_path / "run"
    make_repository(run / "repo", {"edsr": 0})
    before = files_below(run)
    with pytest.raises(Refused, match=r"is not empty.*--run-dir") as caught:
        bob("pull", repo_id=published[0], run_dir=run)
    assert (caught.value.kind, files_below(run)) == ("RunError", before)


def test_wrong_bytes_of_the_right_length_are_found(
    hub: HubServer, bob: Client, tmp_path: Path, published: tuple[str, Path]
) -> None:
    repo_id, folder = published
    shard = folder / "lr/lr-00001-of-00001.safetensors"
    hub.inject("corrupt", method="GET", origin="blobs", path=sha256(shard))
    hub.inject("corrupt", method="GET", path="/resolve-cache/.*/recipe.yaml")
    with pytest.raises(Refused, match=r"arrived damaged: lr/lr-00001-of-00001.safetensors, recipe.yaml"):
        bob("pull", repo_id=repo_id, run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "repo").exists()
    hub.forget()
    bob("pull", repo_id=repo_id, run_dir=tmp_path / "run")
    assert files_below(tmp_path / "run" / "repo") == files_below(folder)
    assert len(hub.seen("GET", origin="blobs")) == 1


def test_an_interrupted_pull_continues(
    hub: HubServer,
    make_client: Callable[..., Client],
    bob: Client,
    tmp_path: Path,
    published: tuple[str, Path],
) -> None:
    repo_id, folder = published
    last = sha256(folder / "lr/lr-00001-of-00001.safetensors")
    stuck = hub.inject("delay", method="GET", origin="blobs", path=last, seconds=3600)
    victim = make_client("hf_bob")
    victim.start("pull", repo_id=repo_id, run_dir=tmp_path / "run")
    deadline = time.monotonic() + 60
    while not (stuck.fired and len(hub.seen("GET", origin="blobs")) == 4) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # the files that were answered reach the disk
    victim.kill()
    assert not (tmp_path / "run" / "repo").exists()
    hub.forget()
    bob("pull", repo_id=repo_id, run_dir=tmp_path / "run")
    assert files_below(tmp_path / "run") == {f"repo/{name}": data for name, data in files_below(folder).items()}
    assert [seen.path.rsplit("/", 1)[1] for seen in hub.seen("GET", origin="blobs")] == [last]


def test_names_that_lead_out_of_the_folder(
    hub: HubServer, bob: Client, tmp_path: Path, published: tuple[str, Path]
) -> None:
    repo_id, _ = published
    repository = hub.dataset(repo_id)
    head = repository.refs["refs/heads/main"]
    trap = {"data/../../../escaped": repository.put_blob(b"out")}
    repository.add_commit("refs/heads/main", repository.tree() | trap, "trap", "mallory", head)
    with pytest.raises(Refused, match="leads out of its folder"):
        bob("pull", repo_id=repo_id, run_dir=tmp_path / "a" / "b" / "run")
    assert not (tmp_path / "a").exists()
    manifest = repository.read("idc.json", head).replace(b'"bicubic"', b'"../../../escaped"')
    trap = {"idc.json": repository.put_blob(manifest)}
    repository.add_commit("refs/heads/main", repository.tree(head) | trap, "trap", "mallory", head)
    with pytest.raises(Refused, match=r"contradicts itself.*idc.json.*escaped") as caught:
        bob("pull", repo_id=repo_id, run_dir=tmp_path / "a" / "b" / "run")
    assert caught.value.exit_code == 4
    assert not files_below(tmp_path / "a")
    assert not list(tmp_path.rglob("escaped*"))


def test_patches_that_are_not_those_of_the_manifest(
    hub: HubServer, bob: Client, tmp_path: Path, published: tuple[str, Path]
) -> None:
    repo_id, folder = published
    repository = hub.dataset(repo_id)
    digest = json.loads((folder / "idc.json").read_text())["lr_digest"]
    wrong = repository.read("idc.json").replace(digest.encode(), b"0" * 64)
    head = repository.refs["refs/heads/main"]
    changed = repository.tree() | {"idc.json": repository.put_blob(wrong)}
    repository.add_commit("refs/heads/main", changed, "wrong digest", "mallory", head)
    with pytest.raises(Refused, match=r"contradicts itself.*digest"):
        bob("pull", repo_id=repo_id, run_dir=tmp_path / "run")
    assert not files_below(tmp_path / "run")


def test_a_dataset_of_another_kind(alice: Client, bob: Client, tmp_path: Path) -> None:
    alice("api", method="create_repo", repo_id="alice/plain", repo_type="dataset")
    with pytest.raises(Refused, match="is not a condensed set"):
        bob("pull", repo_id="alice/plain", run_dir=tmp_path / "run")


def test_a_gated_dataset_says_where_to_ask(
    hub: HubServer, bob: Client, tmp_path: Path, published: tuple[str, Path]
) -> None:
    hub.dataset(published[0]).update_meta(gated="auto")
    with pytest.raises(Refused, match=f"is gated.*{hub.url}/datasets/{published[0]}"):
        bob("pull", repo_id=published[0], run_dir=tmp_path / "run")


def test_two_pulls_into_one_folder(
    hub: HubServer, make_client: Callable[..., Client], tmp_path: Path, published: tuple[str, Path]
) -> None:
    repo_id, folder = published
    hub.inject("delay", method="GET", origin="blobs", seconds=1)
    clients = [make_client("hf_bob"), make_client("hf_bob")]
    for client in clients:
        client.start("pull", repo_id=repo_id, run_dir=tmp_path / "run")
    done = [client.answer() for client in clients]
    assert done[0] == done[1]
    assert files_below(tmp_path / "run") == {f"repo/{name}": data for name, data in files_below(folder).items()}


def test_a_download_that_does_not_fit(tmp_path: Path) -> None:
    entry = RepoFile(path="lr/x", size=1 << 60, oid="0", type="file")
    with pytest.raises(RunError, match=r"the download needs 1,152,921,504\.6 GB"):
        _check_space(tmp_path, tmp_path / "staging", {"lr/x": entry})
