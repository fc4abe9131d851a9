"""Saving as the loop sees it: collective, all or nothing, the same answer on every rank."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from capstan_runtime.checkpoint.layout import COMMIT
from capstan_runtime.checkpoint.manifest import SaveFacts, TrainerState
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.checkpoint.writer import Save, SaveFailed, Superseded, commit, write_shards
from capstan_runtime.contract.state import Checkpoint
from capstan_runtime.engine import LocalTensor
from capstan_runtime.errors import StoreUnavailable

_LONGEST_MESSAGE = 500


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


class Saver:
    """One rank's side of every save of an attempt."""

    def __init__(
        self,
        identity: Identity,
        parent: str | None,
        exchange: Callable[[bytes], list[bytes]],
        deadline_seconds: float,
    ) -> None:
        """`parent` is the root resumed from; None: the run began at step 0."""
        self._identity = identity
        self._parent = parent
        self._exchange = exchange
        self._deadline_seconds = deadline_seconds

    def save(self, trainer: TrainerState, tensors: Iterator[LocalTensor]) -> Checkpoint:
        """The committed checkpoint. Collective; every rank returns, or raises, the same.

        Raises SaveFailed: nothing was committed, what was written is removed, the checkpoint before stays valid.
        Raises StoreUnavailable when a newer attempt has taken over the store.
        """
        save = self._save(trainer)
        problem = ""
        try:
            write_shards(save, tensors)
        except SaveFailed as error:
            problem = str(error)[:_LONGEST_MESSAGE]
        problems = [answer.decode() for answer in self._exchange(problem.encode())]
        answer = {"failed": next(filter(None, problems), "")}
        if not answer["failed"]:
            answer = json.loads(self._exchange(self._commit(save))[0])
        if "failed" in answer:
            self._remove(save, answer["failed"])
            raise SaveFailed(answer["failed"])
        if "superseded" in answer:
            raise StoreUnavailable(answer["superseded"])
        checkpoint = Checkpoint.parse(answer["committed"])
        self._parent = checkpoint.root
        return checkpoint

    def _save(self, trainer: TrainerState) -> Save:
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
            framework=who.framework,
        )
        return Save(who.store, facts, who.rank)

    def _commit(self, save: Save) -> bytes:
        """Rank 0 commits and tells the others how it went."""
        if save.rank != 0:
            return b""
        try:
            checkpoint = commit(save, self._deadline_seconds)
        except Superseded as error:
            return json.dumps({"superseded": str(error)[:_LONGEST_MESSAGE]}).encode()
        except SaveFailed as error:
            return json.dumps({"failed": str(error)[:_LONGEST_MESSAGE]}).encode()
        return json.dumps({"committed": checkpoint.document()}).encode()

    def _remove(self, save: Save, problem: str) -> None:
        """Gives the space back: a full disk would stay full. Nobody writes here any more."""
        if save.rank != 0:
            return
        try:
            save.store.remove(f"{save.name}/{COMMIT}")
            save.store.remove_all(str(save.name))
        except OSError as error:
            raise SaveFailed(f"{problem}; its remains cannot be removed: {error}") from error
