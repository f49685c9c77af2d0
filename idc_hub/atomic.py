"""Atomic writes: if the process dies, a file or folder is either unchanged or complete.

A full disk, and every other error of the system while a file is written, becomes an `IncompleteError`.
"""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from idc_hub.errors import IncompleteError

ABANDONED_SECONDS = 120.0
"""Age after which a temporary file belongs to a process that died."""

_AGAIN = "Run the same command again: what is finished is kept."
HINTS = {
    errno.ENOSPC: f"Make room there. {_AGAIN}",
    errno.EDQUOT: f"Make room within your quota. {_AGAIN}",
    errno.EFBIG: f"Raise the largest size of a file (`ulimit -f`). {_AGAIN}",
    errno.EIO: f"The disk or the network file system does not work properly. {_AGAIN}",
    errno.EROFS: "Choose a folder that may be written.",
}
"""What to do about an error of the disk, by its number."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system while `path` is written into a sentence.

    Raises:
        IncompleteError: The disk is full, read-only or defective, or something else prevents writing.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise IncompleteError(
            f"{path} could not be written: {reason}.", HINTS.get(error.errno or 0, f"Check this path. {_AGAIN}")
        ) from error


def write_bytes_atomically(path: Path, data: bytes, *, keep_existing: bool = False) -> None:
    """Write `data` to `path` through a temporary file beside it: write, fsync, rename.

    Args:
        path: The file; its parent folder must exist.
        data: Its content.
        keep_existing: If the file exists at the end, keep it instead of replacing it.

    Raises:
        IncompleteError: The file could not be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                _flush(file.fileno())
            if keep_existing:
                _link(temporary, path)
            else:
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """`write_bytes_atomically` for text, as UTF-8 without converting line ends."""
    write_bytes_atomically(path, text.encode())


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file; a line that a kill cut short before it stays alone on its own.

    Raises:
        IncompleteError: The file could not be written.
    """
    with writing(path), path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        else:
            torn = False
        file.write(b"\n" * torn + line.encode() + b"\n")


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder."""
    for temporary in folder.glob(".*.partial"):
        if temporary.is_file() and time.time() - temporary.stat().st_mtime > ABANDONED_SECONDS:
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Make or replace a folder atomically: the block fills a temporary folder, which is then renamed to `folder`.

    After an exception, including Ctrl-C, `folder` is unchanged and the temporary folder is removed. A killed process
    can leave a hidden `.NAME.*.partial` folder behind, which the next call for the same folder removes.

    Args:
        folder: The folder to make or replace; missing parents are made.

    Yields:
        The empty temporary folder, in the same parent as `folder`.

    Raises:
        IncompleteError: The folder could not be written.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(abandoned, ignore_errors=True)
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
        temporary.mkdir()
    try:
        try:
            yield temporary
        except OSError as error:
            if error.errno not in HINTS:
                raise  # the block failed to read something
            with writing(folder):
                raise
        with writing(folder):
            _swap(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _swap(temporary: Path, folder: Path) -> None:
    """Give a complete temporary folder its name, in place of the one that has it."""
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    # No portable call swaps two folders: for an instant the old one exists only under a hidden name.
    replaced = temporary.with_name(temporary.name.replace(".partial", ".old.partial"))
    if folder.exists():
        folder.rename(replaced)
    try:
        temporary.rename(folder)
    except BaseException:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    _sync(folder.parent)


def _link(temporary: Path, path: Path) -> None:
    """Give a temporary file its name, unless another process was faster."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        if not path.is_file():
            raise
    except OSError:  # a file system without hard links
        if not path.exists():
            temporary.replace(path)
    temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if os.name == "nt":
        return  # Windows only syncs files that are open for writing
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def _flush(descriptor: int) -> None:
    """Flush to the disk; some network and FUSE file systems cannot, and are written to anyway."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
