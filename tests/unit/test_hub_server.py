"""The server in tests/hub_server, checked over plain HTTP against the protocol that the real client relies on."""

import base64
import hashlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.hub_server import HubServer
from tests.unit.hub_http import CARD, SET, Hub, call, git_sha1, lfs, regular


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "state", multipart_above=100, part_size=40) as running:
        yield running


@pytest.fixture
def hub(server: HubServer) -> Hub:
    return Hub(server)


class TestAccounts:
    def test_whoami(self, hub: Hub) -> None:
        answer = hub("/api/whoami-v2").json()
        assert (answer["name"], [org["name"] for org in answer["orgs"]]) == ("alice", ["lab"])
        assert hub("/api/whoami-v2", token=None).status == 401
        wrong = hub("/api/whoami-v2", token="hf_nobody")
        assert (wrong.status, wrong.headers["x-error-message"]) == (401, "Invalid credentials in Authorization header")

    def test_creating(self, hub: Hub) -> None:
        again = hub("/api/repos/create", {"name": "set", "type": "dataset"})
        assert (again.status, again.json()["url"]) == (409, f"{hub.server.url}/datasets/alice/set")
        foreign = {"name": "x", "organization": "alice", "type": "dataset"}
        assert hub("/api/repos/create", foreign, token="hf_bob").status == 403
        assert hub("/api/repos/create", {"name": "x", "type": "dataset"}, token="hf_alice_reads").status == 403
        assert hub("/api/repos/create", {"name": "x", "organization": "lab", "type": "dataset"}).status == 200
        assert hub("/api/repos/create", {"name": "a--b", "type": "dataset"}).status == 400
        assert hub("/api/repos/create", {"name": "x"}, token=None).status == 401
        assert list(hub.server.dataset("alice/set").tree()) == [".gitattributes"]

    def test_a_private_repository_looks_like_none(self, hub: Hub) -> None:
        assert hub(SET, token=None).status == 200
        hub(f"{SET}/settings", {"visibility": "private"}, method="PUT")
        for path in (SET, f"{SET}/refs", f"{SET}/tree/main", "/datasets/alice/set/resolve/main/.gitattributes"):
            nobody, bob = hub(path, token=None), hub(path, token="hf_bob")
            assert (nobody.status, bob.status) == (401, 404)
            assert nobody.headers["x-error-code"] == bob.headers["x-error-code"] == "RepoNotFound"
            assert hub(path).status in (200, 307)
        assert hub(f"{SET}/auth-check/write", token="hf_alice_reads").status == 403
        assert hub(f"{SET}/auth-check/write").status == 200
        assert hub("/api/datasets/alice/none").status == 404

    def test_a_gated_repository_shows_its_listing_only(self, hub: Hub) -> None:
        hub(f"{SET}/settings", {"gated": "auto"}, method="PUT")
        assert hub(f"{SET}/tree/main", token="hf_bob").status == 200
        refused = hub("/datasets/alice/set/resolve/main/.gitattributes", token="hf_bob")
        assert (refused.status, refused.headers["x-error-code"]) == (403, "GatedRepo")


class TestLargeFiles:
    def test_an_object_is_uploaded_once(self, hub: Hub) -> None:
        oid = hub.upload(b"content")
        batch = {"operation": "upload", "objects": [{"oid": oid, "size": 7}], "ref": {"name": "main"}}
        (answer,) = hub("/datasets/alice/set.git/info/lfs/objects/batch", batch).json()["objects"]
        assert "actions" not in answer
        assert hub.server.sent() == {oid: 7}

    def test_the_blob_store_checks_what_it_gets(self, hub: Hub) -> None:
        batch = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 3}], "ref": {"name": "main"}}
        (answer,) = hub("/datasets/alice/set.git/info/lfs/objects/batch", batch).json()["objects"]
        href = answer["actions"]["upload"]["href"]
        assert urlsplit(href).port != urlsplit(hub.server.url).port
        assert call(href, "PUT", b"abc").status == 400  # another sha256
        assert call(href, "PUT", b"abc", token="hf_alice").status == 400  # a token has no business here
        assert call(href.replace("signature=", "signature=0"), "PUT", b"abc").status == 403
        assert call(href).status == 403  # signed for PUT, not for GET
        assert not hub.server.dataset("alice/set").lfs_path("0" * 64).exists()

    def test_parts(self, hub: Hub) -> None:
        content = bytes(range(101))
        oid = hashlib.sha256(content).hexdigest()
        batch = {"operation": "upload", "objects": [{"oid": oid, "size": 101}], "ref": {"name": "main"}}
        answer = hub("/datasets/alice/set.git/info/lfs/objects/batch", batch).json()
        upload = answer["objects"][0]["actions"]["upload"]
        header = dict(upload["header"])
        assert (answer["transfer"], header.pop("chunk_size"), len(header)) == ("multipart", "40", 3)
        parts = []
        for number, name in enumerate(sorted(header)):
            put = call(header[name], "PUT", content[40 * number : 40 * number + 40])
            parts.append({"partNumber": number + 1, "etag": put.headers["etag"]})
        finish = upload["href"]
        assert call(finish, "POST", {"oid": oid, "parts": parts[:2]}).status == 400
        assert call(finish, "POST", {"oid": oid, "parts": [*parts[:2], parts[2] | {"etag": "x"}]}).status == 400
        assert call(finish.replace("signature=", "signature=0"), "POST", {"oid": oid, "parts": parts}).status == 403
        assert call(finish, "POST", {"oid": oid, "parts": parts}).status == 200  # no token: the address is signed
        assert hub.server.dataset("alice/set").lfs_path(oid).read_bytes() == content
        assert hub.server.sent() == {oid: 101}

    def test_which_files_are_large(self, hub: Hub) -> None:
        oid = hub.upload(b"rows")
        hub.commit(lfs("a.parquet", oid, 4), regular("b.txt", b"text"))

        def file(path: str, sample: bytes, size: int) -> dict[str, Any]:
            return {"path": path, "sample": base64.b64encode(sample).decode(), "size": size}

        files = [
            file("a.parquet", b"x", 4),
            file("b.txt", b"text", 4),
            file("c.txt", b"a\0b", 3),
            file("d.txt", b"text", 10 * 2**20 + 1),
        ]
        answer = hub(f"{SET}/preupload/main", {"files": files}).json()["files"]
        assert [f["uploadMode"] for f in answer] == ["lfs", "regular", "lfs", "lfs"]
        assert [f.get("oid") for f in answer] == [oid, git_sha1(b"text"), None, None]
        assert all(f["shouldIgnore"] is False for f in answer)


class TestCommits:
    def test_everything_or_nothing(self, hub: Hub) -> None:
        oid = hub.upload(b"rows")
        hub.commit(lfs("data/a.parquet", oid, 4), regular("README.md", CARD))
        head = hub.head()
        bad: list[tuple[int, tuple[str, dict[str, Any]]]] = [
            (400, lfs("b.bin", "0" * 64, 4)),
            (400, lfs("b.bin", oid, 5)),
            (400, regular("big.txt", b"x" * (10 * 2**20 + 1))),
            (400, regular("README.md", b"---\nlicense: whatever\n---\n")),
            (400, regular("README.md", b"---\n: [\n---\n")),
            (400, regular("data", b"a folder by that name exists")),
            (400, regular("README.md/x", b"a file by that name exists")),
            (400, regular("../x", b"out")),
            (400, regular("a//b", b"?")),
            (404, ("deletedFile", {"path": "nothing"})),
            (404, ("deletedFolder", {"path": "nothing/"})),
            (400, ("moved", {"path": "README.md"})),
        ]
        for status, line in bad:
            answer = hub.commit(regular("good.txt", b"good"), line)
            assert answer.status == status, line[1]["path"]
        assert hub.commit(("deletedFile", {"path": "nothing"})).headers["x-error-code"] == "EntryNotFound"
        assert hub.head() == head
        assert hub(f"{SET}/commit/main", b"").status == 400

    def test_a_commit(self, hub: Hub) -> None:
        oid = hub.upload(b"rows")
        first = hub.commit(lfs("data/a.parquet", oid, 4), regular("README.md", CARD), regular("x/y/z.txt", b"z"))
        sha = first.json()["commitOid"]
        assert first.json()["commitUrl"] == f"{hub.server.url}/datasets/alice/set/commit/{sha}"
        assert (hub.head(), len(sha)) == (sha, 40)
        second = hub.commit(("deletedFolder", {"path": "x/"}), ("deletedFile", {"path": "README.md"}))
        assert second.status == 200
        repository = hub.server.dataset("alice/set")
        assert sorted(repository.tree()) == [".gitattributes", "data/a.parquet"]
        assert repository.read("x/y/z.txt", sha) == b"z"
        titles = [commit["title"] for commit in hub(f"{SET}/commits/main").json()]
        assert titles == ["test", "test", "initial commit"]

    def test_a_stale_parent_is_refused(self, hub: Hub) -> None:
        head = hub.head()
        assert hub.commit(regular("a", b"1"), parentCommit=head).status == 200
        assert hub.commit(regular("a", b"2"), parentCommit=head).status == 412
        assert hub.server.dataset("alice/set").read("a") == b"1"

    def test_many_at_once_lose_nothing(self, hub: Hub) -> None:
        def add(name: str) -> None:
            for number in range(3):
                while hub.commit(regular(f"{name}{number}", b"x"), parentCommit=hub.head()).status == 412:
                    pass

        threads = [threading.Thread(target=add, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(hub.server.dataset("alice/set").tree()) == 13
        assert len(hub.server.dataset("alice/set").history()) == 13

    def test_who_may_commit(self, hub: Hub) -> None:
        line = json.dumps({"key": "header", "value": {"summary": "x"}}).encode()
        assert hub(f"{SET}/commit/main", line, token="hf_bob").status == 403
        assert hub(f"{SET}/commit/main", line, token=None).status == 401
        assert hub(f"{SET}/commit/nowhere", line).headers["x-error-code"] == "RevisionNotFound"

    def test_a_pull_request_leaves_main_alone(self, hub: Hub) -> None:
        head = hub.head()
        line = json.dumps({"key": "header", "value": {"summary": "x", "parentCommit": head}}).encode()
        answer = hub(f"{SET}/commit/main?create_pr=1", line, token="hf_bob").json()
        assert answer["pullRequestUrl"] == f"{hub.server.url}/datasets/alice/set/discussions/1"
        assert hub.head() == head
        assert hub(f"{SET}/revision/refs%2Fpr%2F1").json()["sha"] == answer["commitOid"]
        assert [ref["ref"] for ref in hub(f"{SET}/refs?include_prs=1").json()["pullRequests"]] == ["refs/pr/1"]
        assert "pullRequests" not in hub(f"{SET}/refs").json()

    def test_a_body_that_was_cut_is_no_commit(self, hub: Hub) -> None:
        head = hub.head()
        lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": regular("a", b"1")[1]}]
        body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        connection = http.client.HTTPConnection(urlsplit(hub.server.url).netloc)
        connection.putrequest("POST", f"{SET}/commit/main")
        connection.putheader("Authorization", "Bearer hf_alice")
        connection.putheader("Content-Length", str(len(body) + 10))
        connection.endheaders(body)
        connection.close()
        time.sleep(0.1)
        assert hub.head() == head


class TestRefs:
    def test_tags_are_made_once(self, hub: Hub) -> None:
        first = hub.head()
        assert hub(f"{SET}/tag/{first}", {"tag": "v1.0.0"}).status == 200
        hub.commit(regular("a", b"1"))
        assert hub(f"{SET}/tag/main", {"tag": "v1.0.0"}).status == 409
        assert hub(f"{SET}/tag/nowhere", {"tag": "v2"}).status == 404
        assert hub(f"{SET}/revision/v1.0.0").json()["sha"] == first
        assert hub(f"{SET}/revision/{first[:7]}").json()["sha"] == first
        assert hub(f"{SET}/tag/v1.0.0", method="DELETE").status == 200
        assert hub(f"{SET}/revision/v1.0.0").headers["x-error-code"] == "RevisionNotFound"

    def test_branches_with_slashes(self, hub: Hub) -> None:
        assert hub(f"{SET}/branch/feat%2Fx", {}).status == 200
        assert hub(f"{SET}/branch/feat%2Fx", {}).status == 409
        assert hub.commit(regular("a", b"1"), path=f"{SET}/commit/feat%2Fx").status == 200
        assert "a" not in hub.server.dataset("alice/set").tree()
        assert [entry["path"] for entry in hub(f"{SET}/tree/feat%2Fx").json()] == [".gitattributes", "a"]


class TestReading:
    def test_a_listing(self, hub: Hub) -> None:
        oid = hub.upload(b"rows")
        hub.commit(lfs("data/v/a.parquet", oid, 4), regular("README.md", CARD))
        top = {entry["path"]: entry for entry in hub(f"{SET}/tree/main").json()}
        assert {path: entry["type"] for path, entry in top.items()} == {
            ".gitattributes": "file",
            "README.md": "file",
            "data": "directory",
        }
        assert (top["README.md"]["oid"], top["README.md"]["size"]) == (git_sha1(CARD), len(CARD))
        assert [entry["path"] for entry in hub(f"{SET}/tree/main/data%2Fv").json()] == ["data/v/a.parquet"]
        assert hub(f"{SET}/tree/main/date").headers["x-error-code"] == "EntryNotFound"
        everything = hub(f"{SET}/tree/main?recursive=True").json()
        assert [entry["path"] for entry in everything][2:] == ["data", "data/v", "data/v/a.parquet"]
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 4\n".encode()
        assert everything[-1] == {
            "type": "file",
            "path": "data/v/a.parquet",
            "oid": git_sha1(pointer),
            "size": 4,
            "lfs": {"oid": oid, "size": 4, "pointerSize": len(pointer)},
        }
        expanded = hub(f"{SET}/tree/main?expand=true").json()
        assert expanded[0]["lastCommit"]["title"] == "initial commit"
        assert expanded[1]["lastCommit"]["title"] == "test"

    def test_pages(self, hub: Hub) -> None:
        repository = hub.server.dataset("alice/set")
        entry = repository.put_blob(b"x")
        tree = {f"{number:04d}.txt": entry for number in range(1001)}
        repository.add_commit("refs/heads/main", tree, "many", "alice", None)
        first = hub(f"{SET}/tree/main?recursive=True")
        url, relation = first.headers["link"].split("; ")
        second = call(url.strip("<>"), token="hf_alice")
        assert relation == 'rel="next"'
        assert "link" not in second.headers
        assert [e["path"] for e in first.json() + second.json()] == sorted(tree)
        assert len(hub(f"{SET}/tree/main?expand=true").json()) == 50

    def test_paths_come_as_a_form(self, hub: Hub) -> None:
        hub.commit(regular("a/b.txt", b"1"))
        form = b"paths=a&paths=a%2Fb.txt&paths=none&expand=false"
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = hub(f"{SET}/paths-info/main", form, headers=headers).json()
        assert [(entry["type"], entry["path"]) for entry in answer] == [("directory", "a"), ("file", "a/b.txt")]

    def test_info(self, hub: Hub) -> None:
        oid = hub.upload(b"rows")
        hub.commit(lfs("a.parquet", oid, 4), regular("README.md", CARD))
        info = hub(f"{SET}?blobs=True").json()
        assert (info["id"], info["sha"], info["private"]) == ("alice/set", hub.head(), False)
        assert info["cardData"] == {"license": "mit"}
        assert info["siblings"][2]["rfilename"] == "a.parquet"
        assert info["siblings"][2]["lfs"]["sha256"] == oid
        assert set(hub(f"{SET}?expand=sha").json()) == {"id", "_id", "sha"}

    def test_a_large_file_lies_on_the_other_origin(self, hub: Hub) -> None:
        oid = hub.upload(b"0123456789")
        hub.commit(lfs("a.bin", oid, 10))
        for method in ("HEAD", "GET"):
            redirect = hub("/datasets/alice/set/resolve/main/a.bin", method=method)
            assert (redirect.status, redirect.body) == (302, b"")
            assert redirect.headers["x-repo-commit"] == hub.head()
            assert redirect.headers["x-linked-etag"] == f'"{oid}"'
            assert redirect.headers["x-linked-size"] == "10"
        url = redirect.headers["location"]
        assert urlsplit(url).port != urlsplit(hub.server.url).port
        blob = call(url)
        assert (blob.body, oid in blob.headers["etag"]) == (b"0123456789", False)
        assert call(url, token="hf_alice").status == 400

        def part(header: str) -> tuple[int, bytes, str | None]:
            answer = call(url, headers={"Range": header})
            return answer.status, answer.body, answer.headers.get("content-range")

        assert part("bytes=2-4") == (206, b"234", "bytes 2-4/10")
        assert part("bytes=7-") == (206, b"789", "bytes 7-9/10")
        assert part("bytes=-3") == (206, b"789", "bytes 7-9/10")
        assert part("bytes=8-99") == (206, b"89", "bytes 8-9/10")
        assert part("bytes=10-") == (416, b"", "bytes */10")

    def test_a_regular_file_stays_on_the_hub(self, hub: Hub) -> None:
        hub.commit(regular("a b.txt", b"text"))
        redirect = hub("/datasets/alice/set/resolve/main/a%20b.txt", method="HEAD")
        assert redirect.status == 307
        assert redirect.headers["location"] == f"/api/resolve-cache/datasets/alice/set/{hub.head()}/a%20b.txt"
        file = hub(redirect.headers["location"])
        assert file.body == b"text"
        assert (file.headers["etag"], file.headers["x-repo-commit"]) == (f'"{git_sha1(b"text")}"', hub.head())
        assert hub(redirect.headers["location"], method="HEAD").headers["content-length"] == "4"
        missing = hub("/datasets/alice/set/resolve/main/none.txt")
        assert (missing.status, missing.headers["x-error-code"]) == (404, "EntryNotFound")
        assert missing.headers["x-repo-commit"] == hub.head()

    def test_an_address_grows_old(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        oid = hub.upload(b"rows")
        hub.commit(lfs("a.bin", oid, 4))
        url = hub("/datasets/alice/set/resolve/main/a.bin").headers["location"]
        late = time.time() + 7200
        monkeypatch.setattr(time, "time", lambda: late)
        assert call(url).status == 403

    def test_cards(self, hub: Hub) -> None:
        def validate(card: str) -> tuple[int, int, int]:
            answer = hub("/api/validate-yaml", {"content": card, "repoType": "dataset"})
            return answer.status, len(answer.json()["errors"]), len(answer.json()["warnings"])

        assert validate("---\nlicense: mit\n---\n") == (200, 0, 0)
        assert validate("no metadata") == (200, 0, 1)
        assert validate("---\nlicense: nonsense\n---\n") == (400, 1, 0)
        assert validate("---\n- a\n---\n") == (400, 1, 0)
        twice = "configs:\n- {config_name: a, default: true}\n- {config_name: a, default: true}\n"
        assert validate(f"---\n{twice}---\n") == (400, 2, 0)


class TestFaults:
    def test_status_and_counting(self, hub: Hub) -> None:
        fault = hub.server.inject("status", path="/refs", status=503, headers={"Retry-After": "1"}, skip=1, times=2)
        assert [hub(f"{SET}/refs").status for _ in range(4)] == [200, 503, 503, 200]
        assert fault.fired == 2
        assert hub(SET).status == 200

    def test_lost_is_done_and_reset_is_not(self, hub: Hub) -> None:
        hub.server.inject("lost", method="POST", path="/commit/")
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            hub.commit(regular("a", b"1"))
        assert "a" in hub.server.dataset("alice/set").tree()
        hub.server.inject("reset", method="POST", path="/commit/", after=20)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            hub.commit(regular("b", b"1"))
        assert "b" not in hub.server.dataset("alice/set").tree()

    def test_cut_and_corrupt(self, hub: Hub) -> None:
        oid = hub.upload(b"0123456789")
        hub.commit(lfs("a.bin", oid, 10))
        url = hub("/datasets/alice/set/resolve/main/a.bin").headers["location"]
        hub.server.inject("cut", origin="blobs", method="GET")
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            call(url)
        hub.server.inject("corrupt", origin="blobs", method="GET")
        wrong = call(url).body
        assert (len(wrong), wrong == b"0123456789") == (10, False)
        assert call(url).body == b"0123456789"

    def test_hook_and_delay(self, hub: Hub) -> None:
        called: list[bool] = []
        hub.server.inject("hook", path="/refs", hook=lambda: called.append(True))
        hub.server.inject("delay", path="/whoami", seconds=0.2)
        assert hub(f"{SET}/refs").status == 200
        assert called == [True]
        start = time.monotonic()
        assert hub("/api/whoami-v2").status == 200
        assert time.monotonic() - start >= 0.2

    def test_an_unknown_kind(self, hub: Hub) -> None:
        with pytest.raises(ValueError, match="no kind of fault"):
            hub.server.inject("typo")


def test_a_server_on_the_same_folder_remembers(tmp_path: Path) -> None:
    with HubServer(tmp_path) as server:
        hub = Hub(server)
        oid = hub.upload(b"rows")
        hub.commit(lfs("a.parquet", oid, 4), regular("README.md", CARD))
        head = hub.head()
    with HubServer(tmp_path) as server:
        repository = server.dataset("alice/set")
        assert repository.refs == {"refs/heads/main": head}
        assert (repository.read("a.parquet"), repository.read("README.md")) == (b"rows", CARD)


def test_a_chunked_body_and_a_kept_connection(hub: Hub) -> None:
    connection = http.client.HTTPConnection(urlsplit(hub.server.url).netloc, timeout=10)
    for number in range(3):
        lines = [("header", {"summary": "x", "description": ""}), regular(str(number), b"1")]
        chunks = [json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in lines]
        connection.request("POST", f"{SET}/commit/main", iter(chunks), {"Authorization": "Bearer hf_alice"})
        response = connection.getresponse()
        assert (response.status, len(json.loads(response.read())["commitOid"])) == (200, 40)
    connection.close()
    assert set(hub.server.dataset("alice/set").tree()) == {".gitattributes", "0", "1", "2"}


def test_the_log_tells_who_sent_what(hub: Hub) -> None:
    hub.server.forget()
    hub(SET, token=None)
    hub.upload(b"rows")
    (get,) = hub.server.seen("GET", SET)
    (put,) = hub.server.seen("PUT", origin="blobs")
    assert (get.origin, get.with_token, get.status) == ("hub", False, 200)
    assert (put.with_token, put.received, put.status) == (False, 4, 200)
