"""Files and folders that are either as they were or completely new, whenever the process dies."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary file beside it: write, fsync, rename.

    The parent folder must exist.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """`write_bytes_atomically` for text, as UTF-8 and with its line ends as they are."""
    write_bytes_atomically(path, text.encode())


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Hand out an empty folder that takes the place of `folder` when the block ends without an exception.

    After an exception, Ctrl-C included, `folder` is as it was and nothing else is left. A killed process may
    leave a hidden `.NAME.*.partial` folder behind, which the next call for the same folder removes.

    Args:
        folder: What to make or replace; its parents are made.

    Yields:
        The temporary folder, beside `folder` so that a rename is enough.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    temporary.mkdir()
    try:
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        # No portable call swaps two folders: for an instant the old one is only there under its hidden name.
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
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(folder.parent)


def _sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    if os.name == "nt":
        return  # Windows syncs only what is open for writing
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
