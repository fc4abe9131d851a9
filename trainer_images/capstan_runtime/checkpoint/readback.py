"""Reading a commit back from where it really is: from the disk, not from the memory in which it still is.

Right after a save, the kernel holds the file's pages. A digest of these says nothing about the disk. So each file's
pages are dropped before it is read, and again after it, because nobody will need them soon. A bucket has no such cache.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.reader import OpenCheckpoint
from capstan_runtime.checkpoint.store import Readable
from capstan_runtime.contract.saving import VerifyLevel

_NICENESS = 19
_SHARE = 0.5
"""Of the time, at most so much is spent reading: the other half of the disk and of a core belongs to training."""
_LONGEST_REST_SECONDS = 2.0
"""After a read that was slow because the store was: resting as long would help nobody."""


class Pace:
    """Rests between reads so that they take no more than their share of the time, until it is told to hurry."""

    def __init__(self) -> None:
        self._hurry = threading.Event()
        self._rested_at = time.monotonic()

    def hurry(self) -> None:
        """No more rests. Any thread may call it."""
        self._hurry.set()

    def begin(self) -> None:
        """Reading begins now."""
        self._rested_at = time.monotonic()

    def rest(self, count: int = 0) -> None:
        """Called after each read; how many bytes it had does not matter, how long it took does."""
        busy = time.monotonic() - self._rested_at
        self._hurry.wait(min(busy * (1 / _SHARE - 1), _LONGEST_REST_SECONDS))
        self._rested_at = time.monotonic()


def read_back(
    opened: OpenCheckpoint, level: VerifyLevel = "full", done: Callable[[int], None] = lambda _: None
) -> None:
    """Every byte, or those that `level` says, is on the disk as it was committed.

    `done` hears how many bytes have just been read, and may take its time. Raises CorruptCheckpoint at the first wrong
    place, StoreUnavailable.
    """
    reader = opened.reader(level)
    for index, file in enumerate(opened.files):
        forget(opened.store, file.key)
        numbers = [number for number in range(len(file.pieces)) if reader.hashes(index, number)]
        reader.read_pieces(index, numbers, done)
        forget(opened.store, file.key)


def forget(store: Readable, key: str) -> None:
    """The kernel lets go of what it holds of the object in memory. Only advice, and only to a file system: one that
    does not take it, or does not know the file, is read all the same."""
    if not isinstance(store, FolderStore):
        return
    try:
        descriptor = os.open(Path(store.place, key), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # who reads it next will say what is wrong
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return
    finally:
        os.close(descriptor)


def give_way() -> None:
    """This thread, and those it starts, run when nobody else wants to. Linux counts niceness by thread."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
