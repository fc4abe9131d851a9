"""Saves that the pods hold in memory, put together: a restart need not wait for the store, nor for a commit.

Each rank's process left its part of the newest saves in its pod's memory. The ranks tell each other what they hold; a
save of which all parts are there is opened like a checkpoint of the store, its own part read from memory and the rest
from the other pods' supervisors, and every byte is verified as it is anywhere else.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from capstan_runtime.checkpoint.digest import digest_of, name_of
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import SHARDS, SaveName
from capstan_runtime.checkpoint.manifest import RankEntry, RankManifest, SaveFacts, canonical_bytes
from capstan_runtime.checkpoint.memory import Held, held_saves
from capstan_runtime.checkpoint.peer_store import PeerStore
from capstan_runtime.checkpoint.reader import OpenCheckpoint, assemble
from capstan_runtime.checkpoint.store import ObjectMissing, Readable
from capstan_runtime.checkpoint.verified import reading
from capstan_runtime.checkpoint.whole import NotTiled, WrongPiece
from capstan_runtime.checkpoint.writer import build_manifest
from capstan_runtime.errors import CorruptCheckpoint

_MOST_OFFERED = 4
"""Saves that a rank offers; two are held."""
_PART = re.compile(r"r(\d+)(?:-\d+\.safetensors|\.json)")


@dataclass(frozen=True, slots=True)
class Generation:
    """One save of which every part is in some pod's memory."""

    facts: SaveFacts
    parts: tuple[tuple[int, RankEntry], ...]
    """For each rank of the save: the member of the present attempt that holds its part, and its manifest's digest."""

    @property
    def name(self) -> SaveName:
        return SaveName(self.facts.step, self.facts.fence, self.facts.attempt)


@dataclass(frozen=True, slots=True)
class Memory:
    """The pods' memory as one rank sees it."""

    folder: Path | None
    """Its own; None: it has none."""
    rank: int
    peers: Sequence[str]
    """`address:port` of every rank's supervisor, in rank order; fewer when they are not known."""
    token: str
    """The job's."""

    def holder(self, rank: int) -> Readable | None:
        """What rank `rank` of this attempt holds; None: nobody knows how to reach it."""
        if rank == self.rank:
            return FolderStore(self.folder) if self.folder is not None else None
        return PeerStore(self.peers[rank], self.token) if rank < len(self.peers) else None


def complete_generations(memory: Memory, run: str, exchange: Callable[[bytes], list[bytes]]) -> list[Generation]:
    """What can be restored from memory, the same on every rank, the newest attempt's newest step first. Collective."""
    offered = held_saves(memory.folder, run)[:_MOST_OFFERED] if memory.folder is not None else []
    answers = exchange(json.dumps([canonical_bytes(held).decode() for held in offered]).encode())
    parts: dict[tuple[SaveName, int], dict[int, tuple[int, Held]]] = {}
    for member, answer in enumerate(answers):
        for text in json.loads(answer):
            held = Held.model_validate_json(text)
            parts.setdefault((held.name, held.facts.world), {}).setdefault(held.rank, (member, held))
    complete = [
        Generation(of[0][1].facts, tuple((of[rank][0], of[rank][1].manifest) for rank in range(world)))
        for (_, world), of in parts.items()
        if of.keys() >= set(range(world))
    ]
    return sorted(complete, key=lambda each: (each.name.fence, each.name.step), reverse=True)


def open_generation(generation: Generation, memory: Memory) -> OpenCheckpoint:
    """The save, as if it had been committed. Raises CorruptCheckpoint, StoreUnavailable."""
    name, pods = generation.name, PodMemory(generation, memory)
    entries = [entry for _, entry in generation.parts]
    ranks = [_read_rank(pods, generation, rank, entry) for rank, entry in enumerate(entries)]
    try:
        with reading(str(name)):
            manifest = build_manifest(
                generation.facts,
                list(zip(entries, ranks, strict=True)),
                lambda file, offset, target: pods.read_into(f"{name}/{SHARDS}/{file}", offset, target),
            )
    except (NotTiled, WrongPiece, ValueError) as error:
        raise CorruptCheckpoint(f"{name}: {error}") from error
    return assemble(pods, name, name_of(digest_of(canonical_bytes(manifest))), manifest, ranks)


def _read_rank(pods: "PodMemory", generation: Generation, rank: int, entry: RankEntry) -> RankManifest:
    key = f"{generation.name}/{SHARDS}/{entry.name}"
    with reading(key):
        data = pods.get(key)
    if name_of(digest_of(data)) != entry.digest:
        raise CorruptCheckpoint(f"{key}: is not the manifest that rank {rank} has offered")
    try:
        record = RankManifest.model_validate_json(data)
    except ValidationError as error:
        raise CorruptCheckpoint(f"{key}: is no rank's manifest: {error.errors()[0]['msg']}") from error
    facts = generation.facts
    found = (record.rank, record.world, SaveName(record.step, record.fence, record.attempt), record.run)
    if found != (rank, facts.world, generation.name, facts.run):
        raise CorruptCheckpoint(f"{key}: belongs to another save")
    return record


class PodMemory:
    """The `Readable` of one generation: each part where it is held."""

    place = "the pods' memory"

    def __init__(self, generation: Generation, memory: Memory) -> None:
        self._prefix = f"{generation.name}/{SHARDS}/"
        self._holders: Mapping[int, Readable | None] = {
            rank: memory.holder(member) for rank, (member, _) in enumerate(generation.parts)
        }

    def get(self, key: str) -> bytes:
        """See `Readable.get`."""
        return self._holder(key).get(key)

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """See `Readable.read_into`."""
        self._holder(key).read_into(key, offset, target)

    def size(self, key: str) -> int | None:
        """See `Readable.size`."""
        return self._holder(key).size(key)

    def _holder(self, key: str) -> Readable:
        match = _PART.fullmatch(key.removeprefix(self._prefix))
        holder = self._holders.get(int(match[1])) if match else None
        if holder is None:
            raise ObjectMissing(f"{key}: nobody is known to hold it in memory")
        return holder
