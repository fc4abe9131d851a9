"""After a commit: reading it back, and removing old checkpoints without ever removing what a run might need.

Kept: the newest `last`, and the two newest that verify, read back from the store. So before anything goes, two that
stay have been proven. What fails the proof is quarantined, and what is left of dead attempts is swept up. An attempt
that has been superseded removes nothing: the newer one may be reading it.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.checkpoint.candidates import Candidate, list_candidates
from capstan_runtime.checkpoint.choose import quarantine_and_report
from capstan_runtime.checkpoint.claims import newer_fence
from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.layout import COMMIT, SaveName
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.contract.config import VerifyLevel
from capstan_runtime.contract.state import Checkpoint, Quarantine
from capstan_runtime.errors import CorruptCheckpoint, StoreUnavailable

_PROVEN = 2


@dataclass(frozen=True, slots=True)
class Rules:
    """What is kept, and how it is proven."""

    store: Path
    run: str
    fence: int
    keep_last: int
    verify: VerifyLevel


class Retention:
    """Runs on rank 0, on a thread of its own, so that training does not wait for it; one sweep at a time."""

    def __init__(
        self,
        rules: Rules,
        on_checkpoint: Callable[[Checkpoint], None],
        on_quarantine: Callable[[Quarantine], None],
        on_trouble: Callable[[str], None],
        disk: Disk,
    ) -> None:
        """`on_checkpoint` hears of the newest commit, and again when its bytes have been read back. The three are
        called from any thread."""
        self._rules = rules
        self._on_checkpoint = on_checkpoint
        self._on_quarantine = on_quarantine
        self._on_trouble = on_trouble
        self._disk = disk
        self._proven: set[str] = set()
        self._newest: Checkpoint | None = None
        self._is_wanted = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        """Guards the three fields above it, and that an older checkpoint is never reported after a newer one."""

    def note_verified(self, root: str) -> None:
        """`root` has just been read and verified, by the attempt that resumed from it."""
        self._proven.add(root)

    def after_commit(self, checkpoint: Checkpoint) -> None:
        """Reports `checkpoint` and starts a sweep in the background; returns at once."""
        with self._lock:
            self._newest = checkpoint
            self._on_checkpoint(checkpoint)
            self._want_sweep()

    def begin(self) -> None:
        """Starts a sweep in the background: what a dead attempt left may be all that keeps the disk full."""
        with self._lock:
            self._want_sweep()

    def _want_sweep(self) -> None:
        self._is_wanted = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._sweep_while_wanted, name="retention", daemon=True)
            self._thread.start()

    def wait(self, deadline_seconds: float) -> None:
        """Returns when no sweep is running, or at the deadline: whatever is left over, the next attempt sweeps up."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(deadline_seconds)

    def _sweep_while_wanted(self) -> None:
        while True:
            with self._lock:
                if not self._is_wanted:
                    self._thread = None
                    return
                self._is_wanted = False
            try:
                self.sweep()
            except (OSError, StoreUnavailable) as error:
                self._on_trouble(f"checkpoints are not read back, old ones are not removed: {error}")

    def sweep(self) -> None:
        """Removes the remains of older attempts, proves the two newest and removes what need not be kept.

        Raises OSError, StoreUnavailable.
        """
        listing = list_candidates(self._rules.store, self._rules.run)
        for folder in (*listing.stale, *listing.torn):
            name = SaveName.parse(folder.name)
            if name is not None and name.fence < self._rules.fence:
                self._remove(folder)
        good = [candidate for candidate in listing.candidates if candidate.problem is None]
        for candidate in self._expendable(good):
            self._remove(candidate.folder)

    def _remove(self, folder: Path) -> None:
        newer = newer_fence(self._rules.store, self._rules.run, self._rules.fence)
        if newer is not None:
            raise StoreUnavailable(f"fence {newer} has taken over; fence {self._rules.fence} may not remove anything")
        remove_checkpoint(folder, self._disk)

    def _expendable(self, good: list[Candidate]) -> list[Candidate]:
        """Of committed checkpoints, newest first, those that may go: none before two have been proven."""
        proven: list[Candidate] = []
        broken: list[Candidate] = []
        for candidate in good:
            if len(proven) == _PROVEN:
                break
            (proven if self._is_proven(candidate) else broken).append(candidate)
        if len(proven) < _PROVEN:
            return []
        sound = [candidate for candidate in good if candidate not in broken]
        kept = {candidate.name for candidate in (*sound[: self._rules.keep_last], *proven)}
        return [candidate for candidate in sound if candidate.name not in kept]

    def _is_proven(self, candidate: Candidate) -> bool:
        assert candidate.root is not None
        if candidate.root in self._proven:
            return True
        try:
            opened = open_checkpoint(candidate.folder)
            if self._rules.verify == "full":
                opened.verify()
                self._report_verified(candidate.root)
        except CorruptCheckpoint as error:
            if not (candidate.folder / COMMIT).exists():
                return False  # taken back while it was read: no checkpoint any more, so no broken one either
            quarantine_and_report(candidate, str(error), self._on_quarantine, self._disk)
            return False
        self._proven.add(candidate.root)
        return True

    def _report_verified(self, root: str) -> None:
        with self._lock:
            if self._newest is not None and self._newest.root == root:
                self._newest = self._newest.model_copy(update={"verified_at": time.time()})
                self._on_checkpoint(self._newest)


def remove_checkpoint(folder: Path, disk: Disk) -> None:
    """COMMIT goes first: a half-removed folder is never a checkpoint. Raises OSError."""
    disk.remove(folder / COMMIT)
    disk.sync_folder(folder)
    disk.remove_tree(folder)
