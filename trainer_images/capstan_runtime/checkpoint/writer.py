"""Writing a checkpoint. Every rank writes its shards; rank 0 proves that nothing is missing and commits.

Order in the store, each step settled before the next: shard files, the rank's manifest, MANIFEST.json and its
signature, COMMIT. A process may die between any two: until COMMIT is there, readers see the checkpoint before.
"""

import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from capstan_runtime.checkpoint.claims import newest_claim
from capstan_runtime.checkpoint.digest import digest_of, name_of
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, SHARDS, SIGNATURE, SaveName, rank_manifest_name
from capstan_runtime.checkpoint.manifest import (
    Commit,
    Manifest,
    RankEntry,
    RankManifest,
    SaveFacts,
    canonical_bytes,
    logical_root,
)
from capstan_runtime.checkpoint.shards import SHARD_BYTES, Shard, hash_shard, spans_of, stage_shards
from capstan_runtime.checkpoint.store import ObjectMissing, Store
from capstan_runtime.checkpoint.whole import NotTiled, ReadPiece, WrongPiece, whole_tensors
from capstan_runtime.contract.state import Checkpoint
from capstan_runtime.engine import LocalTensor

_FIRST_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 0.5
"""A listing of a bucket costs money and 50 ms."""


class SaveFailed(Exception):
    """A save did not happen. The checkpoint before it is as good as ever. One line for the user."""


class Superseded(SaveFailed):
    """A newer attempt has taken over the store: this process is a leftover and may not commit."""


@dataclass(frozen=True, slots=True)
class Save:
    """One save as one rank sees it."""

    store: Store
    facts: SaveFacts
    """Rank 0's are those of the checkpoint; the others' name the same save."""
    rank: int

    @property
    def name(self) -> SaveName:
        return SaveName(self.facts.step, self.facts.fence, self.facts.attempt)

    @property
    def shards(self) -> str:
        return f"{self.name}/{SHARDS}"

    def key(self, name: str) -> str:
        """Of a file among the shards."""
        return f"{self.shards}/{name}"


def write_shards(save: Save, tensors: Iterator[LocalTensor], shard_bytes: int = SHARD_BYTES) -> None:
    """This rank's part is in the store and named in its rank manifest, all at once, on this thread.

    Iterates `tensors` to the end even after a failure, because that is collective. Raises SaveFailed.
    """
    try:
        shards = stage_shards(save.rank, tensors, lambda _, size: memoryview(mmap.mmap(-1, size)), shard_bytes)
        write_files(save, shards)
        write_rank_manifest(save, manifest_of(save, shards))
    except OSError as error:
        raise SaveFailed(f"step {save.name.step}, rank {save.rank}: {error}") from error


def manifest_of(save: Save, shards: Sequence[Shard]) -> RankManifest:
    """What this rank staged, hashed from memory."""
    hashed = [hash_shard(shard) for shard in shards]
    return RankManifest(
        run=save.facts.run,
        step=save.facts.step,
        fence=save.facts.fence,
        attempt=save.facts.attempt,
        rank=save.rank,
        world=save.facts.world,
        files=tuple(file for file, _ in hashed),
        chunks=tuple(chunk for _, chunks in hashed for chunk in chunks),
    )


def write_files(save: Save, shards: Sequence[Shard], check: Callable[[], None] = lambda: None) -> None:
    """The shards are in the store, but nothing names them yet. Raises OSError, and what `check` raises, which is called
    before every 4 MiB."""
    for shard in shards:
        save.store.put(save.key(shard.name), _checked(spans_of(shard), check))


def _checked(spans: Iterator[memoryview], check: Callable[[], None]) -> Iterator[memoryview]:
    for span in spans:
        check()
        yield span


def write_rank_manifest(save: Save, manifest: RankManifest) -> None:
    """From now on rank 0 may count on this rank's files. Raises OSError."""
    save.store.settle(save.shards)
    save.store.put(save.key(rank_manifest_name(save.rank)), [canonical_bytes(manifest)])
    save.store.settle(save.shards)


def build_manifest(facts: SaveFacts, ranks: Sequence[tuple[RankEntry, RankManifest]], read: ReadPiece) -> Manifest:
    """The checkpoint that the ranks' shards make up; `read` is asked for leaves that shards of several ranks share.

    Raises NotTiled unless every element of every tensor was saved once, WrongPiece, and what `read` raises.
    """
    tensors = tuple(whole.entry(read) for whole in whole_tensors(manifest for _, manifest in ranks))
    return Manifest(
        **facts.model_dump(exclude={"format"}),
        ranks=tuple(entry for entry, _ in ranks),
        tensors=tensors,
        logical=logical_root(tensors),
    )


def commit(
    save: Save,
    deadline_seconds: float,
    given_up: Callable[[], str] = lambda: "",
    signing_key: Path | None = None,
) -> Checkpoint:
    """The checkpoint, once every rank's part is there and nothing is missing. Called by rank 0 alone.

    Waits at most `deadline_seconds` for the other ranks, and only while `given_up` is empty: it says why the save is
    not wanted any more. `signing_key`: PEM file; None: the manifest is not signed. Raises SaveFailed, naming late ranks
    or untiled tensors, and Superseded when a newer attempt has claimed the store.
    """
    try:
        ranks = _wait_for_ranks(save, deadline_seconds, given_up)
        manifest = build_manifest(save.facts, ranks, lambda *piece: _read_piece(save, *piece))
        return _publish(save, manifest, signing_key, given_up)
    except (NotTiled, WrongPiece, ObjectMissing, OSError) as error:
        raise SaveFailed(f"step {save.name.step}: {error}") from error


def _read_piece(save: Save, name: str, offset: int, target: memoryview) -> None:
    save.store.read_into(save.key(name), offset, target)


def _wait_for_ranks(
    save: Save, deadline_seconds: float, given_up: Callable[[], str]
) -> list[tuple[RankEntry, RankManifest]]:
    """What each rank wrote, in rank order. Waits by listing: a network file system shows new names late."""
    give_up_at = time.monotonic() + deadline_seconds
    wanted = {rank_manifest_name(rank): rank for rank in range(save.facts.world)}
    poll_seconds = _FIRST_POLL_SECONDS
    while missing := wanted.keys() - set(save.store.children(save.shards)):
        _require_wanted(given_up)
        if time.monotonic() > give_up_at:
            late = ", ".join(str(rank) for rank in sorted(wanted[name] for name in missing))
            raise SaveFailed(f"step {save.name.step}: no shards from rank {late} within {deadline_seconds:g} s")
        time.sleep(poll_seconds)
        poll_seconds = min(1.5 * poll_seconds, _LONGEST_POLL_SECONDS)
    ranks = []
    for name, rank in wanted.items():
        data = save.store.get(save.key(name))
        ranks.append((RankEntry(name=name, digest=name_of(digest_of(data))), _checked_rank(save, rank, data)))
    return ranks


def _require_wanted(given_up: Callable[[], str]) -> None:
    if why := given_up():
        raise SaveFailed(why)


def _checked_rank(save: Save, rank: int, data: bytes) -> RankManifest:
    facts = save.facts
    try:
        manifest = RankManifest.model_validate_json(data)
    except ValidationError as error:
        raise SaveFailed(f"step {facts.step}: the manifest of rank {rank} is not readable: {error}") from error
    found = (manifest.run, manifest.step, manifest.fence, manifest.attempt, manifest.rank, manifest.world)
    if found != (facts.run, facts.step, facts.fence, facts.attempt, rank, facts.world):
        raise SaveFailed(f"step {facts.step}: the manifest of rank {rank} belongs to another save: {found}")
    for file in manifest.files:
        size = save.store.size(save.key(file.name))
        if size != file.bytes:
            raise SaveFailed(f"step {facts.step}: {file.name} has {size} bytes in the store, {file.bytes} were written")
    return manifest


def _publish(save: Save, manifest: Manifest, signing_key: Path | None, given_up: Callable[[], str]) -> Checkpoint:
    store, facts = save.store, save.facts
    _require_newest(save)
    data = canonical_bytes(manifest)
    root = name_of(digest_of(data))
    store.put(f"{save.name}/{MANIFEST}", [data])
    if signing_key is not None:
        store.put(f"{save.name}/{SIGNATURE}", [sign(data, signing_key)])
    store.settle(str(save.name))
    note = canonical_bytes(Commit(root=root, run=facts.run, step=facts.step, fence=facts.fence, attempt=facts.attempt))
    _require_wanted(given_up)
    if not store.put_new(f"{save.name}/{COMMIT}", note) and store.get(f"{save.name}/{COMMIT}") != note:
        raise SaveFailed(f"step {facts.step}: {save.name} is committed already, with other content")
    store.settle(str(save.name))
    try:
        _require_newest(save, root)
    except Superseded:
        # Taken over meanwhile. It does not count, and of what it speaks of some may have been swept up already.
        store.remove(f"{save.name}/{COMMIT}")
        raise
    return Checkpoint(step=facts.step, root=root, at=facts.created_at, logical=manifest.logical)


def _require_newest(save: Save, root: str | None = None) -> None:
    """Raises Superseded when a newer attempt has claimed the store, and has not found a commit of `root` there."""
    claim = newest_claim(save.store, save.facts.run)
    if claim is not None and claim.fence > save.facts.fence and root not in claim.committed:
        raise Superseded(
            f"step {save.facts.step}: fence {claim.fence} has taken over; fence {save.facts.fence} may not commit"
        )


def sign(manifest: bytes, signing_key: Path) -> bytes:
    """As `signing.sign_manifest`, whose library only those load who sign."""
    from capstan_runtime.checkpoint.signing import sign_manifest

    return sign_manifest(manifest, signing_key)
