"""Writing files on disks that are full, read-only, defective, or cannot flush."""

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from idc_hub import atomic
from idc_hub.atomic import append_line, remove_abandoned, replace_folder, write_bytes_atomically
from idc_hub.errors import IncompleteError

CODES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)


@pytest.fixture(params=["fsync", "replace"])
def faulty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The code that a system call ends with, once one is put into the list."""
    codes: list[int] = []
    real = getattr(os, request.param)

    def call(*arguments: object, **options: object) -> object:
        if codes:
            raise OSError(codes[0], os.strerror(codes[0]))
        return real(*arguments, **options)

    monkeypatch.setattr(os, request.param, call)
    return codes


@pytest.mark.parametrize("code", CODES)
def test_a_file_that_cannot_be_written_is_unchanged_and_named(code: int, faulty: list[int], tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes_atomically(path, b"before")
    faulty.append(code)
    with pytest.raises(IncompleteError, match=f"{path} could not be written: {os.strerror(code)}"):
        write_bytes_atomically(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", CODES)
def test_a_folder_that_cannot_be_written_is_unchanged_and_named(
    code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    with replace_folder(folder) as new:
        (new / "file").write_bytes(b"before")
    with pytest.raises(IncompleteError, match=f"{folder} could not be written"), replace_folder(folder) as new:
        raise OSError(code, "as pyarrow raises it")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(IncompleteError, match=f"{folder} could not be written"), replace_folder(folder) as new:
        (new / "file").write_bytes(b"after")
    assert (folder / "file").read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [folder]


def test_an_error_of_reading_in_the_block_of_a_folder_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_folder(tmp_path / "folder"):
        (tmp_path / "missing").read_bytes()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_is_written_to(
    code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    write_bytes_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_the_largest_size_of_a_file_is_named(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\nfrom idc_hub.atomic import write_bytes_atomically\n"
        "from idc_hub.errors import IncompleteError\n"
        "try: write_bytes_atomically(pathlib.Path(sys.argv[1]), bytes(100_000))\n"
        "except IncompleteError as error: print(error)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    said = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "file"],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=limit,
    )
    assert "file could not be written: File too large. Raise the largest size of a file (`ulimit -f`)" in said.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "one")
    with path.open("ab") as file:
        file.write(b"to")
    append_line(path, "three")
    assert path.read_text() == "one\nto\nthree\n"


def test_only_old_temporary_files_are_abandoned(tmp_path: Path) -> None:
    for name, age in {".a.json.1.partial": 1000, ".b.json.2.partial": 5, "a.json": 1000}.items():
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".b.json.2.partial", "a.json"}
    assert atomic.ABANDONED_SECONDS > 5


def test_a_folder_with_the_name_of_a_file_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    for keep in (True, False):
        with pytest.raises(IncompleteError, match="file could not be written"):
            write_bytes_atomically(tmp_path / "file", b"content", keep_existing=keep)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
