"""Saving as the loop sees it: collective, all or nothing, the same answer on every rank."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.layout import SaveName
from capstan_runtime.checkpoint.manifest import TrainerState
from capstan_runtime.checkpoint.retention import remove_checkpoint
from capstan_runtime.checkpoint.writer import Save, SaveFailed, Superseded, commit, write_shards
from capstan_runtime.contract.state import Checkpoint
from capstan_runtime.engine import LocalTensor
from capstan_runtime.errors import StoreUnavailable

_LONGEST_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Identity:
    """Who saves, and where."""

    store: Path
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
        disk: Disk,
    ) -> None:
        """`parent` is the root resumed from; None: the run began at step 0."""
        self._identity = identity
        self._parent = parent
        self._exchange = exchange
        self._deadline_seconds = deadline_seconds
        self._disk = disk

    def save(self, trainer: TrainerState, tensors: Iterator[LocalTensor]) -> Checkpoint:
        """The committed checkpoint. Collective; every rank returns, or raises, the same.

        Raises SaveFailed: nothing was committed, what was written is removed, the checkpoint before stays valid.
        Raises StoreUnavailable when a newer attempt has taken over the store.
        """
        save = self._save(trainer.step)
        problem = ""
        try:
            write_shards(save, tensors, self._disk)
        except SaveFailed as error:
            problem = str(error)[:_LONGEST_MESSAGE]
        problems = [answer.decode() for answer in self._exchange(problem.encode())]
        answer = {"failed": next(filter(None, problems), "")}
        if not answer["failed"]:
            answer = json.loads(self._exchange(self._commit(save, trainer))[0])
        if "failed" in answer:
            self._remove(save, answer["failed"])
            raise SaveFailed(answer["failed"])
        if "superseded" in answer:
            raise StoreUnavailable(answer["superseded"])
        checkpoint = Checkpoint.parse(answer["committed"])
        self._parent = checkpoint.root
        return checkpoint

    def _save(self, step: int) -> Save:
        who = self._identity
        name = SaveName(step, who.fence, who.attempt)
        return Save(who.store, who.job, who.run, who.framework, name, who.rank, who.world)

    def _commit(self, save: Save, trainer: TrainerState) -> bytes:
        """Rank 0 commits and tells the others how it went."""
        if save.rank != 0:
            return b""
        try:
            checkpoint = commit(save, trainer, self._parent, self._deadline_seconds, self._disk)
        except Superseded as error:
            return json.dumps({"superseded": str(error)[:_LONGEST_MESSAGE]}).encode()
        except SaveFailed as error:
            return json.dumps({"failed": str(error)[:_LONGEST_MESSAGE]}).encode()
        return json.dumps({"committed": checkpoint.document()}).encode()

    def _remove(self, save: Save, problem: str) -> None:
        """Gives the space back: a full disk would stay full. Nobody writes here any more."""
        if save.rank != 0 or not save.folder.exists():
            return
        try:
            remove_checkpoint(save.folder, self._disk)
        except OSError as error:
            raise SaveFailed(f"{problem}; its remains cannot be removed: {error}") from error
