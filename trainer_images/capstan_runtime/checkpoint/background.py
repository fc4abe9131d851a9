"""One save after it was staged: hashed, written and, on rank 0, committed, on threads that give way to training."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar

from capstan_runtime.checkpoint.manifest import RankManifest
from capstan_runtime.checkpoint.shards import Shard
from capstan_runtime.checkpoint.writer import (
    Save,
    SaveFailed,
    Superseded,
    commit,
    manifest_of,
    write_files,
    write_rank_manifest,
)
from capstan_runtime.contract.state import Checkpoint

Result = TypeVar("Result")

_NICENESS = 10
_WRITERS = 2
"""One waits for the disk to sync while the other fills the page cache: a third faster than one, four are no faster."""
_GRACE_SECONDS = 5.0
"""After the deadline, for a call to the store to notice. Then the thread counts as lost in it."""


class Fate(StrEnum):
    """What has become of a save on one rank."""

    BUSY = "busy"
    WRITTEN = "written"
    """All of this rank's part is in the store; rank 0 never says so, it commits."""
    COMMITTED = "committed"
    FAILED = "failed"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a save ended on this rank."""

    fate: Fate
    message: str = ""
    """One line; empty unless it failed."""
    checkpoint: Checkpoint | None = None
    """What rank 0 committed."""


class BackgroundSave:
    """A save that is being written. Calls nothing collective."""

    def __init__(
        self,
        save: Save,
        shards: list[Shard],
        deadline_seconds: float,
        on_hashed: Callable[[RankManifest], None],
        on_ended: Callable[[], None],
        on_late: Callable[[], None],
        signing_key: Path | None,
    ) -> None:
        """`on_hashed` is called when the digests of all that was staged are known, `on_ended` when the staged memory is
        not needed any more, `on_late` when the save was committed after it had counted as failed; all from other
        threads."""
        self.save = save
        self.size = sum(len(shard.data) for shard in shards)
        self.begun_at = time.monotonic()
        self.seconds = 0.0
        """From the start to the end, once it has ended."""
        self._shards = shards
        self._deadline_seconds = deadline_seconds
        self._give_up_at = self.begun_at + deadline_seconds
        self._on_hashed = on_hashed
        self._on_ended = on_ended
        self._on_late = on_late
        self._signing_key = signing_key
        self._given_up = ""
        self._first_failure: BaseException | None = None
        self._ending: Ending | None = None
        self._is_lost = False
        """It has been said to have failed, while its thread is still there."""
        self._lock = threading.Lock()
        """Guards the two above: what has been said stays said."""
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"save {save.name.step}", daemon=True)
        self._thread.start()

    @property
    def ending(self) -> Ending | None:
        """None while it goes on. What is stuck in the store has failed in the end, but its thread is still there."""
        with self._lock:
            if self._ending is None and time.monotonic() > self._give_up_at + _GRACE_SECONDS:
                self._is_lost = True
                where = f"step {self.save.name.step}, rank {self.save.rank}"
                self.give_up(f"{where}: {self.save.store.place} did not answer within {self._deadline_seconds:g} s")
            return Ending(Fate.FAILED, self._given_up) if self._is_lost else self._ending

    @property
    def needs_memory(self) -> bool:
        """Whether what was staged is still being read; true of a thread that is stuck."""
        return self._ending is None

    def wait(self, seconds: float) -> None:
        """Until it has ended, at most so long."""
        self._has_ended.wait(seconds)

    def give_up(self, why: str) -> None:
        """It shall not be committed any more; some other rank's part will never come."""
        self._given_up = why

    def _run(self) -> None:
        _give_way()
        try:
            ending = self._write()
        except Superseded as error:
            ending = Ending(Fate.SUPERSEDED, str(error))
        except SaveFailed as error:
            ending = Ending(Fate.FAILED, str(error))
        except Exception as error:  # a thread's exception reaches nobody: it must become the save's failure
            ending = Ending(Fate.FAILED, f"step {self.save.name.step}, rank {self.save.rank}: {_described(error)}")
        self._shards = []
        self.seconds = time.monotonic() - self.begun_at
        with self._lock:
            self._ending = ending
        if self._is_lost and ending.fate is Fate.COMMITTED:
            self._on_late()
        self._has_ended.set()
        self._on_ended()

    def _write(self) -> Ending:
        step = self.save.name.step
        hashing = _on_thread(self._hash, f"hash {step}")
        parts = [self._shards[number::_WRITERS] for number in range(_WRITERS)]
        writing = [_on_thread(partial(self._write_part, part), f"write {step}") for part in parts]
        wait(writing)
        manifest = hashing.result()
        if self._first_failure is not None:
            raise self._first_failure
        write_rank_manifest(self.save, manifest)
        if self.save.rank != 0:
            return Ending(Fate.WRITTEN)
        left = max(0.0, self._give_up_at - time.monotonic())
        return Ending(Fate.COMMITTED, checkpoint=commit(self.save, left, lambda: self._given_up, self._signing_key))

    def _write_part(self, shards: list[Shard]) -> None:
        try:
            write_files(self.save, shards, self._check)
        except BaseException as error:
            self._first_failure = self._first_failure or error
            raise

    def _hash(self) -> RankManifest:
        manifest = manifest_of(self.save, self._shards)
        self._on_hashed(manifest)
        return manifest

    def _check(self) -> None:
        if time.monotonic() > self._give_up_at:
            raise TimeoutError(f"not written within {self._deadline_seconds:g} s")
        if self._given_up:
            raise SaveFailed(self._given_up)
        if self._first_failure is not None:
            raise SaveFailed("another writer has failed")


def _give_way() -> None:
    """On Linux a thread has a niceness of its own, and so have those that it starts: what the step's threads need they
    get first."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS))


def _on_thread(work: Callable[[], Result], name: str) -> "Future[Result]":
    """Its result, or what it raised, later. Not an executor: Python would wait for its threads at exit."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _described(error: Exception) -> str:
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
