"""Removing old checkpoints without ever removing what a run might need.

Kept: the newest `last`, and the two newest that verify, read back from the store. So before anything goes, two that
stay have been proven. What fails the proof is quarantined, and what is left of dead attempts is swept up.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from capstan_runtime.checkpoint.candidates import Candidate, list_candidates
from capstan_runtime.checkpoint.choose import quarantine_and_report
from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.layout import COMMIT, SaveName
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.contract.config import Verify
from capstan_runtime.contract.state import Quarantine
from capstan_runtime.errors import CorruptCheckpoint, StoreUnavailable

_PROVEN = 2


class Retention:
    """Runs on rank 0, on a thread of its own, so that training does not wait for it; one sweep at a time."""

    def __init__(
        self,
        store: Path,
        run: str,
        fence: int,
        keep_last: int,
        verify: Verify,
        on_quarantine: Callable[[Quarantine], None],
        on_trouble: Callable[[str], None],
        disk: Disk,
    ) -> None:
        self._store = store
        self._run = run
        self._fence = fence
        self._keep_last = keep_last
        self._verify = verify
        self._on_quarantine = on_quarantine
        self._on_trouble = on_trouble
        self._disk = disk
        self._proven: set[str] = set()
        self._thread: threading.Thread | None = None

    def note_verified(self, root: str) -> None:
        """`root` has just been read and verified, by the attempt that resumed from it."""
        self._proven.add(root)

    def start_sweep(self) -> None:
        """Sweeps in the background; does nothing while the last sweep goes on, the next one makes up for it."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._sweep_and_tell, name="retention", daemon=True)
            self._thread.start()

    def wait(self, deadline_seconds: float) -> None:
        """Returns when no sweep is running, or at the deadline: whatever is left over, the next attempt sweeps up."""
        if self._thread is not None:
            self._thread.join(deadline_seconds)

    def _sweep_and_tell(self) -> None:
        try:
            self.sweep()
        except (OSError, StoreUnavailable) as error:
            self._on_trouble(f"old checkpoints are not removed: {error}")

    def sweep(self) -> None:
        """Removes what need not be kept. Raises OSError, StoreUnavailable."""
        listing = list_candidates(self._store, self._run)
        good = [candidate for candidate in listing.candidates if candidate.problem is None]
        if len(good) > self._keep_last:
            for candidate in self._expendable(good):
                remove_checkpoint(candidate.folder, self._disk)
        for folder in listing.stale:
            remove_checkpoint(folder, self._disk)
        for folder in listing.torn:
            name = SaveName.parse(folder.name)
            if name is not None and name.fence < self._fence:
                self._disk.remove_tree(folder)

    def _expendable(self, good: list[Candidate]) -> list[Candidate]:
        """Of committed checkpoints, newest first, those that may go."""
        proven: list[Candidate] = []
        broken: list[Candidate] = []
        for candidate in good:
            if len(proven) == _PROVEN:
                break
            (proven if self._is_proven(candidate) else broken).append(candidate)
        sound = [candidate for candidate in good if candidate not in broken]
        kept = {candidate.name for candidate in (*sound[: self._keep_last], *proven)}
        return [candidate for candidate in sound if candidate.name not in kept] if len(proven) == _PROVEN else []

    def _is_proven(self, candidate: Candidate) -> bool:
        assert candidate.root is not None
        if candidate.root in self._proven:
            return True
        try:
            opened = open_checkpoint(candidate.folder)
            if self._verify == "full":
                opened.verify()
        except CorruptCheckpoint as error:
            quarantine_and_report(candidate, str(error), self._on_quarantine, self._disk)
            return False
        self._proven.add(candidate.root)
        return True


def remove_checkpoint(folder: Path, disk: Disk) -> None:
    """COMMIT goes first: a half-removed folder is never a checkpoint. Raises OSError."""
    disk.remove(folder / COMMIT)
    disk.sync_folder(folder)
    disk.remove_tree(folder)
