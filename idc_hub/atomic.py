"""Atomic writes: if the process dies, a file or folder is either unchanged or complete."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_bytes_atomically(path: Path, data: bytes, *, keep_existing: bool = False) -> None:
    """Write `data` to `path` through a temporary file beside it: write, fsync, rename.

    Args:
        path: The file; its parent folder must exist.
        data: Its content.
        keep_existing: If the file exists at the end, keep it instead of replacing it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
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


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Make or replace a folder atomically: the block fills a temporary folder, which is then renamed to `folder`.

    After an exception, including Ctrl-C, `folder` is unchanged and the temporary folder is removed. A killed process
    can leave a hidden `.NAME.*.partial` folder behind, which the next call for the same folder removes.

    Args:
        folder: The folder to make or replace; missing parents are made.

    Yields:
        The empty temporary folder, in the same parent as `folder`.
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
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(folder.parent)


def _link(temporary: Path, path: Path) -> None:
    """Give a temporary file its name, unless another process was faster."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
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
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
