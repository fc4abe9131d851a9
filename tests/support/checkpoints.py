"""Saves made without a training run: a few tensors, any number of ranks, one after the other."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.choose import Choosing, choose_checkpoint
from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.generations import Memory
from capstan_runtime.checkpoint.layout import new_attempt
from capstan_runtime.checkpoint.manifest import SaveFacts, TrainerState
from capstan_runtime.checkpoint.reader import OpenCheckpoint
from capstan_runtime.checkpoint.retention import Retention, Rules
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.checkpoint.verified import VerifyingReader
from capstan_runtime.checkpoint.vote import Voters
from capstan_runtime.checkpoint.writer import Save, commit, write_shards
from capstan_runtime.contract import saving
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.saving import VerifyLevel
from capstan_runtime.contract.signature import Signature
from capstan_runtime.contract.state import Checkpoint, Quarantine
from capstan_runtime.engine import LocalTensor
from capstan_runtime.parallel.tiling import tile_evenly

RUN = "0f3c2a4e-uid"
Arrays = Mapping[str, np.ndarray]


def arrays_of(step: int) -> dict[str, np.ndarray]:
    """A small state that is different at every step, of several types and shapes."""
    random = np.random.default_rng(step)
    return {
        "params/kernel": random.normal(size=(13, 7)).astype(np.float32),
        "params/bias": random.normal(size=(7,)).astype(np.float16),
        "optimizer/count": np.array(step, np.int64),
        "optimizer/mask": random.random(5) > 0.5,
        "params/empty": np.zeros((0, 3), np.float32),
    }


def share_of(arrays: Arrays, rank: int, world: int) -> Iterator[LocalTensor]:
    names = sorted(arrays)
    for part in tile_evenly([arrays[name].size for name in names], rank, world):
        whole = arrays[names[part.tensor]]
        yield LocalTensor(names[part.tensor], whole.shape, part.start, whole.reshape(-1)[part.start : part.stop])


def trainer_state(step: int) -> TrainerState:
    return TrainerState(
        step=step,
        seed=0,
        global_batch_size=8,
        virtual_ranks=2,
        plan_version=1,
        data_fingerprint="blake3:00",
        learning_rate_step=step,
        loss=1 / (step + 1),
    )


def facts_of(
    step: int,
    fence: int = 1,
    world: int = 1,
    attempt: str | None = None,
    run: str = RUN,
    parent: str | None = None,
    metrics: Mapping[str, float] | None = None,
    signature: Signature | None = None,
) -> SaveFacts:
    return SaveFacts(
        job="default/test",
        run=run,
        step=step,
        fence=fence,
        attempt=attempt or new_attempt(run),
        world=world,
        parent=parent,
        created_at=1000.0 + step,
        trainer=trainer_state(step),
        metrics=dict(metrics or {}),
        framework="flax",
        signature=signature,
    )


class LockedStore(FolderStore):
    """A folder in which one folder cannot be read: by its mode, or as a failing disk would answer."""

    def __init__(self, path: Path, locked: str, number: int = errno.EACCES) -> None:
        super().__init__(path)
        self._locked = locked
        self._number = number

    def _path(self, key: str) -> Path:
        path = super()._path(key)
        if key.split("/", 1)[0] == self._locked:
            raise OSError(self._number, os.strerror(self._number), str(path))
        return path


def as_store(place: Path | Store, disk: Disk | None = None) -> Store:
    return FolderStore(place, disk) if isinstance(place, Path) else place


def save(
    place: Path | Store,
    step: int,
    *,
    arrays: Arrays | None = None,
    fence: int = 1,
    world: int = 2,
    attempt: str | None = None,
    run: str = RUN,
    parent: str | None = None,
    metrics: Mapping[str, float] | None = None,
    disk: Disk | None = None,
    shard_bytes: int = 256,
    signature: Signature | None = None,
) -> Checkpoint:
    """A committed checkpoint, written by `world` ranks in turn."""
    store = as_store(place, disk)
    facts = facts_of(step, fence, world, attempt, run, parent, metrics, signature)
    arrays = arrays_of(step) if arrays is None else arrays
    saves = [Save(store, facts, rank) for rank in range(world)]
    for each in saves:
        write_shards(each, share_of(arrays, each.rank, world), shard_bytes)
    return commit(saves[0], deadline_seconds=1.0)


def folder_of(store: Path, root: str) -> Path:
    listing = list_candidates(FolderStore(store), RUN)
    return store / next(str(each.name) for each in listing.candidates if each.root == root)


def load_all(opened: OpenCheckpoint, reader: VerifyingReader) -> None:
    """As an engine does that needs every tensor."""
    tensors = opened.tensors(reader)
    for name in tensors.names():
        tensors.read(name)


def choose(
    place: Path | Store,
    *,
    fence: int = 2,
    floor_step: int = 0,
    floor_root: str | None = None,
    verify: VerifyLevel = "full",
    quarantined: list[Quarantine] | None = None,
    exchange: Callable[[bytes], list[bytes]] = lambda payload: [payload],
    load: Callable[[OpenCheckpoint, VerifyingReader], None] = load_all,
    troubles: list[str] | None = None,
    memory: Memory | None = None,
    public_key: str | None = None,
    visible_seconds: float = 0.2,
) -> OpenCheckpoint | None:
    """What a world of one rank resumes from, having read all of it."""
    loaded = choose_checkpoint(
        Choosing(
            store=as_store(place),
            run=RUN,
            membership=Membership(
                fence=fence,
                rank=0,
                world=1,
                coordinator="127.0.0.1:1",
                floor_step=floor_step,
                floor_root=floor_root,
            ),
            attempt=new_attempt(RUN),
            voters=Voters(rank=0, level=verify, exchange=exchange, load=load),
            on_quarantine=(quarantined if quarantined is not None else []).append,
            on_trouble=(troubles if troubles is not None else []).append,
            memory=memory,
            public_key=public_key,
            visible_seconds=visible_seconds,
        )
    )
    return loaded.opened if loaded else None


def flip(path: Path, at: int) -> None:
    """Changes one bit of the byte `at`."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def retention(
    place: Path | Store, keep_last: int, quarantined: list[Quarantine], fence: int = 9, floor_step: int = 0
) -> Retention:
    """One whose troubles are failures of the test."""

    def fail(message: str) -> None:
        raise AssertionError(message)

    rules = Rules(as_store(place), RUN, fence, saving.Retention(last=keep_last), "full", floor_step=floor_step)
    return Retention(rules, lambda _: None, quarantined.append, fail)


def steps_in(place: Path | Store) -> list[int]:
    """Of the usable checkpoints, newest first."""
    return [each.name.step for each in list_candidates(as_store(place), RUN).candidates if each.problem is None]
