"""Saving as the loop sees it: staged while the loop waits, committed while it trains, one answer for all ranks.

Nothing collective happens on a background thread. How a save fares on each rank is part of what the ranks tell each
other anyway every second or so (`agreement.py`); rank 0's committer also sees the others' manifests in the store.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.checkpoint.background import BackgroundSave, Ending, Fate
from capstan_runtime.checkpoint.layout import COMMIT, SaveName
from capstan_runtime.checkpoint.manifest import RankManifest, SaveFacts, TrainerState
from capstan_runtime.checkpoint.shards import stage_shards
from capstan_runtime.checkpoint.staging import StagingArea
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.checkpoint.writer import Save, SaveFailed, sign
from capstan_runtime.contract.signature import Signature
from capstan_runtime.contract.state import Checkpoint
from capstan_runtime.engine import LocalTensor
from capstan_runtime.errors import StoreUnavailable

_LONGEST_MESSAGE = 500
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Identity:
    """Who saves, and where."""

    store: Store
    job: str
    run: str
    framework: str
    fence: int
    attempt: str
    rank: int
    world: int
    signing_key: Path | None = None
    """PEM file; None: manifests are not signed."""
    signature: Signature | None = None
    """Of the model; None: what is saved cannot be served."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the newest save ended: the same on every rank, but for the measurements."""

    step: int
    checkpoint: Checkpoint | None
    """What was committed; None: nothing was."""
    problem: str
    """Why not; empty when it was."""
    seconds: float
    """From the loop's going on to the end on this rank."""
    size: int
    """Bytes of this rank's part."""


class Saver:
    """One rank's side of every save of an attempt. For the main thread."""

    def __init__(
        self,
        identity: Identity,
        parent: str | None,
        exchange: Callable[[bytes], list[bytes]],
        deadline_seconds: float,
        staging: StagingArea,
        on_staged: Callable[[Checkpoint], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        """`parent` is the root resumed from; None: the run began at step 0. `on_staged` hears of a part that is
        complete in the memory tier, `on_trouble` of remains that cannot be removed; both from any thread.

        Raises ConfigError if manifests are to be signed and cannot be: better now than at the first save.
        """
        if identity.signing_key is not None and identity.rank == 0:
            sign(b"", identity.signing_key)
        self._identity = identity
        self._parent = parent
        self._exchange = exchange
        self._deadline_seconds = deadline_seconds
        self._staging = staging
        self._on_staged = on_staged
        self._on_trouble = on_trouble
        self._step: int | None = None
        """Of the save whose outcome is not known to all ranks yet."""
        self._background: BackgroundSave | None = None
        self._failure = ""
        """Why this rank could not even stage it."""
        self._removal: threading.Thread | None = None

    @property
    def is_open(self) -> bool:
        """Whether a save is on its way whose outcome the ranks do not know yet; the same on all of them."""
        return self._step is not None

    @property
    def is_stuck(self) -> bool:
        """Whether the staged memory of an older save is still being read on this rank, by a store that hangs."""
        return self._background is not None and self._background.needs_memory and self._step is None

    def begin(self, trainer: TrainerState, tensors: Iterator[LocalTensor], metrics: Mapping[str, float]) -> None:
        """The state is staged when this returns; the rest happens behind the loop's back. Not while `is_open`.

        Collective as iterating `tensors` is. Whatever goes wrong is told by `hear`.
        """
        assert self._step is None, "one save at a time"
        self._step = trainer.step
        save = self._save(trainer, metrics)
        if self._background is not None and self._background.needs_memory:
            for _ in tensors:  # to the end, because that is collective
                pass
            stuck = self._background.save.name.step
            self._failure = f"step {trainer.step}, rank {save.rank}: the save of step {stuck} is stuck in the store"
            return
        self._background, self._failure = None, ""
        try:
            self._staging.begin(save.name)
            shards = stage_shards(save.rank, tensors, self._staging.allocate)
        except OSError as error:
            self._failure = f"step {trainer.step}, rank {save.rank}: no memory to stage the state: {error}"
            return
        self._background = BackgroundSave(
            save,
            shards,
            self._deadline_seconds,
            lambda manifest: self._seal(save, manifest),
            self._staging.prepare,
            lambda: self._remove(save.name),
            self._identity.signing_key,
        )

    def report(self) -> str:
        """How the save fares here, for the other ranks; at most some 600 bytes."""
        ending = self._ending()
        if ending is None:
            return json.dumps([Fate.BUSY])
        document = ending.checkpoint.document() if ending.checkpoint else None
        return json.dumps([ending.fate, ending.message[:_LONGEST_MESSAGE], document])

    def hear(self, reports: list[str]) -> Outcome | None:
        """The outcome, as soon as no rank is busy with the save; from all ranks' reports, so that all know the same.

        Raises StoreUnavailable when a newer attempt has taken over the store.
        """
        if self._step is None:
            return None
        fates = [json.loads(report) for report in reports]
        problem = next((fate[1] for fate in fates if fate[0] == Fate.FAILED), None)
        if problem is not None and self._background is not None:
            self._background.give_up(problem)
        if any(fate[0] == Fate.BUSY for fate in fates):
            return None
        if fates[0][0] == Fate.SUPERSEDED:
            raise StoreUnavailable(fates[0][1])
        return self._closed(Checkpoint.parse(fates[0][2]) if fates[0][0] == Fate.COMMITTED else None, problem or "")

    def settle(self) -> Outcome | None:
        """Waits for the outcome of the save on its way; None when there is none. Collective.

        Ends within the deadline of a save, whatever the store does. Raises as `hear`.
        """
        outcome = None
        while self._step is not None and outcome is None:
            if self._background is not None and self._background.ending is None:
                self._background.wait(_POLL_SECONDS)
            outcome = self.hear([answer.decode() for answer in self._exchange(self.report().encode())])
        if self._removal is not None:
            self._removal.join(self._deadline_seconds)
        return outcome

    def save(
        self, trainer: TrainerState, tensors: Iterator[LocalTensor], metrics: Mapping[str, float] | None = None
    ) -> Checkpoint:
        """The committed checkpoint, waited for. Collective; every rank returns, or raises, the same.

        Raises SaveFailed: nothing was committed, what was written is removed, the checkpoint before stays valid.
        """
        self.begin(trainer, tensors, metrics or {})
        outcome = self.settle()
        assert outcome is not None
        if outcome.checkpoint is None:
            raise SaveFailed(outcome.problem)
        return outcome.checkpoint

    def _ending(self) -> Ending | None:
        if self._failure:
            return Ending(Fate.FAILED, self._failure)
        return self._background.ending if self._background is not None else Ending(Fate.WRITTEN)

    def _closed(self, checkpoint: Checkpoint | None, problem: str) -> Outcome:
        assert self._step is not None
        background = self._background
        outcome = Outcome(
            step=self._step,
            checkpoint=checkpoint,
            problem=problem if checkpoint is None else "",
            seconds=background.seconds if background else 0.0,
            size=background.size if background else 0,
        )
        if checkpoint is not None:
            self._parent = checkpoint.root
        elif self._identity.rank == 0:
            self._remove_remains(SaveName(self._step, self._identity.fence, self._identity.attempt))
        self._step = None
        return outcome

    def _save(self, trainer: TrainerState, metrics: Mapping[str, float]) -> Save:
        who = self._identity
        facts = SaveFacts(
            job=who.job,
            run=who.run,
            step=trainer.step,
            fence=who.fence,
            attempt=who.attempt,
            world=who.world,
            parent=self._parent,
            created_at=time.time(),
            trainer=trainer,
            metrics=dict(metrics),
            framework=who.framework,
            signature=who.signature,
        )
        return Save(who.store, facts, who.rank)

    def _seal(self, save: Save, manifest: RankManifest) -> None:
        """On the hashing thread."""
        held = self._staging.seal(save.facts, manifest)
        if held is not None:
            part = Checkpoint(step=save.facts.step, root=held.manifest.digest, at=save.facts.created_at)
            self._on_staged(part)

    def _remove_remains(self, name: SaveName) -> None:
        """Gives the space back, behind the loop's back: a full disk would stay full. Who is stuck in the store may
        still write there; a commit that arrives so late is removed when it does."""
        self._removal = threading.Thread(target=self._remove, args=(name,), name=f"remove {name.step}", daemon=True)
        self._removal.start()

    def _remove(self, name: SaveName) -> None:
        store = self._identity.store
        try:
            store.remove(f"{name}/{COMMIT}")
            store.remove_all(str(name))
        except OSError as error:
            self._on_trouble(f"what a failed save left cannot be removed: {error}")
