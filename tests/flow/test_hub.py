"""`push` with the real client in its own process, over HTTP, against the server in tests/hub_server."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import idc_hub
from idc_hub.runs.claims import claim
from tests.flow.hub_tools import Client, Refused, files_below, lr_patches, make_repository, pixels, sha256, write_prose
from tests.hub_server import HubServer

KEYS = [["bird", 0], ["bird", 1], ["bird", 2], ["house", 0], ["zebra", 0], ["zebra", 1]]
GENERATED = {
    "README.md",
    "idc.json",
    "recipe.yaml",
    "lr/lr-00001-of-00001.safetensors",
    "lr/lr.safetensors.index.json",
    "data/edsr/train-00000-of-00002.parquet",
    "data/edsr/train-00001-of-00002.parquet",
}


def commits(hub: HubServer, repo_id: str) -> int:
    """Number of commits, without the initial one that adds .gitattributes."""
    return len(hub.dataset(repo_id).history()) - 1


def edit_card(client: Client, repo_id: str, text: str) -> None:
    """Edit the card on the Hub, as a user does on the web page."""
    client("api", method="upload_file", repo_id=repo_id, repo_type="dataset", path_in_repo="README.md", text=text)


class TestRelease:
    def test_what_was_pushed_loads_in_every_way(
        self, hub: HubServer, alice: Client, make_client: Callable[..., Client], tmp_path: Path
    ) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0, "swinir-m": 1})
        done = alice("push", folder=folder, repo_id="alice/release", license="mit")
        assert (done["tag"], done["private"], done["deletions"]) == ("v1.0.0", True, [])
        assert set(done["uploads"]) == set(done["files"]) > GENERATED
        repository = hub.dataset("alice/release")
        assert repository.refs["refs/heads/main"] == repository.refs["refs/tags/v1.0.0"] == done["commit"]
        assert commits(hub, "alice/release") == 1
        assert set(repository.tree()) == set(done["files"]) | {".gitattributes"}

        consumer = make_client("hf_alice")
        assert consumer("configs", repo_id="alice/release") == ["edsr", "swinir-m"]
        default = consumer("load", repo_id="alice/release")
        assert default["columns"] == ["instance_id", "patch_index", "lr", "hr"]
        assert default["keys"] == KEYS
        assert default["pixels"] == pixels(lr_patches(0), 0)
        second = consumer("load", repo_id="alice/release", name="swinir-m")
        assert (second["keys"], second["pixels"]) == (KEYS, pixels(lr_patches(0), 1))
        assert consumer("load", repo_id="alice/release", revision="v1.0.0") == default
        assert consumer("load", repo_id="alice/release", name="swinir-m", streaming=True) == second
        assert not [seen for seen in hub.log if seen.origin == "blobs" and seen.with_token]

    def test_private_means_that_others_see_nothing(self, alice: Client, bob: Client, tmp_path: Path) -> None:
        alice("push", folder=make_repository(tmp_path / "repo", {"edsr": 0}), repo_id="alice/hidden", license="mit")
        with pytest.raises(Refused, match="no dataset alice/hidden"):
            bob("pull", repo_id="alice/hidden", run_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_bare_name_goes_to_the_own_account(self, hub: HubServer, bob: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        done = bob("push", folder=folder, repo_id="bare-name", license="mit", public=True)
        assert (done["repo_id"], done["private"]) == ("bob/bare-name", False)
        assert not hub.dataset("bob/bare-name").meta["private"]

    def test_nothing_changed_makes_no_commit(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        alice("push", folder=folder, repo_id="alice/twice", license="mit")
        before = hub.dataset("alice/twice").refs
        hub.forget()
        again = alice("push", folder=folder, repo_id="alice/twice")
        assert (again["commit"], again["uploads"], again["tag"], again["card_diff"]) == (None, [], "v1.0.0", "")
        assert hub.dataset("alice/twice").refs == before
        assert not hub.seen("PUT")
        assert not hub.seen("POST")

    def test_a_dry_run_changes_nothing(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        before = files_below(folder)
        planned = alice("push", folder=folder, repo_id="alice/planned", license="mit", dry_run=True)
        assert set(planned["uploads"]) == GENERATED
        assert planned["files"]["recipe.yaml"] == (folder / "recipe.yaml").stat().st_size
        assert "+license: mit" in planned["card_diff"]
        assert (planned["commit"], planned["tag"]) == (None, None)
        assert hub.state.find("dataset", "alice/planned") is None
        assert not hub.seen("POST")
        assert not hub.seen("PUT")
        assert files_below(folder) == before


class TestNextRelease:
    def test_a_new_hr_version_costs_its_own_bytes_only(
        self, hub: HubServer, alice: Client, make_client: Callable[..., Client], tmp_path: Path
    ) -> None:
        alice("push", folder=make_repository(tmp_path / "one", {"edsr": 0}), repo_id="alice/grows", license="mit")
        first = hub.dataset("alice/grows").refs["refs/heads/main"]
        hub.forget()
        more = make_repository(tmp_path / "two", {"edsr": 0, "swinir-m": 1})
        done = alice("push", folder=more, repo_id="alice/grows")
        new = {f"data/swinir-m/train-0000{k}-of-00002.parquet" for k in (0, 1)}
        assert set(done["uploads"]) == new | {"README.md", "idc.json"}
        assert set(hub.sent()) == {sha256(more / path) for path in new}
        assert (done["tag"], commits(hub, "alice/grows")) == ("v1.1.0", 2)
        assert hub.dataset("alice/grows").refs["refs/tags/v1.0.0"] == first
        consumer = make_client("hf_alice")
        assert consumer("load", repo_id="alice/grows", name="swinir-m")["pixels"] == pixels(lr_patches(0), 1)
        with pytest.raises(Refused, match="swinir-m"):
            consumer("load", repo_id="alice/grows", name="swinir-m", revision="v1.0.0")

    def test_new_lr_patches_replace_our_files_and_no_others(
        self, hub: HubServer, alice: Client, tmp_path: Path
    ) -> None:
        old = make_repository(tmp_path / "old", {"edsr": 0, "bicubic": 1})
        (old / "report").mkdir()
        (old / "report" / "patches.png").write_bytes(b"\x89PNG" + bytes(20))
        alice("push", folder=old, repo_id="alice/anew", license="mit")
        theirs = {"notes.md": "mine", "data/own/train-00000-of-00001.parquet": "rows", "lr/thoughts.txt": "mine"}
        for path, text in theirs.items():
            alice("api", method="upload_file", repo_id="alice/anew", repo_type="dataset", path_in_repo=path, text=text)
        new = make_repository(tmp_path / "new", {"edsr": 0}, seed=1)
        hub.forget()
        with pytest.raises(Refused, match=r"another set.*bicubic, edsr.*leave the main.*--replace-set") as caught:
            alice("push", folder=new, repo_id="alice/anew")
        assert caught.value.exit_code == 4
        assert not hub.seen("POST")
        planned = alice("push", folder=new, repo_id="alice/anew", dry_run=True)
        done = alice("push", folder=new, repo_id="alice/anew", replace_set=True)
        assert planned["replaces_set"]
        assert planned["deletions"] == done["deletions"]
        assert done["tag"] == "v2.0.0"
        gone = {f"data/bicubic/train-0000{k}-of-00002.parquet" for k in (0, 1)} | {"report/patches.png"}
        assert set(done["deletions"]) == gone
        assert set(hub.dataset("alice/anew").tree()) == GENERATED | set(theirs) | {".gitattributes"}

    def test_another_default_is_a_minor_and_prose_a_patch_release(
        self, hub: HubServer, alice: Client, tmp_path: Path
    ) -> None:
        folder = make_repository(tmp_path / "one", {"edsr": 0, "bicubic": 1})
        alice("push", folder=folder, repo_id="alice/steps", license="mit")
        (folder / "README.md").write_text(write_prose((folder / "README.md").read_text(), "Written here."))
        done = alice("push", folder=folder, repo_id="alice/steps")
        assert (done["tag"], done["uploads"]) == ("v1.0.1", ["README.md"])
        assert "Written here." in hub.dataset("alice/steps").read("README.md").decode()
        turned = make_repository(tmp_path / "two", {"bicubic": 1, "edsr": 0})
        done = alice("push", folder=turned, repo_id="alice/steps")
        assert done["tag"] == "v1.1.0"
        assert set(done["uploads"]) == {"README.md", "idc.json"}
        card = hub.dataset("alice/steps").read("README.md").decode()
        assert "Written here." in card
        assert "default: true" in card.split("config_name: bicubic")[1].split("config_name")[0]

    def test_a_version_that_only_the_hub_has_stays(
        self, hub: HubServer, alice: Client, make_client: Callable[..., Client], tmp_path: Path
    ) -> None:
        both = make_repository(tmp_path / "both", {"swinir-m": 1, "edsr": 0})
        alice("push", folder=both, repo_id="alice/shared", license="mit")
        first = hub.dataset("alice/shared").tree()
        stale = make_repository(tmp_path / "one", {"edsr": 0, "bicubic": 2})
        done = alice("push", folder=stale, repo_id="alice/shared")
        assert (done["tag"], done["kept"], done["deletions"]) == ("v1.1.0", ["swinir-m"], [])
        tree = hub.dataset("alice/shared").tree()
        assert {path: tree[path] for path in first if "data/" in path} == {p: first[p] for p in first if "data/" in p}
        facts = json.loads(hub.dataset("alice/shared").read("idc.json"))
        assert (set(facts["hr_versions"]), facts["default"]) == ({"edsr", "swinir-m", "bicubic"}, "swinir-m")
        card = hub.dataset("alice/shared").read("README.md").decode()
        size = sum(path.stat().st_size for path in (both / "data" / "swinir-m").iterdir())
        assert f"download_size: {size}" in card.split("dataset_info:")[1]
        consumer = make_client("hf_alice")
        assert consumer("configs", repo_id="alice/shared") == ["bicubic", "edsr", "swinir-m"]
        assert consumer("load", repo_id="alice/shared")["pixels"] == pixels(lr_patches(0), 1)
        again = alice("push", folder=stale, repo_id="alice/shared")
        assert (again["commit"], again["tag"]) == (None, "v1.1.0")

    def test_a_version_of_the_same_name_is_replaced_only_if_asked(
        self, hub: HubServer, alice: Client, tmp_path: Path
    ) -> None:
        alice("push", folder=make_repository(tmp_path / "one", {"edsr": 0}), repo_id="alice/named", license="mit")
        head = hub.dataset("alice/named").refs["refs/heads/main"]
        other = make_repository(tmp_path / "two", {"edsr": 1})
        with pytest.raises(Refused, match=r"same name made otherwise: edsr.*--replace edsr") as caught:
            alice("push", folder=other, repo_id="alice/named")
        assert caught.value.exit_code == 4
        assert hub.dataset("alice/named").refs["refs/heads/main"] == head
        assert alice("push", folder=other, repo_id="alice/named", dry_run=True)["replaced"] == ["edsr"]
        with pytest.raises(Refused, match=r"--replace names swinir") as caught:
            alice("push", folder=other, repo_id="alice/named", replace=["swinir"])
        assert caught.value.exit_code == 2
        done = alice("push", folder=other, repo_id="alice/named", replace=["edsr"])
        assert (done["tag"], done["replaced"]) == ("v2.0.0", ["edsr"])
        assert hub.dataset("alice/named").history()[0]["title"] == "Replace HR version edsr"


class TestIgnored:
    def test_files_that_the_hub_would_ignore_are_named_before_anything_is_sent(
        self, hub: HubServer, alice: Client, tmp_path: Path
    ) -> None:
        alice("api", method="create_repo", repo_id="alice/ignoring", repo_type="dataset")
        edit_card(alice, "alice/ignoring", "Soon.")
        text = "# mine\n*.log\ndata/\nreport/*.png\n"
        repository = hub.dataset("alice/ignoring")
        head = repository.refs["refs/heads/main"]
        lines = {".gitignore": repository.put_blob(text.encode())}
        repository.add_commit("refs/heads/main", repository.tree() | lines, "ignore", "alice", head)
        head = repository.refs["refs/heads/main"]
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        hub.forget()
        with pytest.raises(Refused, match=r"ignore data/edsr/train-0.*Remove the lines data/ from") as caught:
            alice("push", folder=folder, repo_id="alice/ignoring", license="mit")
        assert caught.value.exit_code == 4
        assert not hub.sent()
        assert repository.refs == {"refs/heads/main": head}
        alice(
            "api",
            method="upload_file",
            repo_id="alice/ignoring",
            repo_type="dataset",
            path_in_repo=".gitignore",
            text="*.log",
        )
        assert alice("push", folder=folder, repo_id="alice/ignoring", license="mit")["tag"] == "v1.0.0"

    def test_a_commit_that_lost_a_file_gets_no_tag(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        alice("push", folder=make_repository(tmp_path / "one", {"edsr": 0}), repo_id="alice/drops", license="mit")
        repository = hub.dataset("alice/drops")
        more = make_repository(tmp_path / "two", {"edsr": 0, "bicubic": 1})
        gone = "data/bicubic/train-00001-of-00002.parquet"

        def drop() -> None:
            head = repository.refs["refs/heads/main"]
            commit = repository.commit(head)
            assert gone in commit["tree"]
            del commit["tree"][gone]
            (repository.folder / "commits" / f"{head}.json").write_text(json.dumps(commit))

        hub.inject("hook", method="GET", path="/alice/drops/tree/", skip=1, hook=drop)
        with pytest.raises(Refused, match=f"not what was sent.*no tag.*{gone}") as caught:
            alice("push", folder=more, repo_id="alice/drops")
        assert caught.value.exit_code == 4
        assert set(repository.refs) == {"refs/heads/main", "refs/tags/v1.0.0"}
        assert alice("push", folder=more, repo_id="alice/drops")["tag"] == "v1.1.0"


class TestCard:
    def test_what_its_user_wrote_on_the_hub_survives(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "one", {"edsr": 0})
        alice("push", folder=folder, repo_id="alice/prose", license="mit")
        card = hub.dataset("alice/prose").read("README.md").decode()
        edited = write_prose(card.replace("---\n", "---\nviewer: false  # slow\n", 1), "Please cite my paper.")
        edit_card(alice, "alice/prose", edited)
        more = make_repository(tmp_path / "two", {"edsr": 0, "bicubic": 1})
        alice("push", folder=more, repo_id="alice/prose")
        merged = hub.dataset("alice/prose").read("README.md")
        assert b"viewer: false  # slow\n" in merged
        assert merged.decode().endswith("Please cite my paper.\n")
        assert b"config_name: bicubic" in merged
        assert b"license: mit" in merged
        assert (more / "README.md").read_bytes() == merged

    def test_the_card_pins_the_release_with_its_files(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        def pinned() -> list[str]:
            card = hub.dataset("alice/pinned").read("README.md").decode()
            return sorted(set(re.findall('revision="(.*?)"', card)))

        folder = make_repository(tmp_path / "one", {"edsr": 0})
        alice("push", folder=folder, repo_id="alice/pinned", license="mit")
        assert pinned() == ["v1.0.0"]
        (folder / "README.md").write_text(write_prose((folder / "README.md").read_text(), "Some words."))
        assert alice("push", folder=folder, repo_id="alice/pinned")["tag"] == "v1.0.1"
        assert pinned() == ["v1.0.0"]  # the files are those of v1.0.0
        assert alice("push", folder=folder, repo_id="alice/pinned")["commit"] is None
        more = make_repository(tmp_path / "two", {"edsr": 0, "bicubic": 1})
        assert alice("push", folder=more, repo_id="alice/pinned")["tag"] == "v1.1.0"
        assert pinned() == ["v1.1.0"]

    def test_an_owners_config_on_the_hub_survives_a_push(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "one", {"edsr": 0})
        alice("push", folder=folder, repo_id="alice/extra", license="mit")
        card = hub.dataset("alice/extra").read("README.md").decode()
        own = "configs:\n- config_name: masks\n  data_files: masks.parquet\n"
        edit_card(alice, "alice/extra", card.replace("configs:\n", own, 1))
        alice("push", folder=make_repository(tmp_path / "two", {"edsr": 0, "bicubic": 1}), repo_id="alice/extra")
        card = hub.dataset("alice/extra").read("README.md").decode()
        assert "- config_name: masks\n  data_files: masks.parquet\n" in card
        assert "neither made nor checked them: `masks`" in card

    def test_an_edited_section_is_kept_beside_the_folder(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "one", {"edsr": 0})
        alice("push", folder=folder, repo_id="alice/inside", license="mit")
        edited = hub.dataset("alice/inside").read("README.md").decode().replace("## Load it", "My words.\n\n## Load it")
        edit_card(alice, "alice/inside", edited)
        alice("push", folder=folder, repo_id="alice/inside")
        assert "My words." not in hub.dataset("alice/inside").read("README.md").decode()
        assert [path.read_text() for path in tmp_path.glob("one-README-*.md")] == [edited]

    def test_the_newer_of_two_texts_wins(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "one", {"edsr": 0})
        (folder / "README.md").write_text(write_prose((folder / "README.md").read_text(), "From the start."))
        alice("push", folder=folder, repo_id="alice/newer", license="mit")
        edit_card(alice, "alice/newer", write_prose((folder / "README.md").read_text(), "Later, on the Hub."))
        more = make_repository(tmp_path / "two", {"edsr": 0, "bicubic": 1})
        (more / "README.md").write_text(write_prose((more / "README.md").read_text(), "From the start."))
        alice("push", folder=more, repo_id="alice/newer")
        card = hub.dataset("alice/newer").read("README.md").decode()
        assert card.endswith("\nFrom the start.\n\nLater, on the Hub.\n")
        assert "config_name: bicubic" in card

    def test_an_untouched_page_needs_no_release(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        alice("push", folder=folder, repo_id="alice/page", license="mit")
        edit_card(alice, "alice/page", write_prose((folder / "README.md").read_text(), "Only on the Hub."))
        done = alice("push", folder=folder, repo_id="alice/page")
        assert (done["commit"], done["tag"]) == (None, "v1.0.0")
        assert "Only on the Hub." in (folder / "README.md").read_text()

    def test_edits_in_two_places_are_a_question_not_a_guess(
        self, hub: HubServer, alice: Client, tmp_path: Path
    ) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        alice("push", folder=folder, repo_id="alice/torn", license="mit")
        card = (folder / "README.md").read_text()
        edit_card(alice, "alice/torn", write_prose(card, "There."))
        (folder / "README.md").write_text(write_prose(card, "Here."))
        with pytest.raises(Refused, match="edited both"):
            alice("push", folder=folder, repo_id="alice/torn")
        assert (folder / "README.md").read_text().endswith("Here.\n")
        assert hub.dataset("alice/torn").read("README.md").endswith(b"There.\n")

    def test_a_page_that_was_there_before_is_kept(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        alice("api", method="create_repo", repo_id="alice/page-first", repo_type="dataset")
        edit_card(alice, "alice/page-first", "---\nlicense: mit\n---\n\nComing soon.\n")
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        done = alice("push", folder=folder, repo_id="alice/page-first")
        card = hub.dataset("alice/page-first").read("README.md").decode()
        assert done["tag"] == "v1.0.0"
        assert card.endswith("\nComing soon.\n")
        assert "license: mit" in card


class TestRenamed:
    def test_the_new_name_is_used_everywhere(
        self, hub: HubServer, alice: Client, make_client: Callable[..., Client], tmp_path: Path
    ) -> None:
        folder = make_repository(tmp_path / "one", {"edsr": 0})
        alice("push", folder=folder, repo_id="alice/before", license="mit")
        hub.state.rename("dataset", "alice/before", "alice/after")
        more = make_repository(tmp_path / "two", {"edsr": 0, "bicubic": 1})
        done = alice("push", folder=more, repo_id="alice/before")
        assert (done["repo_id"], done["tag"]) == ("alice/after", "v1.1.0")
        assert done["url"] == f"{hub.url}/datasets/alice/after"
        card = hub.dataset("alice/after").read("README.md").decode()
        assert "alice/after" in card
        assert "alice/before" not in card
        pulled = make_client("hf_alice")("pull", repo_id="alice/before", run_dir=tmp_path / "run")
        assert (pulled["repo_id"], pulled["hr_versions"]) == ("alice/after", ["bicubic", "edsr"])


class TestTrouble:
    def test_somebody_else_commits_in_between(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        alice("push", folder=make_repository(tmp_path / "one", {"edsr": 0}), repo_id="alice/race", license="mit")
        repository = hub.dataset("alice/race")

        def edit() -> None:
            head, card = repository.refs["refs/heads/main"], repository.read("README.md").decode()
            entry = repository.put_blob(write_prose(card, "In between.").encode())
            repository.add_commit("refs/heads/main", repository.tree() | {"README.md": entry}, "x", "carol", head)

        hub.forget()
        hook = hub.inject("hook", method="POST", path="/alice/race/commit/", hook=edit)
        more = make_repository(tmp_path / "two", {"edsr": 0, "bicubic": 1})
        done = alice("push", folder=more, repo_id="alice/race")
        assert hook.fired == 1
        assert [seen.status for seen in hub.seen("POST", "/commit/")] == [412, 200]
        assert [commit["author"] for commit in repository.history()] == ["alice", "carol", "alice", "alice"]
        assert repository.read("README.md").endswith(b"In between.\n")
        assert done["tag"] == "v1.1.0"
        assert set(hub.sent().values()) == {(more / path).stat().st_size for path in done["uploads"] if "data/" in path}

    def test_somebody_else_publishes_another_version_in_between(
        self, hub: HubServer, alice: Client, make_client: Callable[..., Client], tmp_path: Path
    ) -> None:
        repo_id = "alice/versions-race"
        alice("push", folder=make_repository(tmp_path / "one", {"edsr": 0}), repo_id=repo_id, license="mit")
        theirs = make_repository(tmp_path / "theirs", {"edsr": 0, "swinir-m": 2})
        other = make_client("hf_alice")
        hook = hub.inject(
            "hook",
            method="POST",
            path=f"/{repo_id}/commit/",
            hook=lambda: other("push", folder=theirs, repo_id=repo_id),
        )
        mine = make_repository(tmp_path / "mine", {"edsr": 0, "bicubic": 1})
        done = alice("push", folder=mine, repo_id=repo_id)
        assert hook.fired == 1
        assert (done["tag"], done["kept"]) == ("v1.2.0", ["swinir-m"])
        consumer = make_client("hf_alice")
        assert consumer("load", repo_id=repo_id, name="swinir-m")["pixels"] == pixels(lr_patches(0), 2)
        assert consumer("load", repo_id=repo_id, name="bicubic")["pixels"] == pixels(lr_patches(0), 1)
        assert sorted(path.name for path in (mine / "data").iterdir()) == ["bicubic", "edsr"]
        assert "swinir-m" not in (mine / "README.md").read_text()

    def test_a_race_that_is_lost_every_time_is_a_sentence(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        fault = hub.inject("status", method="POST", path="/alice/busy/commit/", status=412, times=99)
        with pytest.raises(Refused, match="alice/busy changed on the Hub") as caught:
            alice("push", folder=folder, repo_id="alice/busy", license="mit")
        assert (fault.fired, caught.value.exit_code) == (5, 4)
        hub.forget()
        done = alice("push", folder=folder, repo_id="alice/busy", license="mit")
        assert done["tag"] == "v1.0.0"
        assert hub.sent() == {}

    @pytest.mark.parametrize("what", ["commit", "tag"])
    def test_an_answer_that_got_lost(self, hub: HubServer, alice: Client, tmp_path: Path, what: str) -> None:
        fault = hub.inject("lost", method="POST", path=f"/alice/lost-{what}/{what}/")
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        done = alice("push", folder=folder, repo_id=f"alice/lost-{what}", license="mit")
        refs = hub.dataset(f"alice/lost-{what}").refs
        assert fault.fired == 1
        assert set(done["uploads"]) == GENERATED
        assert refs == {"refs/heads/main": done["commit"], "refs/tags/v1.0.0": done["commit"]}
        assert commits(hub, f"alice/lost-{what}") == 1

    def test_a_commit_that_fails_once_is_tried_again(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        hub.inject("status", method="POST", path="/alice/stumbles/commit/", status=500)
        done = alice(
            "push", folder=make_repository(tmp_path / "r", {"edsr": 0}), repo_id="alice/stumbles", license="mit"
        )
        assert done["tag"] == "v1.0.0"
        assert commits(hub, "alice/stumbles") == 1

    def test_a_release_that_could_not_be_tagged_is_tagged_by_the_next_push(
        self, hub: HubServer, alice: Client, tmp_path: Path
    ) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        hub.inject("status", method="POST", path="/alice/untagged/tag/", status=403)
        with pytest.raises(Refused, match="could not be tagged"):
            alice("push", folder=folder, repo_id="alice/untagged", license="mit")
        head = hub.dataset("alice/untagged").refs["refs/heads/main"]
        again = alice("push", folder=folder, repo_id="alice/untagged")
        assert (again["commit"], again["tag"]) == (None, "v1.0.0")
        assert hub.dataset("alice/untagged").refs["refs/tags/v1.0.0"] == head

    def test_a_killed_upload_leaves_the_old_release_and_continues(
        self, hub: HubServer, alice: Client, make_client: Callable[..., Client], tmp_path: Path
    ) -> None:
        alice("push", folder=make_repository(tmp_path / "one", {"edsr": 0}), repo_id="alice/killed", license="mit")
        head = hub.dataset("alice/killed").refs["refs/heads/main"]
        more = make_repository(tmp_path / "two", {"edsr": 0, "bicubic": 1, "swinir-m": 2})
        hub.forget()
        stuck = hub.inject("delay", method="POST", path="/alice/killed.git/info/lfs", seconds=3600, skip=7)
        victim = make_client("hf_alice")
        victim.start("push", folder=more, repo_id="alice/killed")
        deadline = time.monotonic() + 60
        while not stuck.fired and time.monotonic() < deadline:
            time.sleep(0.02)
        victim.kill()
        arrived = {oid for oid in hub.sent() if hub.dataset("alice/killed").lfs_path(oid).exists()}
        new = {
            sha256(more / f"data/{v}/train-0000{k}-of-00002.parquet") for v in ("bicubic", "swinir-m") for k in (0, 1)
        }
        assert stuck.fired
        assert 0 < len(arrived) < len(new)
        assert hub.dataset("alice/killed").refs["refs/heads/main"] == head
        consumer = make_client("hf_alice")
        assert consumer("load", repo_id="alice/killed")["pixels"] == pixels(lr_patches(0), 0)

        hub.forget()
        done = alice("push", folder=more, repo_id="alice/killed")
        assert set(hub.sent()) == new - arrived
        assert done["tag"] == "v1.1.0"
        assert commits(hub, "alice/killed") == 2

    def test_the_rate_limit_says_how_long_to_wait(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        hub.inject(
            "status", method="POST", path="/alice/limited/commit/", status=429, headers={"RateLimit": '"api";r=0;t=77'}
        )
        with pytest.raises(Refused, match=r"rate limit.*Wait 77 seconds") as caught:
            alice("push", folder=make_repository(tmp_path / "r", {"edsr": 0}), repo_id="alice/limited", license="mit")
        assert caught.value.exit_code == 4

    def test_a_mirror_without_auth_check(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        alice("push", folder=folder, repo_id="alice/mirror", license="mit")
        hub.inject("status", method="GET", path="/alice/mirror/auth-check", status=404, times=9)
        assert alice("push", folder=folder, repo_id="alice/mirror")["tag"] == "v1.0.0"

    def test_an_answer_that_is_not_utf8(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        hub.inject("status", method="GET", path="/api/whoami-v2", status=200, body=b'{"name": "\xff"}')
        with pytest.raises(Refused, match="did not answer like a Hub") as caught:
            alice("push", folder=make_repository(tmp_path / "r", {"edsr": 0}), repo_id="alice/odd", license="mit")
        assert caught.value.exit_code == 4

    def test_the_folder_is_locked_while_it_is_pushed(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        waited = []

        def try_lock() -> None:
            with claim(folder.parent, f".{folder.name}") as is_free:
                waited.append(not is_free)

        hub.inject("hook", method="POST", path="/alice/locked/commit/", hook=try_lock)
        alice("push", folder=folder, repo_id="alice/locked", license="mit")
        assert waited == [True]


class TestRefusals:
    """Each is one sentence with exit code 4 (2 for a missing argument), and nothing is sent."""

    @pytest.mark.parametrize(
        ("token", "repo_id", "words"),
        [
            ("hf_wrong_secret", "alice/new", "does not accept this token"),
            ("hf_s\u00e9cret\u2026", "alice/new", "token contains characters"),
            ("hf_two\nlines", "alice/new", "token contains characters"),
            ("hf_alice_reads", "alice/new", "no permission.*write access"),
            ("hf_bob", "alice/new", "no permission.*alice"),
            ("hf_bob", "lab/new", "no permission.*lab"),
            ("hf_bob", "alice/theirs", "no permission.*--create-pr"),
            ("hf_alice", "alice/a--b", "not a valid name for a dataset"),
            ("hf_alice", "alice/notes.ipynb", "rejected the request.*Invalid repo name"),
            ("hf_alice", "alice/pictures", "not a dataset of idc-hub"),
        ],
    )
    def test_push(self, hub: HubServer, alice: Client, tmp_path: Path, token: str, repo_id: str, words: str) -> None:
        for repo, path in (("alice/theirs", "README.md"), ("alice/pictures", "cat.txt")):
            if hub.state.find("dataset", repo) is None:
                alice("api", method="create_repo", repo_id=repo, repo_type="dataset")
                alice("api", method="upload_file", repo_id=repo, repo_type="dataset", path_in_repo=path, text="meow")
        hub.forget()
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        with pytest.raises(Refused, match=words) as caught:
            alice("push", folder=folder, repo_id=repo_id, license="mit", token=token)
        assert (caught.value.kind, caught.value.exit_code) == ("HubError", 4)
        assert "hf_" not in caught.value.message
        assert token not in alice.stderr.read_text()
        assert not hub.seen("PUT")
        assert not hub.seen("POST", "/commit/")

    def test_no_token(self, hub: HubServer, make_client: Callable[..., Client], tmp_path: Path) -> None:
        nobody = make_client(None)
        with pytest.raises(Refused, match=r"no Hugging Face token.*HF_TOKEN.*hf auth login") as caught:
            nobody("push", folder=make_repository(tmp_path / "r", {"edsr": 0}), repo_id="alice/x", license="mit")
        assert caught.value.exit_code == 4
        assert not hub.log
        with pytest.raises(Refused, match=r"no dataset alice/nowhere.*HF_TOKEN"):
            nobody("pull", repo_id="alice/nowhere", run_dir=tmp_path / "run")

    def test_offline(self, make_client: Callable[..., Client], tmp_path: Path) -> None:
        offline = make_client("hf_alice", HF_HUB_OFFLINE="1")
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        with pytest.raises(Refused, match="HF_HUB_OFFLINE") as caught:
            offline("push", folder=folder, repo_id="alice/x", license="mit")
        assert caught.value.exit_code == 4
        unreachable = make_client("hf_alice", HF_ENDPOINT="http://127.0.0.1:9")
        with pytest.raises(Refused, match=r"connection to http://127.0.0.1:9 failed"):
            unreachable("pull", repo_id="alice/x", run_dir=tmp_path / "run")

    def test_the_default_transport_without_its_storage(
        self, hub: HubServer, make_client: Callable[..., Client], tmp_path: Path
    ) -> None:
        xet = make_client("hf_alice", HF_HUB_DISABLE_XET="0")
        with pytest.raises(Refused, match=r"storage could not be used.*xet-write-token.*Run the same") as caught:
            xet("push", folder=make_repository(tmp_path / "r", {"edsr": 0}), repo_id="alice/xet", license="mit")
        assert caught.value.exit_code == 4
        assert commits(hub, "alice/xet") == 0

    def test_no_license(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        with pytest.raises(Refused, match=r"needs a license.*--license") as caught:
            alice("push", folder=make_repository(tmp_path / "repo", {"edsr": 0}), repo_id="alice/unlicensed")
        assert caught.value.exit_code == 2
        assert hub.state.find("dataset", "alice/unlicensed") is None

    def test_a_license_that_the_hub_does_not_know(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        with pytest.raises(Refused, match=r"no license 'Apache-2\.0'.*mean apache-2\.0") as caught:
            alice("push", folder=folder, repo_id="alice/odd-license", license="Apache-2.0")
        assert caught.value.exit_code == 2
        assert hub.state.find("dataset", "alice/odd-license") is None

    def test_a_full_storage_is_no_problem_of_the_token(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        body = b'{"error": "Private repository storage limit reached, please upgrade your plan."}'
        hub.inject("status", method="POST", path="/alice/full/commit/", status=403, body=body, times=9)
        with pytest.raises(
            Refused, match=r"refused to store more for the owner of alice/full.*Free some space"
        ) as caught:
            alice("push", folder=folder, repo_id="alice/full", license="mit")
        assert caught.value.exit_code == 4

    def test_another_license_needs_a_name_and_a_link(self, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        with pytest.raises(Refused, match=r"needs a name and a link.*--license-name"):
            alice("push", folder=folder, repo_id="alice/own-terms", license="other")
        terms = {"license": "other", "license_name": "research-only", "license_link": "LICENSE"}
        with pytest.raises(Refused, match=r"links to LICENSE, but .* has no such file"):
            alice("push", folder=folder, repo_id="alice/own-terms", **terms)
        (folder / "LICENSE").write_text("For research only.")
        done = alice("push", folder=folder, repo_id="alice/own-terms", **terms)
        assert "LICENSE" in done["uploads"]
        again = alice("push", folder=folder, repo_id="alice/own-terms", license="other")
        assert (again["commit"], again["tag"]) == (None, "v1.0.0")
        alice("pull", repo_id="alice/own-terms", run_dir=tmp_path / "run")
        assert (tmp_path / "run/repo/LICENSE").read_text() == "For research only."
        (folder / "LICENSE").unlink()  # it may have been written on the Hub: a push leaves it there
        assert alice("push", folder=folder, repo_id="alice/own-terms")["deletions"] == []

    def test_a_tree_that_does_not_load_is_not_sent(self, hub: HubServer, alice: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0, "bicubic": 1})
        (folder / "data/bicubic/train-00001-of-00002.parquet").write_bytes(b"PAR1 and then nothing")
        with pytest.raises(Refused, match=r"bicubic has \d+ bytes; idc.json says") as caught:
            alice("push", folder=folder, repo_id="alice/broken", license="mit")
        assert (caught.value.kind, caught.value.exit_code) == ("RunError", 1)
        assert not hub.log


class TestPullRequest:
    def test_bob_adds_a_version_to_the_set_of_alice(
        self, hub: HubServer, alice: Client, bob: Client, tmp_path: Path
    ) -> None:
        folder = make_repository(tmp_path / "one", {"edsr": 0})
        alice("push", folder=folder, repo_id="alice/open", license="mit", public=True)
        before = hub.dataset("alice/open").refs
        more = make_repository(tmp_path / "two", {"edsr": 0, "bicubic": 1})
        done = bob("push", folder=more, repo_id="alice/open", create_pr=True)
        assert done["pull_request"] == f"{hub.url}/datasets/alice/open/discussions/1"
        assert done["tag"] is None
        refs = hub.dataset("alice/open").refs
        assert refs == before | {"refs/pr/1": done["commit"]}
        assert "data/bicubic/train-00000-of-00002.parquet" in hub.dataset("alice/open").tree("refs/pr/1")

    def test_the_same_command_updates_the_open_one(
        self, hub: HubServer, alice: Client, bob: Client, tmp_path: Path
    ) -> None:
        repo_id = "alice/repeated"
        alice(
            "push", folder=make_repository(tmp_path / "one", {"edsr": 0}), repo_id=repo_id, license="mit", public=True
        )
        for name, teacher in {"swinir-m": 2, "dat": 3}.items():  # with them the list has two pages
            other = make_repository(tmp_path / name, {"edsr": 0, name: teacher})
            bob("push", folder=other, repo_id=repo_id, create_pr=True)
        folder = make_repository(tmp_path / "two", {"edsr": 0, "bicubic": 1})
        hub.inject("lost", method="POST", path=f"/{repo_id}/commit/")
        first = bob("push", folder=folder, repo_id=repo_id, create_pr=True)
        repository = hub.dataset(repo_id)
        assert first["pull_request"] == f"{hub.url}/datasets/{repo_id}/discussions/3"
        again = bob("push", folder=folder, repo_id=repo_id, create_pr=True)
        assert (again["pull_request"], again["commit"]) == (first["pull_request"], first["commit"])
        assert repository.refs["refs/pr/3"] == first["commit"]
        changed = make_repository(tmp_path / "three", {"edsr": 0, "bicubic": 4})
        updated = bob("push", folder=changed, repo_id=repo_id, create_pr=True)
        assert updated["pull_request"] == first["pull_request"]
        assert repository.refs["refs/pr/3"] == updated["commit"]
        assert repository.commit(updated["commit"])["parent"] == first["commit"]
        assert set(updated["uploads"]) >= {f"data/bicubic/train-0000{k}-of-00002.parquet" for k in (0, 1)}
        assert {ref for ref in repository.refs if "pr" in ref} == {"refs/pr/1", "refs/pr/2", "refs/pr/3"}

    def test_two_pull_requests_with_different_versions_can_both_be_merged(
        self, hub: HubServer, alice: Client, bob: Client, make_client: Callable[..., Client], tmp_path: Path
    ) -> None:
        repo_id = "alice/two-requests"
        alice(
            "push", folder=make_repository(tmp_path / "one", {"edsr": 0}), repo_id=repo_id, license="mit", public=True
        )
        carol = make_client("hf_carol")
        theirs = make_repository(tmp_path / "carol", {"swinir-m": 2, "edsr": 0})  # another default
        first = bob(
            "push", folder=make_repository(tmp_path / "bob", {"edsr": 0, "bicubic": 1}), repo_id=repo_id, create_pr=True
        )
        carol("push", folder=theirs, repo_id=repo_id, create_pr=True)
        repository = hub.dataset(repo_id)
        repository.set_ref("refs/heads/main", first["commit"])  # Alice merges Bob's
        again = carol("push", folder=theirs, repo_id=repo_id, create_pr=True)
        assert repository.commit(again["commit"])["parent"] == first["commit"]
        assert repository.commit(again["commit"])["title"].startswith("Add HR version swinir-m (6 patches, LR ")
        repository.set_ref("refs/heads/main", again["commit"])
        assert json.loads(repository.read("idc.json"))["default"] == "edsr"
        consumer = make_client("hf_alice")
        for name, teacher in {"edsr": 0, "bicubic": 1, "swinir-m": 2}.items():
            assert consumer("load", repo_id=repo_id, name=name)["pixels"] == pixels(lr_patches(0), teacher)
        assert consumer("load", repo_id=repo_id) == consumer("load", repo_id=repo_id, name="edsr")

    def test_a_contributor_does_not_change_the_license(
        self, hub: HubServer, alice: Client, bob: Client, tmp_path: Path
    ) -> None:
        folder = make_repository(tmp_path / "one", {"edsr": 0})
        alice("push", folder=folder, repo_id="alice/licensed", license="mit", public=True)
        more = make_repository(tmp_path / "two", {"edsr": 0, "bicubic": 1})
        with pytest.raises(Refused, match=r"has the license mit.*--license") as caught:
            bob("push", folder=more, repo_id="alice/licensed", license="other", create_pr=True)
        assert caught.value.exit_code == 2
        alice("push", folder=more, repo_id="alice/licensed", license="cc0-1.0")
        title = hub.dataset("alice/licensed").history()[0]["title"]
        assert title.startswith("Add HR version bicubic (")
        assert title.endswith("; Change the license from mit to cc0-1.0")

    def test_there_must_be_something_to_open_it_on(self, bob: Client, tmp_path: Path) -> None:
        folder = make_repository(tmp_path / "repo", {"edsr": 0})
        with pytest.raises(Refused, match="no dataset alice/void to open a pull request on"):
            bob("push", folder=folder, repo_id="alice/void", license="mit", create_pr=True)


def test_a_report_is_never_pushed(hub: HubServer, alice: Client, tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "run" / "repo", {"edsr": 0})
    page = Path(idc_hub.report(tmp_path / "run", progress=False).path)
    assert page.is_file()
    shutil.copy(page, folder / "report.html")
    (folder / "report").mkdir()
    shutil.copy(page, folder / "report" / "index.html")
    alice("push", folder=folder, repo_id="alice/reported", license="mit")
    assert not [path for path in hub.dataset("alice/reported").tree() if path.endswith(".html")]
