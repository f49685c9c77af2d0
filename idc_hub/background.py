"""Work that goes on beside a block: heartbeats, progress, uploads."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def in_background(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Call `work` in a thread while the block runs.

    Args:
        work: Gets an event that is set when the block ends, and must return soon after.
    """
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
