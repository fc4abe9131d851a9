"""After a commit: reading it back, and removing old checkpoints without ever removing what a run might need.

What stays is `keeping.kept`'s to say. Before anything goes, two that stay have been proven: read back from the store,
by this attempt or, as a mark beside the commit says, by one before it. What fails the proof is quarantined, and what is
left of dead attempts is swept up. An attempt that has been superseded removes nothing: the newer one may be reading it.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from capstan_runtime.checkpoint.candidates import Candidate, Listing, list_candidates
from capstan_runtime.checkpoint.choose import quarantine_and_report
from capstan_runtime.checkpoint.claims import newer_fence
from capstan_runtime.checkpoint.keeping import PROVEN, Held, kept
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, PINNED, VERIFIED, SaveName
from capstan_runtime.checkpoint.marks import is_pinned, mark_verified, verified_at
from capstan_runtime.checkpoint.readback import Pace, give_way, read_back
from capstan_runtime.checkpoint.reader import open_checkpoint, read_manifest
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract import saving
from capstan_runtime.contract.saving import VerifyLevel
from capstan_runtime.contract.state import Checkpoint, Quarantine
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable


@dataclass(frozen=True, slots=True)
class Rules:
    """What is kept, and how it is proven."""

    store: Store
    run: str
    fence: int
    keep: saving.Retention
    verify: VerifyLevel
    public_key: str | None = None
    """PEM. Given: only what is signed by this key counts as proven, as only that can be resumed from."""
    floor_step: int = 0
    """Of the newest checkpoint that the operator had seen when this attempt began."""
    in_use: Callable[[], Collection[str]] = tuple
    """Roots of the checkpoints that somebody serves, as is known now: they stay, as if pinned. May raise OSError."""
    judged_from: int = 0
    """Checkpoints of earlier steps are never best."""


class Retention:
    """Runs on rank 0, on a thread of its own, so that training does not wait for it; one sweep at a time."""

    def __init__(
        self,
        rules: Rules,
        on_checkpoint: Callable[[Checkpoint], None],
        on_quarantine: Callable[[Quarantine], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        """`on_checkpoint` hears of the newest commit, and again when its bytes have been read back. The three are
        called from any thread."""
        self._rules = rules
        self._on_checkpoint = on_checkpoint
        self._on_quarantine = on_quarantine
        self._on_trouble = on_trouble
        self._pace = Pace()
        self._proven: set[str] = set()
        self._signed: set[str] = set()
        self._left: set[SaveName] = set()
        """Late commits of which it has been told that they stay."""
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

    def wait(self, deadline_seconds: float) -> bool:
        """True when no sweep is running, False at the deadline: whatever is left over, the next attempt sweeps up.
        Training is over: sweeps do not give way to it any more."""
        self._pace.hurry()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(deadline_seconds)
        return thread is None or not thread.is_alive()

    def _sweep_while_wanted(self) -> None:
        give_way()
        while True:
            with self._lock:
                if not self._is_wanted:
                    self._thread = None
                    return
                self._is_wanted = False
            try:
                self.sweep()
            except (OSError, StoreUnavailable, ConfigError) as error:
                self._on_trouble(f"checkpoints are not read back, old ones are not removed: {error}")

    def sweep(self) -> None:
        """Removes the remains of older attempts, proves the two newest and removes what need not be kept.

        Raises OSError, StoreUnavailable, and ConfigError for a shard's manifest of a later version of Capstan.
        """
        listing = list_candidates(self._rules.store, self._rules.run)
        for name in self._remains(listing):
            self._remove(name)
        good = [each for each in listing.candidates if each.problem is None]
        of_use = [each for each in good if self._is_signed(each)]
        sound = proved(of_use, self._is_proven, self._prove)
        sound += [(each, False) for each in good if each not in of_use]
        in_use = self._rules.in_use()
        saves = [held(each, is_proven, each.root in in_use) for each, is_proven in sound]
        stay = kept(saves, self._rules.keep, time.time(), self._rules.judged_from)
        for each, _ in sorted(
            sound, key=lambda pair: pair[0].name
        ):  # the oldest first: killed half-way, what is newer is still there
            if each.name not in stay and not self._is_wanted_now(each):
                self._remove(each.name)

    def _is_wanted_now(self, candidate: Candidate) -> bool:
        """Somebody may have pinned it, or begun to serve it, while others were read."""
        return is_pinned(self._rules.store, candidate.name) or candidate.root in self._rules.in_use()

    def _remains(self, listing: Listing) -> Iterator[SaveName]:
        """What older attempts left that is of no use to anybody. Not what may be a good commit that the store showed
        too late, in whole or in part: there it is safer to keep too much."""
        store, fence, floor_step = self._rules.store, self._rules.fence, self._rules.floor_step
        for name in listing.stale:
            if name.fence >= fence:
                continue
            if name.step < floor_step or store.size(f"{name}/{MANIFEST}") is None:  # a bare COMMIT: nothing to keep
                yield name
            elif name not in self._left:
                self._left.add(name)
                self._on_trouble(f"{name} was committed, but shown too late to go on from; it is left where it is")
        has_floor = any(each.name.step == floor_step for each in listing.candidates)
        for name in listing.torn:
            may_be_floor = name.step == floor_step and not has_floor
            if name.fence < fence and not may_be_floor and store.size(f"{name}/{COMMIT}") is None:
                yield name

    def _remove(self, name: SaveName) -> None:
        newer = newer_fence(self._rules.store, self._rules.run, self._rules.fence)
        if newer is not None:
            raise StoreUnavailable(f"fence {newer} has taken over; fence {self._rules.fence} may not remove anything")
        remove_checkpoint(self._rules.store, name)

    def _is_signed(self, candidate: Candidate) -> bool:
        """As the run asks for it. Looked at once for each that is."""
        rules, root = self._rules, candidate.root
        assert root is not None
        if rules.public_key is None or root in self._signed:
            return True
        try:
            found, _ = read_manifest(rules.store, candidate.name, rules.public_key)
        except CorruptCheckpoint:
            return False  # or gone bad since it was listed: it will be when it is listed again
        self._signed |= {root} & {found}
        return found == root

    def _is_proven(self, candidate: Candidate) -> bool:
        store, name, root = self._rules.store, candidate.name, candidate.root
        assert root is not None
        is_marked = VERIFIED in candidate.marks and verified_at(store, name, root) is not None
        if root in self._proven and not is_marked and self._rules.verify == "full":
            mark_verified(store, name, root, time.time())  # read by this attempt when it resumed
        if is_marked:
            self._proven.add(root)
        return root in self._proven

    def _prove(self, candidate: Candidate) -> bool:
        store, name, root = self._rules.store, candidate.name, candidate.root
        assert root is not None
        try:
            opened = open_checkpoint(store, name)
            if self._rules.verify != "manifest":
                self._pace.begin()
                read_back(opened, self._rules.verify, self._pace.rest)
        except CorruptCheckpoint as error:
            if store.size(f"{name}/{COMMIT}") is not None:  # not taken back while it was read
                quarantine_and_report(store, name, root, str(error), self._on_quarantine)
            return False
        self._proven.add(root)
        if self._rules.verify == "full":
            at = time.time()
            mark_verified(store, name, root, at)
            self._report_verified(root, at)
        return True

    def _report_verified(self, root: str, at: float) -> None:
        with self._lock:
            if self._newest is not None and self._newest.root == root:
                self._newest = self._newest.model_copy(update={"verified_at": at})
                self._on_checkpoint(self._newest)


def proved(
    newest_first: Sequence[Candidate], is_proven: Callable[[Candidate], bool], prove: Callable[[Candidate], bool]
) -> list[tuple[Candidate, bool]]:
    """Those that are not found broken, in the same order, each with whether it is proven. The newest that are not yet
    are put to the proof, which takes its time, until there are as many as retention asks for."""
    sound: list[tuple[Candidate, bool]] = []
    proven = 0
    for candidate in newest_first:
        is_good = is_proven(candidate)
        if not is_good and proven < PROVEN:
            if not prove(candidate):
                continue
            is_good = True
        proven += is_good
        sound.append((candidate, is_good))
    return sound


def held(candidate: Candidate, is_proven: bool, is_in_use: bool = False) -> Held:
    """The candidate, whose manifest verified, as the rules see it. One in use is as good as pinned."""
    manifest = candidate.manifest
    assert manifest is not None
    metrics = manifest.figures
    return Held(candidate.name, manifest.created_at, metrics, is_in_use or PINNED in candidate.marks, is_proven)


def remove_checkpoint(store: Store, name: SaveName) -> None:
    """COMMIT goes first: a half-removed folder is never a checkpoint. Raises OSError."""
    store.remove(f"{name}/{COMMIT}")
    store.settle(str(name))
    store.remove_all(str(name))
